"""A folder of images: flat (no labels), or one subfolder per class.

    DIR/a.jpg                     unlabelled, all of it 'train'
    DIR/cat/a.jpg                 a class per subfolder, all of it 'train'
    DIR/train/... DIR/val/...     splits, each flat or in class folders
    DIR/train/metadata.jsonl      (or .csv, .parquet) labels of the images beside it
    DIR/data/train-*.parquet      rows with images and labels, see `parquet_files`

A subfolder that names a split (`train`, `Training`, `valid`, `test2017`, `seg_test`...,
see `split_names`) is never a class; what lies beside a training split is not used
unless a split names it. A split may also be any subfolder (`extra`, `a/train`, `./b`),
or '.' for the whole folder with a class per subfolder, whatever its name.

A table of labels (`labels`, or metadata.jsonl with a column `label`) takes the place of
the class folders, and with a column of splits that of the splits, too: see `tables` and
`labelled`. If one folder alone holds images, and class folders in it, those are meant.

Without a split for testing, `holdout` keeps a share of the images as 'test'. 'test' and
'val' stand in for each other where only one of them exists. Hidden files are ignored,
links are followed, and what is no regular file is counted, not read. The order is that
of the sorted relative paths; classes that are all numbers are in the order of these.
"""

from __future__ import annotations

import itertools
import os
import posixpath
from collections.abc import Sequence
from typing import Any

import numpy as np

from litevit_jax import paths
from litevit_jax.data import (
    class_folders,
    filetree,
    labelled,
    layout,
    parquet_files,
    tables,
)
from litevit_jax.data.chosen import Chosen, choose
from litevit_jax.data.listing import METADATA, Listed, Listing
from litevit_jax.data.sources import base


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
      name: column of labels in Parquet files, else ignored.
      holdout: share of the images kept as 'test', chosen by a hash of the
        relative path, where the folder has no split for testing.
      labels: a table of labels, see `tables`; None: class folders are the labels.
      unlisted: what becomes of images without a row there, see `labelled`.

    Raises:
      FileNotFoundError, NotADirectoryError: `dir` is not a folder, or no such table.
      ValueError: no image there, no such split, an ambiguous layout, or a wrong row.
    """
    base.check_holdout(holdout)
    table = tables.read(labels) if labels else None
    root = open_root(dir, "configs/mae_tiny.py:data=folder")
    if parquet_files.are_below(root):
        return _by_rows(root, split, labels=labels, column=name or "", holdout=holdout)
    top, notes = "", []
    if table is None:
        table, notes = _metadata(root, top)
    chosen = None if table and table.divided else choose(root, split, holdout)
    if chosen and not table and chosen.listing.top:
        top = chosen.listing.top
        table, more = _metadata(root, top)
        notes += more
    if table is None:
        assert chosen is not None
        source = _by_folders(root, chosen, holdout)
        source.notes = [*source.notes, *notes]
        return source
    how = {"split": split, "holdout": holdout, "unlisted": unlisted}
    return _by_table(root, table, top, chosen, **how)


def _metadata(root: filetree.Tree, top: str) -> tuple[tables.Table | None, list[str]]:
    """Returns the table of labels called metadata in a folder, and notes on another.

    Raises:
      ValueError: there are several, or a row is wrong.
    """
    files = [name for name in root.files(top) if name in METADATA]
    if len(files) > 1:
        raise ValueError(
            f"{root.path_of(top)} holds {' and '.join(sorted(files))}; which one has "
            "the labels? Keep one of them, or name it: data.labels=FILE"
        )
    if not files:
        return None, []
    name = layout.join(top, files[0])
    table = tables.parse(root.path_of(name), root.read(name), optional=True)
    note = f"{files[0]} is not read: it has no columns file_name and label"
    return table, [note] * (table is None)


def _by_rows(
    root: filetree.Tree, split: str, *, labels: str | None, column: str, holdout: float
) -> base.Source:
    """Reads the Parquet files of a folder.

    Raises:
      ValueError: they are in a store, or a table of labels is given as well.
    """
    if labels:
        raise ValueError(
            f"data.labels={labels}: the images of {root} are rows of Parquet files, "
            "which have their labels beside them; leave it out (another column: "
            "--config.data.name=COLUMN)"
        )
    if not paths.is_local(str(root)):
        raise ValueError(
            f"data.dir={root}: Parquet files are read from a local folder; copy them "
            "to each host or mount the bucket (gcsfuse)"
        )
    return parquet_files.make(str(root), split, label=column, holdout=holdout)


def _by_folders(root: filetree.Tree, chosen: Chosen, holdout: float) -> Folder:
    """Labels the images of a split by their class folders."""
    listing, splits = chosen.listing, chosen.splits
    known = _training_classes(root, chosen) if chosen.training else []
    labels, classes = class_folders.labels_of(
        listing, known, divisible=chosen.divisible
    )
    name = posixpath.basename(chosen.folder or "")
    if name in splits.kinds:
        layout.check_split(root, splits, name, classes)
    if chosen.training:
        training = chosen.training
        labels = class_folders.renumber(listing, labels, classes, known, training)
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
    return class_folders.training_classes(root, layout.descend(root, training), barred)


def _by_table(
    root: filetree.Tree,
    table: tables.Table,
    top: str,
    chosen: Chosen | None,
    *,
    split: str,
    holdout: float,
    unlisted: str,
) -> base.Source:
    """Labels the images of a split by a table, whose paths are relative to `top`.

    A split without any row keeps the labels of its class folders, as the training split
    of ImageNet, of which the validation images alone have a table.
    """
    match, full = _match(root, table, top, chosen)
    if chosen is None:
        part = labelled.divide(match, split, holdout)
    else:
        part = _images_of(root, chosen, match, full)
        if (match.rows[part.images] < 0).all():
            source = _by_folders(root, chosen, holdout)
            if source.labelled:
                note = f"labels from class folders, as {table.file} has none of them"
                source.notes = [*source.notes, note]
                return source

    def read(numbers: np.ndarray) -> Folder:
        labels = np.full(len(numbers), -1, np.int32)
        return Folder(root, [full[n] for n in numbers], labels=labels, classes=[])

    return labelled.make(match, part, read, holdout=holdout, unlisted=unlisted)


def _match(
    root: filetree.Tree, table: tables.Table, top: str, chosen: Chosen | None
) -> tuple[labelled.Match, list[str]]:
    """Matches a table with all images below `top`; returns their full names, too."""
    names = Listing.read(root, top, layout.Layout(), None).names
    if chosen is not None:  # through a link they may have other names
        names = list(dict.fromkeys([*names, *chosen.listing.names]))
    start = len(layout.join(top, ""))
    images = labelled.Images(
        f"folder {root.path_of(top)}",
        [name[start:] for name in names],
        lambda path: layout.why_no_image(root, layout.join(top, path)),
    )
    return labelled.match(table, images), names


def _images_of(
    root: filetree.Tree, chosen: Chosen, match: labelled.Match, names: Sequence[str]
) -> labelled.Part:
    """Returns the images of a split by their numbers among all `names`.

    The classes are those of the training split: of its rows, of a table of its own, or
    of its class folders.
    """
    number_of = {name: number for number, name in enumerate(names)}
    training, classes = None, []
    if chosen.training is not None:
        top = layout.descend(root, chosen.training)
        start = layout.join(top, "")
        below = [n for name, n in number_of.items() if name.startswith(start)]
        training = np.array(below, np.int64)
        if (match.rows[training] < 0).all():
            own, _ = _metadata(root, top)
            classes = (
                _training_classes(root, chosen)
                if own is None
                else labelled.all_classes(_match(root, own, top, None)[0])
            )
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
