"""How many images a GPU computes at once follows from its memory."""

import types

import jax
import numpy as np
import pytest

from litevit_jax.objectives import mae
from litevit_jax.train import gpu_memory


def gpu(limit):
    """One GPU whose JAX may use `limit` bytes; None: it does not say."""
    stats = None if limit is None else {"bytes_limit": limit}
    device = types.SimpleNamespace(platform="gpu", memory_stats=lambda: stats)
    devices = np.full((1, 1), device, object)
    return types.SimpleNamespace(size=1, shape={"data": 1, "fsdp": 1}, devices=devices)


@pytest.fixture(scope="module")
def small_mae():
    """A small MAE by shape: objective, variables, batch, a state of three copies."""
    objective = mae.make(
        encoder={"width": 24, "depth": 2, "num_heads": 3, "patch_size": 4},
        decoder={"width": 16, "depth": 1, "num_heads": 2},
    )
    shape = {"image": (32, 16, 16, 3), "index": (32,), "slot": (32,), "label": (32,)}
    batch = {
        name: jax.ShapeDtypeStruct(dims, np.float32 if len(dims) > 1 else np.int32)
        for name, dims in shape.items()
    }
    variables = jax.eval_shape(objective.init, jax.random.key(0), batch)
    return objective, variables, batch, [variables.params] * 3


def test_on_a_gpu_what_fits_its_memory_is_computed_at_once(small_mae):
    fitting = [
        gpu_memory.images_that_fit(gpu(limit), *small_mae)
        for limit in (2**18, 2**24, 2**25, None)
    ]
    assert fitting[0] == 1 < fitting[1]
    assert fitting[2] == pytest.approx(2 * fitting[1], rel=0.1)  # but for the state
    assert fitting[3] > 1000 * fitting[1] / 2
    # Of one that is planned for, the target's is told.
    assert gpu_memory.images_that_fit(gpu(None), *small_mae, 2**24) == fitting[1]


def test_what_an_image_keeps_is_what_autodiff_saves(small_mae):
    """Twice as many images keep as much again, and a deeper encoder more."""
    objective, variables, batch, _ = small_mae
    kept = [gpu_memory._kept(objective, variables, batch, n) for n in (1, 2, 3)]
    assert kept[2] - kept[1] == kept[1] - kept[0] > 16 * 16 * 3 * 4
