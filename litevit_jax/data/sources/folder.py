"""A folder of images: flat (no labels), or one subfolder per class.

    DIR/a.jpg                     unlabelled, all of it 'train'
    DIR/cat/a.jpg                 a class per subfolder, all of it 'train'
    DIR/train/... DIR/val/...     splits, each flat or in class folders

A subfolder that names a split (`train`, `Training`, `valid`, `test2017`, `seg_test`...,
see `split_names`) is never a class; what lies beside a training split is not used
unless a split names it. A split may also be any subfolder (`extra`, `a/train`, `./b`),
or '.' for the whole folder with a class per subfolder, whatever its name.

Without a split for testing, `holdout` keeps a share of the images as 'test'. 'test' and
'val' stand in for each other where only one of them exists. Hidden files are ignored,
links are followed, and what is no regular file is counted, not read. The order is that
of the sorted relative paths; classes that are all numbers are in the order of these.
"""

from __future__ import annotations

import itertools
import logging
import os
import posixpath
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from litevit_jax import paths
from litevit_jax.data import filetree, layout, split_names
from litevit_jax.data.listing import Listed, Listing
from litevit_jax.data.sources import base

_log = logging.getLogger(__name__)


class Folder(Listed):
    """Image files below `root`, with relative names and labels."""

    def __init__(
        self,
        tree: filetree.Tree,
        names: list[str],
        **about: Any,
    ):
        super().__init__(**about)
        self._tree = tree
        self._names = PackedNames(names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self._tree.read(self._names[index])
        return {"image": image, "label": int(self._labels[index])}

    def name_of(self, index: int) -> str:
        return self._names[index]

    def fingerprint(self) -> str:
        """Returns a digest of names, labels and file sizes; asks for every size."""
        sizes = np.zeros(len(self), np.int64)
        for index in range(len(self)):
            sizes[index] = self._tree.size(self._names[index])
        labels = self._labels.astype("<i4").tobytes()
        return base.digest([self._names.blob, labels, sizes.astype("<i8").tobytes()])


class PackedNames:
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
      split: 'train', 'test' (also 'val', 'validation'...), or a subfolder.
      dir: the folder.
      name: ignored.
      holdout: share of the images kept as 'test', chosen by a hash of the
        relative path, where the folder has no split for testing.

    Raises:
      FileNotFoundError, NotADirectoryError: `dir` is not a folder.
      ValueError: no image there, no such split, or an ambiguous layout.
    """
    del name
    base.check_holdout(holdout)
    root = open_root(dir, "configs/mae_tiny.py:data=folder")
    if "/" in split or split == ".":
        return _named_by_path(root, split)
    splits = layout.find(root)
    also = splits.unused if splits.kinds else root.folders("")
    chosen, part = split_names.resolve(
        split, splits.kinds, holdout=holdout, where=f"folder {root}", also=also
    )
    if part:
        return _make_part(root, splits, part, holdout)
    if not splits.kinds:
        return _named_by_path(root, f"./{chosen}")
    return _make_split(root, splits, str(chosen), holdout)


def _make_part(
    root: filetree.Tree, splits: layout.Layout, part: str, holdout: float
) -> Folder:
    """Makes part 'train' or 'test' of images that have no split to test on."""
    training = splits.training(root)
    top = layout.descend(root, training) if training else ""
    listing = Listing.read(root, top, splits, training)
    labels, classes = _labels_of(listing)
    if training:
        layout.check_split(root, splits, posixpath.basename(training), classes)
    keys = map(os.fsencode, listing.names)
    keep = base.part_of(keys, part, holdout, f"folder {root}")
    return Folder(
        root,
        list(itertools.compress(listing.names, keep)),
        labels=labels[keep],
        classes=classes,
        notes=listing.notes,
        other_splits=listing.other_splits,
    )


def open_root(dir: str | None, command: str) -> filetree.Tree:
    """Opens the folder `data.dir`; `command` is the config that a message shows.

    Raises:
      ValueError, FileNotFoundError, NotADirectoryError: `dir` is not a folder.
    """
    if not dir:
        raise ValueError(
            f"the data needs the folder of images: --config={command},path=DIR"
        )
    root = paths.path(dir)
    root = root.expanduser() if paths.is_local(root) else root
    base.check_exists(root, dir, "a folder")
    if not root.is_dir():
        raise NotADirectoryError(
            f"data.dir={dir!r} is a file; expected a folder of images (a .npz or .npy "
            "file is read by data.source=arrays; an archive must be unpacked first)"
        )
    return filetree.open_tree(root)


def _named_by_path(root: filetree.Tree, split: str) -> Folder:
    """Returns the images of any subfolder of `root`, or of `root` itself."""
    top, divisible = layout.locate(root, split)
    parent, name = posixpath.split(top)
    splits = layout.Layout(parent)
    if divisible:
        splits = layout.find(root, parent, strict=False)
        if name in [*splits.kinds, *splits.unused]:
            return _make_split(root, splits, name)
        top = layout.descend(root, top)
    listing = Listing.read(root, top, splits, None)
    labels, classes = _labels_of(listing, divisible=divisible)
    return Folder(
        root, listing.names, labels=labels, classes=classes, notes=listing.notes
    )


def _make_split(
    root: filetree.Tree, splits: layout.Layout, split: str, holdout: float = 0.0
) -> Folder:
    """Returns subfolder `split` of a folder, labelled as its training split."""
    folder = layout.join(splits.top, split)
    listing = Listing.read(root, layout.descend(root, folder), splits, folder)
    labels, classes = _labels_of(listing)
    if split in splits.kinds:
        layout.check_split(root, splits, split, classes)
    training = splits.training(root)
    if training is not None and training != folder:
        barred = splits.opposite(posixpath.basename(training))
        known = _class_folders(root, layout.descend(root, training), barred)
        labels = _renumber(listing, labels, classes, known, training)
        classes = known
    notes = [*listing.notes, *split_names.unused_holdout(splits.kinds, holdout)]
    return Folder(
        root,
        listing.names,
        labels=labels,
        classes=classes,
        notes=notes,
        other_splits=listing.other_splits,
    )


def _renumber(
    listing: Listing,
    labels: np.ndarray,
    classes: list[str],
    known: list[str],
    training: str,
) -> np.ndarray:
    """Renumbers labels of `classes` by the classes of the training split."""
    if not classes:
        return labels
    unknown = sorted(set(classes) - set(known))
    if unknown:
        path_of = listing.root.path_of
        raise ValueError(
            f"{path_of(listing.top)} has classes that {path_of(training)} has not: "
            f"{base.first(unknown, 10)} ({len(unknown)} of {len(classes)}); the "
            "class folders of the splits must have the same names"
        )
    return np.array([known.index(name) for name in classes], np.int32)[labels]


def _labels_of(
    listing: Listing, *, divisible: bool = True
) -> tuple[np.ndarray, list[str]]:
    """Returns labels int32 [N] and class names, from each name's folder below `top`.

    Raises:
      ValueError: some images are in class folders and some are not, or (if
        `divisible`) a class folder holds splits.
    """
    root, top, names = listing.root, listing.top, listing.names
    depth = top.count("/") + 1 if top else 0
    owners = [_part(name, depth) for name in names]
    loose = [name for name, owner in zip(names, owners, strict=True) if not owner]
    if len(loose) == len(names):
        return np.full(len(names), -1, np.int32), []
    if loose:
        inside = next(name for name, owner in zip(names, owners, strict=True) if owner)
        raise ValueError(
            f"{root.path_of(top)} holds images directly ({loose[0]!r}, {len(loose)} in "
            f"all) and in subfolders ({inside!r}): with labels or without? Move all of "
            "them into class folders, or the class folders elsewhere"
        )
    classes = in_order(set(owners))
    if divisible:
        inside = layout.subfolders(names, top)
        layout.check_classes(root, top, inside)
        folders = [layout.join(top, name) for name in classes]
        listing.notes.extend(
            _doubtful_classes({name: inside[name] for name in folders})
        )
    empty = sorted(set(root.folders(top)) - set(classes))
    if empty:
        named, folder = ", ".join(empty), root.path_of(top)
        _log.warning("folders of %s without images, ignored: %s", folder, named)
    number = {name: label for label, name in enumerate(classes)}
    return np.array([number[owner] for owner in owners], np.int32), classes


def _doubtful_classes(inner: dict[str, set[str]]) -> list[str]:
    """Returns a note if the folders below the class folders look like classes.

    Args:
      inner: class folder -> its subfolders that hold images; '' stands for itself.
    """
    below = sorted(next(iter(inner.values())))
    if len(below) < 2 or any(sorted(other) != below for other in inner.values()):
        return []
    return [
        f"each class folder holds the same subfolders ({base.first(below)}): if those "
        "are the classes, name one folder to read, as in --config.data.train_split="
        f"{sorted(inner)[0]}"
    ]


def _part(name: str, depth: int) -> str:
    """Returns folder number `depth` of a relative file name; '' if it is the file."""
    parts = name.split("/", depth + 1)
    return parts[depth] if len(parts) > depth + 1 else ""


def _class_folders(root: filetree.Tree, top: str, barred: Sequence[str]) -> list[str]:
    """Returns class folders of `top` with an image; no link may enter `barred`."""
    depth = top.count("/") + 1
    files = root.walk(top, barred=barred)
    images = (layout.join(top, name) for name in files if layout.is_image(name))
    return in_order({_part(name, depth) for name in images} - {""})


def in_order(classes: Iterable[str]) -> list[str]:
    """Sorts by name, or by number if all are numbers, as in ImageNet-V2."""
    names = sorted(classes)
    numbers = all(name.isdecimal() for name in names)
    return sorted(names, key=int) if numbers else names
