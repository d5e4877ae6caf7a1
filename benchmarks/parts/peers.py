"""The same steps in straightforward PyTorch, in turn with ours."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from typing import Any

from benchmarks import sides
from benchmarks.parts import common, steps

STEPS = {
    "MAE 1,024": sides.Spec("mae", 1024),
    "fine-tuning 512": sides.Spec("finetune", 512),
    "MoCo v3 256": sides.Spec("mocov3", 256),
}
# Side -> changes of the spec; our side has no options.
PEERS: dict[str, dict[str, Any]] = {
    "ours": {},
    "torch eager": {"half": True},
    "torch compiled": {"half": True, "compiled": True},
}
_ROUNDS = 7
_SECONDS = 0.5  # of a measurement, about


def run(part: common.Part) -> None:
    for name, spec in STEPS.items():
        part.row(name, functools.partial(_compare, part, spec))


def _compare(part: common.Part, spec: sides.Spec) -> dict[str, Any]:
    small = part.small
    spec = steps.shrink(spec) if small else spec
    # PyTorch's model has the size of ViT-Tiny; tests leave compiling out.
    names = ["ours", "torch eager"] if small else list(PEERS)
    missing = common.why_no_torch(part.torch_python or sys.executable)
    if missing:
        names = ["ours"]
    started: dict[str, sides.Side] = {}
    # Each takes what it needs; JAX alone would take three quarters of the memory.
    env = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    try:
        for name in names:
            kind = "jax" if name == "ours" else "torch"
            python = part.torch_python if kind == "torch" else None
            started[name] = sides.Side(
                kind,
                dataclasses.replace(spec, **PEERS[name]),
                env=env,
                **({"python": python} if python else {}),
            )
        for side in started.values():
            side.wait_ready()
        rounds, seconds = (2, 0.0) if small else (_ROUNDS, _SECONDS)
        counts = {name: _steps(side, seconds) for name, side in started.items()}
        for _ in range(rounds):
            for name, side in started.items():
                side.measure(counts[name])
        return _figures(started) | ({common.WITHOUT_TORCH: missing} if missing else {})
    finally:
        for side in started.values():
            side.close()


def _steps(side: sides.Side, seconds: float) -> int:
    """The number of steps that take about `seconds`, from a warm-up measurement."""
    side.measure(2)
    per_step = side.batch / side.rates[-1]
    side.forget()
    return max(round(seconds / per_step), 1)


def _figures(started: dict[str, sides.Side]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    own = started["ours"]
    for name, side in started.items():
        row[f"{name}, images/s"] = sides.spread(side.rates)
    for name, side in started.items():
        if name != "ours":
            row[f"ours over {name}"] = sides.ratio(own, side)
    for name, side in started.items():
        row[f"{name}: start s"] = side.about["ready_s"]
    row["versions"] = "; ".join(s.about["versions"] for s in started.values())
    row["cores"] = os.cpu_count()
    return row
