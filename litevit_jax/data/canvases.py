"""Groups images of many sizes by the canvas on which they are evaluated."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from litevit_jax.data import decode, joint, subsets, turbo
from litevit_jax.data.sources import base

Batches = Iterator[dict[str, np.ndarray]]


def group(
    source: base.Source, settings: joint.Settings, crop: joint.Size, threads: int
) -> dict[joint.Size, np.ndarray]:
    """Returns canvas (H, W) -> the examples that it holds, in order.

    Sizes are read from the images' headers; what cannot be read is told later.
    """
    rows_of: dict[joint.Size, list[int]] = collections.defaultdict(list)

    def choose(index: int) -> joint.Size:
        try:
            size = size_of(source[index]["image"])
        except base.AnnotationError:
            raise
        except Exception:  # whatever a file system or a format may raise
            size = crop
        return joint.canvas(size, settings, crop)

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for index, canvas in enumerate(pool.map(choose, range(len(source)))):
            rows_of[canvas].append(index)
    return {canvas: np.array(rows_of[canvas]) for canvas in sorted(rows_of)}


def size_of(image: Any) -> joint.Size:
    """Returns (h, w) of an upright image, of bytes from their header.

    Raises:
      decode.DecodeError: bytes that are no image.
    """
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    header = turbo.read_header(image)
    if header is None:
        with decode.open_image(image) as opened:
            exif = opened.info.get("exif")
            header = turbo.Header(*opened.size, decode.orientation(exif))
    width, height = header.upright
    return height, width


def batches(
    source: base.Source,
    groups: dict[joint.Size, np.ndarray],
    open_stream: Callable[[base.Source, joint.Size], Any],
) -> Batches:
    """Yields the batches of each canvas; `index` counts in the whole `source`."""
    for canvas, rows in groups.items():
        stream = open_stream(subsets.Subset(source, rows), canvas)
        with contextlib.closing(stream):
            for batch in stream:
                index = batch["index"]
                batch["index"] = np.where(index < 0, -1, rows[index]).astype(np.int32)
                yield batch
