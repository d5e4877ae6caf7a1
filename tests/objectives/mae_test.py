"""Masked autoencoder: parity with the reference model, and laws of the method."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax.models import layers, mae_decoder, vit
from litevit_jax.objectives import mae
from tests import golden
from tests import params as parameters

KEY = jax.random.key(0)
ENCODER = {"width": 24, "depth": 1, "num_heads": 3, "patch_size": 4}
DECODER = {"width": 16, "depth": 1, "num_heads": 2}


def make(**kwargs):
    return mae.make(
        **{"encoder": ENCODER, "decoder": DECODER, "dtype": "float32"} | kwargs
    )


def make_tiny():
    tiny = {"variant": "tiny"}
    return make(encoder=tiny, decoder=tiny)


def batch_of(*shape):
    images = np.random.default_rng(7).normal(size=shape)
    return {"image": images.astype(np.float32)}


@pytest.fixture(scope="module")
def golden_tiny():
    """Parameters, image, and what the tiny MAE computes for the golden input."""
    objective, image = make_tiny(), golden.images(2)
    params = golden.params_like(
        jax.eval_shape(objective.init, KEY, {"image": image})[0]
    )

    @jax.jit
    def run(params, image, ids):
        pred, latent, outputs = objective.forward(params, image, ids, all_patches=True)
        batch = {"image": image, "ids_shuffle": ids}
        raw = dataclasses.replace(objective, norm_pix_loss=False)
        return {
            "pred": pred,
            "masked_pred": objective.forward(params, image, ids)[0],
            "latent": latent,
            "S": outputs["block_11/attn_logits"],
            "loss": objective.loss(params, {}, {}, batch, KEY)[0],
            "raw_loss": raw.loss(params, {}, {}, batch, KEY)[0],
        }

    return params, image, jax.device_get(run(params, image, golden.ids_shuffle(2)))


def test_fill_follows_the_recorded_rule(golden_tiny):
    params, image, _ = golden_tiny
    first = [-1.26903, 1.26138, 0.599913, 0.638438]
    golden.assert_close(image[0, 0, :4, 0], first)
    last = [0.108542, 0.688546, -0.603851, 0.781951]
    golden.assert_close(image[1, -1, -4:, 2], last)
    params = params["encoder"]
    cls = [-0.0356311, -0.0419838, -0.0213827, -0.0223269]
    golden.assert_close(params["cls_token"][0, 0, :4], cls)
    qkv = [-0.0195178, 0.00384053, 0.0157589, 0.0289979]
    golden.assert_close(params["blocks_0"]["attn"]["qkv"]["kernel"][:4, 0], qkv)
    golden.assert_close(params["norm"]["scale"][:3], [0.94845, 1.03089, 0.994487])


def test_recorded_mask():
    restore = np.argsort(golden.ids_shuffle(2), axis=1)
    assert restore[0, :5].tolist() == [0, 53, 106, 159, 16]
    assert (restore[0, :8] >= 49).astype(int).tolist() == [0, 1, 1, 1, 0, 1, 1, 1]
    assert (restore >= 49).sum() == 294


def test_recorded_losses(golden_tiny):
    golden.assert_close(golden_tiny[2]["loss"], 1.081296)
    golden.assert_close(golden_tiny[2]["raw_loss"], 0.829725)


def test_recorded_latent(golden_tiny):
    latent = golden_tiny[2]["latent"]
    first = [0.0595372, 1.9471, 0.00858787, 1.00228]
    golden.assert_close(latent[0, 0, :4], first)
    last = [0.919704, -1.05716, 1.92792, -0.53438]
    golden.assert_close(latent[1, 49, 188:], last)


def test_recorded_prediction(golden_tiny):
    pred = golden_tiny[2]["pred"]
    first = [-0.349676, -0.329105, -0.145461, 0.25017]
    golden.assert_close(pred[0, 0, :4], first)
    last = [-0.126625, 0.390038, -0.4184, -0.0361474]
    golden.assert_close(pred[1, 195, 764:], last)


def test_recorded_attention_logits(golden_tiny):
    logits = golden_tiny[2]["S"]
    first = [-0.00439778, 0.205918, 0.148538, 0.249904]
    golden.assert_close(logits[0, 0, 0, :4], first)
    last = [-0.035219, -0.00313486, -0.0391132, 0.151869]
    golden.assert_close(logits[1, 11, 49, 46:], last)
    golden.assert_close(logits.mean(dtype=np.float64), 0.000859154)
    golden.assert_close(logits.std(dtype=np.float64), 0.153045)


def test_masked_rows_are_those_of_the_whole_prediction(golden_tiny):
    ids = golden.ids_shuffle(2)[:, 49:, None]
    expected = np.take_along_axis(golden_tiny[2]["pred"], ids, axis=1)
    np.testing.assert_allclose(golden_tiny[2]["masked_pred"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("variant", "total"),
    [
        ("tiny", 5_691_744),
        ("small", 22_257_600),
        ("base", 111_655_680),
        ("large", 329_239_296),
        ("huge", 656_613_964),
    ],
)
def test_parameter_counts(variant, total):
    """The trainable counts: position tables are constants here, not parameters."""
    depths = {
        "encoder": vit.make_encoder(variant=variant).depth,
        "decoder": mae_decoder.make_decoder(variant=variant).depth,
    }
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)

    @functools.cache
    def at(depth):
        sizes = {"variant": variant, "depth": depth}
        objective = make(encoder=sizes, decoder=sizes)
        return parameters.shapes_of(objective, {"image": image}).params

    assert at(1).keys() == depths.keys()
    assert total == sum(
        parameters.size_at(blocks, lambda depth: at(depth)[part])  # noqa: B023
        for part, blocks in depths.items()
    )


@pytest.fixture(scope="module")
def small():
    """A small objective, its parameters, and a batch of 4 images."""
    objective, batch = make(), batch_of(4, 16, 16, 3)
    return objective, parameters.start(objective, batch).params, batch


@functools.cache
def compiled(objective, name):
    """One of the objective's methods; compiled once for all tests."""
    return jax.jit(getattr(objective, name))


def loss_of(objective, params, batch, key=KEY):
    return compiled(objective, "loss")(params, {}, {}, batch, key)[0]


def masks_of(objective, batch):
    """A permutation of the patches for each image."""
    keys = jax.random.split(KEY, 4)
    return np.asarray(jax.jit(objective.draw_masks)(keys, batch["image"]))


def patches_of(image):
    """Flat patches `[B, N, 4 * 4 * C]`."""
    return np.asarray(jax.jit(layers.patchify, static_argnums=1)(image, 4))


def test_masked_pixels_do_not_reach_encoder(small):
    objective, params, batch = small

    @jax.jit
    @jax.grad
    def gradient(image, ids):
        return jnp.square(objective.forward(params, image, ids)[1]).sum()

    ids = masks_of(objective, batch)
    grad = patches_of(gradient(batch["image"], ids))
    grad = np.abs(np.take_along_axis(grad, ids[..., None], axis=1)).max(axis=2)
    np.testing.assert_array_equal(grad[:, 4:], 0)
    assert (grad[:, :4] > 0).all()


@functools.cache
def predicting(objective):
    """The prediction of all patches in image order, which the loss does not see."""
    forward = functools.partial(objective.forward, all_patches=True)
    return jax.jit(lambda *args: forward(*args)[0])


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_loss_is_the_formula_of_the_original(small, norm_pix_loss):
    """Predict all patches in image order, then average where the mask is 1."""
    objective, params, batch = small
    objective = dataclasses.replace(objective, norm_pix_loss=norm_pix_loss)
    ids, target = masks_of(objective, batch), patches_of(batch["image"])
    pred = predicting(small[0])(params, batch["image"], ids)
    if norm_pix_loss:
        deviation = np.sqrt(target.var(-1, ddof=1, keepdims=True) + 1e-6)
        target = (target - target.mean(-1, keepdims=True)) / deviation
    error = np.square(pred - target).mean(axis=-1)
    mask = np.argsort(ids, axis=1) >= 4
    expected = (error * mask).sum() / mask.sum()
    loss = loss_of(objective, params, batch | {"ids_shuffle": ids})
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_examples_carry_their_masks_in_their_slots(small):
    objective, params, batch = small
    order = np.array([2, 0, 3, 1])
    moved = {"image": batch["image"][order], "slot": order}
    expected = loss_of(objective, params, batch)
    np.testing.assert_allclose(loss_of(objective, params, moved), expected, rtol=1e-6)
    in_new_slots = {"image": moved["image"]}
    assert loss_of(objective, params, in_new_slots) != expected


def test_slices_of_a_batch_average_to_its_loss_and_gradient(small):
    objective, params, batch = small
    batch = batch | {"slot": np.arange(4)}
    grad = jax.jit(jax.grad(lambda *args: objective.loss(*args)[0]))
    halves = [{k: v[i : i + 2] for k, v in batch.items()} for i in (0, 2)]
    parts = jax.device_get([grad(params, {}, {}, half, KEY) for half in halves])
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *parts)
    whole = grad(params, {}, {}, batch, KEY)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), mean, whole)
    assert not objective.needs_whole_batch


def test_same_key_same_loss_new_key_new_loss(small):
    first, again, other = (
        float(loss_of(*small, jax.random.key(seed))) for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize("channels", [1, 4])
def test_rectangles_of_any_channels_learn(channels):
    objective, batch = make(), batch_of(2, 8, 20, channels)
    params = parameters.start(objective, batch).params
    assert params["decoder"]["pred"]["kernel"].shape == (16, 16 * channels)

    @jax.jit
    def descend(params):
        loss, grads = jax.value_and_grad(
            lambda p: objective.loss(p, {}, {}, batch, KEY)[0]
        )(params)
        return jax.tree.map(lambda p, g: p - 0.05 * g, params, grads), loss

    losses = []
    for _ in range(5):
        params, loss = descend(params)
        losses.append(float(loss))
    assert sorted(set(losses), reverse=True) == losses


def test_bfloat16_has_float32_parameters_and_loss(small):
    objective, params, batch = small
    half = make(dtype="bfloat16")
    init = parameters.shapes_of(half, batch).params
    assert {x.dtype for x in jax.tree.leaves(init)} == {jnp.dtype("float32")}
    loss, (metrics, state) = jax.jit(half.loss)(params, {}, {}, batch, KEY)
    assert loss.dtype == metrics["loss"].dtype == jnp.float32
    assert not state
    np.testing.assert_allclose(loss, loss_of(objective, params, batch), rtol=0.02)


def test_prediction_pictures(small):
    objective, params, batch = small
    image = 3 + 2 * batch["image"]
    batch = {"image": image, "index": np.array([5, 6, 7, 8])}
    outputs = compiled(objective, "predict")(params, {}, batch)
    masked = patches_of(outputs["masked"])
    is_masked = (masked == 0).all(axis=-1)
    assert (is_masked.sum(axis=1) == 12).all()
    original = patches_of(image)
    pictured = patches_of(outputs["reconstruction"])
    np.testing.assert_array_equal(pictured[~is_masked], original[~is_masked])
    np.testing.assert_array_equal(masked[~is_masked], original[~is_masked])
    # De-normalised predictions, normalised again, have the error of the loss.
    deviation = np.sqrt(np.var(original, -1, ddof=1, keepdims=True) + 1e-6)
    error = np.square((pictured - original) / deviation).mean(-1)
    expected = error.sum(axis=1) / 12
    np.testing.assert_allclose(outputs["mae_loss"], expected, rtol=1e-4)


def test_prediction_masks_follow_the_index(small):
    objective, params, batch = small
    order = np.array([3, 1, 0, 2])
    predict = compiled(objective, "predict")
    whole = predict(params, {}, batch | {"index": np.arange(4)})
    moved = {"image": batch["image"][order], "index": order}
    for name, value in predict(params, {}, moved).items():
        np.testing.assert_allclose(value, whole[name][order], atol=1e-5)


def test_features_see_the_whole_image(small):
    objective, params, batch = small
    predict = compiled(objective, "predict")
    before = predict(params, {}, batch)
    encode = jax.jit(objective.encoder.apply)
    tokens, _ = encode({"params": params["encoder"]}, batch["image"])
    np.testing.assert_allclose(before["features"], tokens[:, 0], atol=1e-5)
    mean = tokens[:, 1:].mean(axis=1)
    np.testing.assert_allclose(before["features_avg"], mean, atol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mask_ratio": 1.0}, r"mae: mask_ratio=1.0, expected 0 < ratio < 1"),
        ({"mask_ratio": 0}, r"mae: mask_ratio=0, expected 0 < ratio < 1"),
        ({"dtype": "bfloat"}, r"dtype 'bfloat' unknown; did you mean bfloat16"),
        ({"encoder": {"variant": "tinny"}}, r"encoder variant 'tinny' unknown"),
    ],
)
def test_errors_say_what_to_do(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_a_mask_that_keeps_nothing_fails_before_compiling():
    objective, batch = make(mask_ratio=0.95), batch_of(2, 16, 16, 3)
    with pytest.raises(ValueError, match=r"keeps 0 of 16 patches"):
        parameters.shapes_of(objective, batch)
    with pytest.raises(TypeError, match="mask_ration"):
        make(mask_ration=0.5)
    with pytest.raises(TypeError, match="widht"):
        make(encoder={"widht": 3})
