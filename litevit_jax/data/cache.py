"""Sets whose images are decoded once: how all of one are read, and kept in memory."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
from jax.sharding import Mesh

from litevit_jax import choices, cpu, distributed, sharding, terminal
from litevit_jax.data import wrapped
from litevit_jax.data.decode import Decode, DecodeError
from litevit_jax.data.sources import base

GIB, _KIB = 2**30, 2**10
_SHARE = 0.2  # of a device's memory, which a set may take
_HOST_SHARE = 0.5  # of a host's memory, in which all of its processes decode a set
_PROCESSES_HERE = 8  # of a job on one host, at most: one for each of its devices
# Values of data.cache: images are cropped on the device, or their pixels kept in the
# host's memory.
SETTINGS = ("auto", "device", "host", "off")
_OLDER = {"True": "host", "False": "off", "None": "off"}  # of runs that had two values
_MANY = 2_000  # images whose decoding takes more than a moment
_AT_ONCE = 256  # images decoded before their size is counted
_CHUNK = 16  # images that a thread reads before it hands them over

T = TypeVar("T")


class Cached(wrapped.Wrapped):
    """The examples of `source`, their images as uint8 [H, W, C]."""

    def __init__(self, source: base.Source):
        super().__init__(source)
        self.sampling = source.sampling
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


def setting(data: Any) -> str:
    """Returns which of `SETTINGS` the config's `data` block has.

    Raises:
      ValueError: it has another value.
    """
    value = _OLDER.get(str(data["cache"]), data["cache"])
    return choices.check("data.cache", value, list(SETTINGS))


def keep_if_asked(source: base.Source, data: Any) -> base.Source:
    """Returns `source`, in memory if the config's `data` block says data.cache=host."""
    if setting(data) != "host":
        return source
    return keep(source, decoder(data), gib=data["cache_gib"], threads=threads_of(data))


def decoder(data: Any) -> Decode:
    """Returns what makes images of the examples, by the config's `data` block."""
    return Decode(data["channels"], data["max_pixels"], data["range"] or "full")


def threads_of(data: Any) -> int:
    """Returns how many threads decode a whole set."""
    return data["threads"] or os.cpu_count() or 1


def read_all(read: Callable[[int], T], count: int, threads: int) -> Iterator[list[T]]:
    """Yields read(0), read(1), ... up to `count`, many at a time, by `threads`."""
    doing = f"decoding {terminal.counted(count, 'image')}"
    terminal.ConsoleLine().begin(doing, quiet=count < _MANY, begun=False)

    def chunk(start: int) -> list[T]:
        return [read(index) for index in range(start, min(start + _CHUNK, count))]

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for start in range(0, count, _AT_ONCE):
            starts = range(start, min(start + _AT_ONCE, count), _CHUNK)
            yield [example for part in pool.map(chunk, starts) for example in part]


def read_pixels(
    source: base.Source, decode: Decode, index: int
) -> tuple[np.ndarray | Exception, dict[str, Any]]:
    """Returns uint8 [H, W, C] of an example, or why it has none, and what is beside it.

    Raises:
      AnnotationError: as reading does.
    """
    try:
        example = dict(source[index])
        pixels = np.asarray(decode(example.pop("image")))
    except base.AnnotationError:
        raise
    except Exception as error:  # told by the run, which counts what is bad
        return error, {}
    return pixels.reshape(*pixels.shape[:2], decode.channels), example


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
    cached, size, count = Cached(source), 0, len(source)
    for examples in read_all(
        lambda index: read_pixels(source, decode, index), count, threads
    ):
        for image, rest in examples:
            cached._images.append(image)
            cached._rest.append(rest)
            size += sum(getattr(x, "nbytes", 0) for x in (image, *rest.values()))
        if size > gib * GIB:
            raise ValueError(
                f"data.cache: the first {len(cached)} of {count} images take "
                f"{size / GIB:.2f} GiB decoded, more than data.cache_gib={gib}; "
                "raise it, or leave the cache off (--config.data.cache=off) and "
                "pack the images: python -m litevit_jax.data.pack"
            )
    return cached


def most_here() -> int:
    """Returns how many bytes of a host's memory each of its processes may decode."""
    here = min(distributed.process_count(), _PROCESSES_HERE)
    return int(_HOST_SHARE * cpu.memory()) // here


def most_on_device(mesh: Mesh, gib: float) -> int:
    """Returns how many bytes a set may take of each device, the same everywhere."""
    one = mesh.local_devices[0]
    memory = (one.memory_stats() or {}).get("bytes_limit")
    if memory is None:  # of the host, which its devices share
        memory = cpu.memory() // len(mesh.local_devices)
    most = int(min(_SHARE * memory, gib * GIB))
    if distributed.process_count() == 1:
        return most
    return -int(sharding.most(mesh, -(most // _KIB))) * _KIB  # the least of all
