"""Finds the images that a COCO file names, and compares their sizes with it."""

from __future__ import annotations

import collections
import concurrent.futures
import posixpath
from collections.abc import Container, Sequence

import PIL.Image

from litevit_jax.data import (
    coco_file,
    decode,
    filetree,
    jitter,
    layout,
    objects,
    split_names,
)
from litevit_jax.data.sources import base

_MOST_HEADERS = 5000  # images whose size is compared before a run; spread evenly
_THREADS = 8


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
        self._kind = split_names.read(split).kind if split else None
        own, inside = posixpath.dirname(path), "images"
        named = split_names.of_objects(path)  # CVAT: images/default
        tops = [own, split, f"{inside}/{split}", layout.join(own, inside)]
        tops += [f"{inside}/{named}", inside, ""]
        images = images and images.strip("/")
        self._tops = [images] if images else list(dict.fromkeys(tops))
        try:
            names = [layout.join(images or "", x) for x in tree.walk(images or "")]
        except (FileNotFoundError, NotADirectoryError):  # no image is there
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
        if not file.images:
            raise ValueError(
                f"{self._tree.path_of(self._path)} lists no images; expected at least "
                "one"
            )
        rows, missing = [], []
        names = [self._whole(image.name) for image in file.images]
        taken = set(names)
        names = [
            name or self._elsewhere(image.name, taken)
            for image, name in zip(file.images, names, strict=True)
        ]
        claims = collections.Counter(name for name in names if name not in taken)
        for image, name in zip(file.images, names, strict=True):
            name = None if claims[name] > 1 else name
            if name is None:
                name = layout.join(self._tops[0], objects.clean_name(image.name))
                missing.append(image.name)
            rows.append((name, image.objects))
        if len(missing) == len(rows):
            paths = (self._tree.path_of(top).rstrip("/") for top in self._tops)
            tops = ", ".join(dict.fromkeys(paths))
            raise ValueError(
                f"{self._tree.path_of(self._path)}: none of its {len(rows)} images "
                f"exists (first: {base.printable(missing[0])}). Looked in {tops}. Name "
                "the folder of images with --config.data.options.images=NAME"
            )
        counts = collections.Counter(name for name, _ in rows)
        twice = [name for name, count in counts.items() if count > 1]
        return rows, [
            *[f"missing images: {len(missing)} ({base.first(missing)})"]
            * bool(missing),
            *[f"images named twice: {len(twice)} ({base.first(twice)})"] * bool(twice),
        ]

    def _whole(self, name: str) -> str | None:
        """Returns the name in the tree of the file that an entry names, or None."""
        names = (layout.join(top, objects.clean_name(name)) for top in self._tops)
        return next((name for name in names if name in self._known), None)

    def _elsewhere(self, name: str, taken: Container[str | None]) -> str | None:
        """Returns the only file with the last part of a name, or None.

        Some tools write where a file was uploaded. Files that other entries name, and
        those in folders of other splits, are other images.
        """
        same = self._by_end.get(posixpath.basename(objects.clean_name(name)), [])
        same = [x for x in same if x not in taken and not self._is_of_other_split(x)]
        return same[0] if len(same) == 1 else None

    def _is_of_other_split(self, name: str) -> bool:
        kinds = {split_names.read(part).kind for part in name.split("/")[:-1]}
        return self._kind is not None and bool(kinds - {None, self._kind})


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
