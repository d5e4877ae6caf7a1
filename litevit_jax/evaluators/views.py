"""Predicts every pixel of images in windows, at several sizes and mirrored."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from litevit_jax import distributed
from litevit_jax.data import windows
from litevit_jax.evaluators import base


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Says which views of an image are predicted; see `decoding`.

    Attributes:
      stride: pixels from one window to the next, by rows and by columns.
      scales: factors of the image's size.
      flip: whether each size is also predicted with left and right swapped.
    """

    stride: tuple[int, int]
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    @property
    def views(self) -> int:
        """The number of predictions of an image, whose softmax is averaged."""
        return len(self.scales) * (1 + self.flip)


def decoding(
    context: base.Context, stride: int | None, scales: tuple[float, ...], flip: bool
) -> Decoding:
    """Checks how predictions are made of windows and views of an image.

    Args:
      context: its `size` is that of a window.
      stride: pixels from one window to the next; None: two thirds of a window's side,
        rounded down, as in the reference (341 of 512).
      scales: factors of `data.joint.short_side` and `long_side`.
      flip: whether each size is also predicted with left and right swapped.

    Raises:
      ValueError: a stride that leaves pixels out, or scales that are no factors.
    """
    sides = context.size
    if stride is not None and not 1 <= stride <= min(sides):
        raise ValueError(
            f"segmentation: stride={stride}; expected 1 to {min(sides)}, the side of a "
            "window, so that windows cover the image"
        )
    if not scales or len(set(scales)) < len(scales) or min(scales) <= 0:
        raise ValueError(
            f"segmentation: scales={tuple(scales)}; expected different factors above "
            "0, as (1.0,) or (1.0, 1.5, 2.0)"
        )
    rows, cols = (stride or max(side * 2 // 3, 1) for side in sides)
    return Decoding((rows, cols), tuple(scales), flip)


class View(NamedTuple):
    """The logits of all windows of an image at one size.

    Attributes:
      logits: `[R, C, h, w, K]` for R x C windows; `[R, C, h, w, L, K]` of L heads.
      starts: where the windows start, by rows `[R]` and by columns `[C]`.
      extent: rows and columns of the resized image that the windows cover.
      mirrored: whether the windows see left and right swapped.
    """

    logits: np.ndarray
    starts: tuple[np.ndarray, np.ndarray]
    extent: tuple[int, int]
    mirrored: bool = False


class Predicted(NamedTuple):
    """The predictions of one image.

    Attributes:
      index: of the image in its split.
      crop: rows and columns of a window in pixels.
      views: of the image, at least one.
      size: rows and columns of the image as it was decoded.
    """

    index: int
    crop: tuple[int, int]
    views: tuple[View, ...]
    size: tuple[int, int] = (0, 0)

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self.views[0].logits.shape[-1]

    def of_each_head(self) -> list[Predicted]:
        """Returns the predictions of each of several heads; of one, itself."""
        first = self.views[0].logits
        if first.ndim == 5:
            return [self]
        return [
            self._replace(
                views=tuple(v._replace(logits=v.logits[..., n, :]) for v in self.views)
            )
            for n in range(first.shape[-2])
        ]


def predict(
    context: base.Context,
    state: Any,
    split: str,
    how: Decoding,
    name: str = "segmentation_logits",
) -> Iterator[Predicted]:
    """Yields the logits of every image of a split once, of all hosts, in windows.

    `name` is that of the prediction.
    """
    several, crop = distributed.process_count() > 1, context.size
    cut = windows.cutter(crop, how.stride, flip=how.flip, pad_count=several)
    if how.scales != (1.0,):
        batches: Any = context.batches
        batches = functools.partial(batches, scales=how.scales)
        context = dataclasses.replace(context, batches=batches)
    parts: dict[tuple[int, int], dict[tuple[int, ...], np.ndarray]] = {}
    complete: dict[int, dict[int, View]] = {}
    for batch, out in context.over(state, split, (name,), change=cut):
        for row in np.flatnonzero(batch["mask"] > 0):
            index, view = (int(batch[name][row]) for name in ("index", "view"))
            known = parts.setdefault((index, view), {})
            known[tuple(batch["window"][row])] = out[name][row]
            if len(known) < batch["grid"][row].prod():
                continue
            views = complete.setdefault(index, {})
            views[view] = _view(parts.pop((index, view)), batch, row, crop, how.stride)
            if len(views) == how.views:
                height, width = (int(n) for n in batch["original_size"][row])
                ordered = tuple(views[number] for number in sorted(views))
                del complete[index]
                yield Predicted(index, crop, ordered, (height, width))


def _view(known, batch, row, crop, stride):
    """Lays the logits of all windows of an image out; `row` is one of them."""
    ordered = np.stack([known[window] for window in sorted(known)])
    logits = ordered.reshape(*batch["grid"][row], *ordered.shape[1:])
    rows, cols = (int(n) for n in batch["extent"][row])
    starts = (
        np.array(windows.starts(rows, crop[0], stride[0]), np.int32),
        np.array(windows.starts(cols, crop[1], stride[1]), np.int32),
    )
    return View(logits, starts, (rows, cols), bool(batch["view"][row] % 2))
