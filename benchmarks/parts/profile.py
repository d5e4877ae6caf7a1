"""Where the time of a step goes: operations of five traced steps, and what stalls."""

from __future__ import annotations

import collections
import functools
import pathlib
import re
import tempfile
from typing import Any, NoReturn

import jax

from benchmarks import sides
from benchmarks.parts import common, stalls, steps

NAMES = ("MAE 1,024, auto", "fine-tuning 512, auto")  # of the steps that are traced
_STEPS = 5
_MOST = 40  # operations in the table
_LAST = "stalls: saving"  # row of a step


def run(part: common.Part) -> None:
    for name in NAMES:
        if not all(f"{name}, {last}" in part.rows for last in ("1", _LAST)):
            _trace(part, name)


def _trace(part: common.Part, name: str) -> None:
    """Adds a row for each kind of operation, the longest first, and rows of stalls."""
    if part.left <= 0:
        return part.skip()
    spec = steps.STEPS[name]
    spec = steps.shrink(spec) if part.small else spec
    try:
        step = sides.our_step(spec)
        step.compile()
        step.run(2)
    except Exception as error:  # as when it does not fit
        for last in ("1", _LAST):
            part.row(f"{name}, {last}", functools.partial(_fail, error))
        return
    _operations(part, name, spec, step)
    stalls.rows(part, name, spec, step)


def _fail(error: Exception) -> NoReturn:
    raise error


def _operations(
    part: common.Part, name: str, spec: sides.Spec, step: sides.Step
) -> None:
    if f"{name}, 1" in part.rows:
        return
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            step.run(_STEPS)
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(path))
        (part.out / f"profile-{spec.job}.xplane.pb").write_bytes(path.read_bytes())
    (part.out / f"profile-{spec.job}.hlo.txt").write_text(step.program.as_text())
    spent = operations(data)
    if not spent:
        part.row(f"{name}, 1", stalls.refuse_empty)
    whole = sum(time for time, _ in spent.values())
    longest = sorted(spent.items(), key=lambda item: -item[1][0])[:_MOST]
    for rank, (operation, (time, count)) in enumerate(longest):
        figures = {
            "us a step": time / _STEPS / 1e3,
            "calls a step": count / _STEPS,
            "% of all": 100 * time / max(whole, 1e-9),
            "operation": operation,
        }
        part.row(f"{name}, {rank + 1}", functools.partial(dict, figures))


def operations(data: Any) -> dict[str, tuple[float, int]]:
    """Kind of operation -> (nanoseconds, how often), of the device or its host.

    Numbers at the end of a name are left out: the blocks of a model share a row.
    """
    spent: dict[str, tuple[float, int]] = collections.defaultdict(lambda: (0.0, 0))
    for events in _lines(data):
        for event in events:
            name = re.sub(r"[._\d]+$", "", event.name) or event.name
            time, count = spent[name]
            spent[name] = (time + event.duration_ns, count + 1)
    return dict(spent)


def _lines(data: Any) -> list[Any]:
    """The lines of a trace with a device's operations."""
    planes = list(data.planes)
    lines = [line for plane in stalls.of_devices(planes) for line in plane.lines]
    kernels = [line for line in lines if line.name.startswith("Stream")]
    if kernels or lines:
        named = [line for line in lines if line.name == "XLA Ops"]
        return [line.events for line in (kernels or named or lines)]
    return stalls.on_host(planes)
