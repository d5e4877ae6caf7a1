"""Measures the time of one image on this machine's CPU."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from litevit_jax.weights import exportable as models

_WARMUP = 3


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: a program and the milliseconds of its calls."""

    title: str
    num_parameters: int
    num_macs: int
    times_ms: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.times_ms)


def jitted(
    model: models.Model, heads: Sequence[int]
) -> dict[str, Callable[[np.ndarray], object]]:
    """The jitted forward pass on the CPU: of the model as it is, then with other heads.

    Args:
      model: whose parameters are taken; the number of heads changes neither their
        shapes nor the multiply-accumulates.
      heads: numbers of heads to compare with; those that do not divide the width are
        left out.
    """
    own = model.encoder.num_heads
    others = [n for n in heads if n != own and n > 0 and model.encoder.width % n == 0]
    titles = {own: f"JAX, {own} heads"} | {n: f"JAX, {n} heads instead" for n in others}
    return {title: _jitted(model, n) for n, title in titles.items()}


def time_calls(
    model: models.Model,
    calls: dict[str, Callable[[np.ndarray], object]],
    *,
    repeats: int,
) -> tuple[Row, ...]:
    """Times `calls` of one image, in turn, so that slow moments hit them alike."""
    image = models.fixed_images(model, count=1)
    times: dict[str, list[float]] = {title: [] for title in calls}
    for turn in range(_WARMUP + repeats):
        for title, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call(image))
            if turn >= _WARMUP:
                times[title].append(1e3 * (time.perf_counter() - start))
    sizes = (model.num_parameters, models.count_macs(model))
    return tuple(Row(title, *sizes, tuple(ms)) for title, ms in times.items())


def _jitted(model: models.Model, num_heads: int) -> Callable[[np.ndarray], object]:
    other = dataclasses.replace(model, encoder=model.encoder.clone(num_heads=num_heads))
    device = jax.local_devices(backend="cpu")[0]
    params = jax.device_put(model.params, device)
    jitted = jax.jit(other.with_params)
    return lambda image: jitted(params, jax.device_put(image, device))


def table(rows: Sequence[Row]) -> str:
    """The rows as text, under a line that says where they were measured."""
    lines = [
        f"CPU time of one image, float32, median [10 % .. 90 %]; {machine()}",
        f"{'':24}{'parameters':>14}{'GMACs':>9}{'ms':>9}",
    ]
    for row in rows:
        low, high = np.percentile(row.times_ms, (10, 90))
        lines.append(
            f"{row.title:24}{row.num_parameters:14,}{row.num_macs / 1e9:9.3f}"
            f"{row.median:9.2f}  [{low:.2f} .. {high:.2f}], n {len(row.times_ms)}"
        )
    return "\n".join(lines)


def machine() -> str:
    """Processor, cores and versions, in a line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    return f"{_processor()}, {cores or os.cpu_count()} cores, JAX {jax.__version__}"


def _processor() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
