"""Finds the images that a COCO file names, and compares their sizes with it."""

from __future__ import annotations

import collections
import concurrent.futures
import posixpath
import re
from collections.abc import Sequence

import PIL.Image

from litevit_jax.data import coco_file, decode, filetree, jitter, layout, objects
from litevit_jax.data.sources import base

_MOST_HEADERS = 5000  # images whose size is compared before a run; spread evenly
_THREADS = 8


def clean(name: str) -> str:
    """Returns a file's name with slashes, without what leads out of the folder."""
    parts = re.split(r"[/\\]+", name)
    return "/".join(part for part in parts if part not in ("", ".", ".."))


class Lookup:
    """Finds the images of a file: beside it, or in a folder of its split or of images.

    Args:
      tree: the folder of all.
      path: name of the file there.
      split: that it holds; '' for all images.
      images: name of the folder of images; None: the usual ones.
    """

    def __init__(self, tree: filetree.Tree, path: str, split: str, images: str | None):
        self._tree, self._path = tree, path
        own, inside = posixpath.dirname(path), "images"
        tops = [own, split, f"{inside}/{split}", layout.join(own, inside), inside, ""]
        images = images and images.strip("/")
        self._tops = [images] if images else list(dict.fromkeys(tops))
        try:
            names = [layout.join(images or "", x) for x in tree.walk(images or "")]
        except FileNotFoundError:  # no such folder: no image is there
            names = []
        self._known = set(names)
        self._by_end: dict[str, list[str]] = collections.defaultdict(list)
        for name in self._known:
            self._by_end[posixpath.basename(name)].append(name)

    def rows(
        self, file: coco_file.File
    ) -> tuple[list[tuple[str, objects.Objects]], list[str]]:
        """Returns (name in the tree, objects) of each image, and notes.

        Images that are missing are there, too: they count as unreadable.

        Raises:
          ValueError: none of the images is there.
        """
        rows, missing = [], []
        for image in file.images:
            name = self._name(image.name)
            if name is None:
                name = layout.join(self._tops[0], clean(image.name))
                missing.append(image.name)
            rows.append((name, image.objects))
        if len(missing) == len(rows):
            tops = ", ".join(self._tree.path_of(top) for top in self._tops)
            raise ValueError(
                f"{self._tree.path_of(self._path)}: none of its {len(rows)} images is "
                f"there, the first {base.first(missing, 1)}; looked in {tops}. Name "
                "the folder of images with --config.data.options.images=NAME"
            )
        counts = collections.Counter(name for name, _ in rows)
        twice = [name for name, count in counts.items() if count > 1]
        return rows, [
            *[f"missing images: {len(missing)} ({base.first(missing)})"]
            * bool(missing),
            *[f"images named twice: {len(twice)} ({base.first(twice)})"] * bool(twice),
        ]

    def _name(self, name: str) -> str | None:
        """Returns the name in the tree of the file that an entry names, or None."""
        name = clean(name)
        for top in self._tops:
            if (whole := layout.join(top, name)) in self._known:
                return whole
        # Some tools name the file where it was uploaded.
        same = self._by_end.get(posixpath.basename(name), [])
        return same[0] if len(same) == 1 else None


def bytes_of(tree: filetree.Tree, name: str) -> int:
    """Returns the size of a file in bytes; -1 if it is missing."""
    try:
        return tree.size(name)
    except (OSError, KeyError):
        return -1


def check_sizes(
    tree: filetree.Tree, rows: Sequence[tuple[str, objects.Objects]]
) -> None:
    """Compares the sizes of local images, up to 5,000 of them, with their objects'.

    The others are compared when they are read.

    Raises:
      base.AnnotationError: they differ.
    """
    if not isinstance(tree, filetree.LocalTree):
        return
    step = -(-len(rows) // _MOST_HEADERS) or 1

    def check(row: tuple[str, objects.Objects]) -> None:
        try:
            with PIL.Image.open(tree.path_of(row[0])) as opened:
                width, height = opened.size
                turned = decode.orientation(opened.info.get("exif")) > 4
        except Exception:  # whatever a format may raise; its reader says what is wrong
            return
        size = (width, height) if turned else (height, width)
        check_size(tree, row[0], row[1], size)

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(check, rows[::step]))


def check_size(
    tree: filetree.Tree, name: str, those: objects.Objects, size: objects.Size
) -> None:
    try:
        jitter.check_size(those.size, size)
    except base.AnnotationError as error:
        path = base.printable(tree.path_of(name))
        raise base.AnnotationError(
            f"{path} (image {those.image_id}): {error}"
        ) from None
