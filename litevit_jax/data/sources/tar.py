"""Tar files of images, as WebDataset writes them, read in any order.

    KEY.jpg (or .png, .webp ...)   the image; KEY may contain folders, but no dot;
                                   beside it KEY.mask.png is not read
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
import fnmatch
import glob
import itertools
import os
import posixpath
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from litevit_jax.data import filetree, split_names, tar_index
from litevit_jax.data.layout import EXTENSIONS
from litevit_jax.data.listing import Listed
from litevit_jax.data.sources import base

_COMPRESSED = re.compile(r"\.(tar\.(bz2|gz|lz4|xz|z|zst)|tgz|tbz2|txz)$", re.IGNORECASE)
_NUMBER = re.compile(r"(-?0*[0-9]{1,6})(\.0*)?")


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
            raise OSError(f"{len(image)} of {size} bytes: the tar file was cut short")
        return {"image": image, "label": int(self._labels[index])}

    def name_of(self, index: int) -> str:
        file = os.path.basename(self._files[int(self._places[index][0])])
        return f"{file}:{self._names[index]}"

    def fingerprint(self) -> str:
        """Returns a digest of the tar files' names, members, offsets and labels."""
        files = "\0".join(os.path.basename(file) for file in self._files)
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
) -> Tar:
    """One split of the tar files of `dir`, a folder or a pattern.

    Args:
      split: 'train', 'test' (also 'val', 'validation'...), or a subfolder.
      dir: see the module.
      name: key of the label in .json members; None or '' means `label` or `cls`.
      holdout: share of the images kept as 'test', where no tar is one.

    Raises:
      FileNotFoundError: no tar file there.
      ValueError: a tar is damaged or compressed, holds no image or only some labels,
        or there is no such split.
    """
    root, files, skipped = _find(dir)
    indices = {file: tar_index.read(file, name or "") for file in files}
    groups, unused = _groups(root, files)
    kinds = {s: split_names.read(s).kind or "other" for s in groups if s}
    below = _below(split, root, files) if split not in kinds else []
    chosen, part = split, None
    if not below:
        where = f"tar files {dir}"
        chosen, part = split_names.resolve(split, kinds, holdout=holdout, where=where)
    files = below or groups[chosen]
    notes = [
        f"from {len(files)} tar file{'s' * (len(files) > 1)} ({_names(files)})",
        *[f"not used: {_names(unused)}"] * bool(unused),
        *split_names.unused_holdout(kinds, holdout),
        *skipped,
    ]
    reader = _Reader(indices, name or "")
    contents = reader.read(files)
    # Classes are those of all splits, so that these agree on the numbers.
    others = [reader.labels(group)[1] for s, group in groups.items() if s != chosen]
    classes = _classes([contents.labels, *others])
    labels = _encode(contents.labels, classes)
    keep = base.part_of(map(os.fsencode, contents.names), part, holdout, str(dir))
    return Tar(
        files,
        contents.places[keep],
        names=list(itertools.compress(contents.names, keep)),
        labels=labels[keep],
        classes=classes,
        notes=[*notes, *contents.notes],
        other_splits=[split for split in kinds if split != chosen],
    )


def _find(dir: str | None) -> tuple[str, list[str], list[str]]:
    """Returns the common folder, the tar files, and notes on other files."""
    if not dir:
        raise ValueError("source 'tar' needs data.dir: a folder of .tar files")
    path = os.path.abspath(os.path.expanduser(dir))
    skipped: dict[str, str] = {}
    if os.path.isdir(path):
        root, listed = path, filetree.LocalTree(path).walk("", skipped)
        present = sorted(os.path.join(path, name) for name in listed)
    else:
        root = os.path.dirname(path)
        present = sorted(name for name in _matching(path) if os.path.isfile(name))
    files = [file for file in present if file.lower().endswith(".tar")]
    packed = [file for file in present if _COMPRESSED.search(file)]
    if packed:
        raise ValueError(
            f"{packed[0]} is compressed and cannot be read in any order (images gain "
            "nothing from it): unpack it to .tar"
        )
    if not files:
        raise FileNotFoundError(
            f"data.dir={dir!r}: no .tar file there; expected a folder of them, or a "
            "pattern (a folder of images is read by data=folder)"
        )
    return root, files, base.skipped_entries(skipped)


def _matching(pattern: str) -> list[str]:
    """Returns the files that match a pattern; `**` stands for folders at any depth."""
    if "**" not in pattern:
        return glob.glob(pattern)
    parts = pattern.split(os.sep)
    plain = list(itertools.takewhile(lambda part: not glob.has_magic(part), parts))
    top = os.sep.join(plain) or os.sep
    # Not by `glob`, which lists folders that link to each other again and again.
    listed = filetree.LocalTree(top).walk("") if os.path.isdir(top) else []
    wanted = parts[len(plain) :]
    names = [name for name in listed if _is_match(name.split("/"), wanted)]
    return [os.path.join(top, name) for name in names]


def _is_match(parts: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        starts = range(len(parts) + 1)
        return any(_is_match(parts[start:], pattern[1:]) for start in starts)
    here = bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0])
    return here and _is_match(parts[1:], pattern[1:])


def _groups(
    root: str, files: list[str]
) -> tuple[dict[str | None, list[str]], list[str]]:
    """Returns (split -> its files, unused files); None: no split is named.

    The last part of a path that names a split says which it is. Beside files of a
    training split, those that name none are not used; else they are to train on.
    """
    groups: dict[str | None, list[str]] = {}
    for file in files:
        parts = os.path.splitext(os.path.relpath(file, root))[0].split(os.sep)
        words = [split_names.read(part).word for part in reversed(parts)]
        groups.setdefault(next(filter(None, words), None), []).append(file)
    if len(groups) == 1 or None not in groups:
        return groups, []
    unnamed = groups.pop(None)
    if "train" in (split_names.read(str(split)).kind for split in groups):
        return groups, unnamed
    return groups | {"train": unnamed}, []


def _below(split: str, root: str, files: list[str]) -> list[str]:
    """Returns the files below a subfolder named like `split`."""
    top = posixpath.normpath(split)
    names = {file: os.path.relpath(file, root) for file in files}
    return [f for f in files if top == "." or names[f].startswith(f"{top}{os.sep}")]


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
                f"ending in {', '.join(sorted(EXTENSIONS))}"
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
        images = collections.Counter({k: rest.pop(k) for k in EXTENSIONS & rest.keys()})
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


def _number(label: str) -> int | None:
    """Returns the class number in a label such as '9', '09' or '9.0'; None: a name."""
    return int(match[1]) if (match := _NUMBER.fullmatch(label)) else None


def _classes(splits: list[list[str]]) -> list[str]:
    """Returns the classes of labels: numbers up to the largest, or sorted names.

    Raises:
      ValueError: one split has numbers and another one names, or a number is below -1.
    """
    given = [{x for x in labels if x and _number(x) != -1} for labels in splits]
    numbers = [all(_number(x) is not None for x in group) for group in given if group]
    named = set().union(*given)
    if len(set(numbers)) > 1:
        raise ValueError(
            "labels of one split of the tar files are numbers, those of another names "
            f"({base.first(sorted(named))}); expected the same in all"
        )
    if not all(numbers):
        return sorted(named)
    values = {_number(x) or 0 for x in named}
    if min(values, default=0) < 0:
        raise ValueError(
            f"labels of the tar files are numbers from {min(values)} to {max(values)}; "
            "expected class numbers from 0 on, -1 for an image without label"
        )
    return [str(number) for number in range(max(values, default=-1) + 1)]


def _encode(labels: list[str], classes: list[str]) -> np.ndarray:
    """Encodes labels as int32 [N] indices into `classes`; -1 for none."""
    number_of = {name: number for number, name in enumerate(classes)} | {"": -1}
    for label in set(labels) - number_of.keys():
        number = _number(label)
        number_of[label] = -1 if number == -1 else number_of[str(number)]
    return np.array([number_of[x] for x in labels], np.int32)
