"""The decoder against the order of computation of the original."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax.models import layers, mae_decoder

KEY = jax.random.key(0)
SHAPES = {"grid": (2, 4), "patch_dim": 12}


@pytest.fixture(scope="module")
def decoder():
    module = mae_decoder.make_decoder(width=16, depth=2, num_heads=2)
    latent = jax.random.normal(KEY, (3, 4, 20))
    ids = jnp.stack([jax.random.permutation(jax.random.key(i), 8) for i in range(3)])
    variables = module.init(KEY, latent, ids, **SHAPES)
    return module, variables, latent, ids


def test_masked_rows_are_those_of_the_whole_prediction(decoder):
    module, variables, latent, ids = decoder
    masked = module.apply(variables, latent, ids, **SHAPES)
    whole = module.apply(variables, latent, ids, **SHAPES, all_patches=True)
    assert (masked.shape, whole.shape) == ((3, 5, 12), (3, 8, 12))
    expected = layers.take_tokens(whole, ids[:, 3:])
    np.testing.assert_allclose(masked, expected, atol=1e-6)


def test_restoring_the_order_first_gives_the_same_prediction(decoder):
    """He et al. append mask tokens, un-shuffle, add positions, then run blocks."""
    module, variables, latent, ids = decoder
    params = variables["params"]
    x = latent @ params["embed"]["kernel"] + params["embed"]["bias"]
    tokens = jnp.broadcast_to(params["mask_token"], (3, 5, 16))
    restore = jnp.argsort(ids, axis=1)
    patches = layers.take_tokens(jnp.concatenate([x[:, 1:], tokens], 1), restore)
    x = jnp.concatenate([x[:, :1], patches], 1)
    x = x + layers.sincos_table((2, 4), 16, "sincos")
    for i in range(2):
        block = layers.Block(2, 64, "mae", "float32")
        x, _ = block.apply({"params": params[f"blocks_{i}"]}, x)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    expected = x[:, 1:] @ params["pred"]["kernel"] + params["pred"]["bias"]
    whole = module.apply(variables, latent, ids, **SHAPES, all_patches=True)
    np.testing.assert_allclose(whole, expected, atol=1e-5)


def test_mask_token_starts_small_and_biases_at_zero(decoder):
    params = decoder[1]["params"]
    assert params["mask_token"].shape == (1, 1, 16)
    assert 0.005 < np.std(params["mask_token"]) < 0.04
    for name in ("embed", "pred"):
        np.testing.assert_array_equal(params[name]["bias"], 0)
        bound = (6 / sum(params[name]["kernel"].shape)) ** 0.5
        largest = np.abs(params[name]["kernel"]).max()
        assert 0.9 * bound < largest <= bound


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"variant": "tinny"}, r"decoder variant 'tinny' unknown; did you mean tiny"),
        ({"variant": "tiny", "num_heads": 5}, r"width=96 .* multiple of num_heads=5"),
        ({"variant": "tiny", "width": 90}, r"width=90 is not a multiple of 4"),
        ({"width": 96}, r"decoder: depth, num_heads not given"),
    ],
)
def test_errors_say_what_to_do(kwargs, message):
    with pytest.raises(ValueError, match=message):
        mae_decoder.make_decoder(**kwargs)
