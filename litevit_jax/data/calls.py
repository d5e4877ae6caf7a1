"""Feeds a step that does several updates in one call, with the crops of each.

A call ends where something is logged, saved or evaluated. How many updates it has
besides follows from the time they take; no number of the run depends on it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from litevit_jax import distributed, sharding
from litevit_jax.data import device
from litevit_jax.data.draws import Draws

MOST = 64  # updates of a call
_CALL_S = 0.025  # long beside what a call costs, short beside a signal's patience
_DRAWN = 512  # examples whose crops are drawn at once
_AHEAD = 2  # calls that wait in the feed
# Calls after which the number of updates is chosen anew. The first one compiles.
_CHOICES = (6, 14, 30, 62, 126)


@dataclasses.dataclass(frozen=True)
class Calls:
    """The calls of a run.

    Attributes:
      draws: which crops.
      scales: float32 [N, 2], pixels that are stored for one of an example's image.
      held: what the devices hold: `columns` and `labels`.
      mesh: of the run.
      batch_size: of all processes together.
      most: updates of a call, at most.
      stops: step -> the next one at which a call ends.
    """

    draws: Draws
    scales: np.ndarray
    held: dict[str, jax.Array]
    mesh: Mesh
    batch_size: int
    most: int
    stops: Callable[[int], int]

    def feed(self, step: int) -> Generator[device.Fed, None, None]:
        """Yields the calls from `step` on, an endless stream."""
        pace = Pace(self.mesh, self.most)
        calls = self._calls(step, pace)
        feed = device.feed(calls, self.mesh, ahead=_AHEAD, to_mesh=self._placed)
        try:
            for fed in feed:
                pace.tick(fed.updates)
                yield fed
        finally:
            feed.close()

    def _calls(self, step: int, pace: Pace) -> Iterator[dict[str, np.ndarray]]:
        """Yields the crops of each call on the host: this process's part of them."""
        drawn = self._drawn(step)
        for number in itertools.count():
            left = self.stops(step) - step
            updates = math.ceil(left / math.ceil(left / pace.updates(number)))
            pairs = [next(drawn) for _ in range(updates)]
            index, boxes = (np.stack(rows) for rows in zip(*pairs, strict=True))
            yield {"index": index, "box": boxes}
            step += updates

    def _drawn(self, step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields examples [B] and boxes [B, V, 5] of each update from `step` on.

        Those of many are drawn at once, or drawing would cost more than a short update.
        """
        rows = self.batch_size // distributed.process_count()
        part = np.arange(rows) + distributed.process_index() * rows
        many = max(_DRAWN // rows, 1)
        for first in itertools.count(step, many):
            batches = np.arange(first, first + many)[:, None]
            positions = (batches * self.batch_size + part).astype(np.uint64)
            index, boxes = self.draws.at(positions.ravel())
            scales = np.tile(self.scales[index], 2)  # of left, top, right, bottom
            boxes[..., :4] *= scales[:, None]
            shape = (many, rows)
            yield from zip(
                index.reshape(shape),
                boxes.reshape(*shape, *boxes.shape[1:]),
                strict=True,
            )

    def _placed(self, call: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
        """Returns a call on the mesh, its arrays padded to the most updates."""
        layout, updates = sharding.slice_sharding(mesh), len(call["index"])
        rows = {}
        for name, array in call.items():
            padded = np.zeros((self.most, *array.shape[1:]), array.dtype)
            padded[:updates] = array
            rows[name] = jax.make_array_from_process_local_data(layout, padded)
        return {"held": self.held, "rows": rows, "updates": _count(updates, mesh)}


@functools.lru_cache(maxsize=2 * MOST)
def _count(updates: int, mesh: Mesh) -> jax.Array:
    """Returns a number of updates on the mesh."""
    return sharding.put(np.int32(updates), sharding.replicated(mesh))


def stops_at(every: Sequence[int], last: int) -> Callable[[int], int]:
    """Returns a function from a step to the next one at which a call has to end.

    These are the multiples of each of `every` (0: of none), and `last`.
    """
    numbers = [number for number in every if number]

    def after(step: int) -> int:
        multiples = [step - step % number + number for number in numbers]
        return min([*multiples, max(last, step + 1)])

    return after


class Pace:
    """Chooses how many updates calls have, by their time, the same on all processes."""

    def __init__(self, mesh: Mesh, most: int):
        """Begins with calls of one update; none will have more than `most`."""
        self._mesh, self._most = mesh, most
        self._chosen = [(0, 1)]  # first call, updates
        self._taken = 0
        self._last: tuple[float, int] | None = None  # time and updates of the last call
        self._times: list[float] = []

    def updates(self, call: int) -> int:
        """Returns how many updates call `call` has, if it need not end before."""
        chosen = self._chosen
        return next(number for first, number in reversed(chosen) if first <= call)

    def tick(self, updates: int) -> None:
        """Takes note that a call of `updates` is about to start."""
        now, self._taken = time.perf_counter(), self._taken + 1
        if self._last is not None:
            before, number = self._last
            self._times.append((now - before) / number)
        self._last = now, updates
        if self._taken in _CHOICES and self._most > 1:
            step_s = statistics.median(self._times)
            wanted = int(min(max(_CALL_S / step_s, 1), self._most))
            if distributed.process_count() > 1:
                wanted = int(sharding.most(self._mesh, wanted))
            # Calls up to the one after those that wait may have been planned.
            self._chosen = [*self._chosen, (self._taken + _AHEAD + 2, wanted)]
            self._times = []
