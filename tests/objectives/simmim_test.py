"""SimMIM: what is masked, what the encoder sees of it, and what the loss counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax.models import layers
from litevit_jax.objectives import simmim
from tests import params as parameters

KEY = jax.random.key(0)
ENCODER = {"width": 24, "depth": 1, "num_heads": 3, "patch_size": 4}
IMAGE = np.random.default_rng(7).normal(size=(4, 16, 16, 3)).astype(np.float32)
MASK = np.arange(64).reshape(4, 16) % 3 == 0


def make(**kwargs):
    return simmim.make(**{"encoder": ENCODER, "dtype": "float32"} | kwargs)


@functools.cache
def started():
    return parameters.start(make(), {"image": IMAGE}).params


@functools.cache
def encoded():
    """Tokens of the whole images."""
    encode = jax.jit(make().encoder.apply)
    return np.asarray(encode({"params": started()["encoder"]}, IMAGE)[0])


@jax.jit
def encoded_behind(mask, image):
    """Tokens of images `[4, 16, 16, 3]` of which masked patches are hidden."""
    params = started()
    hide = (mask, params["head"]["mask_token"])
    return make().encoder.apply({"params": params["encoder"]}, image, hide=hide)[0]


@jax.jit
def loss_and_gradient(params, image, mask):
    def loss(params, image):
        batch = {"image": image, "mask": jnp.asarray(mask, jnp.float32)}
        return make().loss(params, {}, {}, batch, KEY)[0]

    return jax.value_and_grad(loss, argnums=(0, 1))(params, image)


def test_loss_is_the_mean_absolute_error_of_masked_pixels():
    tokens = np.asarray(encoded_behind(MASK, IMAGE))
    pred = started()["head"]["pred"]
    pixels = tokens[:, 1:] @ pred["kernel"] + pred["bias"]
    patches = jax.jit(layers.patchify, static_argnums=1)(IMAGE, 4)
    errors = np.abs(pixels - patches)[MASK]
    got = loss_and_gradient(started(), IMAGE, MASK)[0]
    np.testing.assert_allclose(got, errors.mean(), rtol=1e-5)


def test_masked_patches_are_seen_as_the_token_alone():
    moved = IMAGE + 3 * layers_of(MASK)
    encode = functools.partial(encoded_behind, MASK)
    np.testing.assert_array_equal(encode(IMAGE), encode(moved))
    seen = encode(IMAGE + 3 * layers_of(~MASK))
    assert np.abs(seen - encode(IMAGE)).max() > 0.01
    grads = loss_and_gradient(started(), IMAGE, MASK)[1][0]
    assert np.abs(grads["head"]["mask_token"]).max() > 0


def layers_of(mask):
    """Images `[B, 16, 16, 3]` that are 1 in the masked patches."""
    grid = mask.reshape(4, 4, 4).repeat(4, axis=1).repeat(4, axis=2)
    return grid[..., None].astype(np.float32).repeat(3, axis=-1)


@pytest.mark.parametrize(("unit", "hidden"), [(1, 10), (2, 12)])
def test_units_are_hidden_whole_and_as_many_in_every_image(unit, hidden):
    keys = jax.random.split(KEY, 64)
    image = np.zeros((64, 16, 16, 3), np.float32)
    masks = np.asarray(jax.jit(make(mask_unit=unit).draw_masks)(keys, image))
    assert masks.shape == (64, 16) and set(masks.ravel()) == {0.0, 1.0}
    assert (masks.sum(axis=1) == hidden).all()  # 0.6 of 16, or of 4 units, rounded up
    units = masks.reshape(64, 4 // unit, unit, 4 // unit, unit)
    assert (units == units[:, :, :1, :, :1]).all()
    share = masks.mean(axis=0)  # every place is hidden equally often
    np.testing.assert_allclose(share, hidden / 16, atol=0.2)
    assert len({tuple(row) for row in masks}) > 3


def test_examples_carry_their_masks_in_their_slots():
    objective, order = make(), np.array([2, 0, 3, 1])
    loss = jax.jit(lambda batch: objective.loss(started(), {}, {}, batch, KEY)[0])
    moved = {"image": IMAGE[order], "slot": order}
    whole = loss({"image": IMAGE, "slot": np.arange(4)})
    np.testing.assert_allclose(loss(moved), whole, rtol=1e-5)
    assert not objective.needs_whole_batch


def test_features_are_of_the_unmasked_image():
    found = jax.jit(make().predict)(started(), {}, {"image": IMAGE})
    tokens = encoded()
    np.testing.assert_allclose(found["features"], tokens[:, 0], atol=1e-5)
    mean = tokens[:, 1:].mean(axis=1)
    np.testing.assert_allclose(found["features_avg"], mean, atol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mask_ratio": 1.0}, r"simmim: mask_ratio=1.0, .*expected 0 < ratio < 1"),
        ({"mask_unit": 0}, r"mask_unit=0; expected .* at least 1 patch"),
    ],
)
def test_errors_say_what_to_do(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_units_that_do_not_fill_the_image_fail_before_compiling():
    with pytest.raises(ValueError, match=r"mask_unit=3 does not divide the 4 x 4"):
        parameters.shapes_of(make(mask_unit=3), {"image": IMAGE})
