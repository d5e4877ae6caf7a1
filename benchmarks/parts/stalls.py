"""Checks whether steps stall: an idle device, copies, saves, arrays not donated.

Steps run as in litevit_jax/train/loop.py: batches from the host, placed ahead in a
thread; metrics read one step late; a checkpoint written beside the steps.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import pathlib
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np

from benchmarks import sides
from benchmarks.parts import common
from litevit_jax import checkpoint
from litevit_jax.data import device
from litevit_jax.plan import hlo

Span = tuple[float, float]  # (begin, end) in nanoseconds
_STEPS = 8  # to trace
_BESIDE_SAVE = 30  # steps from the start of a save on; it is done by then
# Percent of the time that may be lost: between operations, to copies, to saving.
BOUNDS = {"idle": 5.0, "copies": 1.0, "saving": 1.0}


def rows(part: common.Part, name: str, spec: sides.Spec, step: sides.Step) -> None:
    """Adds the rows of `name`; `step` is compiled and has run."""
    donated = functools.partial(_donation, step)
    part.row(f"{name}, stalls: donation", donated)
    part.row(f"{name}, stalls: steps", functools.partial(_of_steps, part, spec, step))
    part.row(f"{name}, stalls: saving", functools.partial(_of_save, part, spec, step))


def merged(spans: Iterable[Span]) -> list[Span]:
    """Joins overlapping `spans`; the result is in order."""
    joined: list[Span] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined


def of_trace(computing: list[Span], copies: list[Span]) -> dict[str, float]:
    """Stalls in percent of the time from the first operation to the last.

    Args:
      computing: spans of the operations of one device.
      copies: spans of the copies from the host to it.

    Returns:
      'idle %': nothing is computed; 'copies %': the part of it during a copy, which
      would be hidden if it came earlier; 'longest gap us'.
    """
    busy = merged(computing)
    if not busy:
        refuse_empty()
    whole = busy[-1][1] - busy[0][0]
    gaps = [(one[1], other[0]) for one, other in itertools.pairwise(busy) if whole > 0]
    covered = merged(copies)
    exposed = sum(
        max(min(end, stop) - max(begin, start), 0.0)
        for begin, end in gaps
        for start, stop in covered
    )
    idle = sum(end - begin for begin, end in gaps)
    return {
        "idle %": 100 * idle / max(whole, 1e-9),
        "copies %": 100 * exposed / max(whole, 1e-9),
        "longest gap us": max((end - begin for begin, end in gaps), default=0.0) / 1e3,
    }


def refuse_empty() -> NoReturn:
    """Raises the error of a trace that shows nothing."""
    raise ValueError("the trace has no operations of a device")


def spans_of(data: Any) -> tuple[list[Span], list[Span]]:
    """Reads a profile: (operations of the first device, copies to it)."""
    planes = list(data.planes)
    devices = of_devices(planes)
    if not devices:  # CPUs: the threads that run operations
        threads = on_host(planes)
        return [span for events in threads for span in map(_span, events)], []
    lines = list(devices[0].lines)
    streams = [line for line in lines if line.name.startswith("Stream")]
    ops = [line for line in lines if line.name == "XLA Ops"]
    computing, copies = [], []
    for line in streams or ops or lines:
        for event in line.events:
            # A stream is named after all that runs on it; an event says what it is.
            if "MemcpyH2D" in event.name:
                copies.append(_span(event))
            elif "Memcpy" not in event.name:
                computing.append(_span(event))
    return computing, copies


def of_devices(planes: list[Any]) -> list[Any]:
    """Planes of accelerators; none on a CPU.

    Where libtpu is loaded, if only to plan for TPUs, the profiler adds a plane
    '/device:CUSTOM:Megascale Trace', on CPUs too; it is of no device.
    """
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    return [plane for plane in devices if not plane.name.startswith("/device:CUSTOM:")]


def on_host(planes: list[Any]) -> list[list[Any]]:
    """Events of a CPU's operations, a list for each thread that ran some.

    They run on XLA's threads, or on Python's where dispatch is synchronous.
    """
    with warnings.catch_warnings():
        # Python 3.13 warns of the type of `stats`; as an error it aborts the process.
        warnings.simplefilter("ignore", DeprecationWarning)
        threads = [
            [event for event in line.events if "hlo_op" in dict(event.stats)]
            for plane in planes
            if plane.name.startswith("/host:CPU")
            for line in plane.lines
        ]
    return [events for events in threads if events]


def _span(event: Any) -> Span:
    return event.start_ns, event.start_ns + event.duration_ns


def _donation(step: sides.Step) -> dict[str, Any]:
    """Whether every array of the state is updated in place."""
    arrays = len(jax.tree.leaves(step.design.state))
    donated = hlo.aliased_outputs(step.program.as_text())
    return {"arrays": arrays, "in place": donated, "ok": donated == arrays}


def _of_steps(part: common.Part, spec: sides.Spec, step: sides.Step) -> dict[str, Any]:
    """Traces steps fed from the host: idle time and copies."""
    with tempfile.TemporaryDirectory() as folder, _feed(spec, step) as feed:
        _train(step, feed, 3)
        with jax.profiler.trace(folder):
            seconds = _train(step, feed, 3 if part.small else _STEPS)
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        stalls = of_trace(*spans_of(jax.profiler.ProfileData.from_file(str(path))))
    row = {"ms a step": 1e3 * statistics.mean(seconds), **stalls}
    row |= {"bound %": f"{BOUNDS['idle']:g} idle, {BOUNDS['copies']:g} copies"}
    if not part.small:  # a step of microseconds is mostly its start
        fine = stalls["idle %"] <= BOUNDS["idle"]
        row["ok"] = fine and stalls["copies %"] <= BOUNDS["copies"]
    return row


def _of_save(part: common.Part, spec: sides.Spec, step: sides.Step) -> dict[str, Any]:
    """The cost of checkpoints for a run that saves as often as the recipe."""
    count = 3 if part.small else _BESIDE_SAVE
    with tempfile.TemporaryDirectory() as folder, _feed(spec, step) as feed:
        checkpoints = checkpoint.Checkpoints(folder, keep=1)
        try:
            _save(checkpoints, step)  # sets up what later saves reuse
            checkpoints.wait()
            plain = _train(step, feed, count)
            begin = time.perf_counter()
            _save(checkpoints, step)
            blocked = time.perf_counter() - begin
            beside = _train(step, feed, count)
            checkpoints.wait()
        finally:
            checkpoints.close()
    every = sides.recipe(spec).checkpoint.every_steps
    row = saving(plain, blocked, beside, every)
    if part.small:
        del row["ok"]
    return row


def saving(
    plain: list[float], blocked: float, beside: list[float], every: int
) -> dict[str, Any]:
    """The cost of one checkpoint in `every` steps.

    Args:
      plain: seconds of steps without a checkpoint.
      blocked: seconds until the call that saves returned.
      beside: seconds of the steps after it, while it is written.
      every: steps from one to the next.
    """
    usual = statistics.median(plain)
    lost = blocked + sum(beside) - usual * len(beside)
    share = 100 * max(lost, 0.0) / (every * usual)
    return {
        "ms a step": 1e3 * usual,
        "save blocks ms": 1e3 * blocked,
        "slowest step beside it ms": 1e3 * max(beside),
        "lost %": share,
        "bound %": BOUNDS["saving"],
        "ok": share <= BOUNDS["saving"],
    }


def _save(checkpoints: checkpoint.Checkpoints, step: sides.Step) -> None:
    checkpoints.save(step.state, config={}, skipped_steps=0)


@contextlib.contextmanager
def _feed(spec: sides.Spec, step: sides.Step) -> Iterator[Iterator[device.Fed]]:
    """Batches from the host, placed on the devices as in a run."""
    batch: dict[str, np.ndarray] = sides.host_batch(spec)
    mesh = step.batch["index"].sharding.mesh
    with contextlib.closing(device.feed(itertools.repeat(batch), mesh)) as feed:
        yield feed


def _train(step: sides.Step, feed: Iterator[device.Fed], count: int) -> list[float]:
    """Makes `count` steps; returns the seconds until the metrics of the step before."""
    seconds, pending, begin = [], None, time.perf_counter()
    for number in range(count):
        fed = next(feed)
        step.state, metrics = step.program(step.state, fed.batch)
        if pending is not None:
            jax.device_get(pending)
        if number == count - 1:
            jax.device_get(metrics)
        pending, now = metrics, time.perf_counter()
        seconds.append(now - begin)
        begin = now
    return seconds
