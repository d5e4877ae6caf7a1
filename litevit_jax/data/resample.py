"""Resizes pixels as OpenCV does, without antialiasing.

Images are interpolated, labels taken from the nearest pixel. Both functions compute a
window of the resized picture alone, in whole numbers: the bits are the same on every
machine, with OpenCV and without it.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

_BITS = 11  # of a weight, as in OpenCV


class Window(NamedTuple):
    """A part of a resized picture.

    Attributes:
      size: (H, W) of the whole resized picture.
      top, left, height, width: of the part, in resized pixels.
    """

    size: tuple[int, int]
    top: int
    left: int
    height: int
    width: int

    @classmethod
    def whole(cls, size: tuple[int, int]) -> Window:
        """Returns all of a picture resized to `size` (H, W)."""
        return cls(size, 0, 0, *size)


def bilinear(pixels: np.ndarray, window: Window) -> np.ndarray:
    """Resizes uint8 [h, w, C] to a window's uint8 [height, width, C].

    Pixel centres lie at halves and border pixels are repeated outside, as with
    OpenCV's INTER_LINEAR, whose results differ by one level at most.
    """
    height, width = pixels.shape[:2]
    if (height, width) == window.size:
        return _cut(pixels, window)
    rows, row_weights = _linear(height, window.size[0], window.top, window.height)
    columns, weights = _linear(width, window.size[1], window.left, window.width)
    beside = np.minimum(columns + 1, width - 1)
    pairs = np.stack([rows, np.minimum(rows + 1, height - 1)])
    used, inverse = np.unique(pairs, return_inverse=True)
    above, below = inverse.reshape(pairs.shape)
    needed = pixels[used].astype(np.int32)
    weights, row_weights = weights[:, None], row_weights[:, None, None]
    across = needed[:, columns] * (2**_BITS - weights) + needed[:, beside] * weights
    result = across[above] * (2**_BITS - row_weights) + across[below] * row_weights
    return ((result + 2 ** (2 * _BITS - 1)) >> 2 * _BITS).astype(np.uint8)


def nearest(labels: np.ndarray, window: Window) -> np.ndarray:
    """Takes of labels [h, w] those of a window [height, width] of the resized map.

    A resized label is the one at `floor(position * h / H)`, as with INTER_NEAREST.
    """
    if labels.shape[:2] == window.size:
        return _cut(labels, window)
    rows = _nearest(labels.shape[0], window.size[0])
    columns = _nearest(labels.shape[1], window.size[1])
    rows = rows[window.top : window.top + window.height]
    columns = columns[window.left : window.left + window.width]
    return labels[rows[:, None], columns]


def _cut(pixels: np.ndarray, window: Window) -> np.ndarray:
    rows = slice(window.top, window.top + window.height)
    return pixels[rows, window.left : window.left + window.width]


def _linear(
    old: int, new: int, start: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixels before `count` positions from `start` on, and the weights of
    those behind, in 1 / 2^11."""
    positions, scale = np.arange(start, start + count), 1.0 / (new / old)
    exact = ((positions + 0.5) * scale - 0.5).astype(np.float32)
    before = np.floor(exact).astype(np.int64)
    weights = np.rint((exact - before) * np.float32(2**_BITS)).astype(np.int32)
    weights[(before < 0) | (before >= old - 1)] = 0
    return np.clip(before, 0, old - 1), weights


@functools.lru_cache(maxsize=256)
def _nearest(old: int, new: int) -> np.ndarray:
    exact = np.floor(np.arange(new) * (1.0 / (new / old))).astype(np.int64)
    return np.minimum(exact, old - 1)
