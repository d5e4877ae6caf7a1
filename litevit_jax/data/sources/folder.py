"""A folder of images: flat (no labels), or one subfolder per class.

    DIR/a.jpg                     unlabelled, all of it 'train'
    DIR/cat/a.jpg                 a class per subfolder, all of it 'train'
    DIR/train/... DIR/val/...     splits, each flat or in class folders

A subfolder that names a split (`train`, `Training`, `valid`, `test2017`, `seg_test`...,
see `split_names`) is never a class; what lies beside a training split is not used
unless a split names it. A split may also be any subfolder (`extra`, `a/train`, `./b`),
or '.' for the whole folder with a class per subfolder, whatever its name.

A table of labels may take the place of the class folders, and with a column of splits
that of the splits, too: see `tables` and `labelled`.

Without a split for testing, `holdout` keeps a share of the images as 'test'. 'test' and
'val' stand in for each other where only one of them exists. Hidden files are ignored,
links are followed, and what is no regular file is counted, not read. The order is that
of the sorted relative paths; classes that are all numbers are in the order of these.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import posixpath
from collections.abc import Sequence
from typing import Any

import numpy as np

from litevit_jax import paths
from litevit_jax.data import filetree, labelled, layout, tables
from litevit_jax.data.chosen import Chosen, choose
from litevit_jax.data.listing import Listed, Listing, in_order
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
    labels: str | None = None,
    unlisted: str = "refuse",
) -> base.Source:
    """One split of the images below `dir`; see the module for the layouts.

    Args:
      split: 'train', 'test' (also 'val', 'validation'...), or a subfolder.
      dir: the folder.
      name: ignored.
      holdout: share of the images kept as 'test', chosen by a hash of the
        relative path, where the folder has no split for testing.
      labels: a table of labels, see `tables`; None: class folders are the labels.
      unlisted: what becomes of images without a row there, see `labelled`.

    Raises:
      FileNotFoundError, NotADirectoryError: `dir` is not a folder, or no such table.
      ValueError: no image there, no such split, an ambiguous layout, or a wrong row.
    """
    del name
    base.check_holdout(holdout)
    table = tables.read(labels) if labels else None
    root = open_root(dir, "configs/mae_tiny.py:data=folder")
    if table is not None:
        return _by_table(root, table, split, holdout=holdout, unlisted=unlisted)
    return _by_folders(root, choose(root, split, holdout), holdout)


def _by_folders(root: filetree.Tree, chosen: Chosen, holdout: float) -> Folder:
    """Labels the images of a split by their class folders."""
    listing, splits = chosen.listing, chosen.splits
    labels, classes = _labels_of(listing, divisible=chosen.divisible)
    name = posixpath.basename(chosen.folder or "")
    if name in splits.kinds:
        layout.check_split(root, splits, name, classes)
    if chosen.training is not None:
        known = _training_classes(root, chosen)
        labels = _renumber(listing, labels, classes, known, chosen.training)
        classes = known
    keys = map(os.fsencode, listing.names)
    keep = base.part_of(keys, chosen.part, holdout, f"folder {root}")
    return Folder(
        root,
        list(itertools.compress(listing.names, keep)),
        labels=labels[keep],
        classes=classes,
        notes=[*listing.notes, *chosen.notes],
        other_splits=chosen.other_splits,
    )


def _training_classes(root: filetree.Tree, chosen: Chosen) -> list[str]:
    """Returns the class folders of the training split."""
    training = str(chosen.training)
    barred = chosen.splits.opposite(posixpath.basename(training))
    return _class_folders(root, layout.descend(root, training), barred)


def _by_table(
    root: filetree.Tree,
    table: tables.Table,
    split: str,
    *,
    holdout: float,
    unlisted: str,
) -> base.Source:
    """Labels the images of a split by a table.

    A split without any row keeps the labels of its class folders, as the training split
    of ImageNet, of which the validation images alone have a table.
    """
    names = Listing.read(root, "", layout.Layout(), None).names
    chosen = None if table.divided else choose(root, split, holdout)
    if chosen is not None:  # through a link they may have other names
        names = list(dict.fromkeys([*names, *chosen.listing.names]))
    explain = functools.partial(layout.why_no_image, root)
    images = labelled.Images(f"folder {root}", names, explain)
    match = labelled.match(table, images)
    if chosen is None:
        part = labelled.divide(match, split, holdout)
    else:
        part = _images_of(root, chosen, match)
        if (match.rows[part.images] < 0).all():
            source = _by_folders(root, chosen, holdout)
            if source.classes:
                note = f"labels from class folders, as {table.file} has none of them"
                source.notes = [*source.notes, note]
                return source

    def read(numbers: np.ndarray) -> Folder:
        labels = np.full(len(numbers), -1, np.int32)
        return Folder(root, [names[n] for n in numbers], labels=labels, classes=[])

    return labelled.make(match, part, read, holdout=holdout, unlisted=unlisted)


def _images_of(
    root: filetree.Tree, chosen: Chosen, match: labelled.Match
) -> labelled.Part:
    """Returns the images of a split by their numbers among all of the folder."""
    number_of = {name: number for number, name in enumerate(match.images.names)}
    training, classes = None, []
    if chosen.training is not None:
        top = layout.join(layout.descend(root, chosen.training), "")
        below = [n for name, n in number_of.items() if name.startswith(top)]
        training = np.array(below, np.int64)
        if (match.rows[training] < 0).all():
            classes = _training_classes(root, chosen)
    return labelled.Part(
        np.array([number_of[name] for name in chosen.listing.names], np.int64),
        training=training,
        classes=classes,
        part=chosen.part,
        notes=[*chosen.listing.notes, *chosen.notes],
        other_splits=chosen.other_splits,
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
