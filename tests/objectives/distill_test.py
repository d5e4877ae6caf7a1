"""Distillation: parity with the reference, and laws of the method."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax.models import vit
from litevit_jax.objectives import distill, mae
from litevit_jax.train import optimizer
from tests import golden
from tests import params as parameters

KEY = jax.random.key(0)
ENCODER = {"width": 24, "depth": 2, "num_heads": 3, "patch_size": 4}
DECODER = {"width": 16, "depth": 1, "num_heads": 2}
TEACHER = {"width": 32, "depth": 2, "num_heads": 4, "patch_size": 4}


def make(**kwargs):
    blocks = {"encoder": ENCODER, "decoder": DECODER, "teacher": TEACHER}
    return distill.make(**{**blocks, "dtype": "float32"} | kwargs)


@functools.cache
def batch_of(count=4, channels=3):
    images = np.random.default_rng(7).normal(size=(count, 16, 16, channels))
    return {"image": images.astype(np.float32)}


@functools.cache
def started(objective):
    """Random parameters and teacher, norms and biases too."""
    params, _, teacher = parameters.start(objective, batch_of())
    return params, teacher


@functools.cache
def compiled(objective, name):
    return jax.jit(getattr(objective, name))


def loss_of(objective, params, teacher, key=KEY):
    loss, (metrics, state) = compiled(objective, "loss")(
        params, {}, teacher, batch_of(), key
    )
    assert not state
    return float(loss), jax.device_get(metrics)


@pytest.fixture(scope="module")
def reference():
    """What the tiny student and the base teacher of the paper compute, filled."""
    tiny, base = {"variant": "tiny"}, {"variant": "base"}
    objective = make(encoder=tiny, decoder=tiny, teacher=base)
    image, ids = golden.images(2), golden.ids_shuffle(2)
    shapes = jax.eval_shape(objective.init, KEY, {"image": image})
    student = {k: v for k, v in shapes.params.items() if k != "adapter"}
    params, teacher = golden.params_like(student), golden.params_like(shapes.teacher)
    weight = golden.fill("attn_adapter.adapter11.weight", (12, 12, 1, 1))
    assert jax.tree.map(jnp.shape, shapes.params["adapter"]) == {
        "attn_11": {"kernel": (12, 12)}
    }
    params["adapter"] = {"attn_11": {"kernel": weight[:, :, 0, 0].T}}

    @jax.jit
    def run(params, teacher, image, ids):
        batch = {"image": image, "ids_shuffle": ids}
        found = objective._run_teacher(teacher, image, ids[:, :49])
        return {
            "S": found["block_11/attn_logits"][0, 0, 0, :4],
            **objective.loss(params, {}, teacher, batch, KEY)[1][0],
        }

    return weight, jax.device_get(run(params, teacher, image, ids))


def test_recorded_adapter_fill(reference):
    first = [-0.0370174, 0.0118206, -0.00620273]
    golden.assert_close(reference[0].ravel()[:3], first)


def test_recorded_attention_logits_of_the_teacher(reference):
    recorded = [-0.803913, -0.628953, -0.222922, -0.0920693]
    golden.assert_close(reference[1]["S"], recorded)


def test_recorded_losses(reference):
    golden.assert_close(reference[1]["distill_loss"], 0.525480)
    golden.assert_close(reference[1]["mae_loss"], 1.081296)
    golden.assert_close(reference[1]["loss"], 1.081296 + 0.525480)


def itself(target, **kwargs):
    """An objective whose teacher is its student, and the arrays of both."""
    objective = make(teacher=ENCODER, adapter=False, target=target, **kwargs)
    params, teacher = started(objective)

    def copy(leaf, ours):
        return ours if leaf.shape == ours.shape else leaf

    own = jax.tree.map(lambda x: x, teacher["encoder"])
    for name, block in own.items():
        given = params["encoder"][name]
        own[name] = jax.tree.map(copy, block, _like(given, block))
    return objective, params, {"encoder": own}


def _like(tree, shape):
    """The part of `tree` that `shape` has."""
    if not isinstance(shape, dict):
        return tree
    return {name: _like(tree[name], part) for name, part in shape.items()}


@pytest.mark.parametrize("target", distill.TARGETS)
def test_a_teacher_equal_to_the_student_costs_nothing(target):
    objective, params, teacher = itself(target)
    loss, metrics = loss_of(objective, params, teacher)
    np.testing.assert_allclose(metrics["distill_loss"], 0, atol=1e-6)
    np.testing.assert_allclose(loss, metrics["mae_loss"], rtol=1e-6)
    other = jax.tree.map(lambda x: 1.5 * x, teacher)
    assert loss_of(objective, params, other)[1]["distill_loss"] > 1e-3


def test_health_tells_how_far_the_student_agrees():
    objective, params, teacher = itself("logits")
    found = compiled(objective, "health")
    same = jax.device_get(found(params, {}, teacher, batch_of(), KEY))
    np.testing.assert_allclose(same["teacher_agreement"], 1, atol=1e-4)
    drawn = started(objective)[1]
    other = found(params, {}, drawn, batch_of(), KEY)
    assert -1 < other["teacher_agreement"] < 0.9
    health = functools.partial(objective.student.health, params, {}, {}, batch_of())
    student = jax.eval_shape(health, KEY)
    assert {*student, "teacher_agreement"} == set(same)


def test_without_weight_it_is_mae():
    plain = mae.make(encoder=ENCODER, decoder=DECODER, dtype="float32")
    objective = make(weight=0.0)
    params, teacher = started(objective)
    expected = compiled(plain, "loss")(params, {}, {}, batch_of(), KEY)[0]
    loss, metrics = loss_of(objective, params, teacher)
    np.testing.assert_allclose([loss, metrics["mae_loss"]], expected, rtol=1e-6)
    assert metrics["distill_loss"] > 0


def test_both_see_the_same_patches_in_the_same_order(monkeypatch):
    objective, apply, seen = make(), vit.Encoder.apply, []

    def spy(self, variables, image, ids_keep=None, **kwargs):
        seen.append((image, ids_keep))
        return apply(self, variables, image, ids_keep, **kwargs)

    @jax.jit
    def run(params, teacher, batch):
        objective.loss(params, {}, teacher, batch, KEY)
        return seen

    arrays = started(objective)
    monkeypatch.setattr(vit.Encoder, "apply", spy)
    student, teacher = run(*arrays, batch_of())
    assert student[1].shape == (4, 4)
    jax.tree.map(np.testing.assert_array_equal, student, teacher)


def grads(objective, params, teacher):
    def loss(params, teacher):
        return objective.loss(params, {}, teacher, batch_of(), KEY)[0]

    return jax.jit(jax.grad(loss, argnums=(0, 1)))(params, teacher)


def size(tree):
    return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def test_the_teacher_gets_no_gradient_and_the_adapter_does():
    objective = make()
    params, teacher = started(objective)
    of_params, of_teacher = grads(objective, params, teacher)
    assert size(of_teacher) == 0
    assert size(of_params["adapter"]["attn_1"]) > 0
    assert objective.frozen_teacher
    decay = optimizer.decay_mask(params, decay_1d=False, skip=())
    assert decay["adapter"]["attn_1"]["kernel"]  # a matrix as any other


def flops(objective):
    """Of the teacher's part as it is traced, before anything is optimised away."""
    teacher = parameters.shapes_of(objective, batch_of()).teacher
    ids = jax.ShapeDtypeStruct((4, 4), jnp.int32)
    lowered = jax.jit(objective._run_teacher).lower(teacher, batch_of()["image"], ids)
    return lowered.cost_analysis()["flops"]


def test_the_teacher_stops_where_nobody_reads_on():
    deep, tokens, width = TEACHER | {"depth": 4}, 4 * 5, 32
    cut = [flops(make(teacher=deep, pairs=((2, i),))) for i in (1, 2, 4)]
    # A block multiplies each token with 12 D^2 weights, and attention is extra.
    whole_block = 2 * tokens * 12 * width**2
    np.testing.assert_allclose(cut[2] - cut[1], 2 * (cut[1] - cut[0]), rtol=1e-3)
    assert whole_block < cut[1] - cut[0] < 1.5 * whole_block
    # The last block has 2 D^2 of them: no v, no projection, no MLP.
    embed = 2 * 4 * 4 * 48 * width
    assert cut[0] < embed + whole_block / 6 * 1.5
    teacher = started(make(teacher=deep, pairs=((2, 2),)))[1]["encoder"]
    assert {n for n in teacher if n.startswith("blocks")} == {"blocks_0", "blocks_1"}
    assert set(teacher["blocks_1"]) == {"norm1", "attn"} and "norm" not in teacher
    assert set(teacher["blocks_1"]["attn"]) == {"qkv"}


def test_several_pairs_add_up_by_their_weights():
    single = [make(pairs=(pair,)) for pair in ((1, 1), (2, 2))]
    both = make(pairs=((1, 1, 0.5), (2, 2, 3.0)))
    params, teacher = started(both)
    names = ("attn_0", "attn_1")
    assert set(params["adapter"]) == set(names)
    parts = []
    for objective in single:
        own = jax.eval_shape(objective.init, KEY, batch_of()).teacher
        cut = _like(teacher, own)
        parts.append(loss_of(objective, params, cut)[1]["distill_loss"])
    expected = 0.5 * parts[0] + 3 * parts[1]
    got = loss_of(both, params, teacher)[1]["distill_loss"]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def divergence(student, teacher):
    p, q = softmax(teacher), softmax(student)
    return (p * np.log(p / q)).sum(-1).mean()


def intermediates(objective, params, teacher):
    """Both sides' intermediates for the masks of KEY."""
    image = batch_of()["image"]

    @jax.jit
    def run(params, teacher, image):
        ids = objective.student.masks_of({"image": image}, KEY)
        _, tokens, student = objective.student.forward(params, image, ids)
        of_teacher = objective._run_teacher(teacher, image, ids[:, :4])
        return {**student, "tokens": tokens}, of_teacher

    return jax.device_get(run(params, teacher, image))


def test_probabilities_are_compared_by_their_divergence():
    objective = make(target="probs", teacher=ENCODER, adapter=False)
    params, teacher = started(objective)
    student, target = intermediates(objective, params, teacher)
    name = "block_01/attn_logits"
    expected = divergence(student[name], target[name])
    got = loss_of(objective, params, teacher)[1]["distill_loss"]
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_hidden_states_are_norm_outputs_through_an_adapter():
    objective = make(target="hidden", pairs=((0, 1), (2, 2)))
    params, teacher = started(objective)
    student, target = intermediates(objective, params, teacher)
    kernel = {n: a["kernel"] for n, a in params["adapter"].items()}
    assert {n: k.shape for n, k in kernel.items()} == {
        "hidden_0_to_1": (24, 32),
        "hidden_2": (24, 32),
    }
    mapped = student["block_00/norm1"] @ kernel["hidden_0_to_1"]
    first = mapped - target["block_01/norm1"]
    last = student["tokens"] @ kernel["hidden_2"] - target["tokens"]
    expected = np.square(first).mean() + np.square(last).mean()
    got = loss_of(objective, params, teacher)[1]["distill_loss"]
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_relations_join_heads_until_there_are_as_many():
    four = ENCODER | {"num_heads": 4}
    two = TEACHER | {"num_heads": 2}
    objective = make(encoder=four, teacher=two, target="relations")
    params, teacher = started(objective)
    assert "adapter" not in params
    sides = intermediates(objective, params, teacher)

    def relation(found, name):
        x = found[f"block_01/{name}"].swapaxes(1, 2)
        x = x.reshape(*x.shape[:2], 2, -1)
        return np.einsum("bnhd,bmhd->bhnm", x, x) / np.sqrt(x.shape[-1])

    parts = [divergence(*(relation(s, name) for s in sides)) for name in "qkv"]
    got = loss_of(objective, params, teacher)[1]["distill_loss"]
    np.testing.assert_allclose(got, np.mean(parts), rtol=1e-4)


def test_logits_and_losses_are_float32_in_bfloat16():
    half, full = make(dtype="bfloat16"), make()
    params, teacher = started(full)
    batch = batch_of()
    loss, (metrics, _) = compiled(half, "loss")(params, {}, teacher, batch, KEY)
    assert {x.dtype for x in (loss, *metrics.values())} == {jnp.dtype("float32")}
    expected = loss_of(full, params, teacher)[0]
    np.testing.assert_allclose(loss, expected, rtol=0.03)
    ids = jax.ShapeDtypeStruct((4, 4), jnp.int32)
    found = jax.eval_shape(half._run_teacher, teacher, batch["image"], ids)
    assert found["block_01/attn_logits"].dtype == jnp.float32
    assert found["tokens"].dtype == jnp.bfloat16


def test_a_teacher_held_in_bfloat16_computes_the_same():
    half = make(dtype="bfloat16")
    shapes = jax.eval_shape(half.init, KEY, batch_of()).teacher["encoder"]
    found = {str(x.dtype) for x in jax.tree.leaves(shapes)}
    assert found == {"bfloat16", "float32"}
    params, teacher = started(half)
    held = jax.tree.map(lambda x, y: x.astype(y.dtype), teacher["encoder"], shapes)
    assert loss_of(half, params, {"encoder": held}) == loss_of(half, params, teacher)
    whole = jax.eval_shape(make().init, KEY, batch_of()).teacher
    assert {x.dtype for x in jax.tree.leaves(whole)} == {np.dtype("float32")}


@pytest.fixture(scope="module")
def decoupled():
    objective = make(encoder=ENCODER | {"depth": 3}, decoupled=2, pairs=((4, 2),))
    return objective, *started(objective)


def test_a_decoupled_student_is_a_plain_encoder_and_an_extra(decoupled):
    objective, params, _ = decoupled
    assert set(params) == {"encoder", "decoder", "extra", "adapter"}
    plain = mae.make(encoder=ENCODER | {"depth": 3}, decoder=DECODER, dtype="float32")
    expected = jax.eval_shape(plain.init, KEY, batch_of()).params["encoder"]
    shapes = jax.tree.map(jnp.shape, params["encoder"])
    assert shapes == jax.tree.map(jnp.shape, expected)
    assert jax.tree.map(jnp.shape, params["extra"]) == {
        "norm1": {"scale": (24,), "bias": (24,)},
        "attn": {"qkv": {"kernel": (24, 72), "bias": (72,)}},
    }
    features = compiled(objective, "predict")(params, {}, batch_of())["features"]
    encode = compiled(objective.student.encoder, "apply")
    tokens, _ = encode({"params": params["encoder"]}, batch_of()["image"])
    np.testing.assert_allclose(features, tokens[:, 0], atol=1e-5)


def test_a_decoupled_decoder_reads_before_the_later_blocks(decoupled):
    objective, params, teacher = decoupled

    def part(name, params, teacher):
        def loss(params):
            found = objective.loss(params, {}, teacher, batch_of(), KEY)[1][0]
            return found[name]

        return jax.grad(loss)(params)

    @jax.jit
    def both(*arrays):
        return [part(name, *arrays) for name in ("mae_loss", "distill_loss")]

    pixels, attention = both(params, teacher)
    assert size(pixels["encoder"]["blocks_1"]) > 0
    assert size(pixels["encoder"]["norm"]) > 0
    assert size(pixels["encoder"]["blocks_2"]) == size(pixels["extra"]) == 0
    assert size(attention["encoder"]["blocks_2"]["mlp"]) > 0
    assert size(attention["extra"]) > 0
    assert size(attention["encoder"]["norm"]) == size(attention["decoder"]) == 0
    # Its pixel loss is that of an encoder which ends there.
    short = dataclasses.replace(
        objective.student,
        encoder=objective.student.encoder.clone(depth=2),
        decode_after=None,
    )
    expected = jax.jit(short.loss)(params, {}, {}, batch_of(), KEY)[0]
    got = loss_of(objective, params, teacher)[1]["mae_loss"]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_predictions_are_those_of_mae():
    objective = make()
    params, _ = started(objective)
    expected = compiled(objective.student, "predict")(params, {}, batch_of())
    got = compiled(objective, "predict")(params, {}, batch_of())
    assert got.keys() == expected.keys()
    np.testing.assert_allclose(got["mae_loss"], expected["mae_loss"], rtol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"teacher": TEACHER | {"depth": 3}}, r'3 blocks.* 2.*pairs="\(\(2, 3\),\)"'),
        ({"teacher": TEACHER | {"patch_size": 8}}, r"patch_size=8, the encoder's is 4"),
        ({"pairs": ((3, 2),)}, r"student layer 3, expected 1 to 2"),
        ({"pairs": ((2, 0),)}, r"teacher layer 0, expected 1 to 2"),
        ({"pairs": ((3, 2),), "target": "hidden"}, r"layer 3, expected 0 to 2"),
        ({"pairs": ((1, 1), (1, 1, 2.0))}, r"names a pair twice"),
        ({"pairs": (1, 2)}, r"pairs=\(1, 2\), expected \(student layer, teacher"),
        ({"pairs": ()}, r"pairs=\(\), expected"),
        ({"target": "logit"}, r"target 'logit' unknown; did you mean logits"),
        ({"weight": -1.0}, r"weight=-1.0, expected 0 or more"),
        ({"decoupled": 2}, r"decoupled=2, expected 1 to 1"),
        ({"decoupled": 1, "target": "hidden"}, r"no hidden state"),
        ({"teacher": {"width": 32}}, r"depth, num_heads, patch_size not given"),
    ],
)
def test_errors_say_what_to_do(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)
