"""The decoder against the order of computation of the original."""

import functools

import jax
import numpy as np
import pytest

from litevit_jax.models import layers, mae_decoder
from tests import params as parameters

KEY = jax.random.key(0)
SHAPES = {"grid": (2, 4), "patch_dim": 12}


@pytest.fixture(scope="module")
def decoder():
    """Parameters, tokens, their patches, and both forms of the prediction."""
    module = mae_decoder.make_decoder(width=16, depth=2, num_heads=2)
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(3, 4, 20)).astype(np.float32)
    ids = np.stack([rng.permutation(8) for _ in range(3)])
    variables = parameters.start(module, latent, ids, **SHAPES)
    apply = functools.partial(module.apply, **SHAPES)
    whole = jax.jit(functools.partial(apply, all_patches=True))(variables, latent, ids)
    masked = jax.jit(apply)(variables, latent, ids)
    return variables["params"], latent, ids, masked, whole


def test_masked_rows_are_those_of_the_whole_prediction(decoder):
    *_, ids, masked, whole = decoder
    assert (masked.shape, whole.shape) == ((3, 5, 12), (3, 8, 12))
    expected = np.take_along_axis(whole, ids[:, 3:, None], axis=1)
    np.testing.assert_allclose(masked, expected, atol=1e-6)


def test_restoring_the_order_first_gives_the_same_prediction(decoder):
    """He et al. append mask tokens, un-shuffle, add positions, then run blocks."""
    params, latent, ids, _, whole = decoder
    x = latent @ params["embed"]["kernel"] + params["embed"]["bias"]
    tokens = np.broadcast_to(params["mask_token"], (3, 5, 16))
    restore = np.argsort(ids, axis=1)[..., None]
    patches = np.concatenate([x[:, 1:], tokens], 1)
    x = np.concatenate([x[:, :1], np.take_along_axis(patches, restore, 1)], 1)
    x = x + layers.sincos_table((2, 4), 16, "sincos")
    block = jax.jit(layers.Block(2, 64, "mae", "float32").apply)
    for i in range(2):
        x, _ = block({"params": params[f"blocks_{i}"]}, x)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = x * params["norm"]["scale"] + params["norm"]["bias"]
    expected = x[:, 1:] @ params["pred"]["kernel"] + params["pred"]["bias"]
    np.testing.assert_allclose(whole, expected, atol=1e-5)


def test_mask_token_starts_small_and_biases_at_zero(decoder):
    module = mae_decoder.make_decoder(width=16, depth=1, num_heads=2)
    init = jax.jit(functools.partial(module.init, **SHAPES))
    params = init(KEY, *decoder[1:3])["params"]
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
