"""What every file of weights is read as: named entries that are not loaded yet."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

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


def count(shape: tuple[int, ...]) -> int:
    """Elements of an array of that shape, without overflow."""
    return math.prod(shape)


def decode(raw: bytes | memoryview, dtype: str) -> np.ndarray:
    """The flat little-endian elements `[N]` in `raw`; bfloat16 as float32."""
    if dtype == "bfloat16":
        wide = np.frombuffer(raw, "<u2").astype(np.uint32) << 16
        return wide.view(np.float32)
    return np.frombuffer(raw, np.dtype(dtype).newbyteorder("<"))
