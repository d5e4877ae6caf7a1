"""Moves NumPy batches to global arrays on the mesh, a few batches ahead of the step."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from litevit_jax import sharding


class Fed(NamedTuple):
    """One batch on the devices, its example indices, and the seconds waited for it.

    A call of several `updates` has the batches of all, and indices `[updates, B]`.
    """

    batch: dict[str, Any]
    index: np.ndarray
    wait_s: float
    updates: int = 1


_END = object()
_PATIENCE_S = 10.0  # for a read that is under way at the end


def feed(
    batches: Iterator[dict[str, np.ndarray]],
    mesh: Mesh,
    *,
    ahead: int = 2,
    to_mesh: Callable[..., dict[str, Any]] = sharding.global_batch,
) -> Generator[Fed, None, None]:
    """Yields every batch placed on `mesh`, read `ahead` of time in a thread.

    `to_mesh` is (batch, mesh) -> the batch there.

    An exception of `batches` is raised here, at the batch where it happened.
    Closing the generator stops the thread, which closes `batches`; a read that does not
    return is not waited for.
    """
    waiting: queue.Queue = queue.Queue(maxsize=max(ahead, 1))
    stop = threading.Event()

    def put(item: object) -> bool:
        while not stop.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def read() -> None:
        try:
            for batch in batches:
                if not put((to_mesh(batch, mesh), batch["index"])):
                    return
            put(_END)
        except BaseException as error:
            put(error)
        finally:
            # Here, as nobody else can close what is just being read.
            getattr(batches, "close", lambda: None)()

    thread = threading.Thread(target=read, name="feed", daemon=True)
    thread.start()
    try:
        yield from _take(waiting)
    finally:
        stop.set()
        thread.join(_PATIENCE_S)


def _take(waiting: queue.Queue) -> Iterator[Fed]:
    while True:
        start = time.perf_counter()
        item = waiting.get()
        if item is _END:
            return
        if isinstance(item, BaseException):
            raise item
        batch, index = item
        updates = len(index) if index.ndim > 1 else 1
        yield Fed(batch, index, time.perf_counter() - start, updates)
