"""Part of a block computes what the whole block does, with no more parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax.models import layers, partial_block
from tests import params as parameters

KEY = jax.random.key(0)
READS = {
    "norm1": {"in", "norm1"},
    "logits": {"in", "norm1", "q", "k", "attn_logits"},
    "qkv": {"in", "norm1", "q", "k", "v", "attn_logits"},
}


@pytest.fixture(scope="module")
def whole():
    """A block's parameters and intermediates, and the tokens it saw."""
    block = layers.Block(3, 48, "mae", "float32")
    x = np.random.default_rng(0).normal(size=(2, 5, 24)).astype(np.float32)
    params = parameters.start(block, x)["params"]
    return params, x, jax.jit(block.apply)({"params": params}, x)[1]


@pytest.mark.parametrize("part", partial_block.PARTS)
def test_a_part_computes_what_the_whole_block_does(part, whole):
    params, x, expected = whole
    module = partial_block.PartialBlock(3, "mae", "float32", part)
    own = parameters.shapes_of(module, x)["params"]
    assert set(own) == ({"norm1"} if part == "norm1" else {"norm1", "attn"})
    given = {name: params[name] for name in own}
    if "attn" in own:
        given["attn"] = {"qkv": params["attn"]["qkv"]}
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, given)
    intermediates = jax.jit(module.apply)({"params": given}, x)
    assert set(intermediates) == READS[part]
    for name, value in intermediates.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("style", "fans"), [("mae", 96), ("moco", 48)])
def test_it_starts_as_the_whole_block_does(style, fans):
    module = partial_block.PartialBlock(3, style, "float32", "qkv")
    params = jax.jit(module.init)(KEY, np.zeros((1, 1, 24)))["params"]
    kernel = params["attn"]["qkv"]["kernel"]
    bound = (6 / fans) ** 0.5
    assert 0.98 * bound < np.abs(kernel).max() <= bound


def test_logits_are_float32_at_any_compute_dtype(whole):
    params, x, expected = whole
    module = partial_block.PartialBlock(3, "mae", "bfloat16", "logits")
    given = {"norm1": params["norm1"], "attn": {"qkv": params["attn"]["qkv"]}}
    intermediates = jax.jit(module.apply)({"params": given}, x)
    assert intermediates["q"].dtype == jnp.bfloat16
    assert intermediates["attn_logits"].dtype == jnp.float32
    np.testing.assert_allclose(
        intermediates["attn_logits"], expected["attn_logits"], atol=0.1
    )
