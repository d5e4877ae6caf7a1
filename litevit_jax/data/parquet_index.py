"""Finds the images in a Parquet file, and the labels beside them.

Uncompressed images are read where they lie. Those of compressed files have no place of
their own: they are copied, once, to a file beside the index (see `index_cache`).
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import mmap
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from litevit_jax import choices, paths
from litevit_jax.data import index_cache, tables

_VERSION = 2
_BATCH = 64  # rows that are decoded at once
_IMAGES = ("image", "img", "picture", "photo", "jpg", "png")
_LABELS = ("label", "labels")
# Errors of a folder that one cannot write to.
_CLOSED = (errno.EACCES, errno.EEXIST, errno.ENOTDIR, errno.EPERM, errno.EROFS)


@dataclasses.dataclass
class Index:
    """The contents of a Parquet file.

    Attributes:
      file: which holds the images: the Parquet file, or the copy.
      size: of `file`, in bytes.
      places: [offset, size] of each image; [0, 0] where there is none.
      names: of each: its row, and its path if that is recorded.
      labels: of each the names or numbers of its classes.
      several: whether the column of labels has lists.
      classes: names by label, if they are recorded.
      columns: name of the image's column, and of the label's, '' for none.
      unread: names of the others.
    """

    file: str
    size: int
    places: list[list[int]]
    names: list[str]
    labels: list[list[str]]
    several: bool
    classes: list[str]
    columns: list[str]
    unread: list[str]


def read(file: str, label: str = "") -> Index:
    """Returns the index of a Parquet file, read from its cache or made and cached.

    Args:
      file: its path.
      label: column of labels; '': `label` or `labels`, or the only column of classes.

    Raises:
      ModuleNotFoundError: pyarrow is not installed.
      ValueError: a damaged file, no such column, or several that fit.
    """
    scan = functools.partial(_scan, file, label)
    kept = Index(**index_cache.read(file, [_VERSION, label], scan))
    if not os.path.isfile(kept.file) or os.path.getsize(kept.file) != kept.size:
        index_cache.forget(file)  # the copy is gone
        kept = Index(**index_cache.read(file, [_VERSION, label], scan))
    return kept


def _scan(file: str, label: str) -> dict[str, Any]:
    arrow = tables.pyarrow(file)
    try:
        with arrow.parquet.ParquetFile(file) as opened:
            columns = _columns(file, opened.schema_arrow, label)
            labels = _labels(opened, columns, file)
            target, places, names = _places(opened, columns, file)
    except arrow.ArrowException as error:
        raise ValueError(f"{file} is damaged ({error}); copy it again") from None
    if places and not any(size for _, size in places):
        raise ValueError(
            f"{file}: column {columns.image!r} holds no image, as of files that lie "
            f"elsewhere ({names[0]}); write the images into the Parquet file, or read "
            "the files (data=folder)"
        )
    index = Index(
        file=target,
        size=os.path.getsize(target),
        places=places,
        names=names,
        labels=labels,
        several=columns.several,
        classes=columns.classes,
        columns=[columns.image, columns.label],
        unread=columns.unread,
    )
    return vars(index)


@dataclasses.dataclass(frozen=True)
class _Columns:
    """The columns that are read: of the bytes and path of an image, and its label.

    `several`: whether labels are lists.
    """

    image: str
    bytes: str
    path: str
    label: str
    several: bool
    classes: list[str]
    unread: list[str]


def _columns(file: str, schema: Any, asked: str) -> _Columns:
    """Chooses the columns by their names and types.

    Raises:
      ValueError: there is none for images, or several fit.
    """
    arrow = tables.pyarrow(file)
    parts = {name: _parts(arrow, schema.field(name).type) for name in schema.names}
    images = [name for name, inside in parts.items() if inside is not None]
    image = _only(images, _IMAGES)
    if image is None:
        names = ", ".join(images or schema.names) or "none"
        raise ValueError(
            f"{file}: got the columns {names}; expected one of image bytes"
            + ", called image" * bool(images)
        )
    features = _features(schema)
    kinds = {name: feature.get("_type") for name, feature in features.items()}
    if asked:
        choices.check(f"data.name: column of {file}", asked, schema.names)
    named = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    label = asked or _only([x for x in _LABELS if x in schema.names][:1] or named)
    if label is None and named:
        raise ValueError(
            f"{file}: got several columns of classes, {', '.join(named)}; choose one "
            f"with --config.data.name={named[0]}"
        )
    inside = parts[image] or {}
    return _Columns(
        image,
        f"{image}.bytes" if inside else image,
        f"{image}.path" if "path" in inside else "",
        label or "",
        bool(label) and arrow.types.is_list(schema.field(label).type),
        _class_names(features.get(label or "", {})),
        [name for name in schema.names if name not in (image, label)],
    )


def _parts(arrow: Any, kind: Any) -> dict[str, Any] | None:
    """Returns the fields of a record with bytes, {} for bytes, None for all others."""

    def is_binary(kind: Any) -> bool:
        return arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind)

    if is_binary(kind):
        return {}
    if not arrow.types.is_struct(kind):
        return None
    fields = {kind.field(n).name: kind.field(n).type for n in range(kind.num_fields)}
    return fields if is_binary(fields.get("bytes", arrow.null())) else None


def _only(names: Sequence[str], usual: Sequence[str] = ()) -> str | None:
    """Returns the only name, or of several the first that is usual."""
    if len(names) == 1:
        return names[0]
    return next((name for name in usual if name in names), None)


def _features(schema: Any) -> dict[str, Any]:
    """Returns what the library `datasets` records of each column."""
    content = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(content)["info"]["features"]
        return {name: x for name, x in features.items() if isinstance(x, dict)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _class_names(feature: dict[str, Any]) -> list[str]:
    """Returns the recorded names of a column of classes, or of lists of them."""
    inner = feature.get("feature", feature)
    return list(inner.get("names", [])) if isinstance(inner, dict) else []


def _labels(opened: Any, columns: _Columns, file: str) -> list[list[str]]:
    """Reads the labels as text.

    Raises:
      ValueError: a value is no label, or a number without a name.
    """
    if not columns.label:
        return [[] for _ in range(opened.metadata.num_rows)]
    column = opened.read(columns=[columns.label]).column(0).to_pylist()
    labels, wrong = [], []
    for number, value in enumerate(column, start=1):
        try:
            values = value or [] if columns.several else [value]
            names = (_label(each, columns) for each in values)
            labels.append([name for name in names if name])
        except ValueError as error:
            wrong.append((number, str(error)))
    if wrong:
        raise tables.Table(file, ()).error(wrong)
    return labels


def _label(value: Any, columns: _Columns) -> str:
    cells = tables.labels_of("label", value)
    label = cells[0] if cells else ""
    if not columns.classes or isinstance(value, str | None):
        return label
    if int(label) >= len(columns.classes) or int(label) < -1:
        count = len(columns.classes)
        raise ValueError(f"got class {label}; expected 0 to {count - 1}, -1 for none")
    return columns.classes[int(label)] if int(label) >= 0 else ""


def _places(
    opened: Any, columns: _Columns, file: str
) -> tuple[str, list[list[int]], list[str]]:
    """Finds the images in the file, or copies them; see `Index`."""
    names = _names(opened, columns)
    with open(file, "rb") as raw, mmap.mmap(raw.fileno(), 0, prot=mmap.PROT_READ) as m:
        inside = _find(m, _images(opened, columns))
    if inside is not None:
        return file, inside, names
    for kept in index_cache.candidates(file):
        target = kept.with_suffix(".images")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            return str(target), _copy(_images(opened, columns), target), names
        except OSError as error:
            if error.errno not in _CLOSED:
                raise
    raise PermissionError(
        f"{file} is compressed, and its images can be copied neither beside it nor "
        "below ~/.cache; set XDG_CACHE_HOME to a folder that can be written to"
    )


def _names(opened: Any, columns: _Columns) -> list[str]:
    count = opened.metadata.num_rows
    known: list[Any] = [None] * count
    if columns.path:
        column = opened.read(columns=[columns.path]).column(0)
        known = [(record or {}).get("path") for record in column.to_pylist()]
    numbers = range(1, count + 1)
    return [
        f"row {n}{f' {x}' if x else ''}" for n, x in zip(numbers, known, strict=True)
    ]


def _images(opened: Any, columns: _Columns) -> Iterator[bytes]:
    """Yields the bytes of each image, b'' without one."""
    for batch in opened.iter_batches(_BATCH, columns=[columns.bytes]):
        for value in batch.column(0).to_pylist():
            value = value.get("bytes") if isinstance(value, dict) else value
            yield value or b""


def _find(content: mmap.mmap, images: Iterator[bytes]) -> list[list[int]] | None:
    """Returns [offset, size] of images that lie in a file as they are, else None."""
    places, start = [], 0
    for image in images:
        at = content.find(image, start) if image else 0
        if at < 0 and start:
            at = content.find(image)  # one that is there once for several rows
        if at < 0:
            return None
        places.append([at, len(image)])
        start = max(start, at) if image else start
    return places


def _copy(images: Iterator[bytes], target: pathlib.Path) -> list[list[int]]:
    """Writes images one after the other; returns [offset, size] of each."""
    places, start = [], 0
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    with paths.named(partial), open(partial, "wb") as file:
        for image in images:
            file.write(image)
            places.append([start if image else 0, len(image)])
            start += len(image)
    paths.rename(partial, target)
    return places
