"""Images packed by `python -m litevit_jax.data.pack`: ArrayRecord and manifests.

    DIR/train.json                           classes, number of shards, settings
    DIR/train-00000-of-00004.array_record    a record for each image
    DIR/train-00000-of-00004.json            count, size, checksum, labels

A record is the label (int32), the length of the name (uint16), the name, the JPEG;
numbers are little-endian. If the manifest names annotations, each comes before the
JPEG with its length (uint32): a label map as PNG, objects as packed JSON. Without a
test split, `holdout` keeps a share of the examples, by their number, as 'test'.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from litevit_jax.data import (
    index_cache,
    joint,
    label_maps,
    labelled,
    objects,
    split_names,
    subsets,
    tables,
)
from litevit_jax.data.sources import base

EXTENSION = "array_record"
_HEAD = struct.Struct("<iH")
_LENGTH = struct.Struct("<I")


def encode(label: int, name: str, image: bytes) -> bytes:
    """One packed record."""
    encoded = os.fsencode(name)[-65535:]
    return _HEAD.pack(label, len(encoded)) + encoded + image


def decode(record: bytes) -> tuple[int, str, bytes]:
    """Decodes label, name and image of one record.

    Raises:
      ValueError: it is too short.
    """
    if len(record) < _HEAD.size:
        raise ValueError(f"a record of {len(record)} bytes; expected {_HEAD.size}")
    label, length = _HEAD.unpack_from(record)
    end = _HEAD.size + length
    return label, os.fsdecode(record[_HEAD.size : end]), record[end:]


_DECODERS = {"label_map": label_maps.decode, "objects": objects.decode}


def fields_of(annotations: Sequence[str]) -> list[str]:
    """Returns the fields of an example that are packed beside its image."""
    return list(dict.fromkeys(joint.FIELDS[name] for name in annotations))


def join(annotations: Sequence[bytes], image: bytes) -> bytes:
    """Returns annotations and image as the last part of a record."""
    parts = [_LENGTH.pack(len(part)) + part for part in annotations]
    return b"".join([*parts, image])


def split_off(content: bytes, count: int) -> tuple[list[bytes], bytes]:
    """Returns `count` annotations and the image that `join` made one."""
    parts, start = [], 0
    for _ in range(count):
        (length,) = _LENGTH.unpack_from(content, start)
        start += _LENGTH.size + length
        parts.append(content[start - length : start])
    return parts, content[start:]


def shard_name(split: str, shard: int, shards: int) -> str:
    """Returns the file name of a shard, without extension."""
    return f"{split}-{shard:05d}-of-{shards:05d}"


class Packed(base.Source):
    """Rows `rows` of the shards of one split, with labels of all."""

    def __init__(
        self,
        files: list[str],
        labels: np.ndarray,
        *,
        rows: np.ndarray,
        classes: list[str],
        checksums: list[str],
        stored_range: str | None = None,
        annotations: Sequence[str] = (),
        class_ids: Sequence[int] = (),
    ):
        self._files = files
        self._labels = labels
        self._rows = rows
        self._classes = classes
        self._checksums = checksums
        self.stored_range = stored_range
        self.annotations = annotations
        self.class_ids = class_ids

    @functools.cached_property
    def _records(self) -> Any:
        from array_record.python import array_record_data_source

        return array_record_data_source.ArrayRecordDataSource(self._files)

    def __getstate__(self) -> dict[str, Any]:
        # Open files do not travel to worker processes: those open their own.
        return {k: v for k, v in self.__dict__.items() if k != "_records"}

    @property
    def classes(self) -> list[str]:
        return list(self._classes)

    @property
    def labelled(self) -> bool:
        return bool((self._labels[self._rows] >= 0).any())

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = int(self._rows[index])
        label, _, content = decode(self._records[row])
        if label != self._labels[row]:
            raise ValueError(f"label {label}; its manifest says {self._labels[row]}")
        fields = fields_of(self.annotations)
        parts, image = split_off(content, len(fields))
        pairs = zip(fields, parts, strict=True)
        beside = {name: _DECODERS[name](part) for name, part in pairs}
        return {"image": image, "label": label, **beside}

    def names(self) -> list[str]:
        """Returns the names that were packed; reads each shard once, see the cache."""
        names: list[str] = []
        for file in self._files:
            kept = index_cache.read(file, [1], functools.partial(_names_in, file))
            names += kept["names"]
        return [names[row] for row in self._rows]

    def label_of(self, index: int) -> int:
        return int(self._labels[self._rows[index]])

    def name_of(self, index: int) -> str:
        row = int(self._rows[index])
        name = f"packed record {row}"
        try:
            return f"{name} {decode(self._records[row])[1]}"
        except Exception:  # the record is what cannot be read
            return name

    def fingerprint(self) -> str:
        rows = self._rows.astype("<i8").tobytes()
        return base.digest([*(c.encode() for c in self._checksums), rows])


def _names_in(file: str) -> dict[str, Any]:
    """Returns the names of all records of a shard."""
    from array_record.python import array_record_data_source

    records = array_record_data_source.ArrayRecordDataSource([file])
    return {"names": [decode(records[row])[1] for row in range(len(records))]}


def make(
    *,
    split: str,
    dir: str | None = None,
    name: str | None = None,
    holdout: float = 0.0,
    labels: str | None = None,
    unlisted: str = "refuse",
) -> base.Source:
    """One split of the packed folder `dir`.

    Args:
      split: as it was packed; 'test' and 'val' stand in for each other.
      dir: the folder.
      name: ignored.
      holdout: share of the examples kept as 'test', where there is no test split.
      labels: a table of labels, see `tables`, whose paths are the names that were
        packed; None: the labels are those that were packed.
      unlisted: what becomes of images without a row there, see `labelled`.

    Raises:
      FileNotFoundError, NotADirectoryError: no such folder, or a shard is missing.
      ValueError: no such split, or a shard was cut short.
    """
    del name
    table = tables.read(labels) if labels else None
    root = _check_root(dir)
    splits = {}
    for path in sorted(root.glob("*.json")):
        if "-of-" not in path.stem and path.is_file():
            about = _read_json(path)
            if isinstance(about, dict) and {"shards", "classes"} <= about.keys():
                splits[path.stem] = about
    if not splits:
        raise ValueError(
            f"{root} holds no packed images (no SPLIT.json); make them with "
            f"python -m litevit_jax.data.pack FOLDER {root}"
        )
    kinds = {s: split_names.read(s).kind or "other" for s in splits}
    if table is not None:
        return _by_table(
            root, splits, kinds, table, split, holdout=holdout, unlisted=unlisted
        )
    chosen, part = split_names.resolve(
        split, kinds, holdout=holdout, where=f"packed {root}"
    )
    split = str(chosen)
    source = _read(root, split, splits[split], part, holdout)
    source.notes = [f"from {root}", *split_names.unused_holdout(kinds, holdout)]
    source.other_splits = [other for other in splits if other != split]
    return source


def _by_table(
    root: pathlib.Path,
    splits: dict[str, dict[str, Any]],
    kinds: dict[str, str],
    table: tables.Table,
    split: str,
    *,
    holdout: float,
    unlisted: str,
) -> base.Source:
    """Labels the images of a split by a table.

    Args:
      root: the folder.
      splits: split -> its manifest.
      kinds: split -> its kind.
      table: the labels.
      split: the name asked for.
      holdout, unlisted: see `make`.
    """
    sources = {s: _read(root, s, about, None, 0.0) for s, about in splits.items()}
    where = f"packed {root}"
    names = [name for source in sources.values() for name in source.names()]
    explanation = "which is no image there; expected a name that was packed"
    images = labelled.Images(where, names, lambda path: explanation)
    match = labelled.match(table, images)
    if table.divided:
        part = labelled.divide(match, split, holdout)
    else:
        chosen, share = split_names.resolve(split, kinds, holdout=holdout, where=where)
        training = [s for s, kind in kinds.items() if kind == "train"]
        part = labelled.Part(
            _numbers(sources, [str(chosen)]),
            training=_numbers(sources, training) if training else None,
            part=share,
            notes=[f"from {root}", *split_names.unused_holdout(kinds, holdout)],
            other_splits=[other for other in splits if other != chosen],
        )
    read = functools.partial(_select, list(sources.values()))
    return labelled.make(match, part, read, holdout=holdout, unlisted=unlisted)


def _numbers(sources: dict[str, Packed], splits: Sequence[str]) -> np.ndarray:
    """Returns the numbers of the images of `splits` among those of all sources."""
    owners = np.repeat(list(sources), [len(source) for source in sources.values()])
    return np.flatnonzero(np.isin(owners, splits))


def _select(sources: Sequence[base.Source], numbers: np.ndarray) -> base.Source:
    """Returns the images `numbers`, in rising order, of all sources together."""
    parts, start = [], 0
    for source in sources:
        inside = (numbers >= start) & (numbers < start + len(source))
        if inside.any():
            parts.append(subsets.Subset(source, numbers[inside] - start))
        start += len(source)
    return parts[0] if len(parts) == 1 else subsets.ConcatSource(parts)


def _read_json(path: pathlib.Path) -> Any:
    """Parses a manifest; returns None if it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


def _check_root(dir: str | None) -> pathlib.Path:
    if not dir:
        raise ValueError("source 'packed' needs data.dir: a folder of packed images")
    root = pathlib.Path(dir).expanduser().absolute()
    base.check_exists(root, dir, "a folder that litevit_jax.data.pack wrote")
    if not root.is_dir():
        raise NotADirectoryError(
            f"data.dir={dir!r} is no folder; expected one that python -m "
            "litevit_jax.data.pack wrote"
        )
    return root


def _read(
    root: pathlib.Path,
    split: str,
    about: dict[str, Any],
    part: str | None,
    holdout: float,
) -> Packed:
    names = [shard_name(split, i, about["shards"]) for i in range(about["shards"])]
    missing = [name for name in names if not (root / f"{name}.json").is_file()]
    if missing:
        raise FileNotFoundError(
            f"{root} lacks {len(missing)} of the {len(names)} shards of {split!r}, "
            f"the first {missing[0]}; run the packing again, it goes on where it "
            "stopped"
        )
    shards = [_read_manifest(root / f"{name}.json") for name in names]
    files = [root / f"{name}.{EXTENSION}" for name in names]
    for file, shard in zip(files, shards, strict=True):
        size = file.stat().st_size if file.is_file() else 0
        if size != shard["bytes"]:
            raise ValueError(
                f"{file} has {size} bytes, its manifest says {shard['bytes']}: it was "
                "cut short or changed; copy it again, or remove it and pack again"
            )
    # A shard of nothing but unreadable files is empty: its reader has no place for it.
    filled = [pair for pair in zip(files, shards, strict=True) if pair[1]["count"]]
    if not filled:
        raise ValueError(f"{root}: no image of {split!r} could be packed")
    labels = np.concatenate([np.array(s["labels"], np.int32) for _, s in filled])
    keys = (b"%d" % row for row in range(len(labels)))
    keep = base.part_of(keys, part, holdout, f"packed {root}")
    return Packed(
        [os.fspath(file) for file, _ in filled],
        labels,
        rows=np.flatnonzero(keep),
        classes=about["classes"],
        checksums=[shard["sha256"] for shard in shards],
        stored_range=about.get("range"),
        annotations=about.get("annotations", ()),
        class_ids=about.get("class_ids", ()),
    )


def _read_manifest(path: pathlib.Path) -> dict[str, Any]:
    """Reads the manifest of a shard.

    Raises:
      ValueError: it is damaged.
    """
    manifest = _read_json(path)
    if not isinstance(manifest, dict) or "bytes" not in manifest:
        raise ValueError(
            f"{path} is damaged: no manifest of a shard; remove it and pack again"
        )
    return manifest
