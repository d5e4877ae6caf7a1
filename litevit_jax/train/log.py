"""What a run says: metrics.jsonl, TensorBoard, a progress line; and its guard.

The guard counts updates that were skipped because a loss or gradient was not
finite, names the examples of their batch, and stops the run after too many in a row.
"""

from __future__ import annotations

import functools
import json
import math
import os
import pathlib
import time
from typing import Any

import numpy as np
from absl import logging

from litevit_jax import paths
from litevit_jax.terminal import QUIET_S
from litevit_jax.terminal import Line as Line


class Writer:
    """Appends rows to metrics.jsonl and, if asked, TensorBoard events.

    A store cannot append: there both are written anew, every half minute.
    """

    _STORE_EVERY_S = 30.0

    def __init__(self, workdir: pathlib.Path, *, tensorboard: bool) -> None:
        self._path = workdir / "metrics.jsonl"
        self._local = paths.is_local(workdir)
        self._rows: list[dict[str, Any]] = []  # not yet in the store
        self._written = time.monotonic()
        self._events = self._mirror = None
        self._refused: Exception | None = None  # the first error of the events
        if tensorboard:
            import tensorboardX  # slow to import

            folder = workdir / "tensorboard"
            if not self._local:
                self._mirror = paths.Mirror(folder)
                folder = self._mirror.folder
            self._events = events = tensorboardX.SummaryWriter(str(folder))
            assert events.file_writer is not None
            self._watch(events.file_writer.event_writer._ev_writer)

    def _watch(self, file: Any) -> None:
        """Notes what a disk refuses: the events are written by a thread, which would
        end with its stacks, and the next event would wait for it for ever."""
        write, flush = file.write_event, file.flush

        def noting(call: Any, *args: Any) -> None:
            try:
                with paths.named(file._file_name):
                    call(*args)
            except (OSError, ValueError) as error:
                self._refused = self._refused or error

        file.write_event = functools.partial(noting, write)
        file.flush = functools.partial(noting, flush)

    def write(self, step: int, row: dict[str, Any]) -> None:
        """One row at `step`; numbers also go to TensorBoard.

        Raises:
          OSError: this row, or an event before it, could not be written.
        """
        if self._refused is not None:
            raise self._refused
        # JSON has no NaN: a value that is not finite is written as its name.
        safe = {k: _json_number(v) for k, v in row.items()}
        if self._local:
            paths.append_line(self._path, {"step": step, **safe})
        else:
            self._rows.append({"step": step, **safe})
            if time.monotonic() - self._written > self._STORE_EVERY_S:
                self.flush()
        if self._events is not None:
            for name, value in row.items():
                if isinstance(value, int | float) and name != "time":
                    self._events.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds uint8 [H, W, 3] to the TensorBoard events."""
        if self._events is not None:
            self._events.add_image(name, image, step, dataformats="HWC")

    def flush(self) -> None:
        """Writes what a store has not got yet."""
        if self._rows:
            lines = (json.dumps(row) + "\n" for row in self._rows)
            paths.append(self._path, "".join(lines).encode())
            self._rows.clear()
        if self._mirror is not None and self._events is not None:
            self._events.flush()
            self._mirror.copy()
        self._written = time.monotonic()

    def close(self) -> None:
        """Writes what is not written yet."""
        if self._events is not None:
            self._events.close()
        self.flush()


def _json_number(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


class Clock:
    """Images per second and part of the time spent waiting for data, since `reset`.

    If that part exceeds a tenth over a minute of training, it says so, once.
    """

    _WINDOW_S = 60.0
    _TOO_MUCH = 0.1

    def __init__(self, data: Any = None) -> None:
        self._data = data  # the config's block, for what to change
        self._told = self._data is None
        self._window: float | None = None  # no step yet
        self._window_wait = 0.0
        self._starting = False
        self.reset()

    def reset(self) -> None:
        """Starts a new interval."""
        self._start, self._steps, self._wait = time.perf_counter(), 0, 0.0
        self._last = self._start

    def begin(self) -> None:
        """Starts the first interval; what its first step waited was before it."""
        self.reset()
        self._starting = True

    def tick(self, wait_s: float) -> None:
        """Counts one step that waited `wait_s` for its batch."""
        if self._starting:
            self._starting, wait_s = False, 0.0
        self._steps += 1
        self._wait += wait_s
        if self._told:
            return
        now = time.perf_counter()
        spent, self._last = now - self._last, now
        if self._window is None:  # readers and the compiler were starting
            self._window = 0.0
            return
        self._window += spent
        self._window_wait += wait_s
        if self._window >= self._WINDOW_S:
            self._tell(self._window_wait / self._window)
            self._window, self._window_wait = 0.0, 0.0

    def _tell(self, share: float) -> None:
        if share > self._TOO_MUCH:
            self._told = True
            logging.warning("%s", data_wait_advice(share, self._data))

    def read(self, batch_size: int) -> dict[str, float]:
        """images_per_s, data_wait (percent) and step_s of the interval."""
        spent = max(time.perf_counter() - self._start, 1e-9)
        return {
            "images_per_s": self._steps * batch_size / spent,
            "data_wait": 100 * min(self._wait / spent, 1.0),
            "step_s": spent / max(self._steps, 1),
        }


def data_wait_advice(share: float, data: Any) -> str:
    """One line: what to change if a `share` of the time is spent waiting for data."""
    cores = os.cpu_count() or 1
    now = f"data.workers={data['workers']}, data.threads={data['threads']}"
    if data["decoder"] == "pillow":
        way = "install the quick decoder: pip install simplejpeg opencv-python-headless"
    elif (data["threads"] or cores) < cores:
        way = f"raise --config.data.threads to the {cores} cores of this machine"
    elif data["source"] != "packed" and not data["cache"]:
        way = (
            "resize the images once with python -m litevit_jax.data.pack and read them "
            "with data=packed, or keep a small set in memory with "
            "--config.data.cache=True"
        )
    else:
        way = "use a host with more cores, or a model that takes longer for an image"
    return f"waited for data {100 * share:.0f}% of the last minute ({now}): {way}"


class Guard:
    """Counts skipped updates and stops a run that does nothing but skip."""

    def __init__(self, *, max_in_a_row: int, skipped: int = 0) -> None:
        self.skipped = skipped
        self._in_a_row = 0
        self._max = max_in_a_row

    def check(self, step: int, nonfinite: bool, index: np.ndarray) -> dict | None:
        """A row for the log if update `step` was skipped.

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
    """Which steps are shown between those that are logged.

    The first one, those at powers of two, one a minute by the clock; on a terminal
    (`live`) as many as can be read. What is logged does not depend on it.
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
    """The step, compiled at its first call, which says so; the clock starts after it.

    How long that takes when JAX's cache does not have it is estimated.
    """

    def __init__(self, step: Any, line: Line, clock: Clock) -> None:
        self._step, self._line, self._clock = step, line, clock
        self._program: Any = None
        self._took_s: float | None = None

    def __call__(self, state: Any, batch: Any) -> Any:
        """(state, metrics) after one update."""
        if self._program is None:
            self._line.begin("tracing the step")
            start = time.perf_counter()
            self._program = self._compile(self._step.lower(state, batch), start)
            self._took_s = time.perf_counter() - start
            self._clock.begin()
        return self._program(state, batch)

    def _compile(self, lowered: Any, start: float) -> Any:
        about = _round(_COMPILING * (time.perf_counter() - start))
        expected = f"first time: about {about} s; a few seconds from the cache"
        self._line.begin(f"compiling the step ({expected})")
        return lowered.compile()

    def took(self) -> str:
        """What is added to the line of the first step; '' later."""
        took_s, self._took_s = self._took_s, None
        return "" if took_s is None else f"  (compiled in {took_s:.1f} s)"


def _round(seconds: float) -> int:
    """To one digit that counts, or two: 1, 7, 12, 130."""
    whole = max(round(seconds), 1)
    return round(whole, -1) if whole >= 100 else whole


def progress_text(row: dict[str, float], step: int, total_steps: int) -> str:
    """The progress line of `row` (loss, lr, grad_norm, epoch, images_per_s, ...)."""
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
