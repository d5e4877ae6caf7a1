"""Reads and writes files in the safetensors format: a JSON header, then bytes.

The library of that name accepts a header that repeats a name, has no bfloat16 for
NumPy, and writes metadata in random order, so that no two exports are equal.
"""

from __future__ import annotations

import json
import mmap
import struct
from typing import Any

import numpy as np

from litevit_jax.weights.base import (
    ITEM_SIZES,
    Entry,
    WeightsError,
    count,
    decode,
    short,
)

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def write(arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    """Returns the contents of a file of arrays, sorted by name."""
    header: dict[str, Any] = {"__metadata__": metadata}
    parts, end = [], 0
    for name in sorted(arrays):
        value = np.asarray(arrays[name])
        raw = value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes()
        begin, end = end, end + len(raw)
        about = {"dtype": _CODES[value.dtype.name], "shape": list(value.shape)}
        header[name] = {**about, "data_offsets": [begin, end]}
        parts.append(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the arrays are aligned
    return b"".join([struct.pack("<Q", len(text)), text, *parts])


def load(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a file's contents, and its metadata; errors as in `read`."""
    entries, metadata = read(data)
    return {name: entry.read() for name, entry in entries.items()}, metadata


def starts_like_one(data: bytes | mmap.mmap) -> bool:
    """Whether the first bytes are a length inside the file and a brace."""
    length = int.from_bytes(data[:8], "little")
    return 2 <= length <= len(data) - 8 and data[8:9] == b"{"


def read(data: bytes | mmap.mmap) -> tuple[dict[str, Entry], dict[str, str]]:
    """The entries of a file, and its metadata.

    Raises:
      WeightsError: the header is damaged, or does not fit the file.
    """
    start = 8 + int.from_bytes(data[:8], "little")
    if not starts_like_one(data):
        raise WeightsError(
            f"its header ends at byte {start}, the file at {len(data)}: truncated, or "
            "no safetensors file"
        )
    header = _parse(data[8:start])
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise WeightsError("its __metadata__ is no dict")
    entries, end = {}, 0
    for name, about in sorted(header.items(), key=_begin):
        begin, stop, shape, dtype = _check_entry(name, about)
        if begin != end or start + stop > len(data):
            raise WeightsError(
                f"{short(name)} lies at bytes {begin} to {stop} of "
                f"{len(data) - start}, expected to begin at {end}: truncated or damaged"
            )
        entries[name] = _entry(data, (start + begin, start + stop), shape, dtype)
        end = stop
    if start + end != len(data):
        raise WeightsError(f"{len(data) - start - end} bytes behind the last array")
    return entries, {k: v for k, v in metadata.items() if isinstance(v, str)}


def _parse(text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise WeightsError("its header has a name twice")
        return dict(pairs)

    try:
        header = json.loads(text, object_pairs_hook=unique)
    except WeightsError:
        raise
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"its header is no JSON ({error!s:.80})") from None
    if not isinstance(header, dict):
        raise WeightsError("its header is no JSON object")
    return header


def _begin(item: tuple[str, Any]) -> tuple[int, int]:
    offsets = item[1].get("data_offsets") if isinstance(item[1], dict) else None
    if not (isinstance(offsets, list) and len(offsets) == 2 and _are_sizes(offsets)):
        raise WeightsError(f"{short(item[0])} has no data_offsets")
    return offsets[0], offsets[1]


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < 2**62 for value in values
    )


def _check_entry(name: str, about: dict[str, Any]) -> tuple[int, int, tuple, str]:
    begin, stop = about["data_offsets"]
    shape, kind = about.get("shape"), about.get("dtype")
    dtype = _DTYPES.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        raise WeightsError(
            f"{short(name)} is {short(kind)}, expected one of {', '.join(_DTYPES)}"
        )
    if not _are_sizes(shape) or len(shape or ()) > 16:
        raise WeightsError(f"{short(name)} has shape {short(shape)}")
    wanted = count(tuple(shape or ())) * ITEM_SIZES[dtype]
    if stop - begin != wanted:
        raise WeightsError(
            f"{short(name)} of shape {shape} takes {wanted} bytes, its data_offsets "
            f"have {stop - begin}"
        )
    return begin, stop, tuple(shape or ()), dtype


def _entry(
    data: bytes | mmap.mmap, span: tuple[int, int], shape: tuple, dtype: str
) -> Entry:
    start, stop = span
    return Entry(shape, dtype, lambda: decode(data[start:stop], dtype).reshape(shape))
