"""Schedules, decay masks and update rules against closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax import registry, trees
from litevit_jax.train import lr_scales, optimizer, schedule


def params_of(objective, **kwargs):
    made = registry.make("objectives", objective, **kwargs)
    batch = {
        "image": jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32),
        "label": jax.ShapeDtypeStruct((2,), jnp.int32),
    }
    return jax.eval_shape(made.init, jax.random.key(0), batch).params


@pytest.fixture(scope="module")
def mae_params():
    tiny = {"variant": "tiny"}
    return params_of("mae", encoder=tiny, decoder=tiny)


def test_mae_tiny_decays_57_tensors_and_spares_111(mae_params):
    mask = optimizer.decay_mask(mae_params, decay_1d=False, skip=())
    decayed = jax.tree.leaves(mask)
    assert (sum(decayed), len(decayed) - sum(decayed)) == (57, 111)
    assert mask["encoder"]["cls_token"] and mask["decoder"]["mask_token"]


def test_no_decay_patterns_spare_what_they_match(mae_params):
    mask = optimizer.decay_mask(mae_params, decay_1d=True, skip=(".*/cls_token",))
    assert not mask["encoder"]["cls_token"]
    assert sum(jax.tree.leaves(mask)) == 167


def test_a_pattern_that_matches_nothing_is_named(mae_params):
    with pytest.raises(ValueError, match=r"'encoder/block_0/.\*' matches no param"):
        optimizer.match(("encoder/block_0/.*",), mae_params)


def test_freezing_everything_is_refused():
    with pytest.raises(ValueError, match="leaves nothing to train"):
        optimizer.make({"a": jnp.ones(2)}, lambda _: 1.0, name="sgd", freeze=(".*",))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"name": "adam"}, "optimizer 'adam' unknown; did you mean adamw"),
        ({"name": "adamw", "beta1": 0.9}, "optimizer 'adamw': .*beta1"),
    ],
)
def test_unknown_optimizer_or_setting_is_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        optimizer.make({"a": jnp.ones(2)}, lambda _: 1.0, **kwargs)


# Of the recipe, for ids 0 to 13.
SCALES = {
    0.85: "0.120905 0.142242 0.167343 0.196874 0.231617 0.272491 0.320577 "
    "0.377150 0.443705 0.522006 0.614125 0.7225 0.85 1",
    0.75: "0.023757 0.031676 0.042235 0.056314 0.075085 0.100113 0.133484 "
    "0.177979 0.237305 0.316406 0.421875 0.5625 0.75 1",
}


@pytest.fixture(scope="module")
def classifier_params():
    """Of a classifier with two heads."""
    tiny = {"variant": "tiny"}
    return params_of(
        "supervised", encoder=tiny, num_classes=7, teacher=tiny, distill={}
    )


def layer_of(path):
    if path.startswith("encoder/blocks_"):
        return int(path.split("/")[1].removeprefix("blocks_")) + 1
    return 0 if path.startswith("encoder/") else 13


@pytest.mark.parametrize("decay", SCALES)
def test_layer_decay_gives_the_published_scales(decay, classifier_params):
    params = classifier_params
    scales = lr_scales.layer_scales(params, decay)
    found = dict(zip(trees.flatten(params), jax.tree.leaves(scales), strict=True))
    assert {"head_dist/fc/kernel", "encoder/cls_token"} < found.keys()
    for path, scale in found.items():
        want = float(SCALES[decay].split()[layer_of(path)])
        assert scale == pytest.approx(want, abs=6e-7), path


def test_layer_decay_and_weight_decay_make_28_groups(classifier_params):
    params = classifier_params
    spared = ("encoder/(cls_token|pos_embed)",)
    decay = optimizer.decay_mask(params, decay_1d=False, skip=spared)
    scales = lr_scales.layer_scales(params, 0.85)
    groups = zip(jax.tree.leaves(scales), jax.tree.leaves(decay), strict=True)
    assert len(set(groups)) == 28
    for path, decayed in zip(
        trees.flatten(params), jax.tree.leaves(decay), strict=True
    ):
        assert decayed == path.endswith("kernel"), path


def test_position_tables_are_decayed_and_learn_as_their_block():
    encoder = {"variant": "tiny", "rpe_style": "v2023"}
    params = params_of("supervised", encoder=encoder, num_classes=7)
    spared = ("encoder/(cls_token|pos_embed)",)
    decay = optimizer.decay_mask(params, decay_1d=False, skip=spared)["encoder"]
    scales = lr_scales.layer_scales(params, 0.85)["encoder"]
    for number in range(12):
        own, rate = decay[f"blocks_{number}"], scales[f"blocks_{number}"]
        assert own["attn"].pop("relative_position_bias_table")
        want = float(SCALES[0.85].split()[number + 1])
        assert all(s == pytest.approx(want, abs=6e-7) for s in jax.tree.leaves(rate))
        for name in ("q_bias", "v_bias"):
            assert not own["attn"][name]
        assert not own["gamma_1"] and not own["gamma_2"]


def test_the_final_norm_of_an_encoder_is_in_the_last_group(mae_params):
    scales = lr_scales.layer_scales(mae_params, 0.5)
    assert set(jax.tree.leaves(scales["encoder"]["norm"])) == {1.0}
    assert set(jax.tree.leaves(scales["encoder"]["blocks_11"])) == {0.5}


def test_layer_decay_follows_the_depth_of_the_encoder():
    shape = {"kernel": jnp.ones((2, 2))}
    encoder = {"patch_embed": shape, "blocks_0": shape, "blocks_1": shape}
    scales = lr_scales.layer_scales({"encoder": encoder, "head": shape}, 0.5)
    assert jax.tree.leaves(scales["encoder"]) == [0.25, 0.5, 0.125]
    assert scales["head"]["kernel"] == 1.0


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_layer_decay_scales_rate_least_rate_and_weight_decay(name):
    """Equal to a run at the scaled rate: everything is multiplied by it."""
    params = {
        "encoder": {"blocks_0": {"kernel": jnp.full((2, 2), 2.0)}},
        "head": {"kernel": jnp.full((2, 2), 2.0)},
    }
    grads = jax.tree.map(lambda x: 0.3 * jnp.ones_like(x), params)
    fields = {"steps": 3, "weight_decay": 0.5}
    got = run(name, params, grads, lr=0.1, layer_decay=0.25, **fields)
    slow, fast = (run(name, params, grads, lr=lr, **fields) for lr in (0.025, 0.1))
    for now, scaled, plain in zip(got, slow, fast, strict=True):
        block, head = now["encoder"]["blocks_0"]["kernel"], now["head"]["kernel"]
        np.testing.assert_allclose(block, scaled["head"]["kernel"], rtol=1e-6)
        np.testing.assert_allclose(head, plain["head"]["kernel"], rtol=1e-6)


def test_the_least_rate_of_a_layer_is_scaled_too():
    """At the last update (recipes 5.1) everything moves by 1e-6 times its scale."""
    params = {
        "encoder": {f"blocks_{i}": {"kernel": jnp.zeros((2, 2))} for i in range(12)}
    }
    params["encoder"]["cls_token"] = jnp.zeros((1, 1, 2))
    params["head"] = {"kernel": jnp.zeros((2, 2))}
    lr = schedule.warmcos(
        peak=4e-3, total_steps=375_300, warmup_steps=6255, start=0.0, end=1e-6
    )
    made = optimizer.make(params, lr, name="sgd", momentum=0.0, layer_decay=0.85)
    grads = jax.tree.map(jnp.ones_like, params)
    moved, _ = made.update(grads, made.init(params), params, jnp.int32(375_299))
    for path, leaf in zip(trees.flatten(moved), jax.tree.leaves(moved), strict=True):
        scale = float(SCALES[0.85].split()[layer_of(path)])
        np.testing.assert_allclose(leaf, -1e-6 * scale, rtol=1e-4, err_msg=path)


def test_layer_decay_of_1_or_more_does_nothing():
    params = {"w": jnp.ones((2, 2))}
    assert (
        optimizer.make(params, lambda _: 1.0, name="sgd", layer_decay=1.0).scales
        is None
    )


def test_layer_decay_leaves_frozen_layers_out():
    shape = {"kernel": jnp.full((2, 2), 0.1)}
    params = {"encoder": {"blocks_0": shape, "blocks_1": shape}, "head": shape}
    grads = jax.tree.map(jnp.ones_like, params)
    freeze = ("encoder/blocks_0/.*",)
    last = run("adamw", params, grads, steps=2, lr=0.1, layer_decay=0.5, freeze=freeze)[
        -1
    ]
    assert (last["encoder"]["blocks_0"]["kernel"] == shape["kernel"]).all()
    assert (last["encoder"]["blocks_1"]["kernel"] != shape["kernel"]).all()


@pytest.mark.parametrize("size", [0.1, 4.0])
def test_clipping_limits_the_norm_of_all_gradients_together(size):
    params = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(5)}
    grads = {"a": jnp.full((2, 2), size), "b": jnp.full(5, -size)}
    last = run("sgd", params, grads, steps=1, lr=1.0, momentum=0.0, clip_norm=1.0)[-1]
    norm = 3 * size  # nine equal entries
    factor = min(1, 1 / (norm + 1e-6))
    np.testing.assert_allclose(last["a"], -size * factor, rtol=1e-6)
    np.testing.assert_allclose(last["b"], size * factor, rtol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"layer_decay": 0.0}, r"optimizer.layer_decay=0.0; expected a positive"),
        ({"layer_decay": 0.5}, r"layer_decay=0.5 needs an encoder with blocks"),
        ({"clip_norm": -1.0}, r"optimizer.clip_norm=-1.0; expected a positive"),
        ({"ema_decay": 1.0}, r"optimizer.ema_decay=1.0; expected 0 <= decay < 1"),
        ({"ema_decay": -0.1}, r"optimizer.ema_decay=-0.1; expected 0 <= decay < 1"),
    ],
)
def test_wrong_layer_decay_and_clipping_are_explained(kwargs, message):
    with pytest.raises(ValueError, match=message):
        optimizer.make({"a": jnp.ones((2, 2))}, lambda _: 1.0, name="sgd", **kwargs)


def run(name, params, grads, *, steps, lr, **kwargs):
    made = optimizer.make(params, lambda _: lr, name=name, **kwargs)
    state, trail = made.init(params), []
    for step in range(steps):
        trained, frozen = made.split(params)
        part, _ = made.split(grads)
        trained, state = made.update(part, state, trained, step)
        params = optimizer.merge(trained, frozen)
        trail.append(params)
    return trail


def test_lars_gives_the_recorded_updates():
    params = {"w": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "b": jnp.array([1.0, -1.0])}
    grads = {"w": jnp.array([[0.1, 0.2], [0.3, 0.4]]), "b": jnp.array([0.5, -0.5])}
    one, two = run("lars", params, grads, steps=2, lr=1.0, weight_decay=0.1)
    np.testing.assert_allclose(one["w"], [[0.999, 1.998], [2.997, 3.996]], rtol=1e-6)
    np.testing.assert_allclose(
        two["w"], [[0.997101, 1.994202], [2.991303, 3.988404]], rtol=1e-6
    )
    np.testing.assert_allclose(one["b"], [0.5, -0.5], rtol=1e-6)
    np.testing.assert_allclose(two["b"], [-0.45, 0.45], rtol=1e-5)


def test_adamw_equals_its_closed_form():
    p, g, lr, wd, eps = 2.0, 0.3, 0.1, 0.05, 1e-8
    params, grads = {"w": jnp.full((1, 1), p)}, {"w": jnp.full((1, 1), g)}
    trail = run("adamw", params, grads, steps=3, lr=lr, b2=0.95, weight_decay=wd)
    for got in trail:  # a constant gradient: m/(1-b1^t) = g, v/(1-b2^t) = g^2
        p = p - lr * (g / (abs(g) + eps) + wd * p)
        np.testing.assert_allclose(got["w"], [[p]], rtol=1e-6)


def test_nesterov_sgd_has_the_form_of_torch():
    p, g, lr, momentum, mu = 1.0, 0.5, 0.1, 0.9, 0.0
    params, grads = {"w": jnp.full((1, 1), p)}, {"w": jnp.full((1, 1), g)}
    trail = run("sgd", params, grads, steps=3, lr=lr, momentum=0.9, nesterov=True)
    for got in trail:
        mu = momentum * mu + g
        p = p - lr * (g + momentum * mu)
        np.testing.assert_allclose(got["w"], [[p]], rtol=1e-6)


def test_frozen_leaves_stay_bit_identical_under_weight_decay():
    params = {"a": jnp.full((2, 2), 0.1), "b": jnp.full((2, 2), 0.1)}
    grads = jax.tree.map(jnp.ones_like, params)
    last = run(
        "adamw", params, grads, steps=3, lr=0.1, weight_decay=0.5, freeze=("a",)
    )[-1]
    assert (last["a"] == params["a"]).all()
    assert (last["b"] != params["b"]).all()


def test_an_average_is_of_trained_leaves_alone_and_starts_where_they_start():
    params = {"a": jnp.full((2, 2), 0.5), "b": jnp.full((2, 2), 0.5)}
    made = optimizer.make(
        params, lambda _: 0.1, name="sgd", momentum=0.0, freeze=("b",), ema_decay=0.75
    )
    trained, _ = made.split(params)
    state = made.init(params)
    np.testing.assert_array_equal(state.ema["a"], params["a"])
    assert state.ema["b"] is None
    want = moving = np.full((2, 2), 0.5)
    for step in range(3):
        trained, state = made.update(
            {"a": jnp.ones((2, 2)), "b": None}, state, trained, step
        )
        moving = moving - 0.1
        want = 0.75 * want + 0.25 * moving
    whole = made.average(state, {"a": trained["a"], "b": params["b"]})
    np.testing.assert_allclose(whole["a"], want, rtol=1e-6)
    np.testing.assert_array_equal(whole["b"], params["b"])


def test_without_an_average_the_state_is_that_of_the_transformation():
    params = {"a": jnp.ones((2, 2))}
    made = optimizer.make(params, lambda _: 0.1, name="adamw")
    state = made.init(params)
    alone = made.transformation.init(params)
    assert jax.tree.structure(state) == jax.tree.structure(alone)
    assert made.average(state, params) is params


def test_stacked_models_move_as_if_each_were_alone():
    """The recorded LARS updates, in a stack with a model of other sizes and lr."""
    params = {"w": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "b": jnp.array([1.0, -1.0])}
    grads = {"w": jnp.array([[0.1, 0.2], [0.3, 0.4]]), "b": jnp.array([0.5, -0.5])}
    stacked = [
        jax.tree.map(lambda x: jnp.stack([x, 9 * x**2]), t) for t in (params, grads)
    ]
    settings = {"steps": 2, "weight_decay": 0.1, "clip_norm": 0.7}
    got = run("lars", *stacked, lr=2.0, lr_factors=(0.5, 2.0), **settings)
    for place, lr in enumerate((1.0, 4.0)):
        alone = [jax.tree.map(lambda x, p=place: x[p], t) for t in stacked]
        want = run("lars", *alone, lr=lr, **settings)
        for mine, theirs in zip(got, want, strict=True):
            for name in params:
                np.testing.assert_allclose(mine[name][place], theirs[name], rtol=1e-6)
    free = {"steps": 2, "weight_decay": 0.1}
    two = run("lars", *stacked, lr=2.0, lr_factors=(0.5, 2.0), **free)[-1]
    np.testing.assert_allclose(
        two["w"][0], [[0.997101, 1.994202], [2.991303, 3.988404]], rtol=1e-6
    )
    np.testing.assert_allclose(two["b"][0], [-0.45, 0.45], rtol=1e-5)


def test_as_many_models_as_learning_rates_are_expected():
    params = {"heads": jnp.ones((2, 3)), "other": jnp.ones((4, 3))}
    make = functools.partial(optimizer.make, params, lambda _: 1.0, name="sgd")
    message = r"2 factors, but parameter other is \[4, 3\]; .*optimizer.freeze"
    with pytest.raises(ValueError, match=message):
        make(lr_factors=(1.0, 2.0))
    assert make(lr_factors=(1.0, 2.0), freeze=("other",)).scales["other"] is None
    with pytest.raises(ValueError, match=r"lr_factors and .*layer_decay < 1: give one"):
        optimizer.make(
            {"encoder": {"blocks_0": jnp.ones((2, 2))}},
            lambda _: 1.0,
            name="sgd",
            layer_decay=0.5,
            lr_factors=(1.0, 2.0),
        )
