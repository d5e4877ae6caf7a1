"""The common form of every file of weights: named entries that are not loaded yet."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

# Bytes of an element, by NumPy's names; bfloat16 is the one that NumPy lacks.
ITEM_SIZES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
HALF = ("float16", "bfloat16")

_MOST_PARTS = 16  # of a list that a message shows: as many as a shape can have


class WeightsError(ValueError):
    """A file of weights that cannot be read, or not without a wrong result."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a file; its values are read when they are asked for.

    Attributes:
      shape: as the file has it.
      dtype: a key of `ITEM_SIZES`.
      read: gives the array; bfloat16 comes as float32.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


def short(value: Any, most: int = 60) -> str:
    """Describes a value from a file in at most `most` characters, for a message.

    The work does not grow with the value: a few nested tuples that share their parts
    would be written out as gigabytes of text.
    """
    text = _short(value, most, depth=2)
    return text if len(text) <= most else text[: most - 3] + "..."


def _short(value: Any, most: int, depth: int) -> str:
    if isinstance(value, str | bytes):
        return repr(value[:most])
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an int of {value.bit_length()} bits"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, list | tuple) and depth:
        parts = [_short(part, most, depth - 1) for part in value[:_MOST_PARTS]]
        more = ", ..." if len(value) > _MOST_PARTS else ""
        inside = ", ".join(parts) + more
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    return f"a {type(value).__name__}"


def count(shape: tuple[int, ...]) -> int:
    """Elements of an array of that shape, without overflow."""
    return math.prod(shape)


def decode(raw: bytes | memoryview, dtype: str) -> np.ndarray:
    """The flat little-endian elements `[N]` in `raw`; bfloat16 as float32."""
    if dtype == "bfloat16":
        wide = np.frombuffer(raw, "<u2").astype(np.uint32) << 16
        return wide.view(np.float32)
    return np.frombuffer(raw, np.dtype(dtype).newbyteorder("<"))
