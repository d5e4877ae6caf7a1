"""The benchmark of compiled steps: its plain port is the same model, sums are right."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest

from benchmarks import plain_step, tpu_step
from configs import mae_tiny
from litevit_jax import sharding
from litevit_jax.objectives import distill, mae

TINY, IMAGE = {"variant": "tiny"}, (1, 224, 224, 3)


def size(tree):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("job", ["mae", "distill"])
def test_the_plain_port_has_the_parameters_of_the_product(job):
    if job == "mae":
        objective = mae.make(encoder=TINY, decoder=TINY)
    else:
        objective = distill.make(
            encoder=TINY, decoder=TINY, teacher={"variant": "base"}
        )
    batch = {"image": jax.ShapeDtypeStruct(IMAGE, jnp.float32)}
    ours = jax.eval_shape(objective.init, jax.random.key(0), batch)
    place = sharding.replicated(sharding.make_mesh())
    assert size(plain_step.shapes(job, 8, place)[0]["params"]) == size(ours.params)


@pytest.mark.parametrize("job", ["mae", "distill", "finetune"])
def test_a_plain_step_gives_its_state_back(job):
    place = sharding.replicated(sharding.make_mesh())
    state, batch = plain_step.shapes(job, 8, place)
    new, loss = jax.eval_shape(functools.partial(plain_step.step, job), state, batch)
    assert loss.shape == ()
    shapes = (jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (new, state))
    assert next(shapes) == next(shapes)


def row(kcycles, **more):
    return {"kcycles": kcycles, "hbm_mb": 30.0, "memory_gib": 2.0} | more


def sized(images, side="whole", **more):
    of = {"step": "mae", "images": images, "side": side, "slices": 1}
    return row(100, temporary_mib=1.0, seconds=1.0) | of | more


def test_aims_are_compared_with_what_was_compiled():
    rows = {"mae-128-ours": row(100), "mae-128-plain": row(119)}
    said = "\n".join(aim.text(rows) for aim in tpu_step.AIMS)
    assert "plain over ours at 128 images: at least 1.2; 1.19, NOT reached" in said
    assert "MB an image at 128: at most 34; 30, reached" in said
    assert "plain over ours at 512 images: at least 1.8; not compiled" in said


def test_what_fits_is_what_was_compiled():
    rows = {
        "mae-512-whole": sized(512),
        "mae-256-whole": sized(256),
        "mae-1024-whole": sized(1024, too_large="it needs 17 GiB"),
        "mae-2048-whole": sized(2048, too_large="it needs 33 GiB"),
        "mae-512-ours": sized(512, "ours"),
    }
    said = "mae, whole: 512 images fit, 1024 do not"
    assert tpu_step.fitting(rows) == [said]  # of ours, none was too large
    images = [line.split(" | ")[1] for line in tpu_step.table(rows)[2:]]
    assert images == ["256", "512", "512"]


def test_every_side_changes_fields_that_recipes_have():
    config = mae_tiny.get_config()
    for fields in tpu_step.OURS.values():
        assert set(fields) <= set(config)
