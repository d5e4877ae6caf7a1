"""Time of a step that trains 12 learning rates over one that trains a single one.

    python benchmarks/probe_grid.py --batch=64 --steps=3 --rounds=5

The step is the one that configs/linear_probe.py:grid runs, with the head and LARS of
MAE's protocol: a frozen ViT-Tiny/16 encodes the batch, then the heads for 1,000
classes on the class token are updated. Images are normalised and in memory. Both are
compiled in one process and take turns within a round, so that a slow minute of the
machine hits both; the figure is the median over rounds of the ratio of their times,
and, for a machine with other work, of their CPU seconds. Eleven more heads must cost
less than half of the encoder: below 1.5.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
from absl import app, flags

BATCH = flags.DEFINE_integer("batch", 64, "Images per step.")
SIDE = flags.DEFINE_integer("image_size", 224, "Height and width of an image.")
CLASSES = flags.DEFINE_integer("classes", 1000, "Classes of each head.")
STEPS = flags.DEFINE_integer("steps", 3, "Steps per measurement.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Measurements of each.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")

LRS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


def step_of(lrs: tuple[float, ...]) -> Callable[[], tuple[float, float]]:
    """Returns a function that runs STEPS steps and returns seconds and CPU seconds."""
    import jax

    from litevit_jax import sharding
    from litevit_jax.objectives import probe_grid
    from litevit_jax.train import optimizer as optimizers
    from litevit_jax.train import state as states
    from litevit_jax.train import step

    objective = probe_grid.make(
        encoder={"variant": "tiny"},
        num_classes=CLASSES.value,
        lrs=lrs,
        features=("cls",),
        dtype="float32",
    )
    mesh, rng = sharding.make_mesh(), np.random.default_rng(0)
    shape = (BATCH.value, SIDE.value, SIDE.value, 3)
    rows = {
        "image": rng.normal(size=shape).astype(np.float32),
        "label": rng.integers(CLASSES.value, size=BATCH.value, dtype=np.int32),
        "index": np.arange(BATCH.value, dtype=np.int32),
    }
    batch = sharding.global_batch(rows, mesh)
    params = states.abstract_variables(objective, batch).params
    optimizer = optimizers.make(
        params,
        lambda _: jax.numpy.float32(1.0),
        name="lars",
        freeze=("encoder/.*",),
        lr_factors=lrs,
    )
    create, shapes = states.creator(objective, optimizer, batch, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, shapes)
    train_step = step.make_train_step(
        objective, optimizer, (), seed=0, mesh=mesh, state_sharding=shardings
    )
    state = create(jax.random.key(0))

    def run() -> tuple[float, float]:
        nonlocal state
        start, cpu_start, metrics = time.perf_counter(), time.process_time(), {}
        for _ in range(STEPS.value):
            state, metrics = train_step(state, batch)
        assert np.isfinite(float(metrics["loss"]))
        return time.perf_counter() - start, time.process_time() - cpu_start

    return run


def main(argv: list[str]) -> None:
    """Measures and prints."""
    del argv
    from litevit_jax import cpu

    cpu.prepare(BATCH.value, 3 * SIDE.value**2)  # as main.py does
    import jax

    one, many = step_of(LRS[6:7]), step_of(LRS)
    one(), many()  # compiles
    rounds = [(one(), many()) for _ in range(ROUNDS.value)]
    ratios = [b[0] / a[0] for a, b in rounds]
    figures = {
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "batch": BATCH.value,
        "load": os.getloadavg()[0],
        "one_s": statistics.median(a[0] for a, _ in rounds) / STEPS.value,
        "twelve_s": statistics.median(b[0] for _, b in rounds) / STEPS.value,
        "ratio": statistics.median(ratios),
        "cpu_ratio": statistics.median(b[1] / a[1] for a, b in rounds),
        "ratios": ratios,
    }
    print(json.dumps(figures, indent=1))
    if JSON.value:
        with open(JSON.value, "w") as file:
            json.dump(figures, file)


if __name__ == "__main__":
    app.run(main)
