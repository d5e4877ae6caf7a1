"""Draws the crops of many positions at once.

They are those that `pipeline.train_batches` and `transforms.RandomResizedCrop` draw one
by one, bit for bit: the same generator in NumPy's arithmetic. What is rare (a crop that
fits at the fourth attempt, a rejected integer, an unreadable image) is drawn by them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from litevit_jax.data import order
from litevit_jax.data.transforms import RandomResizedCrop

_ATTEMPTS = 3  # of a crop that are drawn for all positions: two blocks of numbers
_LOW = np.uint64(2**32 - 1)
_HALF = np.uint64(32)
# Philox4x64 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B))
_ROUNDS = 10


@dataclasses.dataclass(frozen=True)
class Draws:
    """The crops of a run, by position.

    Attributes:
      crop: how boxes are drawn.
      sizes: [N, 2], width and height of each example's image.
      readable: [N], whether there is an image at all.
      seed: of the run.
      views: crops of each example.
      sampling: see `Source`.
    """

    crop: RandomResizedCrop
    sizes: np.ndarray
    readable: np.ndarray
    seed: int
    views: int = 1
    sampling: np.ndarray | None = None

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the examples at `positions` [n] of the run, and their crops.

        Returns:
          `index` int32 [n]; `boxes` float32 [n, V, 5]: left, top, right, bottom and
          whether the interpolation is bicubic.

        Raises:
          ValueError: many examples in a row have no image.
        """
        count = len(self.sizes)
        rows = (
            order.example_at(self.seed, int(p), count, self.sampling) for p in positions
        )
        index = np.fromiter(rows, np.int32, len(positions))
        boxes = np.zeros((len(positions), self.views, 5), np.float32)
        missing = ~self.readable[index]
        width, height = self.sizes[index].T
        for view in range(self.views):
            words = _words(self.seed, positions, view)
            boxes[:, view], drawn = _boxes(self.crop, width, height, words)
            missing |= ~drawn
        for row in np.flatnonzero(missing):
            index[row], boxes[row] = self._one(int(positions[row]), int(index[row]))
        return index, boxes

    def _one(self, position: int, index: int) -> tuple[int, np.ndarray]:
        """Draws one by one, as `order` and `transforms` do."""
        rng = order.generator(self.seed, position)
        for _ in range(order.MAX_REPLACEMENTS):
            if self.readable[index]:
                break
            index = int(rng.integers(len(self.sizes)))
        else:
            raise ValueError(
                f"{order.MAX_REPLACEMENTS} examples in a row cannot be read; repair or "
                "remove the unreadable files"
            )
        start: Any = rng.bit_generator
        rngs = [rng]
        if self.views > 1:
            rngs = [np.random.Generator(start.jumped(v)) for v in range(self.views)]
        width, height = (int(side) for side in self.sizes[index])
        drawn = [self.crop.draw(width, height, one) for one in rngs]
        return index, np.array([(*box, name == "bicubic") for box, name in drawn])


def _words(seed: int, positions: np.ndarray, view: int) -> np.ndarray:
    """Returns the first 8 numbers uint64 [n, 8] of each position's generator."""
    blocks = [_block(number, seed, positions, view) for number in (1, 2)]
    return np.stack([word for block in blocks for word in block], axis=-1)


def _block(
    number: int, seed: int, positions: np.ndarray, view: int
) -> list[np.ndarray]:
    """Returns 4 numbers uint64 [n] each: the generators at counter `number`."""
    shape = len(positions)
    counter = [np.full(shape, x, np.uint64) for x in (number, 0, view, 0)]
    keys = [np.full(shape, seed, np.uint64), positions.astype(np.uint64)]
    for _ in range(_ROUNDS):
        high, low = _product(_MULTIPLIERS[0], counter[0])
        other_high, other_low = _product(_MULTIPLIERS[1], counter[2])
        counter = [
            other_high ^ counter[1] ^ keys[0],
            other_low,
            high ^ counter[3] ^ keys[1],
            low,
        ]
        keys = [key + step for key, step in zip(keys, _WEYL, strict=True)]
    return counter


def _product(factor: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the upper and lower 64 bits of factor * x."""
    factor_high, factor_low = (np.uint64(f) for f in divmod(factor, 2**32))
    high, low = x >> _HALF, x & _LOW
    middle = high * factor_low + (low * factor_low >> _HALF)
    other = low * factor_high + (middle & _LOW)
    upper = high * factor_high + (middle >> _HALF) + (other >> _HALF)
    return upper, x * np.uint64(factor)


def _boxes(
    crop: RandomResizedCrop, width: np.ndarray, height: np.ndarray, words: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns boxes float32 [n, 5] of images [n], and whether they are drawn: [n]."""
    boxes = np.zeros((len(words), 5), np.float32)
    waiting, drawn = np.ones(len(words), bool), np.zeros(len(words), bool)
    for attempt in range(1 if crop.single_draw else _ATTEMPTS):
        pair = words[:, 2 * attempt : 2 * attempt + 2]
        w, h = _sides(crop, width * height, *pair.T)
        if crop.single_draw:
            w, h = np.clip(w, 1, width), np.clip(h, 1, height)
        fits = waiting & (w > 0) & (w <= width) & (h > 0) & (h <= height)
        integers = _Integers(words[:, 2 * attempt + 2 : 2 * attempt + 4])
        top = integers.below(np.maximum(height - h + 1, 1))
        left = integers.below(np.maximum(width - w + 1, 1))
        cubic = np.full(len(words), crop.interpolation == "bicubic")
        if crop.interpolation == "random":
            cubic = integers.below(np.full(len(words), 2))
        new = np.stack([left, top, left + w, top + h, cubic], axis=-1)
        boxes[fits] = new[fits]
        drawn |= fits & ~integers.rejected
        waiting &= ~fits
    return boxes, drawn


def _sides(
    crop: RandomResizedCrop, area: np.ndarray, one: np.ndarray, other: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns width and height [n] of crops, from two numbers uint64 [n]."""
    share, power = ((word >> np.uint64(11)) * 2.0**-53 for word in (one, other))
    low, high = crop.scale
    target = (low + (high - low) * share) * area
    low, high = (math.log(ratio) for ratio in crop.ratio)
    # NumPy's exponential may differ in the last bit.
    exponentials = map(math.exp, low + (high - low) * power)
    ratio = np.fromiter(exponentials, np.float64, len(power))
    w, h = np.sqrt(target * ratio), np.sqrt(target / ratio)
    return np.rint(w).astype(np.int64), np.rint(h).astype(np.int64)


class _Integers:
    """Integers from halves of numbers, as NumPy draws them (Lemire 2019).

    Attributes:
      rejected: [n], whether one of them would have to be drawn again.
    """

    def __init__(self, words: np.ndarray):
        """Draws from `words` uint64 [n, 2], the lower half of each first."""
        halves = [words & _LOW, words >> _HALF]
        self._halves = np.stack(halves, axis=-1).reshape(len(words), 4)
        self._used = np.zeros(len(words), np.int64)
        self.rejected = np.zeros(len(words), bool)

    def below(self, bounds: np.ndarray) -> np.ndarray:
        """Returns integers [n] from 0 to `bounds` [n] - 1; of one, nothing is drawn."""
        half = np.take_along_axis(self._halves, self._used[:, None], axis=1)[:, 0]
        count = bounds.astype(np.uint64)
        product = half * count
        self.rejected |= (product & _LOW) < (np.uint64(2**32) - count) % count
        self._used += bounds > 1
        return np.where(bounds > 1, product >> _HALF, 0).astype(np.int64)
