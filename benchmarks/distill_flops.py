"""Measures what distillation adds to MAE: FLOPs of an update, and memory; runs nothing.

    python benchmarks/distill_flops.py --batch=8

Compares loss and gradient of MAE-Tiny with those of the same student under an MAE-Base
teacher, at 224 pixels in float32. FLOPs are XLA's cost analysis of the lowered program,
before any backend rewrites it: an analysis of the compiled program misses what a CPU
turns into library calls. They count all multiplications and additions, those of norms
and softmaxes too, where the paper counts only matrix products. The bound of 5.3 on
their ratio leaves no room for a block of the teacher that nobody reads. Memory is that
of the program compiled for CPUs: temporary buffers, and the teacher's parameters, which
are arguments.
"""

from __future__ import annotations

import json
import math
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags

from litevit_jax.objectives import base, distill, mae

BATCH = flags.DEFINE_integer("batch", 8, "Images of the batch.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")

BOUND = 5.3  # of the ratio of FLOPs
MIB = 2**20


def costs(objective: base.Objective, batch: int) -> dict[str, float]:
    """FLOPs per image, and in MiB temporary memory and the teacher's size."""
    key = jax.eval_shape(jax.random.key, 0)
    shapes = {"image": jax.ShapeDtypeStruct((batch, 224, 224, 3), jnp.float32)}
    params, state, teacher = jax.eval_shape(objective.init, key, shapes)

    def loss(params: Any, teacher: Any, batch: Any, key: Any):
        return objective.loss(params, state, teacher, batch, key)

    graded = jax.jit(jax.value_and_grad(loss, has_aux=True))
    lowered = graded.lower(params, teacher, shapes, key)
    flops: Any = lowered.cost_analysis()
    memory: Any = lowered.compile().memory_analysis()
    size = sum(math.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(teacher))
    return {
        "gflops_per_image": flops["flops"] / batch / 1e9,
        "temporary_mib": memory.temp_size_in_bytes / MIB,
        "teacher_mib": size / MIB,
    }


def main(_: list[str]) -> None:
    """Prints both sides and what the teacher adds."""
    tiny, teacher = {"variant": "tiny"}, {"variant": "base"}
    sides = {"encoder": tiny, "decoder": tiny, "dtype": "float32"}
    plain = costs(mae.make(**sides), BATCH.value)
    distilled = costs(distill.make(**sides, teacher=teacher), BATCH.value)
    for name, row in (("MAE-Tiny", plain), ("D-MAE-Tiny", distilled)):
        shown = "  ".join(f"{key} {value:.3f}" for key, value in row.items())
        print(f"{name:<12} {shown}")
    ratio = distilled["gflops_per_image"] / plain["gflops_per_image"]
    added = (distilled["temporary_mib"] - plain["temporary_mib"]) / BATCH.value
    print(f"FLOPs ratio {ratio:.3f} (bound {BOUND})")
    print(f"temporary memory added: {added:.2f} MiB an image")
    figures = {"mae": plain, "distill": distilled, "flops_ratio": ratio}
    if JSON.value:
        with open(JSON.value, "w") as file:
            json.dump({**figures, "temporary_mib_per_image": added}, file, indent=2)
    if ratio > BOUND:
        raise SystemExit(f"the ratio {ratio:.3f} is above {BOUND}")


if __name__ == "__main__":
    app.run(main)
