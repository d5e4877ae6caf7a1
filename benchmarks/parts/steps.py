"""Training steps as the recipes run them: rates, memory, share of the ceilings."""

from __future__ import annotations

import functools
import math
import time
from typing import Any

import jax

from benchmarks import sides
from benchmarks.parts import common, identity
from litevit_jax.plan import flops, hlo

WHOLE, CUT = {"microbatch": "off"}, {"microbatch": 128}
# Name -> step; the most telling first. `auto` is what the recipe trains with, and the
# row below it is the other way: on a GPU slices, elsewhere the whole batch.
STEPS = {
    "MAE 1,024, auto": sides.Spec("mae", 1024),
    "MAE 1,024, slices of 128": sides.Spec("mae", 1024, fields=CUT),
    "MAE 1,024, whole": sides.Spec("mae", 1024, fields=WHOLE),
    "fine-tuning 512, auto": sides.Spec("finetune", 512),
    "fine-tuning 512, slices of 128": sides.Spec("finetune", 512, fields=CUT),
    "fine-tuning 512, whole": sides.Spec("finetune", 512, fields=WHOLE),
    "MAE 4,096, auto": sides.Spec("mae", 4096),
    "MAE 4,096, slices of 128": sides.Spec("mae", 4096, fields=CUT),
    "MAE 4,096, whole": sides.Spec("mae", 4096, fields=WHOLE),
    "MAE 256, auto": sides.Spec("mae", 256),
    "D-MAE (MAE-Base) 1,024, auto": sides.Spec("distill", 1024),
    "MoCo v3 512": sides.Spec("mocov3", 512),
    "linear probe 1,024": sides.Spec("probe", 1024),
}
_TINY = {
    "objective.encoder.variant": None,
    "objective.encoder.width": 24,
    "objective.encoder.depth": 1,
    "objective.encoder.num_heads": 3,
    "objective.encoder.patch_size": 16,
}
_AT_ONCE = 4  # programs that are compiled side by side


def shrink(spec: sides.Spec) -> sides.Spec:
    """`spec` for a CPU: 8 small images and one narrow block."""
    fields: dict[str, Any] = dict(_TINY)
    if spec.job == "distill":
        fields |= {"objective.teacher.variant": "tiny", "objective.pairs": ((1, 12),)}
    if spec.job == "mocov3":
        fields |= {"objective.mlp_dim": 32, "objective.embed_dim": 16}
    if spec.fields == CUT:
        fields |= {"microbatch": 4}
    batch = 16 if spec.job == "mocov3" else 8
    return sides.Spec(spec.job, batch, 32, {**spec.fields, **fields})


def run(part: common.Part) -> None:
    specs = {k: shrink(v) if part.small else v for k, v in STEPS.items()}
    as_auto = "whole" if part.platform == "gpu" else "slices of 128"
    names = part.missing(name for name in specs if not name.endswith(as_auto))
    at_once = 1 if part.small else _AT_ONCE
    for first in range(0, len(names), at_once):
        group = names[first : first + at_once]
        if part.left <= 0:
            return part.skip()
        jobs = {name: functools.partial(_compiled, specs[name]) for name in group}
        programs = common.in_parallel(jobs, at_once)
        for name in group:
            part.row(
                name, functools.partial(_measure, part, specs[name], programs.pop(name))
            )


def _compiled(spec: sides.Spec) -> tuple[sides.Step, float]:
    """Compiles a step; returns it and the seconds of tracing and compiling."""
    start = time.perf_counter()
    step = sides.our_step(spec)
    step.compile()
    return step, time.perf_counter() - start


def _measure(part: common.Part, spec: sides.Spec, compiled: Any) -> dict[str, Any]:
    if isinstance(compiled, Exception):
        raise compiled
    step, compile_s = compiled

    def update() -> Any:
        step.state, metrics = step.program(step.state, step.batch)
        return metrics["loss"]

    quick: dict[str, Any] = {"repetitions": 2, "at_least_s": 0.0} if part.small else {}
    seconds = common.timed(update, **quick)
    row: dict[str, Any] = {
        "images/s": common.rate(spec.batch, seconds),
        "ms": {k: 1e3 * v for k, v in seconds.items()},
        "slices": step.design.slices,
        **describe(step.program, step.design, spec.batch, seconds["median"], part),
        "compile s": compile_s,
        "loss": float(update()),
    }
    if not math.isfinite(row["loss"]):
        raise FloatingPointError(f"the loss is {row['loss']}")
    return row


def describe(
    program: Any, design: Any, images: int, seconds: float, part: common.Part
) -> dict[str, Any]:
    """Bytes and FLOPs of a compiled step, and its share of both ceilings."""
    copy, product = identity.ceilings(part)
    traffic = hlo.Module(program.as_text(), trips=design.slices).memory_traffic()
    operations = flops.count(design.step, design.state, design.batch)
    analysis = program.memory_analysis()
    memory = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
    memory += analysis.temp_size_in_bytes - analysis.alias_size_in_bytes
    stats = jax.devices()[0].memory_stats() or {}
    return {
        "GiB": memory / 2**30,
        "peak GiB of the process": stats.get("peak_bytes_in_use", 0) / 2**30,
        "MB an image": traffic / images / 1e6,
        "% of the copy": 100 * traffic / seconds / copy,
        "GFLOP an image": operations / images / 1e9,
        "% of the product": 100 * operations / seconds / product,
    }
