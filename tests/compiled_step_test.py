"""The benchmark of compiled steps: its plain port is the same model, sums are right."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest
from absl import flags
from absl.testing import flagsaver

from benchmarks import compiled_step, plain_step
from litevit_jax import sharding
from litevit_jax.configs import mae_tiny
from litevit_jax.objectives import distill, mae
from litevit_jax.plan import topology

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
    said = "\n".join(aim.text(rows) for aim in compiled_step.AIMS["v5e"])
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
    assert compiled_step.fitting(rows) == [said]  # of ours, none was too large
    images = [line.split(" | ")[1] for line in compiled_step.table(rows)[2:]]
    assert images == ["256", "512", "512"]


def test_figures_that_a_target_does_not_have_are_left_out():
    rows = {"mae-512-ours": sized(512, "ours", kcycles=0)}  # a GPU's compiler has none
    head, _, line = compiled_step.table(rows)
    assert "kcycles" not in head and "MB an image" in head
    assert line == "| mae | 512 | ours | 1 | 30.0 | 1 | 2.00 | 1 |"
    assert "kcycles" in compiled_step.table({"mae-512-ours": sized(512, "ours")})[0]


@pytest.mark.parametrize("target", compiled_step.ROWS)
def test_rows_and_aims_of_a_target_can_be_compiled(target):
    rows = compiled_step.ROWS[target]
    for row in rows:
        job, images, side = row.split("-")
        assert job in compiled_step.JOBS and images.isdigit()
        assert side in {"plain", *compiled_step.OURS}
    for aim in compiled_step.AIMS[target]:
        assert aim.row in rows and (aim.over is None or aim.over in rows)
    jobs = {row.partition("-")[0] for row in rows if row.endswith("-plain")}
    assert jobs == {"mae", "distill", "finetune"}


@pytest.mark.parametrize(("target", "chip"), [("v5e", "TPU v5e"), ("h100", "H100")])
@pytest.mark.parametrize("side", ["ours", "plain"])
def test_a_row_is_of_the_target_that_is_asked_for(side, target, chip, monkeypatch):
    """The compilers themselves are not here, or slow: a small program stands in."""
    program, asked = jax.jit(lambda x: x @ x).lower(jnp.ones((8, 8))).compile(), []

    def compiled(*args):
        asked.append(args[-1].chip.name)
        return program, 2

    monkeypatch.setattr(topology, "prepare", lambda target: None)
    monkeypatch.setattr(compiled_step, f"compile_{side}", compiled)
    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver((compiled_step.TARGET, target)):
        row = compiled_step.measure(f"mae-512-{side}")
        assert compiled_step._path("a").parent.name == target
    assert asked == [chip]
    assert row["slices"] == 2 and row["hbm_mb"] > 0 and row["memory_gib"] > 0


def test_every_side_changes_fields_that_recipes_have():
    config = mae_tiny.get_config()
    for fields in compiled_step.OURS.values():
        assert set(fields) <= set(config)
