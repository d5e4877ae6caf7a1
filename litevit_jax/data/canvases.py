"""Groups images of many sizes by the canvas on which they are evaluated."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from litevit_jax.data import decode, joint, subsets, turbo
from litevit_jax.data.sources import base

Batches = Iterator[dict[str, np.ndarray]]
Canvases = tuple[joint.Size, ...]


def group(
    source: base.Source,
    settings: Sequence[joint.Settings],
    crop: joint.Size,
    threads: int,
) -> dict[Canvases, np.ndarray]:
    """Returns canvases (H, W), one for each of `settings` -> the examples they hold.

    Examples are in order. Sizes are read from the images' headers; an image that cannot
    be read is reported when it is decoded.
    """
    rows_of: dict[Canvases, list[int]] = collections.defaultdict(list)

    def choose(index: int) -> Canvases:
        try:
            size = size_of(source[index]["image"])
        except base.AnnotationError:
            raise
        except Exception:  # whatever a file system or a format may raise
            size = crop
        return tuple(joint.canvas(size, how, crop) for how in settings)

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for index, sizes in enumerate(pool.map(choose, range(len(source)))):
            rows_of[sizes].append(index)
    return {sizes: np.array(rows_of[sizes]) for sizes in sorted(rows_of)}


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
    groups: dict[Canvases, np.ndarray],
    open_stream: Callable[[base.Source, int, joint.Size], Any],
) -> Batches:
    """Yields the batches of each canvas; `index` counts in the whole `source`.

    Where images come on several canvases, the batches of the same images follow each
    other; their `view [B]` is the number of the canvas.
    """
    for sizes, rows in groups.items():
        part = subsets.Subset(source, rows)
        with contextlib.ExitStack() as stack:
            streams = [
                stack.enter_context(contextlib.closing(open_stream(part, view, size)))
                for view, size in enumerate(sizes)
            ]
            for same in zip(*streams, strict=True):
                for view, batch in enumerate(same):
                    index = batch["index"]
                    numbers = np.where(index < 0, -1, rows[index]).astype(np.int32)
                    batch["index"] = numbers
                    batch["view"] = np.full(len(index), view, np.int32)
                    yield batch
