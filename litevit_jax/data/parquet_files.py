"""Images in Parquet files, as Hugging Face keeps data sets.

    DIR/data/train-00000-of-00002.parquet    rows of image (bytes) and label

A file whose path contains the name of a split as a word belongs to it, as of tar files.
The image is the column of bytes, or of records with bytes; the label is `label`,
`labels`, or the only column of classes, unless `data.name` names one. Numbers get the
names of classes that the files record.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from litevit_jax.data import filetree, labelled, layout, parquet_index, split_names
from litevit_jax.data import tar_files as files_by_split
from litevit_jax.data import tar_index as members
from litevit_jax.data.sources import base
from litevit_jax.data.sources.tar import Tar


class Rows(Tar):
    """Images of the rows of Parquet files.

    Args:
      files: which hold the images.
      places: [N, 3], number of the file, offset and size.
      rows_of: the Parquet files, in the order of `files`.
      about: see `Tar`.
    """

    def __init__(
        self, files: list[str], places: np.ndarray, *, rows_of: list[str], **about: Any
    ):
        super().__init__(files, places, **about)
        self._shown = [os.path.basename(file) for file in rows_of]

    @property
    def label_advice(self) -> str:
        return "name the column of labels with --config.data.name=COLUMN"


def are_below(root: filetree.Tree) -> bool:
    """Whether there are Parquet files of data below `root`, and no image."""
    parquet = False
    for name in root.walk(""):
        if layout.is_image(root, name):
            return False
        table = name.rpartition("/")[2].startswith("metadata.")
        parquet |= layout.extension(name) == "parquet" and not table
    return parquet


def make(root: str, split: str, *, label: str, holdout: float) -> base.Source:
    """One split of the Parquet files below `root`.

    Args:
      root: the folder.
      split: 'train', 'test' (also 'val', 'validation'...), or a subfolder.
      label: column of labels; '': see the module.
      holdout: share of the images kept as 'test', where there is no such split.

    Raises:
      ModuleNotFoundError: pyarrow is not installed.
      ValueError: a damaged file, no such split or column, or several that fit.
    """
    where = f"Parquet files {root}"
    listed = sorted(filetree.LocalTree(root).walk(""))
    files = [os.path.join(root, n) for n in listed if layout.extension(n) == "parquet"]
    groups, unused = files_by_split.groups(root, files)
    kinds = {s: split_names.read(s).kind or "other" for s in groups if s}
    below = files_by_split.below(split, root, files) if split not in kinds else []
    chosen, part = split, None
    if not below:
        chosen, part = split_names.resolve(split, kinds, holdout=holdout, where=where)
    group = below or groups[chosen]
    _check_one_folder(group)
    indices = [parquet_index.read(file, label) for file in group]
    others = [
        [parquet_index.read(file, label) for file in other]
        for name, other in groups.items()
        if name != chosen and other is not None
    ]
    classes = _classes([indices, *others], where)
    names = [name for index in indices for name in index.names]
    rows = [(n, *row) for n, index in enumerate(indices) for row in index.places]
    keep = base.part_of(_keys(group, indices), part, holdout, where)
    labels = [each for index in indices for each in index.labels]
    several = any(index.several for each in [indices, *others] for index in each)
    first = [each[0] if each and not several else "" for each in labels]
    about = {
        "classes": classes,
        "notes": [
            *_notes(root, group, unused, indices),
            *split_names.unused_holdout(kinds, holdout),
        ],
        "other_splits": [s for s in kinds if s != chosen],
    }
    source = Rows(
        [index.file for index in indices],
        np.array(rows, np.int64)[keep],
        rows_of=group,
        names=list(itertools.compress(names, keep)),
        labels=members.encode(first, classes)[keep],
        **about,
    )
    if not several:
        return source
    return labelled.Labelled(source, _hot(labels, classes)[keep], **about)


def _keys(
    files: Sequence[str], indices: Sequence[parquet_index.Index]
) -> Iterator[bytes]:
    """Yields the name of each image by which it is held out or not."""
    for file, index in zip(files, indices, strict=True):
        for name in index.names:
            yield os.fsencode(f"{os.path.basename(file)}:{name}")


def _hot(labels: list[list[str]], classes: list[str]) -> np.ndarray:
    """Encodes lists of labels as uint8 [N, K], 1 for each class of an image."""
    names = sorted({name for each in labels for name in each})
    number_of = dict(zip(names, members.encode(names, classes), strict=True))
    hot = np.zeros((len(labels), len(classes)), np.uint8)
    for row, each in zip(hot, labels, strict=True):
        row[[number_of[name] for name in each]] = 1
    return hot


def _check_one_folder(files: Sequence[str]) -> None:
    """Raises ValueError if the files of a split lie in several folders."""
    folders = sorted({os.path.dirname(file) for file in files})
    if len(folders) > 1:
        raise ValueError(
            f"{os.path.commonpath(folders)} holds Parquet files of one split in "
            f"several folders ({base.first(folders)}), which may be several data sets; "
            "read one: path=FOLDER"
        )


def _classes(splits: Sequence[Sequence[parquet_index.Index]], where: str) -> list[str]:
    """Returns the classes of all splits: recorded names, or those of their labels.

    Raises:
      ValueError: files record different names.
    """
    recorded = {tuple(index.classes) for split in splits for index in split}
    if len(recorded) > 1:
        shown = "; ".join(base.first(names) or "none" for names in sorted(recorded))
        raise ValueError(f"{where} record different classes: {shown}; read one set")
    [names] = recorded
    if names:
        return list(names)
    return members.classes(
        [
            [name for index in split for each in index.labels for name in each]
            for split in splits
        ],
        where,
    )


def _notes(
    root: str,
    group: Sequence[str],
    unused: Sequence[str],
    indices: Sequence[parquet_index.Index],
) -> list[str]:
    """Describes the files, their columns, and what was copied."""
    image, label = indices[0].columns
    notes = [
        f"from {len(group)} Parquet file{'s' * (len(group) > 1)} of {root}",
        f"images of column {image!r}"
        + (f", labels of column {label!r}" if label else ", no column of labels"),
    ]
    unread = base.first(indices[0].unread)
    notes += [f"columns not read: {unread}"] * bool(unread)
    notes += [f"not used: {base.first([os.path.basename(x) for x in unused])}"] * bool(
        unused
    )
    copies = [x for file, x in zip(group, indices, strict=True) if x.file != file]
    if copies:
        size = sum(index.size for index in copies) / 2**20
        folder = os.path.dirname(copies[0].file)
        notes.append(f"images of compressed files copied to {folder} ({size:,.1f} MiB)")
    return notes
