"""MoCo v3: recorded values, the laws of its loss and of its teacher."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax import sharding, trees
from litevit_jax.configs import mocov3_tiny
from litevit_jax.objectives import moco_v3
from litevit_jax.train import optimizer, schedule
from tests import golden, jobs
from tests import params as parameters

KEY = jax.random.key(0)
SIZES = {
    "encoder": {"width": 24, "depth": 2, "num_heads": 3, "patch_size": 4},
    "mlp_dim": 32,
    "embed_dim": 16,
    "momentum_steps": 100,
    "dtype": "float32",
}


def make(**kwargs):
    return moco_v3.make(**SIZES | kwargs)


def random_views(seed=1, size=16):
    views = np.random.default_rng(seed).normal(size=(2, size, 8, 8, 3))
    return views.astype(np.float32)


@functools.cache
def model():
    """Objective, and variables whose teacher differs from the student."""
    objective = make()
    params, state, _ = parameters.start(objective, {"views": random_views()})
    state["teacher_projector"] = state["projector"]
    rng = np.random.default_rng(2)
    teacher = jax.tree.map(
        lambda x: x + np.float32(0.02 * rng.normal(size=x.shape)),
        {name: params[name] for name in ("encoder", "projector")},
    )
    return objective, (params, state, teacher)


@functools.cache
def compiled():
    objective, _ = model()
    grad = jax.value_and_grad(objective.loss, argnums=(0, 2), has_aux=True)
    return jax.jit(grad), jax.jit(objective.embed)


def loss_of(views):
    (loss, (metrics, _)), _ = compiled()[0](*model()[1], {"views": views}, KEY)
    return float(loss), {name: float(x) for name, x in metrics.items()}


def torch_key(path):
    """'projector/fc2/kernel' -> 'base_encoder.head.3.weight'."""
    part, *rest = path.split("/")
    if part == "encoder":
        return f"base_encoder.{golden.torch_key(path)}"
    prefix = "base_encoder.head" if part == "projector" else part
    place = 3 * (int(rest[0][2:]) - 1) + rest[0].startswith("bn")
    leaf = {"kernel": "weight", "scale": "weight", "bias": "bias"}[rest[1]]
    return f"{prefix}.{place}.{leaf}"


def filled(tree):
    """Parameters of the recorded run: the rule of `golden`, BatchNorm's scales too."""

    def one(keys, leaf):
        path = "/".join(key.key for key in keys)
        tensor = golden.fill(torch_key(path), golden.torch_shape(path, leaf.shape))
        if "/bn" in path and path.endswith("scale"):
            tensor = 1 + 2 * tensor
        return np.ascontiguousarray(golden.from_torch(path, tensor))

    return jax.tree_util.tree_map_with_path(one, tree)


def test_recorded_values():
    """Of the reference on 4 images; BatchNorm over 4 multiplies rounding."""
    objective = moco_v3.make(
        encoder={"variant": "tiny"}, momentum_steps=1, dtype="float32"
    )
    views = np.stack([golden.images(4, 0.5), golden.images(4, 1.5)])
    shapes, state, _ = jax.eval_shape(objective.init, KEY, {"views": views})
    params = filled(shapes)
    stats = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state)
    teacher = {name: params[name] for name in ("encoder", "projector")}

    @jax.jit
    def run(*args):
        q, k, _ = objective.embed(*args)
        terms = [moco_v3.contrast(q[i], k[1 - i], 0.2)[0] for i in (0, 1)]
        return q, k, terms

    q, k, (first, second) = run(params, stats, teacher, views)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3)
    close(q[0][0, :4], [-0.708698, -0.747716, 0.97026, -1.58839])
    close(k[0][0, :4], [1.46036, -1.14382, -1.02415, -0.481068])
    close(first, 0.587394)
    close(first + second, 1.17574)


def test_recorded_contrast():
    q, k = (golden.noise(8 * 256, phase).reshape(8, 256) for phase in (0.5, 1.5))
    k = k + 0.3 * q
    loss, hits = jax.jit(moco_v3.contrast, static_argnums=2)(q, k, 0.2)
    golden.assert_close(loss, 0.386986)
    assert hits == 1.0
    unit_q, unit_k = (x[0] / np.linalg.norm(x[0]) for x in (q, k))
    golden.assert_close(unit_q @ unit_k / 0.2, 1.130186)  # logits[0, 0]


def test_contrast_is_finite_where_a_row_is_zero():
    q = np.zeros((4, 8), np.float32)
    q[0] = 1
    grad = jax.jit(jax.grad(lambda q: moco_v3.contrast(q, q, 0.2)[0]))(q)
    assert np.isfinite(grad).all()


@pytest.mark.parametrize(
    ("variant", "total", "encoder"),
    [
        ("tiny", 26_220_544, 5_486_592),
        ("small", None, 21_590_016),
    ],
)
def test_parameter_counts(variant, total, encoder):
    @functools.cache
    def at(depth):
        sizes = {"variant": variant, "depth": depth}
        objective = moco_v3.make(encoder=sizes, momentum_steps=1)
        views = jax.ShapeDtypeStruct((2, 4, 224, 224, 3), jnp.float32)
        return parameters.shapes_of(objective, {"views": views})

    counts = {
        part: parameters.size_at(12, lambda depth: at(depth).params[part])  # noqa: B023
        for part in at(1).params
    }
    assert counts["encoder"] == encoder
    if total is not None:
        assert (counts["projector"], counts["predictor"]) == (18_628_608, 2_105_344)
        assert sum(counts.values()) == total
    teacher = parameters.size_at(12, lambda depth: at(depth).teacher)
    assert teacher == counts["encoder"] + counts["projector"]


def test_the_teacher_starts_as_the_student():
    objective = model()[0]
    init = jax.jit(objective.init)
    params, state, teacher = init(KEY, {"views": random_views()})
    assert set(teacher) == {"encoder", "projector"}
    for name, tree in teacher.items():
        jax.tree.map(np.testing.assert_array_equal, tree, params[name])
    assert set(state) == {"projector", "predictor", "teacher_projector"}
    assert objective.encoder.init_style == "moco"
    assert objective.encoder.pos_embed == "sincos_moco"


def test_swapped_views_leave_the_loss_unchanged():
    views = random_views()
    loss, metrics = loss_of(views)
    swapped, other = loss_of(views[::-1])
    np.testing.assert_allclose(loss, swapped, rtol=1e-5)
    assert metrics["contrast_top1"] == other["contrast_top1"]
    moved = np.stack([views[0], np.roll(views[1], 1, axis=0)])
    assert abs(loss_of(moved)[0] - loss) > 1e-3  # which rows belong together matters


def test_the_loss_is_two_terms_of_infonce():
    """Against the formula, in float64; the nearest keys are counted in percent."""
    views = random_views()
    q, k, _ = compiled()[1](*model()[1], views)
    total, hits = 0.0, []
    for a, b in ((q[0], k[1]), (q[1], k[0])):
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
        logits = a @ b.T / 0.2
        log_prob = np.diag(logits) - np.log(np.exp(logits).sum(axis=1))
        total += -2 * 0.2 * log_prob.mean()
        hits += (logits.argmax(axis=1) == np.arange(len(logits))).tolist()
    loss, metrics = loss_of(views)
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    assert sum(hits) > 0
    assert metrics["contrast_top1"] == pytest.approx(100 * np.mean(hits))


def test_each_view_is_normalised_by_its_own_statistics():
    views = random_views()
    other = np.stack([views[0], 3 * views[1] ** 2])
    q, k, state = jax.device_get(compiled()[1](*model()[1], views))
    q2, k2, state2 = jax.device_get(compiled()[1](*model()[1], other))
    np.testing.assert_allclose(q[0], q2[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(k[0], k2[0], rtol=1e-5, atol=1e-5)
    assert abs(q[1] - q2[1]).max() > 0.1
    mean, mean2 = (s["projector"]["bn3"]["mean"] for s in (state, state2))
    assert abs(mean - mean2).max() > 1e-4  # the running ones have seen both


def test_branches_keep_running_statistics_of_their_own():
    params, state, teacher = model()[1]
    _, _, new = compiled()[1](params, state, teacher, random_views())
    means = [new[k]["bn1"]["mean"] for k in ("projector", "teacher_projector")]
    assert abs(means[0] - means[1]).max() > 1e-4
    equal = {name: params[name] for name in teacher}
    _, _, new = compiled()[1](params, state, equal, random_views())
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        new["projector"],
        new["teacher_projector"],
    )


def test_the_student_learns_and_the_teacher_gets_no_gradient():
    gradients = compiled()[0](*model()[1], {"views": random_views()}, KEY)[1]
    student, teacher = jax.device_get(gradients)
    assert all(not leaf.any() for leaf in jax.tree.leaves(teacher))
    for keys, leaf in jax.tree_util.tree_leaves_with_path(student):
        path = trees.path_of(keys)
        # BatchNorm takes away what is added to all examples alike.
        assert abs(leaf).max() > 1e-7 or path.endswith("norm/bias"), path


def test_the_teacher_is_the_moving_average_of_the_student():
    """T updates against the sum written out, with m from 0.99 to 1."""
    total = 8
    objective = make(momentum_steps=total)
    draws = np.random.default_rng(0).normal(size=(total, 5)).astype(np.float32)
    start = np.float32(np.linspace(-1, 1, 5))
    teacher: Any = {"encoder": start, "projector": 2 * start}
    update = jax.jit(objective.update_teacher)
    for step, x in enumerate(draws):
        params = {"encoder": x, "projector": 2 * x, "predictor": x}
        teacher = update(teacher, params, jnp.int32(step))
    t = np.arange(total)
    m = 1 - 0.5 * (1 + np.cos(np.pi * t / total)) * (1 - 0.99)
    np.testing.assert_allclose(m[[0, total // 2]], [0.99, 0.995])
    later = np.append(np.cumprod(m[::-1])[::-1][1:], 1.0)  # of all updates after t
    expected = m.prod() * start + ((1 - m) * later) @ draws
    assert set(teacher) == {"encoder", "projector"}
    np.testing.assert_allclose(teacher["encoder"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(teacher["projector"], 2 * expected, rtol=1e-5, atol=1e-6)


def test_at_the_end_the_teacher_stands_still_and_equal_leaves_always_do():
    objective, (params, _, teacher) = model()
    update = jax.jit(objective.update_teacher)
    last = update(teacher, params, jnp.int32(100))
    jax.tree.map(np.testing.assert_array_equal, last, teacher)
    equal = {name: params[name] for name in teacher}
    jax.tree.map(np.testing.assert_array_equal, update(equal, params, 3), equal)


@pytest.mark.parametrize("shape", [(8, 1), (4, 2)])
def test_loss_and_gradient_are_those_of_the_global_batch(shape):
    variables, views = model()[1], random_views()
    want = compiled()[0](*variables, {"views": views}, KEY)
    mesh = sharding.make_mesh(*shape)
    spread = jax.device_put(variables, sharding.tree_sharding(mesh, variables))
    placed = {"views": jax.device_put(views, sharding.slice_sharding(mesh))}
    got = compiled()[0](*spread, placed, KEY)

    def close(one, other):
        noise = 2e-6 + 1e-5 * abs(other).max()
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=noise)

    jax.tree.map(close, got, want)


def test_features_are_the_class_token_and_the_mean_of_the_patches():
    objective, (params, state, _) = model()
    image = random_views()[0]
    found = jax.jit(objective.predict)(params, state, {"image": image})
    apply: Any = jax.jit(objective.encoder.apply)
    tokens, _ = apply({"params": params["encoder"]}, image)
    np.testing.assert_allclose(found["features"], tokens[:, 0], atol=1e-5)
    np.testing.assert_allclose(found["features_avg"], tokens[:, 1:].mean(1), atol=1e-5)


def test_health_tells_collapse_from_spread():
    objective, (params, state, teacher) = model()
    health = jax.jit(objective.health)
    good = health(params, state, teacher, {"views": random_views()}, KEY)
    assert good["feature_std"] > 0.8 and good["effective_rank"] > 4
    assert {f"attn_entropy/head_{i:02d}" for i in (1, 2, 3)} < set(good)
    same = np.broadcast_to(random_views()[:, :1], (2, 16, 8, 8, 3))
    bad = health(params, state, teacher, {"views": same}, KEY)
    assert bad["feature_std"] < 0.2
    assert -1 <= good["agreement"] <= 1
    assert all(np.isfinite(x) for x in itertools.chain(good.values(), bad.values()))


def test_the_schedule_and_decay_of_the_recipe():
    config = mocov3_tiny.get_config()
    peak = config.lr.base * config.batch_size / 256
    lr = schedule.warmcos(
        peak=peak,
        total_steps=1251 * config.epochs,
        warmup_steps=round(1251 * config.lr.warmup_epochs),
        start=config.lr.start,
        end=config.lr.end,
    )
    got = [float(lr(k)) for k in (0, 1, 50_040, 250_200)]
    np.testing.assert_allclose(got, [1e-6, 1.01197e-6, 6e-4, 3.520944e-4], rtol=1e-4)
    block = config.optimizer
    assert (block.name, block.weight_decay) == ("adamw", 0.1)
    assert (block.b1, block.b2, block.eps) == (0.9, 0.999, 1e-8)
    params = model()[1][0]
    mask = optimizer.decay_mask(params, decay_1d=block.decay_1d, skip=block.no_decay)
    assert all(jax.tree.leaves(mask))


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """States before and after two updates with the patch embedding frozen."""
    made = jobs.tiny(
        "mocov3_tiny",
        optimizer__freeze=("encoder/patch_embed/.*",),
        lr__base=0.1,
        lr__warmup_epochs=0.0,
        evals={},
    )
    # On one device; the laws hold every objective to eight.
    with jobs.on_one_device(), jobs.given_starts():
        job = jobs.prepare(tmp_path_factory.mktemp("moco") / "run", made)
        state = job.create()
    before = jax.device_get(state)
    for batch in itertools.islice(job.stream(0), 2):
        state, metrics = job.step(state, sharding.global_batch(batch, job.mesh))
    return job, before, jax.device_get(state), jax.device_get(metrics)


def test_a_frozen_patch_embedding_stays_in_both_branches(frozen):
    _, before, after, metrics = frozen
    assert metrics["nonfinite"] == 0
    for tree in (after.params, after.teacher):
        jax.tree.map(
            np.testing.assert_array_equal,
            tree["encoder"]["patch_embed"],
            before.params["encoder"]["patch_embed"],
        )
    for part in ("params", "teacher"):
        trees = [
            getattr(state, part)["encoder"]["blocks_0"] for state in (before, after)
        ]
        old, new = (tree["attn"]["qkv"]["kernel"] for tree in trees)
        assert abs(old - new).max() > 0


def test_the_momentum_ends_with_the_run(frozen):
    job = frozen[0]
    assert job.objective.momentum_steps == job.total_steps == 6
    assert job.config["objective"]["momentum_steps"] is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"batch_size": 8},
            r"batch_size=8 is 1 on each of 8 devices; objective 'moco_v3' needs at "
            r"least 2 there: set --config.batch_size=16",
        ),
        ({"microbatch": "2"}, r"microbatch=2: objective 'moco_v3' uses statistics of"),
        ({"data__views": 1}, r"data.views"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_the_start(overrides, message, tmp_path):
    made = jobs.tiny("mocov3_tiny", **overrides)
    with pytest.raises(ValueError, match=message):
        jobs.prepare(tmp_path / "run", made)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"temperature": 0.0}, r"temperature=0.0"),
        ({"momentum": 1.5}, r"momentum=1.5.*0 <= momentum <= 1"),
        ({"momentum_steps": 0}, r"momentum_steps=0.*at least one step"),
        ({"mlp_dim": 0}, r"mlp_dim=0"),
    ],
)
def test_errors_say_what_to_do(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)
