"""Labels of a table for the images of a source: which image has which.

A table with splits divides the images itself; else they are divided as without it.
Images stay in the order of the source, and the classes are those of the images to
train on, in the order of their names.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from litevit_jax import choices
from litevit_jax.data import split_names, tables, wrapped
from litevit_jax.data.listing import in_order
from litevit_jax.data.sources import base

UNLISTED = ("refuse", "leave_out")  # values of data.unlisted
_SKIPPED = "which is hidden, or behind a link that is not followed; expected an image"
_SEVERAL = -2  # in place of an image's number: its name is that of several


@dataclasses.dataclass(frozen=True)
class Images:
    """The images of a source, by the names that a table may give them.

    Attributes:
      where: what holds them, for messages.
      names: of each, as a table names it.
      explain: name -> why it is none of them, with what is expected, or ''.
      aliases: further names -> number of the image.
    """

    where: str
    names: Sequence[str]
    explain: Callable[[str], str]
    aliases: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def index(self, *, stems: bool) -> dict[str, int]:
        """Returns name -> number; `stems`: without folders and extension."""
        index = dict(self.aliases)
        for number, name in enumerate(self.names):
            key = _stem(name) if stems else name
            index[key] = _SEVERAL if key in index else number
        return index


@dataclasses.dataclass(frozen=True)
class Match:
    """The row of each image in a table, int64 `[N]`, -1 without one."""

    table: tables.Table
    images: Images
    rows: np.ndarray


@dataclasses.dataclass(frozen=True)
class Part:
    """The images of one split, before they have labels.

    Attributes:
      images: int64 [N], their numbers in the order of the source.
      training: numbers of the images that have the classes; None: `images`.
      classes: those of the training images, if these are in no table.
      part: 'train' or 'test' of them by `holdout`, None: all.
      notes, other_splits: see `base.Source`.
    """

    images: np.ndarray
    training: np.ndarray | None = None
    classes: Sequence[str] = ()
    part: str | None = None
    notes: Sequence[str] = ()
    other_splits: Sequence[str] = ()


class Labelled(wrapped.Wrapped):
    """The examples of `source`, with labels of `classes` in place of its.

    Labels are int32 `[N]`; or uint8 `[N, K]` if images may have several.

    Attributes:
      notes, other_splits: see `base.Source`.
    """

    def __init__(
        self,
        source: base.Source,
        labels: np.ndarray,
        *,
        classes: Sequence[str],
        notes: Sequence[str],
        other_splits: Sequence[str],
    ):
        super().__init__(source)
        self.multi_label = labels.ndim == 2
        self._labels = labels
        self._classes = list(classes)
        self.notes = notes
        self.other_splits = other_splits

    @property
    def classes(self) -> list[str]:
        return list(self._classes)

    @property
    def label_advice(self) -> str:
        return "fill the column label of data.labels"

    @property
    def channels(self) -> int | None:
        return self._source.channels

    @property
    def labelled(self) -> bool:
        return bool((self._labels >= 1 - self.multi_label).any())

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = {**self._source[index], "label": self.label_of(index)}
        return example | ({"labels": self._labels[index]} if self.multi_label else {})

    def label_of(self, index: int) -> int:
        return -1 if self.multi_label else int(self._labels[index])

    def labels_of(self, index: int) -> np.ndarray:
        return self._labels[index] if self.multi_label else super().labels_of(index)

    def fingerprint(self) -> str:
        kind = "u1" if self.multi_label else "<i4"
        labels = self._labels.astype(kind).tobytes()
        names = (name.encode() for name in self._classes)
        return base.digest([self._source.fingerprint().encode(), labels, *names])


def make(
    match: Match,
    part: Part,
    source: Callable[[np.ndarray], base.Source],
    *,
    holdout: float,
    unlisted: str,
) -> Labelled:
    """Returns the images of a split with the labels of a table.

    Args:
      match: which image has which row.
      part: the images of the split.
      source: numbers of images -> the examples, without labels.
      holdout: share kept as 'test' where there is no split to test on.
      unlisted: what becomes of images without a row, one of `UNLISTED`.

    Raises:
      ValueError: an image without a row, or a class that the images to train on have
        not.
    """
    choices.check("data.unlisted", unlisted, list(UNLISTED))
    notes = _check_listed(match, part, unlisted)
    images = part.images[match.rows[part.images] >= 0]
    training = images if part.training is None else part.training
    classes = part.classes or _classes(match, training)
    labels = _encode(match.table, match.rows[images], classes)
    names, where = match.images.names, match.images.where
    keys = (os.fsencode(names[number]) for number in images)
    keep = base.part_of(keys, part.part, holdout, where)
    table = match.table
    if table.several:
        mean = labels.sum() / len(labels)
        notes.append(f"several labels an image, {mean:.2g} on average")
    unread = [f"columns not read: {base.first(table.unread)}"] * bool(table.unread)
    return Labelled(
        source(images[keep]),
        labels[keep],
        classes=classes,
        notes=[f"labels from {table.file}", *part.notes, *notes, *unread],
        other_splits=part.other_splits,
    )


def match(table: tables.Table, images: Images) -> Match:
    """Finds the row of each image in a table.

    Raises:
      ValueError: a row names no image, or one that another row names; all such rows
        are counted, and the first listed.
    """
    index = images.index(stems=table.stems)
    row_of = np.full(len(images.names), -1, np.int64)
    wrong, lost = [], []
    for number, row in enumerate(table.rows):
        path = row.path if table.stems else posixpath.normpath(row.path)
        image = index.get(path, -1)
        if image >= 0 and row_of[image] < 0:
            row_of[image] = number
        elif image >= 0:
            wrong.append((row.number, _twice(row, table.rows[row_of[image]])))
        elif image == _SEVERAL:
            several = "the name of several images; expected a name of one"
            wrong.append((row.number, f"got {row.path!r}, {several}"))
        elif posixpath.isabs(path) or path.split("/")[0] == "..":
            outside = f"outside of {images.where}; expected a path relative to it"
            wrong.append((row.number, f"got {row.path!r}, {outside}"))
        else:
            lost.append(number)
    if lost:
        hints = _Hints(images.names)
        for number in lost:
            row = table.rows[number]
            why = images.explain(posixpath.normpath(row.path)) or _SKIPPED
            wrong.append((row.number, f"got {row.path!r}, {why}{hints(row.path)}"))
    if wrong:
        raise table.error(sorted(wrong))
    return Match(table, images, row_of)


def _twice(row: tables.Row, first: tables.Row) -> str:
    """Says that two rows name the same image."""
    if row.split != first.split:
        return (
            f"got {row.path!r} in split {row.split!r}, and in {first.split!r} by row "
            f"{first.number}: the same image in both; expected it in one"
        )
    return f"got {row.path!r}, the image of row {first.number}; expected it once"


class _Hints:
    """Looks for images that are called like a path, whatever folder they are in."""

    def __init__(self, names: Iterable[str]):
        self._named = collections.defaultdict(list)
        for name in names:
            self._named[_stem(name).casefold()].append(name)

    def __call__(self, path: str) -> str:
        near = self._named.get(_stem(path.replace("\\", "/")).casefold(), [])
        return f" (did you mean {' or '.join(near[:3])}?)" if near else ""


def _stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]


def divide(match: Match, split: str, holdout: float) -> Part:
    """Returns the images of a split by the table's column `split`, in any case.

    Raises:
      ValueError: no such split.
    """
    table = match.table
    names = {row.split.casefold(): row.split for row in reversed(table.rows)}
    kinds = {name: split_names.read(name).kind or "other" for name in names.values()}
    where = f"labels {table.file}"
    chosen, part = split_names.resolve(split, kinds, holdout=holdout, where=where)
    listed = np.flatnonzero(match.rows >= 0)
    owners = np.array([table.rows[n].split.casefold() for n in match.rows[listed]])
    training = [name.casefold() for name, kind in kinds.items() if kind == "train"]
    own = owners == str(chosen).casefold()
    return Part(
        listed[own],
        training=listed[np.isin(owners, training)] if training else None,
        part=part,
        notes=split_names.unused_holdout(kinds, holdout),
        other_splits=[name for name in kinds if name != chosen],
    )


def _check_listed(match: Match, part: Part, unlisted: str) -> list[str]:
    """Returns a note on images without a row, which are left out.

    Of a table with splits these are images of any folder.

    Raises:
      ValueError: there are some, and they are to be refused; or no image has a row.
    """
    table, images = match.table, match.images
    looked_at = np.arange(len(images.names)) if table.divided else part.images
    lacking = looked_at[match.rows[looked_at] < 0]
    if not len(lacking):
        return []
    names = base.first([images.names[number] for number in lacking[:6]])
    if unlisted == "refuse" or len(lacking) == len(looked_at):
        advice = ", or leave these images out with --config.data.unlisted=leave_out"
        raise ValueError(
            f"{table.file} has no row for {len(lacking):,} of {len(looked_at):,} "
            f"images of {images.where}: {names}; add rows for them (an empty label is "
            f"none){advice * (len(lacking) < len(looked_at))}"
        )
    return [f"left out, without a row: {len(lacking):,} images ({names})"]


def _classes(match: Match, training: np.ndarray) -> list[str]:
    """Returns the classes of the images to train on that have a row."""
    numbers = match.rows[training]
    rows = (match.table.rows[number] for number in numbers[numbers >= 0])
    return in_order({label for row in rows for label in row.labels})


def all_classes(match: Match) -> list[str]:
    """Returns the classes of all images that have a row."""
    return _classes(match, np.arange(len(match.rows)))


def _encode(
    table: tables.Table, rows: np.ndarray, classes: Sequence[str]
) -> np.ndarray:
    """Returns the labels of rows as int32 `[N]`, -1 for none.

    If the table has rows with several labels, they are uint8 `[N, K]`.

    Raises:
      ValueError: a class that the images to train on have not.
    """
    number_of = {name: number for number, name in enumerate(classes)}
    labels, wrong = np.full(len(rows), -1, np.int32), []
    several = table.several  # which looks at every row
    if several:
        labels = np.zeros((len(rows), len(classes)), np.uint8)
    for position, number in enumerate(rows):
        row = table.rows[number]
        unknown = [label for label in row.labels if label not in number_of]
        if unknown:
            hint = choices.hint(unknown[0], classes)
            wrong.append(
                (row.number, f"got class {unknown[0]!r}, which the images to train on "
                 f"have not; {hint}expected one of {base.first(classes, 10)}")
            )  # fmt: skip
        elif several:
            labels[position, [number_of[label] for label in row.labels]] = 1
        elif row.labels:
            labels[position] = number_of[row.labels[0]]
    if wrong:
        raise table.error(sorted(wrong))
    return labels
