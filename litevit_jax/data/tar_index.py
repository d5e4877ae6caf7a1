"""Finds the images in a tar file, the labels beside them, and other members.

A tar file is read once: see `index_cache`.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import posixpath
import re
import tarfile
from collections.abc import Iterable
from typing import Any

import numpy as np

from litevit_jax.data import index_cache, split_names
from litevit_jax.data.layout import ALONE, EXTENSIONS
from litevit_jax.data.sources import base

# Members that may hold a label, in the order in which they are asked.
LABELS = ("cls", "target.cls", "json", "txt")
# Keys of a .json member that are a label, if the user names no other.
JSON_KEYS = ("label", "cls")

_VERSION = 5
_LONGEST = 100  # characters of a label; captions are longer
_LARGEST = 1 << 20  # bytes of a member that may hold one
_NUMBER = re.compile(r"(-?0*[0-9]{1,6})(\.0*)?")
_KINDS_KEPT = 50  # of members, in an index


@dataclasses.dataclass
class Index:
    """The contents of a tar file.

    Attributes:
      images: [member, offset, size] of each.
      labels: extension -> the label of each image; '' if its member says something
        else than one number or name, None without a member.
      members: extension (of images the last part) -> how many there are.
      json_keys: keys of the first .json member.
    """

    images: list[list[Any]] = dataclasses.field(default_factory=list)
    labels: dict[str, list[str | None]] = dataclasses.field(default_factory=dict)
    members: dict[str, int] = dataclasses.field(default_factory=dict)
    json_keys: list[str] = dataclasses.field(default_factory=list)


def read(file: str, key: str = "") -> Index:
    """Returns the index of a tar file, read from its cache or made and cached.

    Args:
      file: its path.
      key: of the label in .json members; '': the first of `JSON_KEYS`.

    Raises:
      ValueError: the file is damaged or cut short, or two members are one label.
    """
    kept = index_cache.read(file, [_VERSION, key], lambda: vars(scan(file, key)))
    return Index(**kept)


def check_folders(names: Iterable[str], where: str) -> None:
    """Raises ValueError if folders of members are splits, as of a packed folder."""
    children = collections.defaultdict(set)
    for folder in {posixpath.dirname(posixpath.normpath(name)) for name in names}:
        parent, child = posixpath.split(folder)
        while child:
            children[parent].add(child)
            parent, child = posixpath.split(parent)
    for inside in children.values():
        kinds = split_names.recognise(inside)
        if len(set(kinds.values()) - {"extra"}) > 1:
            raise ValueError(
                f"{where} holds splits in its folders ({', '.join(sorted(kinds))}): "
                "unpack it and read the folder (data=folder), or pack each split "
                "alone, as train.tar and test.tar"
            )


def scan(file: str, key: str = "") -> Index:
    """Builds the index from the tar file itself: reads its headers and labels."""
    scanned, end = _Scan(file, key), 0
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // 512) * 512
                scanned.add(tar, member)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(
            f"{file} is damaged or cut short ({error}); copy it again"
        ) from error
    if os.path.getsize(file) < end + 512:
        raise ValueError(
            f"{file} is cut short: it lacks the empty block that ends a tar file; copy "
            "it again"
        )
    return scanned.index()


class _Scan:
    """Collects the members of one tar file."""

    def __init__(self, file: str, key: str):
        self._file, self._key = file, key
        self._images: list[tuple[str, str, list[Any]]] = []  # key, extension, row
        self._labels: dict[tuple[str, str], str] = {}
        self._members = collections.Counter()
        self._json_keys: list[str] = []

    def index(self) -> Index:
        # Beside pictures, arrays are no images. Beside KEY.jpg, KEY.mask.png is another
        # field of the same example.
        kinds = {extension.rpartition(".")[2] for _, extension, _ in self._images}
        kinds = kinds & EXTENSIONS or ALONE
        whole = {key for key, extension, _ in self._images if extension in kinds}
        images = []
        for key, extension, row in self._images:
            last = extension.rpartition(".")[2]
            read = last in kinds and (extension in kinds or key not in whole)
            images += [(key, row)] * read
            self._members[last if read else extension] += 1
        labels = {
            kind: [self._labels.get((key, kind)) for key, _ in images]
            for kind in LABELS
        }
        return Index(
            images=[row for _, row in images],
            labels={
                kind: column
                for kind, column in labels.items()
                if any(label is not None for label in column)
            },
            members=dict(self._members.most_common(_KINDS_KEPT)),
            json_keys=self._json_keys,
        )

    def add(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        folder, _, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        extension = extension.lower()
        if member.isdir() or name.startswith("."):
            return
        if not member.isfile():
            self._members["link or device"] += 1
            return
        key, last = f"{folder}/{stem}", extension.rpartition(".")[2]
        if last in EXTENSIONS | ALONE:
            # JSON has no place for bytes that are no text: escaped as Python does.
            row = [member.name, member.offset_data, member.size]
            self._images.append((key, extension, row))
            return
        self._members[extension] += 1
        if extension in LABELS:
            label = self._label(tar, member, extension)
            if self._labels.setdefault((key, extension), label) != label:
                raise ValueError(
                    f"{self._file}: {member.name} is the second .{extension} of "
                    f"{key.lstrip('/')!r}, with another label; the name of an image "
                    "ends at its first dot: rename the members"
                )

    def _label(
        self, tar: tarfile.TarFile, member: tarfile.TarInfo, extension: str
    ) -> str:
        """Returns the number or name in a member; '' for neither."""
        opened: Any = tar.extractfile(member)
        content = opened.read(_LARGEST)
        try:
            text = content.decode("utf-8-sig")
            if extension == "json":
                return _as_label(self._from_json(json.loads(text)))
        except (ValueError, RecursionError):  # no text, no JSON, or nested too deep
            text = ""
        return _as_label(text)

    def _from_json(self, content: Any) -> Any:
        """Returns the value of the label's key, `a.b` of nested objects, or None."""
        if not isinstance(content, dict):
            return None
        self._json_keys = self._json_keys or sorted(map(str, content))[:20]
        for key in [self._key] if self._key else JSON_KEYS:
            value: Any = content
            for part in [key] if key in content else key.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if value is not None:
                return value
        return None


def _as_label(value: Any) -> str:
    """Returns one number or name as text, else ''."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int):
        return ""
    text = str(value).strip()
    return text if len(text) <= _LONGEST and text.isprintable() else ""


def _number(label: str) -> int | None:
    """Returns the class number in a label such as '9', '09' or '9.0'; None: a name."""
    return int(match[1]) if (match := _NUMBER.fullmatch(label)) else None


def classes(splits: list[list[str]], where: str) -> list[str]:
    """Returns the classes of labels: numbers up to the largest, or sorted names.

    Raises:
      ValueError: one split has numbers and another one names, or a number is below -1.
    """
    given = [{x for x in labels if x and _number(x) != -1} for labels in splits]
    numbers = [all(_number(x) is not None for x in group) for group in given if group]
    named = set().union(*given)
    if len(set(numbers)) > 1:
        raise ValueError(
            f"labels of one split of {where} are numbers, those of another names "
            f"({base.first(sorted(named))}); expected the same in all"
        )
    if not all(numbers):
        return sorted(named)
    values = {_number(x) or 0 for x in named}
    if min(values, default=0) < 0:
        raise ValueError(
            f"labels of {where} are numbers from {min(values)} to {max(values)}; "
            "expected class numbers from 0 on, -1 for an image without label"
        )
    return [str(number) for number in range(max(values, default=-1) + 1)]


def encode(labels: list[str], classes: list[str]) -> np.ndarray:
    """Encodes labels as int32 [N] indices into `classes`; -1 for none."""
    number_of = {name: number for number, name in enumerate(classes)} | {"": -1}
    for label in set(labels) - number_of.keys():
        number = _number(label)
        number_of[label] = -1 if number == -1 else number_of[str(number)]
    return np.array([number_of[x] for x in labels], np.int32)
