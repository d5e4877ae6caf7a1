"""Windows of one size that cover images of any size, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Batch = dict[str, np.ndarray]
_SIZES = ("size", "window", "grid", "extent", "original_size")


def starts(size: int, crop: int, stride: int) -> list[int]:
    """Returns where windows of `crop` pixels start on an axis of `size` pixels.

    They are `stride` apart; one that would end behind the image is moved back to end
    with it. An image smaller than a window has one, which starts at 0.
    """
    count = max(size - crop + stride - 1, 0) // stride + 1
    return [min(number * stride, max(size - crop, 0)) for number in range(count)]


def cutter(
    crop: tuple[int, int],
    stride: tuple[int, int],
    *,
    flip: bool = False,
    pad_count: bool = False,
) -> Callable[[Iterator[Batch]], Iterator[Batch]]:
    """Returns a function from batches of images to batches of their windows.

    Images come as `image [B, H, W, C]` with `size [B, 2]`, the rows and columns that
    are image, and `index`, `mask [B]`. A batch of windows has as many rows: `image
    [B, *crop, C]`, `size [B, 2]` (of a window, what is image), `label` (0), `index`,
    `mask`; and `window [B, 2]`, the row and column of the window among the `grid
    [B, 2]` of all windows of its image, whose size is `extent [B, 2]`, and was
    `original_size [B, 2]` if the batch of images says so. Windows of an image are in
    order; those of several share a batch. Padding has mask 0. `view [B]` is twice that
    of the batch of images (0 if it says none), plus 1 for windows of the image with
    left and right swapped.

    Args:
      crop: rows and columns of a window.
      stride: from one window to the next.
      flip: whether each image is also cut with left and right swapped.
      pad_count: whether each batch of images gives as many batches as the whole image
        area could need: what several processes do at the same time is then the same.
    """

    def cut(batches: Iterator[Batch]) -> Iterator[Batch]:
        waiting: list[Batch] = []
        rows, shape = 0, ()
        for batch in batches:
            rows, shape = len(batch["mask"]), (*crop, batch["image"].shape[-1])
            for row in np.flatnonzero(batch["mask"] > 0):
                for mirrored in (False, True)[: 1 + flip]:
                    waiting += _windows(batch, int(row), crop, stride, mirrored)
            if pad_count:
                sides = zip(batch["image"].shape[1:3], crop, stride, strict=True)
                most = np.prod([len(starts(*side)) for side in sides])
                for _ in range(int(most) * (1 + flip)):
                    yield _stacked(waiting[:rows], rows, shape)
                    waiting = waiting[rows:]
                continue
            while len(waiting) >= rows:
                yield _stacked(waiting[:rows], rows, shape)
                waiting = waiting[rows:]
        if waiting:
            yield _stacked(waiting, rows, shape)

    return cut


def _windows(
    batch: Batch,
    row: int,
    crop: tuple[int, int],
    stride: tuple[int, int],
    mirrored: bool,
) -> list[Batch]:
    """Cuts the image in `row` of a batch into windows."""
    image, extent = batch["image"][row], batch["size"][row]
    if mirrored:
        image = image[:, : extent[1]][:, ::-1]
    view = 2 * int(batch["view"][row]) if "view" in batch else 0
    original = batch.get("original_size", batch["size"])[row]
    down, right = (
        starts(int(size), side, step)
        for size, side, step in zip(extent, crop, stride, strict=True)
    )
    cut: list[Any] = []
    for i, top in enumerate(down):
        for j, left in enumerate(right):
            part = image[top : top + crop[0], left : left + crop[1]]
            size = np.minimum(crop, extent - (top, left)).astype(np.int32)
            cut.append(
                {
                    "image": part,
                    "size": size,
                    "index": batch["index"][row],
                    "view": np.int32(view + mirrored),
                    "window": np.array((i, j), np.int32),
                    "grid": np.array((len(down), len(right)), np.int32),
                    "extent": np.asarray(extent, np.int32),
                    "original_size": np.asarray(original, np.int32),
                }
            )
    return cut


def _stacked(cut: list[Batch], rows: int, shape: tuple[int, ...]) -> Batch:
    """Stacks windows into a batch of `rows`."""
    batch = {
        "image": np.zeros((rows, *shape), cut[0]["image"].dtype if cut else np.uint8),
        "index": np.full(rows, -1, np.int32),
        "label": np.zeros(rows, np.int32),
        "view": np.zeros(rows, np.int32),
        "mask": np.zeros(rows, np.float32),
        **{name: np.ones((rows, 2), np.int32) for name in _SIZES},
    }
    for row, window in enumerate(cut):
        part = window["image"]
        batch["image"][row, : part.shape[0], : part.shape[1]] = part
        batch["mask"][row] = 1
        for name in ("index", "view", *_SIZES):
            batch[name][row] = window[name]
    return batch
