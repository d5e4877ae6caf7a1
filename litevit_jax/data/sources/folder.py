"""A folder of images: flat (no labels), or one subfolder per class.

    DIR/a.jpg                     unlabelled, all of it 'train'
    DIR/cat/a.jpg                 a class per subfolder, all of it 'train'
    DIR/train/... DIR/val/...     splits, each flat or in class folders

Without a split layout, `holdout` keeps a share of the images as 'test'; with one,
`holdout` is ignored. 'test', 'val' and 'validation' name the same thing: of those
that exist, the one asked for is read, else the first in that order. Hidden files
are ignored, links are followed. The order is that of the sorted relative paths;
classes that are all numbers are in the order of these.
"""

from __future__ import annotations

import collections
import itertools
import logging
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from litevit_jax import paths
from litevit_jax.data import filetree
from litevit_jax.data.sources import base

_log = logging.getLogger(__name__)

EXTENSIONS = frozenset(
    ["bmp", "gif", "jfif", "jpe", "jpeg", "jpg", "png", "tif", "tiff", "webp"]
)


class Folder(base.Source):
    """Image files below `root`: relative names, and a label for each."""

    def __init__(
        self,
        tree: filetree.Tree,
        names: list[str],
        *,
        labels: np.ndarray,
        classes: list[str],
    ):
        self._tree = tree
        self._names = _PackedNames(names)
        self._labels = labels
        self._classes = classes

    @property
    def classes(self) -> list[str]:
        return list(self._classes)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self._tree.read(self._names[index])
        return {"image": image, "label": int(self._labels[index])}

    def label_of(self, index: int) -> int:
        return int(self._labels[index])

    def name_of(self, index: int) -> str:
        return self._names[index]

    def fingerprint(self) -> str:
        """Digest of relative names, labels and file sizes; asks the size of each."""
        sizes = np.empty(len(self), np.int64)
        for index in range(len(self)):
            sizes[index] = self._tree.size(self._names[index])
        labels = self._labels.astype("<i4").tobytes()
        return base.digest([self._names.blob, labels, sizes.astype("<i8").tobytes()])


class _PackedNames:
    """A list of file names as one string: a few bytes each, quick to pickle."""

    def __init__(self, names: list[str]):
        encoded = [os.fsencode(name) for name in names]
        self.blob = b"\0".join(encoded)  # no file name holds a zero byte
        lengths = [len(name) + 1 for name in encoded]
        self._ends = np.cumsum(lengths, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self.blob[start : int(self._ends[index]) - 1])


def make(
    *,
    split: str,
    dir: str | None = None,
    name: str | None = None,
    holdout: float = 0.0,
) -> Folder:
    """One split of the images below `dir`; see the module for the layouts.

    Args:
      split: 'train', or 'test' (also 'val', 'validation').
      dir: the folder.
      name: ignored.
      holdout: share of the images kept as 'test', chosen by a hash of the
        relative path, where the folder has no split layout.

    Raises:
      FileNotFoundError, NotADirectoryError: `dir` is not a folder.
      ValueError: no image there, no such split, or an ambiguous layout.
    """
    del name
    root = filetree.open_tree(_check_dir(dir))
    layout = _split_layout(root)
    if layout:
        return _make_split(root, split, layout)
    split = base.check_holdout_split(split, holdout, f"folder {root}")
    top = "train" if _holds_only_train(root) else ""
    names = _walk_sorted(root, top)
    labels, classes = _labels_of(root, names, top)
    is_test = [base.in_holdout(os.fsencode(name), holdout) for name in names]
    keep = np.asarray(is_test) == (split == "test")
    if not keep.any():
        raise ValueError(
            f"data.holdout={holdout} of the {len(names)} images of {root} leaves no "
            f"image in split {split!r}; choose another share"
        )
    names = list(itertools.compress(names, keep))
    return Folder(root, names, labels=labels[keep], classes=classes)


def _check_dir(dir: str | None) -> Any:
    if not dir:
        raise ValueError(
            "source 'folder' needs the folder of images: "
            "--config=configs/mae_tiny.py:data=folder,path=DIR"
        )
    root = paths.path(dir)
    root = root.expanduser() if paths.is_local(root) else root
    if not root.exists():
        raise FileNotFoundError(f"data.dir={dir!r} does not exist; expected a folder")
    if not root.is_dir():
        raise NotADirectoryError(
            f"data.dir={dir!r} is a file; expected a folder of images (a .npz or .npy "
            "file is read by data.source=arrays; an archive must be unpacked first)"
        )
    return root


def _split_layout(root: filetree.Tree) -> list[str]:
    """Names of the split folders of `root`, or [] if they are not splits."""
    folders = root.folders("")
    splits = [name for name in ("train", *base.EVAL_SPLITS) if name in folders]
    if "train" not in splits or len(splits) < 2 or _images_in(root):
        return []
    others = (name for name in folders if name not in splits)
    return [] if any(_has_image(root, name) for name in others) else splits


def _holds_only_train(root: filetree.Tree) -> bool:
    """Whether `train` is all there is: a split without a test, not a class."""
    return root.folders("") == ["train"] and not _images_in(root)


def _make_split(root: filetree.Tree, split: str, layout: list[str]) -> Folder:
    """Split `split` of a folder with splits, with the classes of its train."""
    base.check_split(split, {*layout, *base.EVAL_SPLITS}, f"folder {root}")
    if split not in layout:
        split = next(name for name in base.EVAL_SPLITS if name in layout)
    names = _walk_sorted(root, split)
    labels, classes = _labels_of(root, names, split)
    if split == "train" or not classes:
        known = classes if split == "train" else _class_folders(root, "train")
        return Folder(root, names, labels=labels, classes=known)
    known = _class_folders(root, "train")
    unknown = sorted(set(classes) - set(known))
    if unknown:
        raise ValueError(
            f"{root.place(split)} has classes that {root.place('train')} has not: "
            f"{', '.join(unknown[:10])} ({len(unknown)} of {len(classes)}); the "
            "class folders of the splits must have the same names"
        )
    renumber = np.array([known.index(name) for name in classes], np.int32)
    return Folder(root, names, labels=renumber[labels], classes=known)


def _labels_of(
    root: filetree.Tree, names: list[str], top: str
) -> tuple[np.ndarray, list[str]]:
    """Labels int32 [N] and class names, from the folder of each name below `top`.

    Raises:
      ValueError: some images are in class folders and some are not.
    """
    owners = [_class_of(name, depth=1 if top else 0) for name in names]
    loose = [name for name, owner in zip(names, owners, strict=True) if not owner]
    if len(loose) == len(names):
        return np.full(len(names), -1, np.int32), []
    if loose:
        inside = next(name for name, owner in zip(names, owners, strict=True) if owner)
        raise ValueError(
            f"{root.place(top)} holds images directly ({loose[0]!r}, {len(loose)} in "
            f"all) and in subfolders ({inside!r}): with labels or without? Move all of "
            "them into class folders, or the class folders elsewhere"
        )
    classes = _in_order(set(owners))
    empty = sorted(set(root.folders(top)) - set(classes))
    if empty:
        named, place = ", ".join(empty), root.place(top)
        _log.warning("folders of %s without images, ignored: %s", place, named)
    number = {name: label for label, name in enumerate(classes)}
    return np.array([number[owner] for owner in owners], np.int32), classes


def _class_of(name: str, depth: int) -> str:
    """Component `depth` of a relative file name; '' if that is the file itself."""
    parts = name.split("/", depth + 1)
    return parts[depth] if len(parts) > depth + 1 else ""


def _class_folders(root: filetree.Tree, top: str) -> list[str]:
    """Class folders of `top` that hold an image."""
    below = root.folders(top)
    return _in_order(name for name in below if _has_image(root, f"{top}/{name}"))


def _in_order(classes: Iterable[str]) -> list[str]:
    """By name; by number if all are numbers, as in ImageNet-V2 (2 before 10)."""
    names = sorted(classes)
    numbers = all(name.isdecimal() for name in names)
    return sorted(names, key=int) if numbers else names


def _images_in(root: filetree.Tree) -> bool:
    return any(_is_image(name) for name in root.files(""))


def _has_image(root: filetree.Tree, top: str) -> bool:
    return any(_is_image(name) for name in root.walk(top))


def _is_image(name: str) -> bool:
    return _extension(name) in EXTENSIONS


def _extension(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[2].lower()


def _walk_sorted(root: filetree.Tree, top: str) -> list[str]:
    """Names, relative to `root`, of the images below its folder `top`.

    Raises:
      ValueError: there is none; the message counts what there is instead.
    """
    prefix = f"{top}/" if top else ""
    names, others = [], collections.Counter()
    for name in root.walk(top):
        if _is_image(name):
            names.append(prefix + name)
        else:
            others[_extension(name)] += 1
    if not names:
        raise ValueError(_no_images(root.place(top), others))
    return sorted(names)


def _no_images(top: str, others: Iterable[str]) -> str:
    counts = collections.Counter(others).most_common(5)
    found = ", ".join(f"{count} .{extension}" for extension, count in counts)
    return (
        f"no image below {top}; found {found or 'no file at all'}, expected one of "
        + ", ".join(f".{extension}" for extension in sorted(EXTENSIONS))
    )
