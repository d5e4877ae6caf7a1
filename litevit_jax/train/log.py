"""Shows a run: the progress line, its speed, skipped updates, the compiled step.

`NonFiniteGuard` counts updates that were skipped because a loss or gradient was not
finite, names the examples of their batch, and stops the run after too many in a row.
"""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from litevit_jax.terminal import QUIET_S

if TYPE_CHECKING:
    import jax

    from litevit_jax.terminal import ConsoleLine
    from litevit_jax.train.job import TrainState


class Throughput:
    """Measures images per second and the share of time spent waiting for data.

    Both count from the last `reset`. If that share exceeds a tenth over a minute of
    training, a warning tells once what to change.
    """

    _WINDOW_S = 60.0
    _TOO_MUCH = 0.1

    def __init__(self, data: dict[str, Any] | None = None) -> None:
        self._data = data  # the config's block, for advice; None: no warning
        self._warned = False
        self._window: float | None = None  # no step yet
        self._window_wait = 0.0
        self._starting = False
        self.reset()

    def reset(self) -> None:
        """Starts a new interval."""
        self._start, self._steps, self._wait = time.perf_counter(), 0, 0.0
        self._last = self._start

    def begin(self) -> None:
        """Starts the first interval; the wait of its first step is not counted."""
        self.reset()
        self._starting = True

    def tick(self, wait_s: float, steps: int = 1) -> None:
        """Counts `steps` of one call, which waited `wait_s` for its data."""
        if self._starting:
            self._starting, wait_s = False, 0.0
        self._steps += steps
        self._wait += wait_s
        if self._data is None or self._warned:
            return
        now = time.perf_counter()
        spent, self._last = now - self._last, now
        if self._window is None:  # readers and the compiler were starting
            self._window = 0.0
            return
        self._window += spent
        self._window_wait += wait_s
        if self._window >= self._WINDOW_S:
            share = self._window_wait / self._window
            if share > self._TOO_MUCH:
                self._warned = True
                logging.warning("%s", data_wait_advice(share, self._data))
            self._window, self._window_wait = 0.0, 0.0

    def read(self, batch_size: int) -> dict[str, float]:
        """Returns images_per_s, data_wait (percent) and step_s of the interval."""
        spent = max(time.perf_counter() - self._start, 1e-9)
        return {
            "images_per_s": self._steps * batch_size / spent,
            "data_wait": 100 * min(self._wait / spent, 1.0),
            "step_s": spent / max(self._steps, 1),
        }


def data_wait_advice(share: float, data: dict[str, Any]) -> str:
    """Says in one line what to change if a `share` of the time waits for data."""
    cores = os.cpu_count() or 1
    now = f"data.workers={data['workers']}, data.threads={data['threads']}"
    if data["decoder"] == "pillow":
        way = "install the quick decoder: pip install simplejpeg opencv-python-headless"
    elif (data["threads"] or cores) < cores:
        way = f"raise --config.data.threads to the {cores} cores of this machine"
    elif data["source"] != "packed" and data["cache"] != "host":
        way = (
            "resize the images once with python -m litevit_jax.data.pack and read them "
            "with data=packed, or keep a small set in memory with "
            "--config.data.cache=device"
        )
    else:
        way = "use a host with more cores, or a model that takes longer for an image"
    return f"waited for data {100 * share:.0f}% of the last minute ({now}): {way}"


class NonFiniteGuard:
    """Counts skipped updates and stops a run that does nothing but skip."""

    def __init__(self, *, max_in_a_row: int, skipped: int = 0) -> None:
        self.skipped = skipped
        self._in_a_row = 0
        self._max = max_in_a_row

    def check(
        self, step: int, nonfinite: bool, index: np.ndarray
    ) -> dict[str, Any] | None:
        """Returns a row for the log if update `step` was skipped.

        `index [B]` are the examples of its batch.

        Raises:
          FloatingPointError: `max_in_a_row` updates in a row were skipped.
        """
        if not nonfinite:
            self._in_a_row = 0
            return None
        self.skipped += 1
        self._in_a_row += 1
        examples = [int(i) for i in index]
        logging.warning(
            "step %d: loss or gradient not finite, update skipped; examples %s",
            step,
            examples,
        )
        if self._in_a_row >= self._max:
            raise FloatingPointError(
                f"{self._in_a_row} updates in a row had a loss or gradient that is not "
                f"finite, the last at step {step} (examples {examples[:16]}...); "
                "lower --config.lr.base, look at these examples, or raise "
                "--config.nonfinite.max_in_a_row"
            )
        return {
            "event": "nonfinite",
            "skipped_steps": self.skipped,
            "examples": examples,
        }


class Pace:
    """Chooses the steps that are shown between those that are logged.

    These are the first one, those at powers of two, and one a minute by the clock; on
    a terminal (`live`) as many as can be read. What is logged does not depend on it.
    """

    _LIVE_S = 0.2

    def __init__(self, *, live: bool) -> None:
        self._every_s = self._LIVE_S if live else QUIET_S
        self._shown = -math.inf  # nothing yet
        self._last = 0.0  # when the step before was done

    def due(self, step: int, *, logged: bool) -> bool:
        """Whether update `step`, done now, is shown; `logged` ones are."""
        now = time.monotonic()
        next_one, self._last = 2 * now - self._last, now  # when to expect it
        waits_long = next_one - self._shown > self._every_s
        due = logged or waits_long or not step & (step - 1)
        if due:
            self._shown = now
        return due


# Seconds that XLA takes to compile a step for one that JAX takes to lower it: 10 to 18
# on CPUs, over our objectives.
_COMPILING = 12.0


class Program:
    """The training step, compiled with a message at its first call.

    The message estimates how long that takes if JAX's cache does not have the program.
    The throughput is measured from then on.
    """

    def __init__(
        self, step: jax.stages.Wrapped, line: ConsoleLine, throughput: Throughput
    ) -> None:
        self._step, self._line, self._throughput = step, line, throughput
        self._program: jax.stages.Compiled | None = None
        self._took_s, self._verb = math.nan, "compiled"

    def __call__(
        self, state: TrainState, batch: dict[str, jax.Array]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Returns (state, metrics) after one update."""
        if self._program is None:
            self._program = self._compiled(state, batch, start := time.perf_counter())
            self._took_s = time.perf_counter() - start
            self._throughput.begin()
        return self._program(state, batch)

    def _compiled(
        self, state: TrainState, batch: dict[str, jax.Array], start: float
    ) -> jax.stages.Compiled:
        if getattr(self._step, "kept", False):  # by an earlier start
            self._verb = "loaded"
            self._line.begin("loading the step")
            return self._step.lower(state, batch).compile()
        self._line.begin("tracing the step")
        lowered = self._step.lower(state, batch)
        about = _round(_COMPILING * (time.perf_counter() - start))
        expected = f"first time: about {about} s; a few seconds from the cache"
        self._line.begin(f"compiling the step ({expected})")
        return lowered.compile()

    def compile_note(self) -> str:
        """Returns how long compiling took, for the first step's line; '' later."""
        took_s, self._took_s = self._took_s, math.nan
        return "" if math.isnan(took_s) else f"  ({self._verb} in {took_s:.1f} s)"


def _round(seconds: float) -> int:
    """Rounds to one or two significant digits: 1, 7, 12, 130."""
    whole = max(round(seconds), 1)
    return round(whole, -1) if whole >= 100 else whole


def progress_text(row: dict[str, float], step: int, total_steps: int) -> str:
    """Formats the progress line of `row` (loss, lr, grad_norm, epoch, ...)."""
    left = int((total_steps - step) * row["step_s"])
    hours, minutes, seconds = left // 3600, left // 60 % 60, left % 60
    parts = [
        f"step {step}/{total_steps}",
        f"epoch {row['epoch']:.2f}",
        f"loss {row['loss']:.4f}",
        f"lr {row['lr']:.2e}",
        f"grad {row['grad_norm']:.3f}",
        f"{row['images_per_s']:.0f} images/s",
        f"data wait {row['data_wait']:.0f}%",
        f"ETA {hours}:{minutes:02d}:{seconds:02d}",
    ]
    if row.get("skipped_steps"):
        parts.append(f"skipped {row['skipped_steps']}")
    return "  ".join(parts)
