"""Many probes at once: each as if it were alone, on the features it names."""

import functools

import jax
import numpy as np
import pytest

from litevit_jax.objectives import probe_grid, supervised
from litevit_jax.train import optimizer as optimizers
from tests import params as parameters

KEY = jax.random.key(0)
ENCODER = {
    "width": 16,
    "depth": 2,
    "num_heads": 2,
    "patch_size": 4,
    "pos_embed": "sincos",
}
LRS, STEPS = (0.05, 0.4, 3.0), 3
BATCH = {
    "image": np.random.default_rng(1).normal(size=(12, 8, 8, 3)).astype(np.float32),
    "label": np.arange(12) % 5,
}


def make(**kwargs):
    fields = {"encoder": ENCODER, "num_classes": 5, "lrs": LRS, "dtype": "float32"}
    return probe_grid.make(**(fields | kwargs))


def single(**kwargs):
    fields = {"encoder": ENCODER, "num_classes": 5, "pool": "cls", "dtype": "float32"}
    return supervised.make(**(fields | kwargs))


def initial(objective):
    """Parameters and state: heads as they start, on an encoder of random values."""

    @jax.jit
    def heads(batch):
        params, state, _ = objective.init(KEY, batch)
        return {name: x for name, x in params.items() if name != "encoder"}, state

    shapes = parameters.shapes_of(objective, BATCH).params["encoder"]
    params, state = heads(BATCH)
    return params | {"encoder": parameters.drawn(shapes)}, state


def trained(objective, optimizer, lr_factors):
    """Peak lr -> (parameters, model state) after a few steps."""

    def rule_of(lr, params):
        return optimizers.make(
            params,
            lambda step: lr * (1 - step / (STEPS + 1)),
            freeze=("encoder/.*",),
            lr_factors=lr_factors,
            **optimizer,
        )

    @jax.jit
    def step(lr, number, moving, frozen, state, opt_state):
        rule = rule_of(lr, optimizers.merge(moving, frozen))

        def loss(moving):
            merged = optimizers.merge(moving, frozen)
            value, (_, new) = objective.loss(merged, state, {}, BATCH, KEY)
            return value, new

        grads, state = jax.grad(loss, has_aux=True)(moving)
        moving, opt_state = rule.update(grads, opt_state, moving, number)
        return moving, state, opt_state

    def run(lr):
        params, state = initial(objective)
        rule = rule_of(lr, params)
        moving, frozen = rule.split(params)
        opt_state = jax.jit(rule.init)(params)
        for number in range(STEPS):
            moving, state, opt_state = step(
                lr, number, moving, frozen, state, opt_state
            )
        return moving, state

    return run


SGD = {"name": "sgd", "momentum": 0.9}
LARS = {"name": "lars", "momentum": 0.9, "trust": 0.01, "weight_decay": 0.1}


@pytest.mark.parametrize(
    ("head", "optimizer"), [("probe", SGD), ("probe_bn", LARS)], ids=["sgd", "lars"]
)
def test_each_head_ends_where_it_would_have_ended_alone(head, optimizer):
    grid = make(head=head, features=("cls", "avg"))
    got, state = trained(grid, optimizer, LRS)(1.0)
    alone = trained(single(head=head), optimizer, ())
    kernels = []
    for place, lr in enumerate(LRS):
        want, want_state = alone(lr)
        for name in ("kernel", "bias"):
            np.testing.assert_allclose(
                got["heads"]["cls"]["fc"][name][place],
                want["head"]["fc"][name],
                rtol=2e-4,
                atol=2e-6,
            )
        kernels.append(want["head"]["fc"]["kernel"])
        if head == "probe_bn":
            for name in ("mean", "var"):
                running = want_state["head"]["bn"][name]
                np.testing.assert_allclose(state["cls"]["bn"][name], running, rtol=1e-5)
    assert np.abs(kernels[0] - kernels[2]).max() > 1e-3  # the learning rates matter


def with_noise(objective):
    """Random parameters, so that heads differ."""
    return parameters.start(objective, BATCH).params


@functools.cache
def predicted():
    """(parameters with heads that differ, predictions, encoder's results)."""
    objective = make(head="probe", features=("avg", "cls_last2", "avg_last1"))
    params = with_noise(objective)
    encode = jax.jit(objective.encoder.apply)
    encoded = encode({"params": params["encoder"]}, BATCH["image"])
    return params, jax.jit(objective.predict)(params, {}, BATCH), encoded


def layer_norm(x, weights):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * weights["scale"] + weights["bias"]


def test_heads_read_what_their_names_say():
    params, out, (tokens, found) = predicted()
    np.testing.assert_allclose(out["features"], tokens[:, 0], atol=1e-5)
    norm = params["encoder"]["norm"]
    blocks = [layer_norm(found[f"block_0{i}/out"], norm) for i in range(2)]
    read = {
        "avg": tokens[:, 1:].mean(1),
        "cls_last2": np.concatenate([b[:, 0] for b in blocks], axis=1),
        "avg_last1": tokens[:, 1:].mean(1),
    }
    for name, x in read.items():
        fc = params["heads"][name]["fc"]
        logits = np.einsum("bd,gdk->bgk", x, fc["kernel"]) + fc["bias"]
        own = logits[np.arange(12), :, BATCH["label"]]
        rank = (logits > own[..., None]).sum(axis=-1)
        loss = np.log(np.exp(logits).sum(axis=-1)) - own
        assert len(np.unique(rank)) > 3
        np.testing.assert_array_equal(out[f"grid_rank/{name}"], rank)
        np.testing.assert_allclose(out[f"grid_loss/{name}"], loss, rtol=2e-4, atol=1e-5)


def test_blocks_are_offered_as_they_leave():
    _, out, (_, found) = predicted()
    stream = np.stack([found[f"block_0{i}/out"] for i in range(2)], axis=1)
    np.testing.assert_allclose(out["features_blocks"], stream[:, :, 0], atol=1e-5)
    average = stream[:, :, 1:].mean(axis=2)
    np.testing.assert_allclose(out["features_blocks_avg"], average, atol=1e-5)


def test_logits_that_are_equal_or_no_numbers_are_not_called_right():
    label, rank_of = np.arange(3), jax.jit(probe_grid._rank)
    for value in (0.0, np.nan):
        rank = rank_of(np.full((1, 3, 3), value, np.float32), label)
        assert rank.tolist() == [[0, 1, 2] if value == 0 else [2, 2, 2]]


def test_what_nobody_reads_costs_nothing():
    """Block features neither slow down who reads others nor run later blocks."""
    objective = single(head="probe")
    params, state, _ = parameters.shapes_of(objective, BATCH)

    def flops(choose):
        def some(params, image):
            return choose(objective.predict(params, state, {"image": image}))

        compiled = jax.jit(some).lower(params, BATCH["image"]).compile()
        return compiled.cost_analysis()["flops"]

    logits = flops(lambda out: out["logits"])
    first = flops(lambda out: out["features_blocks"][:, 0])
    both = flops(lambda out: (out["logits"], out["features_blocks"]))
    assert first < 0.65 * logits  # one block of two
    assert logits <= both < 1.05 * logits


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"features": ("cls", "max")},
            r"'max' unknown; the encoder has cls, avg, cls_",
        ),
        ({"features": ("cls_last3",)}, r"last 3 blocks, but the encoder has 2.*last2"),
        ({"features": ("cls_last0",)}, r"last 0 blocks, but the encoder has 2"),
        ({"features": ()}, r"expected different features"),
        ({"features": ("cls", "cls")}, r"expected different features"),
        ({"lrs": ()}, r"expected different positive learning rates"),
        ({"lrs": (0.1, 0.0)}, r"expected different positive learning rates"),
        ({"head": "linear"}, r"head 'linear' unknown; .*probe, probe_bn"),
    ],
)
def test_a_grid_that_cannot_be_trained_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        make(**fields)


def test_the_log_has_one_heads_loss_and_the_best_in_percent():
    objective = make(head="probe")
    params = with_noise(objective)

    @jax.jit
    def run(params, batch):
        loss = objective.loss(params, {}, {}, batch, KEY)
        return loss, objective.predict(params, {}, batch)

    (loss, (metrics, _)), out = run(params, BATCH)
    losses = [out[f"grid_loss/{name}"].mean(axis=0) for name in ("cls", "avg")]
    right = [(out[f"grid_rank/{name}"] == 0).mean(axis=0) for name in ("cls", "avg")]
    assert loss == pytest.approx(np.sum(losses), rel=1e-4)
    assert metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert metrics["best_loss"] == pytest.approx(np.min(losses), rel=1e-4)
    assert metrics["best_top1"] == pytest.approx(100 * np.max(right))


def test_mixed_labels_are_refused():
    objective = make()
    params, state, _ = jax.eval_shape(objective.init, KEY, BATCH)
    batch = BATCH | {"partner_label": BATCH["label"]}
    with pytest.raises(ValueError, match=r"labels are mixed; take augment\.mix out"):
        jax.eval_shape(objective.loss, params, state, {}, batch, KEY)
