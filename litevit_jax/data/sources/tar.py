"""Tar files of images, as WebDataset writes them, read in any order.

    KEY.jpg (or .png, .webp ...)   the image; KEY may contain folders, but no dot;
                                   beside it KEY.mask.png is not read
    KEY.npy, KEY.dcm               the image, in a tar file without pictures
    KEY.cls, KEY.target.cls        its label: a number (-1: none), or a class's name
    KEY.json                       or this one's `label` or `cls` (data.name: another
                                   key, `a.b` for one inside another)
    KEY.txt                        or the name of a class; captions are no labels

`dir` is a folder of .tar files, or a pattern such as /data/train-*.tar. A file whose
path contains the name of a split as a word (`split_names`) belongs to that split; if
none does, all are 'train', and `holdout` keeps a share, by name, as 'test'. A split may
also be a subfolder.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from litevit_jax.data import labelled, split_names, tables, tar_files, tar_index
from litevit_jax.data.layout import ALONE, EXTENSIONS, expected
from litevit_jax.data.listing import Listed
from litevit_jax.data.sources import base


class Tar(Listed):
    """Images at known offsets of tar files."""

    def __init__(
        self,
        files: list[str],
        places: np.ndarray,
        *,
        names: list[str],
        **about: Any,
    ):
        super().__init__(**about)
        self._files = files
        self._shown = [os.path.basename(file) for file in files]
        self._places = places  # [N, 3]: number of the file, offset, size
        self._names = names

    @property
    def label_advice(self) -> str:
        return (
            "give each image KEY.jpg a label beside it in the tar: KEY.cls or KEY.txt "
            "with a number or the name of a class, or KEY.json with the key 'label' "
            "(another key: --config.data.name=KEY)"
        )

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, offset, size = (int(x) for x in self._places[index])
        with open(self._files[number], "rb", buffering=0) as file:
            image = os.pread(file.fileno(), size, offset)
        if len(image) != size:
            raise OSError(f"{len(image)} of {size} bytes: the file was cut short")
        return {"image": image, "label": int(self._labels[index])}

    def name_of(self, index: int) -> str:
        file = self._shown[int(self._places[index][0])]
        return f"{file}:{self._names[index]}"

    def fingerprint(self) -> str:
        """Returns a digest of the tar files' names, members, offsets and labels."""
        files = "\0".join(self._shown)
        names = "\0".join(self._names)
        parts = [os.fsencode(files), os.fsencode(names)]
        parts += [self._places.astype("<i8").tobytes()]
        return base.digest([*parts, self._labels.astype("<i4").tobytes()])


def make(
    *,
    split: str,
    dir: str | None = None,
    name: str | None = None,
    holdout: float = 0.0,
    labels: str | None = None,
    unlisted: str = "refuse",
) -> base.Source:
    """One split of the tar files of `dir`, a folder or a pattern.

    Args:
      split: 'train', 'test' (also 'val', 'validation'...), or a subfolder.
      dir: see the module.
      name: key of the label in .json members; None or '' means `label` or `cls`.
      holdout: share of the images kept as 'test', where no tar is one.
      labels: a table of labels, see `tables`, whose paths are names of members, or
        FILE.tar:MEMBER; None: members beside the images are the labels.
      unlisted: what becomes of images without a row there, see `labelled`.

    Raises:
      FileNotFoundError: no tar file there.
      ValueError: a tar is damaged or compressed, holds no image or only some labels,
        or there is no such split.
    """
    table = tables.read(labels) if labels else None
    root, files, skipped = tar_files.find(dir)
    indices = {file: tar_index.read(file, name or "") for file in files}
    if table is not None and table.divided:
        chosen = _Chosen(files, notes=skipped)
    else:
        chosen = _choose(root, files, split, holdout=holdout, where=str(dir))
        chosen.notes.extend(skipped)
    if table is None:
        return _by_members(indices, name or "", chosen, holdout=holdout, where=str(dir))
    images, places = _everything(indices, f"tar files {dir}")
    match = labelled.match(table, images)
    part = labelled.divide(match, split, holdout) if table.divided else None
    return labelled.make(
        match,
        part or _part(files, chosen, places),
        lambda numbers: _unlabelled(files, places[numbers], images.names, numbers),
        holdout=holdout,
        unlisted=unlisted,
    )


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """The tar files of a split.

    Attributes:
      files: of it.
      others: those of each other split.
      training: those to train on; [] if there are none by name.
      part: 'train' or 'test' of the images by the holdout; None: all.
      notes, other_splits: see `base.Source`.
    """

    files: list[str]
    others: Sequence[list[str]] = ()
    training: Sequence[str] = ()
    part: str | None = None
    notes: list[str] = dataclasses.field(default_factory=list)
    other_splits: Sequence[str] = ()


def _choose(
    root: str, files: list[str], split: str, *, holdout: float, where: str
) -> _Chosen:
    """Returns the files of a split by their names; see the module."""
    groups, unused = tar_files.groups(root, files)
    kinds = {s: split_names.read(s).kind or "other" for s in groups if s}
    below = tar_files.below(split, root, files) if split not in kinds else []
    chosen, part = split, None
    if not below:
        chosen, part = split_names.resolve(
            split, kinds, holdout=holdout, where=f"tar files {where}"
        )
    files = below or groups[chosen]
    training = [groups[s] for s, kind in kinds.items() if kind == "train"]
    notes = [
        f"from {len(files)} tar file{'s' * (len(files) > 1)} ({_names(files)})",
        *[f"not used: {_names(unused)}"] * bool(unused),
        *split_names.unused_holdout(kinds, holdout),
    ]
    return _Chosen(
        files,
        [group for s, group in groups.items() if s != chosen],
        list(itertools.chain.from_iterable(training)),
        part,
        notes,
        [split for split in kinds if split != chosen],
    )


def _by_members(
    indices: dict[str, tar_index.Index],
    key: str,
    chosen: _Chosen,
    *,
    holdout: float,
    where: str,
) -> Tar:
    """Labels the images of a split by the members beside them."""
    reader = _Reader(indices, key)
    contents = reader.read(chosen.files)
    # Classes are those of all splits, so that these agree on the numbers.
    others = [reader.labels(group)[1] for group in chosen.others]
    classes = tar_index.classes([contents.labels, *others], "the tar files")
    labels = tar_index.encode(contents.labels, classes)
    keep = base.part_of(map(os.fsencode, contents.names), chosen.part, holdout, where)
    return Tar(
        chosen.files,
        contents.places[keep],
        names=list(itertools.compress(contents.names, keep)),
        labels=labels[keep],
        classes=classes,
        notes=[*chosen.notes, *contents.notes],
        other_splits=chosen.other_splits,
    )


def _everything(
    indices: dict[str, tar_index.Index], where: str
) -> tuple[labelled.Images, np.ndarray]:
    """Returns the images of all tar files, and their places `[N, 3]`, see `Tar`."""
    rows = [
        (number, *row)
        for number, index in enumerate(indices.values())
        for row in index.images
    ]
    names = [os.path.basename(file) for file in indices]
    images = labelled.Images(
        where,
        [str(row[1]) for row in rows],
        lambda path: "which is no image there; expected the name of a member",
        {f"{names[row[0]]}:{row[1]}": n for n, row in enumerate(rows)},
    )
    return images, np.array([(n, at, size) for n, _, at, size in rows], np.int64)


def _part(files: list[str], chosen: _Chosen, places: np.ndarray) -> labelled.Part:
    """Returns the images of the chosen files by their numbers among all."""

    def inside(group: Sequence[str]) -> np.ndarray:
        numbers = [number for number, file in enumerate(files) if file in group]
        return np.flatnonzero(np.isin(places[:, 0], numbers))

    return labelled.Part(
        inside(chosen.files),
        training=inside(chosen.training) if chosen.training else None,
        part=chosen.part,
        notes=chosen.notes,
        other_splits=chosen.other_splits,
    )


def _unlabelled(
    files: list[str], places: np.ndarray, names: Sequence[str], numbers: np.ndarray
) -> Tar:
    """Returns images `numbers` of those called `names`, of the files that have any."""
    used, file = np.unique(places[:, 0], return_inverse=True)
    return Tar(
        [files[number] for number in used],
        np.column_stack([file, places[:, 1:]]),
        names=[names[number] for number in numbers],
        labels=np.full(len(numbers), -1, np.int32),
        classes=[],
    )


def _names(files: Sequence[str]) -> str:
    return base.first([os.path.basename(file) for file in files], 2)


@dataclasses.dataclass(frozen=True)
class _Images:
    """Images of several tar files, with their labels.

    Attributes:
      places: [N, 3], number of the file, offset and size.
      names: members.
      labels: as written, '' for none.
      notes: which members are read as what.
    """

    places: np.ndarray
    names: list[str]
    labels: list[str]
    notes: list[str]


class _Reader:
    """Finds images and their labels by the indices of all tar files.

    Args:
      indices: tar file -> its index.
      key: the user's name for the label in .json members, or ''.
    """

    def __init__(self, indices: dict[str, tar_index.Index], key: str):
        self._indices = indices
        self._key = key
        columns = {kind: self._column(list(indices), kind) for kind in tar_index.LABELS}
        keys = {key for index in indices.values() for key in index.json_keys}
        self._json_keys = base.first(sorted(keys)) or "none"
        self._kinds = [kind for kind, column in columns.items() if any(column)]
        self._captions = _are_captions([x for x in columns["txt"] if x is not None])
        if self._captions and "txt" in self._kinds:
            self._kinds.remove("txt")
        if key and keys:
            if "json" not in self._kinds:
                raise ValueError(
                    f"data.name={key!r}: no .json member has a number or a name "
                    f"there; their keys are {self._json_keys}"
                )
            self._kinds = ["json"]

    def _column(self, files: list[str], kind: str) -> list[str | None]:
        """Returns the content of each image's member of `kind`."""
        indices = [self._indices[file] for file in files]
        none = ([None] * len(index.images) for index in indices)
        columns = (i.labels.get(kind, n) for i, n in zip(indices, none, strict=True))
        return list(itertools.chain.from_iterable(columns))

    def labels(self, files: list[str]) -> tuple[str | None, list[str]]:
        """Returns (member kind that labels most images, labels); None, '' for none."""
        columns = {kind: self._column(files, kind) for kind in self._kinds}
        counts = {kind: sum(map(bool, column)) for kind, column in columns.items()}
        best = max(counts, key=lambda kind: counts[kind], default=None)
        if best is None or not counts[best]:
            return None, [""] * sum(len(self._indices[f].images) for f in files)
        return best, [label or "" for label in columns[best]]

    def read(self, files: list[str]) -> _Images:
        """Reads the images of `files`.

        Raises:
          ValueError: there is none, or only some have a label.
        """
        members = collections.Counter()
        for file in files:
            members.update(self._indices[file].members)
        rows = [
            (n, row) for n, f in enumerate(files) for row in self._indices[f].images
        ]
        if not rows:
            raise ValueError(
                f"no image in {files[0]} and the {len(files) - 1} tar files beside it: "
                f"their members are {_counted(members) or 'none'}; expected some "
                f"ending in {expected()}"
            )
        tar_index.check_folders((row[0] for _, row in rows), files[0])
        kind, labels = self.labels(files)
        lacking = [rows[n] for n, label in enumerate(labels) if not label]
        if kind and lacking:
            number, row = lacking[0]
            raise ValueError(
                f"{files[number]}: {row[0]} has no label (.{kind}), as {len(lacking)} "
                f"of {len(rows)} images; others have: give all of them one, or none"
            )
        return _Images(
            np.array([(n, row[1], row[2]) for n, row in rows], np.int64),
            [row[0] for _, row in rows],
            labels,
            self._notes(members, kind),
        )

    def _notes(self, members: collections.Counter[str], kind: str | None) -> list[str]:
        """Describes which members are read as images and labels, which not, and why."""
        rest = collections.Counter(members)
        kinds = EXTENSIONS & rest.keys() or ALONE & rest.keys()
        images = collections.Counter({k: rest.pop(k) for k in kinds})
        labels = f" and {rest.pop(kind, 0)} .{kind} as labels" if kind else ""
        labels += f" (key {self._key or ' or '.join(tar_index.JSON_KEYS)})" * (
            kind == "json"
        )
        notes = [f"members: {_counted(images)} read as images{labels}"]
        notes += [f"members not read: {_counted(rest)}"] * bool(rest)
        if kind is None and "json" in rest:
            notes.append(
                f".json has no {' or '.join(tar_index.JSON_KEYS)} that is a number or "
                f"a name; its keys are {self._json_keys} (--config.data.name=KEY)"
            )
        if self._captions:
            notes.append(".txt are captions, not names of classes")
        if self._key and "json" not in members:
            notes.append(f"data.name={self._key} is not used: no .json members")
        return notes


def _counted(members: collections.Counter[str]) -> str:
    return base.first([f"{n} .{kind}" for kind, n in members.most_common()])


def _are_captions(texts: list[str]) -> bool:
    """Whether texts look like captions: names of classes would repeat."""
    several_words = any(" " in text for text in texts)
    return "" in texts or (several_words and 2 * len(set(texts)) > len(texts))
