"""A source whose images are decoded once and kept in memory: for small sets."""

from __future__ import annotations

import concurrent.futures
import os
from typing import Any

import numpy as np

from litevit_jax.data import wrapped
from litevit_jax.data.decode import Decode, DecodeError
from litevit_jax.data.sources import base

_GIB = 2**30
_AT_ONCE = 256  # images decoded before their size is counted


class Cached(wrapped.Wrapped):
    """The examples of `source`, their images as uint8 [H, W, C]."""

    def __init__(self, source: base.Source):
        super().__init__(source)
        self._images: list[np.ndarray | Exception] = []
        self._rest: list[dict[str, Any]] = []  # label and annotations

    @property
    def in_memory(self) -> bool:
        return True

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self._images[index]
        if isinstance(image, Exception):
            raise DecodeError(str(image))
        return {"image": image, **self._rest[index]}


def keep_if_asked(source: base.Source, data: Any) -> base.Source:
    """Returns `source`, in memory if the config's `data` block says cache."""
    if not data["cache"]:
        return source
    return keep(
        source,
        Decode(data["channels"], data["max_pixels"], data["range"] or "full"),
        gib=data["cache_gib"],
        threads=data["threads"] or os.cpu_count() or 1,
    )


def keep(source: base.Source, decode: Decode, *, gib: float, threads: int) -> Cached:
    """Decodes all of `source`; an unreadable image raises when it is read.

    Args:
      source: the examples.
      decode: what makes images of them.
      gib: the most that the decoded images may take.
      threads: that decode.

    Raises:
      ValueError: they take more.
    """

    def read(index: int) -> tuple[Any, dict[str, Any]]:
        try:
            example = dict(source[index])
            pixels = np.asarray(decode(example.pop("image")))
        except base.AnnotationError:
            raise
        except Exception as error:  # told by the run, which counts what is bad
            return error, {}
        shape = (*pixels.shape[:2], decode.channels)
        return pixels.reshape(shape), example

    cached = Cached(source)
    size, count = 0, len(source)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for start in range(0, count, _AT_ONCE):
            for image, rest in pool.map(
                read, range(start, min(start + _AT_ONCE, count))
            ):
                cached._images.append(image)
                cached._rest.append(rest)
                size += sum(getattr(x, "nbytes", 0) for x in (image, *rest.values()))
            if size > gib * _GIB:
                raise ValueError(
                    f"data.cache: the first {len(cached)} of {count} images take "
                    f"{size / _GIB:.2f} GiB decoded, more than data.cache_gib={gib}; "
                    "raise it, or leave the cache off (--config.data.cache=False) and "
                    "pack the images: python -m litevit_jax.data.pack"
                )
    return cached
