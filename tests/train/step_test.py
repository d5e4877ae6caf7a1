"""Laws of one update, on a linear model that compiles in no time."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax import augment, sharding
from litevit_jax.models import pixels
from litevit_jax.objectives import base, mae
from litevit_jax.plan import hlo
from litevit_jax.train import microbatch, optimizer, state, step


@dataclasses.dataclass(frozen=True)
class Linear(base.Objective):
    """Noisy linear regression with a teacher that averages the parameters."""

    noise: float = 0.1

    def init(self, key, batch):
        del batch
        params = {
            "w": jax.random.normal(key, (64, 512)),  # large enough for fsdp
            "frozen": jnp.full((3, 3), 0.7),
        }
        return base.Variables(params, {"seen": jnp.zeros(())}, {"w": params["w"]})

    def loss(self, params, model_state, teacher, batch, key):
        keys = base.example_keys(key, batch)
        noise = jax.vmap(lambda k: jax.random.normal(k, (64,)))(keys)
        image = batch["image"] if "image" in batch else batch["views"].mean(0)
        x = image.reshape(len(noise), -1) + self.noise * noise
        loss = ((x @ params["w"] - x @ teacher["w"] / 2) ** 2).mean()
        loss = loss + 0 * params["frozen"].sum()
        return loss, ({"mean": x.mean()}, {"seen": model_state["seen"] + 1.0})

    def update_teacher(self, teacher, params, step):
        return {"w": 0.9 * teacher["w"] + 0.1 * params["w"]}

    def health(self, params, model_state, teacher, batch, key):
        return {"w": jnp.square(params["w"]).sum()}

    def predict(self, params, model_state, batch):
        return {}


def batch_of(step_number, size=32, bad=False):
    rng = np.random.default_rng(step_number)
    image = rng.normal(size=(size, 8, 8, 1)).astype(np.float32)
    if bad:
        image[3] = np.nan
    return {"image": image, "index": np.arange(size, dtype=np.int32)}


def views_of(step_number, **kwargs):
    """As `batch_of`, with two views per example that average to its image."""
    batch = batch_of(step_number, **kwargs)
    image, shift = batch.pop("image"), np.arange(32).reshape(-1, 1, 1, 1)
    return batch | {"views": np.stack([image + shift, image - shift], axis=1)}


def labelled(step_number, **kwargs):
    return batch_of(step_number, **kwargs) | {"label": np.arange(32, dtype=np.int32)}


@dataclasses.dataclass(frozen=True)
class Half(Linear):
    """Logs half of the scalar that it descends as its loss."""

    def loss(self, *args):
        loss, (metrics, model_state) = super().loss(*args)
        return loss, ({"loss": loss / 2, **metrics}, model_state)


def build(
    mesh,
    *,
    ops=(),
    slices=1,
    freeze=("frozen",),
    seed=0,
    ema_decay=None,
    objective=Linear(),
    **health,
):
    """(state, step); equal ones share what is compiled."""
    settings = (mesh, ops, slices, freeze, seed, ema_decay, objective)
    create, run = designed(*settings, tuple(health.items()))
    return create(jax.random.key(0)), run


@functools.cache
def designed(mesh, ops, slices, freeze, seed, ema_decay, objective, health):
    """(function that creates the state, step)."""
    abstract = jax.eval_shape(lambda: batch_of(0))
    variables = state.abstract_variables(objective, abstract)
    made = optimizer.make(
        variables.params,
        lambda k: 0.01 / (1 + k),
        name="adamw",
        eps=1e-3,  # an Adam step near zero gradient is a coin toss otherwise
        weight_decay=0.1,
        freeze=freeze,
        ema_decay=ema_decay,
    )
    create, shapes = state.creator(objective, made, abstract, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, shapes)
    run = step.make_train_step(
        objective,
        made,
        ops,
        seed=seed,
        mesh=mesh,
        state_sharding=shardings,
        slices=slices,
        **dict(health),
    )
    return create, run


def train(mesh, *, steps=3, bad=(), read=batch_of, **kwargs) -> tuple[Any, list[dict]]:
    now, run = build(mesh, **kwargs)
    rows, compiled = [], run._cache_size()
    for number in range(steps):
        batch = sharding.global_batch(read(number, bad=number in bad), mesh)
        now, metrics = run(now, batch)
        rows.append(jax.device_get(metrics))
    assert run._cache_size() <= compiled + 1  # one compile
    return now, rows


MESHES = {"1x1": (1, 1, 1), "8x1": (8, 1, 8), "4x2": (4, 2, 8), "1x8": (1, 8, 8)}


def mesh_of(name):
    data, fsdp, count = MESHES[name]
    return sharding.make_mesh(data, fsdp, jax.devices()[:count])


@pytest.fixture(scope="module")
def reference():
    return train(mesh_of("1x1"))


def test_an_objective_may_log_another_loss_than_it_descends(reference):
    _, rows = train(mesh_of("1x1"), steps=2, objective=Half())
    whole = [row["loss"] for row in reference[1][:2]]
    np.testing.assert_allclose([2 * row["loss"] for row in rows], whole, rtol=1e-6)
    norms = [row["grad_norm"] for row in reference[1][:2]]
    np.testing.assert_allclose([r["grad_norm"] for r in rows], norms, rtol=1e-6)


def same(got, want, **tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a), np.asarray(b), **tolerance
        ),
        got,
        want,
    )


@pytest.mark.parametrize("name", ["8x1", "4x2", "1x8"])
def test_the_mesh_does_not_change_the_parameters(name, reference):
    got, rows = train(mesh_of(name))
    same(got, reference[0], rtol=1e-4, atol=1e-6)
    same(rows, reference[1], rtol=1e-4, atol=1e-6)


def test_fsdp_splits_the_large_parameters_and_their_moments():
    now, _ = build(mesh_of("4x2"))
    assert now.params["w"].sharding.shard_shape((64, 512)) == (64, 256)
    moments = [x for x in jax.tree.leaves(now.opt_state) if x.shape == (64, 512)]
    assert len(moments) == 2
    assert all(m.sharding.shard_shape((64, 512)) == (64, 256) for m in moments)


@pytest.mark.parametrize(("slices", "mesh"), [(2, "1x1"), (4, "8x1"), (8, "1x1")])
def test_accumulation_leaves_the_result_unchanged(slices, mesh, reference):
    got, rows = train(mesh_of(mesh), slices=slices)
    same(got.params, reference[0].params, rtol=1e-4, atol=1e-6)
    same([r["loss"] for r in rows], [r["loss"] for r in reference[1]], rtol=1e-5)
    assert got.model_state["seen"] == 3 * slices  # it went through all of them


@pytest.mark.parametrize("mesh", ["8x1", "4x2"])
@pytest.mark.parametrize("read", [batch_of, views_of])
def test_slices_move_no_example_to_another_device(mesh, read):
    now, run = build(mesh_of(mesh), slices=4)
    batch = sharding.global_batch(read(0), mesh_of(mesh))
    traffic = hlo.Module(run.lower(now, batch).compile().as_text()).collectives()
    if mesh == "4x2":  # the state is gathered, as it is split; no images are
        images = sum(x.nbytes for x in batch.values())
        assert traffic.pop("all-gather").bytes < images
    assert traffic.keys() <= {"all-reduce", "reduce-scatter"}


def test_gradients_are_taken_apart_as_the_objective_says():
    grads = {"a": {"pair": {"w": jnp.arange(8.0).reshape(2, 4)}}, "pairs": jnp.ones(4)}
    parts = microbatch._split_packed(grads, {"pair": 2})
    assert [x.shape for x in parts["a"]["pair"]["w"]] == [(2, 2), (2, 2)]
    assert [x.shape for x in parts["pairs"]] == [(4,)]
    again = microbatch._join_packed(parts)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, again, grads))


def test_slices_are_consecutive_rows_of_each_device():
    mesh = mesh_of("8x1")
    rows = np.arange(32)
    cut = jax.jit(lambda x: microbatch.split_batch(x, 2, mesh))(rows)
    np.testing.assert_array_equal(cut[0, :, 0], rows[rows % 4 < 2])
    np.testing.assert_array_equal(cut[1, :, 0], rows[rows % 4 >= 2])


def test_ops_that_pair_examples_see_the_whole_batch():
    """Mixing takes the mirror image of the whole batch, whatever the slices."""
    ops = augment.make({"erase": {"probability": 1.0}, "mix": {"mixup": 0.5}})
    assert augment.split(ops) == (ops, ())
    late = augment.make({"erase": {"probability": 1.0}, "mix": {"mixup": 0.0}})
    assert augment.split(late) == ((), late)
    found = [train(mesh_of("1x1"), ops=ops, slices=n, read=labelled) for n in (1, 4)]
    same(found[1][0].params, found[0][0].params, rtol=1e-4, atol=1e-6)


def test_ops_draw_the_same_whether_they_see_the_batch_or_a_slice():
    blocks = {"erase": {"probability": 1.0}, "mix": {"mixup": 0.5}}
    ops = augment.make(blocks)[::-1]  # what is behind the mixing is done by slices
    batch = labelled(0) | {"slot": np.arange(32, dtype=np.int32)}
    made = step._Augmentation(ops, Linear())

    @jax.jit
    def both(key, batch):
        got = made.on_slice(key, made.on_batch(key, batch))
        return got, augment.apply(ops, key, batch)

    same(*both(jax.random.key(3), batch))


def test_only_an_objective_that_takes_pixels_gets_bytes():
    ops = augment.make({"normalize": {"mean": (0.5,), "std": (0.2,)}})
    batch = {"image": np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)}
    tiny = {"width": 8, "depth": 1, "num_heads": 2}
    want = augment.apply(ops, jax.random.key(0), batch)["image"]
    for objective in (
        Linear(),
        mae.make(encoder=tiny | {"patch_size": 4}, decoder=tiny),
    ):
        made = step._Augmentation(ops, objective)
        key = jax.random.key(0)
        got = made.on_slice(key, made.on_batch(key, batch))["image"]
        assert isinstance(got, pixels.Pixels) == objective.takes_pixels
        same(pixels.patches(got, 4), pixels.patches(want, 4), rtol=1e-6)


@pytest.mark.parametrize(("slices", "mesh"), [(1, "8x1"), (4, "8x1"), (8, "1x1")])
def test_views_stay_with_their_example(slices, mesh, reference):
    got, rows = train(mesh_of(mesh), slices=slices, read=views_of)
    same(got.params, reference[0].params, rtol=1e-4, atol=1e-5)
    same([r["loss"] for r in rows], [r["loss"] for r in reference[1]], rtol=1e-4)


def test_health_is_taken_when_due_before_the_update_and_changes_nothing(reference):
    got, rows = train(mesh_of("1x1"), health_every=2, total_steps=3)
    same(got, reference[0], rtol=0, atol=0)
    assert np.isnan(rows[0].pop("w"))
    for number in (1, 2):  # the second step, and the last
        before, _ = train(mesh_of("1x1"), steps=number)
        want = np.square(before.params["w"]).sum()
        np.testing.assert_allclose(rows[number].pop("w"), want, rtol=1e-5)
    same(rows, reference[1], rtol=0, atol=0)


def test_a_nonfinite_step_changes_nothing_but_the_count():
    before, _ = train(mesh_of("1x1"), steps=1)
    after, rows = train(mesh_of("1x1"), steps=2, bad=(1,))
    assert [r["nonfinite"] for r in rows] == [0.0, 1.0]
    assert int(after.step) == 2
    for part in ("params", "model_state", "teacher", "opt_state"):
        same(getattr(after, part), getattr(before, part), rtol=0, atol=0)


def test_a_nonfinite_step_with_accumulation_changes_nothing_either():
    before, _ = train(mesh_of("1x1"), steps=1, slices=4)
    after, _ = train(mesh_of("1x1"), steps=2, bad=(1,), slices=4)
    same(after.params, before.params, rtol=0, atol=0)


def test_frozen_leaves_are_bit_identical_and_have_no_moments(reference):
    assert (reference[0].params["frozen"] == jnp.full((3, 3), 0.7)).all()
    shapes = {x.shape for x in jax.tree.leaves(reference[0].opt_state)}
    assert (3, 3) not in shapes
    moved, _ = train(mesh_of("1x1"), freeze=())
    assert (moved.params["frozen"] != 0.7).all()  # weight decay alone moves it


def test_the_teacher_follows_its_closed_form(reference):
    first, _ = build(mesh_of("1x1"))
    teacher = np.asarray(first.teacher["w"])
    for number in range(3):
        before, _ = train(mesh_of("1x1"), steps=number)
        teacher = 0.9 * teacher + 0.1 * np.asarray(before.params["w"])
    np.testing.assert_allclose(reference[0].teacher["w"], teacher, rtol=1e-5)


def test_the_average_follows_its_closed_form_and_changes_nothing_else(reference):
    got, _ = train(mesh_of("4x2"), ema_decay=0.75)
    same(got.params, reference[0].params, rtol=1e-4, atol=1e-6)
    first, _ = build(mesh_of("1x1"))
    want = np.asarray(first.params["w"])
    for number in (1, 2, 3):
        after, _ = train(mesh_of("1x1"), steps=number)
        want = 0.75 * want + 0.25 * np.asarray(after.params["w"])
    np.testing.assert_allclose(got.opt_state.ema["w"], want, rtol=1e-4, atol=1e-6)
    assert got.opt_state.ema["frozen"] is None
    assert got.opt_state.ema["w"].sharding == got.params["w"].sharding


def test_a_nonfinite_step_leaves_the_average_alone():
    before, _ = train(mesh_of("1x1"), steps=1, ema_decay=0.75)
    after, _ = train(mesh_of("1x1"), steps=2, bad=(1,), ema_decay=0.75)
    same(after.opt_state, before.opt_state, rtol=0, atol=0)
    first, _ = train(mesh_of("1x1"), steps=1, bad=(0,), ema_decay=0.75)
    start, _ = build(mesh_of("1x1"), ema_decay=0.75)
    same(first.opt_state.ema, start.params | {"frozen": None}, rtol=0, atol=0)


def test_seed_and_step_decide_the_noise(reference):
    _, again = train(mesh_of("1x1"))
    _, other = train(mesh_of("1x1"), seed=1)
    assert again[0]["loss"] == reference[1][0]["loss"]
    assert other[0]["loss"] != reference[1][0]["loss"]


def test_the_old_state_is_donated():
    now, run = build(mesh_of("1x1"))
    run(now, sharding.global_batch(batch_of(0), mesh_of("1x1")))
    assert now.params["w"].is_deleted()
