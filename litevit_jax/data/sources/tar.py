"""Tar files of images, as WebDataset writes them, read in any order.

    KEY.jpg (or .png, .webp ...)   the image; KEY may contain folders, but no dot
    KEY.cls                        its label: a number, or the name of a class

`dir` is a folder of .tar files, or a pattern such as /data/train-*.tar. A file whose
path contains train, test, val or validation as a word belongs to that split; if none
does, all are 'train', and `holdout` keeps a share, by key, as 'test'. Where the images
lie is looked up once and kept beside the tars, or below ~/.cache/litevit_jax.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import pathlib
import re
import tarfile
from typing import Any

import numpy as np

from litevit_jax.data.sources import base
from litevit_jax.data.sources.folder import EXTENSIONS

_SPLIT = re.compile(r"(?<![a-z])(train|test|validation|val)(?![a-z])")
_INDEX = ".litevit-index"
_VERSION = 1


class Tar(base.Source):
    """Images at known places of tar files."""

    def __init__(
        self,
        files: list[str],
        places: np.ndarray,
        *,
        names: list[str],
        labels: np.ndarray,
        classes: list[str],
    ):
        self._files = files
        self._places = places  # [N, 3]: number of the file, offset, size
        self._names = names
        self._labels = labels
        self._classes = classes

    @property
    def classes(self) -> list[str]:
        return list(self._classes)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, offset, size = (int(x) for x in self._places[index])
        with open(self._files[number], "rb", buffering=0) as file:
            image = os.pread(file.fileno(), size, offset)
        if len(image) != size:
            raise OSError(f"{len(image)} of {size} bytes: the tar file was cut short")
        return {"image": image, "label": int(self._labels[index])}

    def label_of(self, index: int) -> int:
        return int(self._labels[index])

    def name_of(self, index: int) -> str:
        file = os.path.basename(self._files[int(self._places[index][0])])
        return f"{file}:{self._names[index]}"

    def fingerprint(self) -> str:
        """Digest of the tar files' names, what is where in them, and labels."""
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
      split: 'train', or 'test' (also 'val', 'validation').
      dir: see the module.
      name: ignored.
      holdout: share of the images kept as 'test', where no tar is one.

    Raises:
      FileNotFoundError: no tar file there.
      ValueError: a tar is damaged or compressed, holds no image or only some labels,
        or there is no such split.
    """
    del name
    root, files = _find(dir)
    groups: dict[str, list[str]] = {}
    for file in files:
        found = _SPLIT.findall(os.path.relpath(file, root).lower())
        groups.setdefault(found[-1] if found else "train", []).append(file)
    has_test = any(known in groups for known in base.EVAL_SPLITS)
    if has_test:
        base.check_split(split, {*groups, *base.EVAL_SPLITS}, f"tar files {dir}")
        split = next(s for s in (split, *base.EVAL_SPLITS) if s in groups)
        return _source(groups[split], files, lambda key: True)
    split = base.check_holdout_split(split, holdout, f"tar files {dir}")
    test = split == "test"
    return _source(
        groups["train"],
        files,
        lambda key: base.in_holdout(os.fsencode(key), holdout) == test,
    )


def _find(dir: str | None) -> tuple[str, list[str]]:
    """The folder that all have in common, and the tar files."""
    if not dir:
        raise ValueError("source 'tar' needs data.dir: a folder of .tar files")
    path = os.path.abspath(os.path.expanduser(dir))
    pattern = (
        os.path.join(glob.escape(path), "**", "*") if os.path.isdir(path) else path
    )
    there = sorted(f for f in glob.glob(pattern, recursive=True) if os.path.isfile(f))
    files = [file for file in there if file.endswith(".tar")]
    packed = [f for f in there if re.search(r"\.(tar\.\w+|tgz)$", f)]
    if packed:
        raise ValueError(
            f"{packed[0]} is compressed and cannot be read in any order (images gain "
            "nothing from it): unpack it to .tar"
        )
    if not files:
        raise FileNotFoundError(f"data.dir={dir!r}: no .tar file there")
    return path if os.path.isdir(path) else os.path.dirname(path), files


def _source(files: list[str], everything: list[str], wanted: Any) -> Tar:
    indices = {file: _index(file) for file in everything}
    rows = [
        (number, row)
        for number, file in enumerate(files)
        for row in indices[file]
        if wanted(row[0])
    ]
    if not rows:
        raise ValueError(
            f"no image in {files[0]} and the {len(files) - 1} tar files beside it; "
            f"expected members ending in {', '.join(sorted(EXTENSIONS))}"
        )
    # Classes are those of all splits, so that these agree on the numbers.
    given = {row[3] for index in indices.values() for row in index} - {None}
    unlabelled = [(number, row) for number, row in rows if row[3] is None]
    if unlabelled and len(unlabelled) < len(rows):
        number, row = unlabelled[0]
        raise ValueError(
            f"{files[number]}: {row[0]} has no label (.cls), as {len(unlabelled)} of "
            f"{len(rows)} images; others have: give all of them one, or none"
        )
    classes = _classes(given) if not unlabelled else []
    number_of = {label: place for place, label in enumerate(classes)}
    return Tar(
        files,
        np.array([(number, row[1], row[2]) for number, row in rows], np.int64),
        names=[row[0] for _, row in rows],
        labels=np.array([number_of.get(row[3], -1) for _, row in rows], np.int32),
        classes=classes,
    )


def _classes(labels: set[str]) -> list[str]:
    """Numbers up to the largest, or names in order."""
    if all(re.fullmatch(r"\d{1,6}", label) for label in labels):
        return [str(number) for number in range(max(map(int, labels), default=-1) + 1)]
    return sorted(labels)


def _index(file: str) -> list[list[Any]]:
    """(member, offset, size, label or None) of each image in a tar file."""
    status = os.stat(file)
    stamp = [_VERSION, status.st_size, status.st_mtime_ns]
    places = _index_places(file)
    for place in places:
        try:
            kept = json.loads(place.read_text())
        except (OSError, ValueError):  # not there, or cut short
            continue
        if kept["stamp"] == stamp:
            return kept["images"]
    images = _scan(file)
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            partial = place.with_name(f"{place.name}.{os.getpid()}.part")
            partial.write_text(json.dumps({"stamp": stamp, "images": images}))
            partial.replace(place)
            break
        except OSError:  # read-only: the next place
            continue
    return images


def _index_places(file: str) -> list[pathlib.Path]:
    path = pathlib.Path(file)
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    unique = hashlib.sha256(os.fsencode(file)).hexdigest()[:16]
    return [
        path.parent / _INDEX / f"{path.name}.json",
        home / "litevit_jax" / f"{unique}.json",
    ]


def _scan(file: str) -> list[list[Any]]:
    """As `_index`, from the tar file itself: reads its headers and labels."""
    images, labels, end = [], {}, 0
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // 512) * 512
                folder, _, name = member.name.rpartition("/")
                key, _, extension = name.partition(".")
                key = f"{folder}/{key}"
                if not member.isfile() or name.startswith("."):
                    continue
                kind = extension.rpartition(".")[2].lower()
                if kind in EXTENSIONS:
                    row = [member.name, member.offset_data, member.size]
                    images.append((key, row))
                elif extension == "cls":
                    opened: Any = tar.extractfile(member)
                    labels[key] = opened.read().decode("utf-8").strip()
    except (tarfile.TarError, UnicodeDecodeError, EOFError) as error:
        raise ValueError(
            f"{file} is damaged or cut short ({error}); copy it again"
        ) from error
    if os.path.getsize(file) < end + 512:
        raise ValueError(
            f"{file} is cut short: it lacks the empty block that ends a tar file; copy "
            "it again"
        )
    # JSON has no place for bytes that are no text: escaped as Python does.
    return [[*row, labels.get(key)] for key, row in images]
