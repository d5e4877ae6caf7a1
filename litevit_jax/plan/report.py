"""The numbers of a planned run, as a dict for JSON and as text."""

from __future__ import annotations

import math
from typing import Any

import jax

from litevit_jax.plan import hlo, program

_GIB = 2**30
_MEMORY = ("arguments", "outputs", "aliased", "temporaries", "code")


def design(planned: program.Planned) -> dict[str, Any]:
    """The numbers that are known without a compiler."""
    config, target, derived = planned.config, planned.target, planned.config.derived
    per_chip = config.batch_size // target.chips
    return {
        "config": config.name,
        "target": target.name,
        "chip": target.chip.name,
        "chips": target.chips,
        "grid": list(target.grid),
        "mesh": dict(planned.mesh.shape),
        "dtype": config.objective.dtype,
        "batch_size": config.batch_size,
        "batch_per_chip": per_chip,
        "slices": planned.design.slices,
        "slice_per_chip": per_chip // planned.design.slices,
        "train_examples": derived.train_examples,
        "examples_from": planned.examples_from,
        "epochs": derived.total_steps / derived.steps_per_epoch,
        "steps_per_epoch": derived.steps_per_epoch,
        "total_steps": derived.total_steps,
        "warmup_steps": derived.warmup_steps,
        "lr_base": config.lr.base,
        "lr_peak": derived.peak_lr,
        "checkpoint_bytes": planned.checkpoint_bytes,
        "gradient_bytes": planned.gradient_bytes,
        "state_bytes_per_chip": state_bytes(planned),
    }


def state_bytes(planned: program.Planned) -> int:
    """Bytes of the state that one device holds."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(planned.design.state)
    )


def compiled(planned: program.Planned, executable: Any, seconds: float) -> dict:
    """The compiled step's numbers for one chip, and times estimated from them."""
    text = executable.as_text()
    module = hlo.Module(text, trips=planned.design.slices)
    usage = executable.memory_analysis()
    memory = {
        "arguments": usage.argument_size_in_bytes,
        "outputs": usage.output_size_in_bytes,
        "aliased": usage.alias_size_in_bytes,
        "temporaries": usage.temp_size_in_bytes,
        "code": usage.generated_code_size_in_bytes,
    }
    needed = sum(memory.values()) - 2 * memory["aliased"]
    available = int(planned.target.chip.hbm)
    cost = executable.cost_analysis() or {}  # a described GPU has none
    numbers = {
        "memory": {
            **memory,
            "needed": needed,
            "available": available,
            "fits": needed <= available,
        },
        "aliased_outputs": hlo.aliased_outputs(text),
        "flops": program.model_flops(planned) // planned.target.chips,
        "xla_flops": cost.get("flops"),
        "xla_bytes_accessed": cost.get("bytes accessed"),
        "hbm_bytes": module.memory_traffic(),
        "collectives": _traffic(module.collectives()),
        "collectives_at_logged_steps": _traffic(module.collectives(sometimes=True)),
        "compile_seconds": round(seconds, 1),
    }
    return numbers | {"estimate": estimate(planned, numbers)}


def _traffic(collectives: dict[str, hlo.Traffic]) -> dict[str, dict[str, float]]:
    return {
        kind: {"count": t.count, "bytes": t.bytes, "wire_bytes": round(t.wire_bytes)}
        for kind, t in sorted(collectives.items())
    }


def estimate(
    planned: program.Planned, numbers: dict[str, Any]
) -> dict[str, Any] | None:
    """Bounds of a step's seconds at the chip's peak rates; None if they are unknown.

    `lower` is the longest of computing, main memory and links, as if all three
    overlapped; `upper` is their sum, as if they took turns.
    """
    chip = planned.target.chip
    if not chip.flops:
        return None
    wire = sum(kind["wire_bytes"] for kind in numbers["collectives"].values())
    parts = {
        "compute": numbers["flops"] / chip.flops,
        "memory": numbers["hbm_bytes"] / chip.hbm_rate,
        "links": wire / chip.link_rate,
    }
    lower, upper = max(parts.values()), sum(parts.values())
    images = planned.config.batch_size
    steps = planned.config.derived.total_steps
    return {
        **{f"{name}_seconds": seconds for name, seconds in parts.items()},
        "bound_by": max(parts, key=lambda name: parts[name]),
        "step_seconds": [lower, upper],
        "images_per_second": [images / upper, images / lower],
        "run_hours": [steps * lower / 3600, steps * upper / 3600],
    }


def text(numbers: dict[str, Any]) -> str:
    """The report as text."""
    rows = [*_design_rows(numbers)]
    if "memory" in numbers:
        rows += _memory_rows(numbers)
    if "flops" in numbers:
        rows += _program_rows(numbers)
    rows += [("does not fit", line) for line in numbers.get("advice", ())]
    width = max(len(name) for name, _ in rows) + 2
    mesh = " x ".join(f"{axis}={n}" for axis, n in numbers["mesh"].items())
    chips = f"{numbers['chips']} x {numbers['chip']}"
    head = f"{numbers['config']} on {numbers['target']}: {chips}"
    lines = [f"{head}, mesh {mesh}; compiled, not run", ""]
    return "\n".join(lines + [f"{name:{width}}{value}" for name, value in rows])


def _design_rows(numbers: dict[str, Any]) -> list[tuple[str, str]]:
    origin = {"data": "counted", "known": "as published; the data are not here"}
    batch = f"{numbers['batch_size']:,} images, {numbers['batch_per_chip']:,} a chip"
    if numbers["slices"] > 1:
        batch += f" in {numbers['slices']} slices of {numbers['slice_per_chip']:,}"
    return [
        ("batch", f"{batch}; {numbers['dtype']}"),
        (
            "steps",
            f"{numbers['total_steps']:,} = {_epochs(numbers)}, warm-up "
            f"{numbers['warmup_steps']:,}",
        ),
        (
            "images",
            f"{numbers['train_examples']:,} ({origin[numbers['examples_from']]})",
        ),
        (
            "learning rate",
            f"peak {numbers['lr_peak']:.4g}, base {numbers['lr_base']:.4g}",
        ),
        ("checkpoint", f"{_mb(numbers['checkpoint_bytes'])}"),
    ]


def _epochs(numbers: dict[str, Any]) -> str:
    """The text '10 epochs of 195.3', with passes if the recipe counts whole batches."""
    an_epoch = numbers["steps_per_epoch"]
    updates = f"{an_epoch:,.1f}".removesuffix(".0")
    text = f"{numbers['epochs']:.4g} epochs of {updates}"
    left_out = round(numbers["train_examples"] - an_epoch * numbers["batch_size"])
    if not left_out:
        return text
    passes = numbers["total_steps"] * numbers["batch_size"] / numbers["train_examples"]
    return f"{text} (whole batches, as the recipe counts: {passes:.5g} passes)"


def _memory_rows(numbers: dict[str, Any]) -> list[tuple[str, str]]:
    memory = numbers["memory"]
    share = memory["needed"] / memory["available"]
    row = (
        f"{memory['needed'] / _GIB:.2f} of {memory['available'] / _GIB:.2f} GiB "
        f"({share:.0%})"
    )
    if "temporaries" in memory:
        sizes = ", ".join(f"{name} {_mb(memory[name])}" for name in _MEMORY)
        row += f": {sizes}"
    return [("memory a chip", row)]


def _program_rows(numbers: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        (
            "computing",
            f"{numbers['flops'] / 1e9:,.1f} GFLOP a chip and step in matrix products"
            + _beside(numbers["xla_flops"], "XLA: {:,.1f}", 1e9),
        ),
        (
            "memory traffic",
            f"{_mb(numbers['hbm_bytes'])} a chip and step in main memory"
            + _beside(
                numbers["xla_bytes_accessed"], "XLA, all memories: {:,.1f} MB", 1e6
            ),
        ),
        ("collectives", _kinds(numbers["collectives"])),
    ]
    if numbers["collectives_at_logged_steps"]:
        rows.append(("at logged steps", _kinds(numbers["collectives_at_logged_steps"])))
    rows.append(("gradient", _mb(numbers["gradient_bytes"])))
    return rows + _estimate_rows(numbers["estimate"])


def _kinds(collectives: dict[str, Any]) -> str:
    kinds = (
        f"{t['count']} {kind} of {_mb(t['bytes'])}" for kind, t in collectives.items()
    )
    return ", ".join(kinds) or "none"


def _estimate_rows(guess: dict[str, Any] | None) -> list[tuple[str, str]]:
    if guess is None:
        return [("estimate", "none: no peak rates are known for this target")]
    parts = ", ".join(
        f"{name} {guess[f'{name}_seconds'] * 1e3:.3g} ms"
        for name in ("compute", "memory", "links")
    )
    low, high = guess["step_seconds"]
    slow, fast = guess["images_per_second"]
    first, last = guess["run_hours"]
    return [
        ("estimate", f"{parts} a step, each at the chip's peak rate"),
        (
            "",
            f"{low * 1e3:.3g} to {high * 1e3:.3g} ms a step, {slow:,.0f} to "
            f"{fast:,.0f} images/s, {first:.2g} to {last:.2g} h for the run",
        ),
        ("", "bounds, not measurements: input, and rates below the peak, add to them"),
    ]


def _beside(value: float | None, text: str, unit: float) -> str:
    """The text of XLA's number, to stand behind our own; '' without one."""
    return "" if value is None else f" ({text.format(value / unit)})"


def _mb(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"
