"""Small sets on the device: what a run reaches of the bare step (benchmarks/small.py).

It starts programs that hold the device, so this process must not ask JAX for it.
"""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any

from benchmarks.parts import common

JOBS = ("cifar", "probe", "digits", "short")  # the most telling first
_LEAST = {"cifar": 0.95, "digits": 0.95, "probe": 0.9}  # of the bare step
_MOST_WAITING = 3.0  # percent


def run(part: common.Part) -> None:
    for job in ("short",) if part.small else JOBS:
        part.row(job, functools.partial(_measure, part, job))


def _measure(part: common.Part, job: str) -> dict[str, Any]:
    path = part.out / f"small-{job}.json"
    path.unlink(missing_ok=True)
    size = ("--rounds=1", "--seconds=0.02") if part.small else ("--seconds=1.5",)
    if part.data and not part.small:
        size += (f"--data={pathlib.Path(part.data).resolve()}",)
    done = part.run("benchmarks/small.py", f"--jobs={job}", f"--json={path}", *size)
    if done.returncode:
        raise RuntimeError(f"benchmarks/small.py ended with code {done.returncode}")
    return row(job, json.loads(path.read_text())[job])


def row(job: str, figures: dict[str, Any]) -> dict[str, Any]:
    """Returns figures of benchmarks/small.py as a row, and whether they are `ok`."""
    made = {"bare images/s": figures["images/s"]["bare"]}
    made |= {f"{side} of bare": x for side, x in figures["ratios"].items()}
    made = {name.replace("/bare", ""): x for name, x in made.items()}
    waiting = figures["wait %"]["device"]
    made |= {"waits %": waiting, "updates a call": figures["updates"]}
    if "evaluation" in figures:
        made["evaluation of bare"] = figures["evaluation"]["ratios"]["device/bare"]
    if job in _LEAST:
        reached = figures["ratios"]["device/bare"]["median"] >= _LEAST[job]
        made["ok"] = reached and waiting["median"] < _MOST_WAITING
    return made
