"""Blocks computed again in the backward pass: the same function and parameters."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax.models import mae_decoder, vit
from tests import params as parameters

DROP = jax.random.split(jax.random.key(3), 2)
DRAWS = np.random.default_rng(0)


def encoder(**changes):
    return vit.make_encoder(
        width=16, depth=2, num_heads=2, patch_size=4, drop_path=0.5, **changes
    )


def decoder(**changes):
    return mae_decoder.make_decoder(width=8, depth=2, num_heads=2, **changes)


IMAGE = DRAWS.normal(size=(2, 8, 8, 3)).astype(np.float32)
LATENT = DRAWS.normal(size=(2, 3, 16)).astype(np.float32)
IDS = np.array([[3, 0, 1, 2], [0, 2, 1, 3]])
SHAPES = {"grid": (2, 2), "patch_dim": 48}


def encoded(module, params):
    tokens, intermediates = module.apply(
        {"params": params}, IMAGE, drop_keys=DROP, train=True
    )
    logits = [intermediates[f"block_{i:02d}/attn_logits"] for i in range(2)]
    return jnp.square(tokens).sum() + jnp.square(jnp.stack(logits)).sum()


def decoded(module, params):
    pred = module.apply({"params": params}, LATENT, IDS, **SHAPES)
    return jnp.square(pred).sum()


CASES = {
    "encoder": (encoder, encoded, (IMAGE,), {}),
    "decoder": (decoder, decoded, (LATENT, IDS), SHAPES),
}


@pytest.fixture(scope="module", params=CASES)
def plain(request):
    """(how to make it, its loss, parameters, loss and gradient without remat)."""
    make, loss, args, kwargs = CASES[request.param]
    params = parameters.start(make(), *args, **kwargs)["params"]
    loss_and_grads = jax.jit(jax.value_and_grad(lambda p: loss(make(), p)))(params)
    return make, loss, params, loss_and_grads, (args, kwargs)


def test_results_gradients_and_parameters_stay(plain):
    make, loss, params, want, (args, kwargs) = plain
    module = make(remat=True)
    shapes = parameters.shapes_of(module, *args, **kwargs)
    same = jax.tree.map(lambda x, y: x.shape == y.shape, shapes["params"], params)
    assert all(jax.tree.leaves(same))
    loss_and_grads = jax.jit(jax.value_and_grad(lambda p: loss(module, p)))(params)
    for got, value in zip(*map(jax.tree.leaves, (loss_and_grads, want)), strict=True):
        np.testing.assert_allclose(got, value, rtol=2e-4, atol=1e-4)


def equations(jaxpr, name):
    """How many equations of that kind there are, inside others too."""
    count = 0
    for eqn in jaxpr.eqns:
        count += eqn.primitive.name == name
        for value in eqn.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                part = getattr(part, "jaxpr", part)
                count += equations(part, name) if hasattr(part, "eqns") else 0
    return count


@pytest.mark.parametrize("remat", [False, True])
def test_blocks_are_really_computed_again(plain, remat):
    make, loss, params, *_ = plain
    module = make(remat=remat)
    jaxpr = jax.make_jaxpr(jax.grad(lambda p: loss(module, p)))(params).jaxpr
    assert (equations(jaxpr, "remat2") + equations(jaxpr, "checkpoint") > 0) == remat


def test_equal_blocks_are_traced_once():
    module = encoder()
    shapes = parameters.shapes_of(module, IMAGE)["params"]

    def loss(params):
        return module.apply({"params": params}, IMAGE)[0].sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss))(shapes).jaxpr
    blocks = [e.params["jaxpr"] for e in jaxpr.eqns if e.params.get("name") == "_apply"]
    forward, backward = blocks[:2], blocks[2:]
    assert len(forward) == len(backward) == 2
    assert len(set(map(id, forward))) == len(set(map(id, backward))) == 1


def test_a_block_without_parameters_is_named():
    module = encoder()
    params = parameters.shapes_of(module, IMAGE)["params"]
    del params["blocks_1"]
    with pytest.raises(flax.errors.ScopeParamNotFoundError, match="blocks_1/norm1"):
        jax.eval_shape(module.apply, {"params": params}, IMAGE)
