"""The job behind --plan: a report, and settings that fit if the given ones do not."""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from litevit_jax import terminal
from litevit_jax.plan import program, report, topology
from litevit_jax.train import resolve

_MOST_TRIES = 3  # other settings, each of which is compiled
_USED = re.compile(r"[Uu]sed ([\d.]+)([KMG]) of ([\d.]+)([KMG])")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def run(config: ConfigDict, target: topology.Target) -> dict[str, Any]:
    """Plans `config` on `target` and returns the report (see `report`).

    If it does not fit, `advice` lists other settings, compiled as well.

    Raises:
      ValueError, KeyError, OSError: the user's mistake, before anything is compiled.
    """
    planned = program.plan(config, target)
    numbers = report.design(planned) | _compile(planned)
    if not numbers["memory"]["fits"]:

        def attempt(changes: dict[str, Any]) -> dict[str, Any]:
            other = resolve.changed(config, changes)
            return _compile(program.plan(other, planned.target))["memory"]

        numbers["advice"] = _advise(attempt, planned, numbers)
    return numbers


def write(numbers: dict[str, Any], path: str | None) -> None:
    """Writes the report as JSON, if a path was given."""
    if path:
        pathlib.Path(path).write_text(json.dumps(numbers, indent=1) + "\n")


def check_writable(path: str | None) -> None:
    """Raises an OSError if the report cannot be written to `path`."""
    if not path:
        return
    file = pathlib.Path(path)
    if file.is_dir() or not os.access(file.absolute().parent, os.W_OK):
        raise OSError(
            f"--plan_out={path} cannot be written; give a file in a directory that "
            "exists and that you may write to"
        )


def _compile(planned: program.Planned) -> dict[str, Any]:
    images = planned.config.batch_size // planned.design.slices
    text = f"compiling the step for {planned.target.name}, {images:,} images at once"
    terminal.ConsoleLine().begin(text)
    try:
        return report.compiled(planned, *program.compile_step(planned))
    except MemoryError as error:
        return {"memory": _refused(str(error), planned.target)}


def _refused(message: str, target: topology.Target) -> dict[str, Any]:
    """Reads the memory needed and available from the compiler's refusal."""
    used = _USED.search(message)
    needed, available = float("nan"), target.chip.hbm
    if used:
        needed = float(used[1]) * _UNITS[used[2]]
        available = float(used[3]) * _UNITS[used[4]]
    return {"needed": needed, "available": int(available), "fits": False}


def _advise(
    attempt: Callable[[dict[str, Any]], dict[str, Any]],
    planned: program.Planned,
    numbers: dict[str, Any],
) -> list[str]:
    """Lists settings that may fit, and what `attempt` says of their memory."""
    advice = [_what(numbers)]
    for number, (flags, changes) in enumerate(_other_settings(planned, numbers)):
        if number == _MOST_TRIES:
            break
        tried = attempt(changes)
        size = f"{tried['needed'] / 2**30:.2f} GiB a chip, as compiled"
        if tried["fits"]:
            return [*advice, f"{flags} fits: {size}"]
        advice.append(f"{flags} does not fit either: {size}")
    return [*advice, "plan for more chips: each then has fewer images"]


def _what(numbers: dict[str, Any]) -> str:
    memory = numbers["memory"]
    over = (memory["needed"] - memory["available"]) / 2**30
    state, images = numbers["state_bytes_per_chip"] / 2**30, numbers["slice_per_chip"]
    return (
        f"{over:.2f} GiB too much a chip; the state takes {state:.2f} GiB, most of the "
        f"rest is what {images:,} image(s) at once keep for the backward pass"
    )


def _other_settings(
    planned: program.Planned, numbers: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (flags, config changes) that may fit, the smallest change first."""
    memory, state = numbers["memory"], numbers["state_bytes_per_chip"]
    config, chips = planned.config, planned.target.chips
    changes: dict[str, Any] = {}
    if state > memory["available"] / 2 and config.mesh.fsdp < chips:
        changes = {"mesh.data": -1, "mesh.fsdp": chips}
        yield _flags(changes), changes
    left = max(memory["available"] - state, 1)
    ratio = max((memory["needed"] - state) / left, 1.0)
    images = numbers["slice_per_chip"]
    for cut in (2**power for power in range(1, 20)):
        if cut < ratio or images % cut:
            continue
        if planned.design.objective.needs_whole_batch:  # slices would change its loss
            more = {"batch_size": config.batch_size // cut}
        else:
            more = {"microbatch": str(images // cut)}
        yield _flags(changes | more), changes | more


def _flags(changes: dict[str, Any]) -> str:
    return " ".join(f"--config.{name}={value}" for name, value in changes.items())
