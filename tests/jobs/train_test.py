"""What the job that trains prints before its first step."""

import types

import numpy as np

from litevit_jax.jobs import train


def test_the_first_lines_tell_how_much_of_the_run_is_warm_up():
    config = {
        "name": "mine",
        "batch_size": 8,
        "data": {"source": "digits", "dir": None, "decoder": "fast"},
        "derived": {"train_examples": 1438, "warmup_steps": 20, "peak_lr": 0.0012},
    }
    job = types.SimpleNamespace(
        config=config,
        workdir="runs/mine",
        total_steps=200,
        mesh=types.SimpleNamespace(size=1),
        state=types.SimpleNamespace(params={"encoder": {"w": np.zeros(3)}}),
    )
    assert train.describe(job)[0].splitlines()[1] == (
        "1,438 training images (digits, decoder fast), 200 steps of 8 (20 of warm-up, "
        "peak learning rate 0.0012) on 1 CPU device, workdir runs/mine"
    )
