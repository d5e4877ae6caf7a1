"""Converts pixels of more than 8 bits to bytes: which values are black and white.

`data.range` says it: 'full' is all that the pixels' type can hold, 'auto' a pair of
percentiles over the training images, 'auto_each' the same of each image, 'LOW,HIGH'
those two values. Unsigned pixels of 8 bits stay as they are.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

# Of 'auto' and 'auto_each': a few hot or dead pixels must not set the scale.
PERCENTILES = (0.5, 99.5)
_WORDS = ("full", "auto", "auto_each")

Pair = tuple[float, float]


class Deep(NamedTuple):
    """Pixels of more than 8 bits, or of 8 with a sign.

    Attributes:
      values: numbers of any type, in any shape.
      kind: what they are, for messages.
      full: the range of their type; None for types that are never used up.
      inverted: the low end of the range is white and the high end black.
    """

    values: np.ndarray
    kind: str
    full: Pair | None
    inverted: bool = False


def parse(text: str) -> str | Pair:
    """Returns 'full', 'auto', 'auto_each', or the pair that `text` names.

    Raises:
      ValueError: none of these.
    """
    if text in _WORDS:
        return text
    try:
        low, high = (float(number) for number in text.strip("()[] ").split(","))
    except ValueError:
        low = high = math.nan
    if math.isfinite(low) and math.isfinite(high) and low < high:
        return low, high
    raise ValueError(
        f"data.range={text!r}; expected full (all that the pixels' type can hold), "
        "auto (percentiles of the training images), auto_each (of each image), or two "
        "numbers LOW,HIGH with LOW < HIGH, as in --config.data.range=0,4095"
    )


def spell(pair: Pair) -> str:
    """Formats `pair` so that `parse` reads the same bits."""
    return ",".join(f"{x:.0f}" if x == int(x) else repr(x) for x in map(float, pair))


def of_integers(values: np.ndarray, kind: str, *, bits: int, signed: bool) -> Deep:
    """Pixels that are whole numbers of so many bits.

    Numbers of more than 16 bits are taken for 16, unsigned, if they would fit, since
    programs write these so; else they have no range of their own.
    """
    if bits <= 16:
        full = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else None
        return Deep(values, kind, full or (0.0, 2.0**bits - 1))
    fits = values.size and values.min() >= 0 and values.max() <= 65535
    return Deep(values, kind, (0.0, 65535.0) if fits else None)


def of_array(values: np.ndarray) -> Deep:
    """Pixels of an array of any type of numbers."""
    kind = f"type {values.dtype}"
    if values.dtype.kind == "f":
        return Deep(values, kind, None)
    bits, signed = 8 * values.dtype.itemsize, values.dtype.kind == "i"
    return of_integers(values, kind, bits=bits, signed=signed)


def to_bytes(deep: Deep, text: str) -> np.ndarray:
    """Returns uint8 of the pixels' shape: low and below are 0, high and above 255.

    Inverted pixels have 255 at the low end and 0 at the high one.

    Raises:
      ValueError: some are no numbers, or `text` gives them no range.
    """
    values = deep.values.astype(np.float64)
    low, high = pair(deep, text)
    if low == high:
        return np.zeros(values.shape, np.uint8)
    scaled = (np.clip(values, low, high) - low) * (255 / (high - low))
    grey = np.floor(scaled + 0.5).astype(np.uint8)
    return 255 - grey if deep.inverted else grey


def pair(deep: Deep, text: str) -> Pair:
    """Returns the values that become black and white.

    Raises:
      ValueError: some pixels are no numbers, or `text` gives them no range.
    """
    values, chosen = deep.values, parse(text)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        count = values.size - np.isfinite(values).sum()
        raise ValueError(
            f"{count} of {values.size} pixels of {deep.kind} are infinite or no "
            "numbers; replace them by a value that means 'nothing here'"
        )
    if isinstance(chosen, tuple):
        return chosen
    if chosen == "auto_each":
        return percentiles(values)
    if chosen == "auto":
        raise ValueError("data.range=auto was not replaced by the values it stands for")
    if deep.full is None:
        raise ValueError(
            f"pixels of {deep.kind} from {values.min():g} to {values.max():g} have no "
            "range of their own; say which values become black and white with "
            "--config.data.range=LOW,HIGH, or take percentiles of all images "
            "(--config.data.range=auto) or of each (auto_each)"
        )
    return deep.full


def percentiles(values: np.ndarray) -> Pair:
    """Returns `PERCENTILES` of the values, or their ends if those are the same."""
    # As floats: NumPy interpolates integers by differences, which may overflow.
    low, high = np.percentile(values.astype(np.float64), PERCENTILES)
    if low == high:
        low, high = values.min(), values.max()
    return float(low), float(high)
