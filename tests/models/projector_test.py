"""Projector and predictor of MoCo v3: layer by layer, and their initial values."""

import functools

import jax
import numpy as np
import pytest

from litevit_jax.models import projector
from tests import params as parameters

KEY = jax.random.key(0)
MAKERS = (projector.make_projector, projector.make_predictor)


def normed(x):
    """The batch normalised, its mean and the variance that is averaged."""
    mean, var = x.mean(0), x.var(0)
    return (x - mean) / np.sqrt(var + 1e-5), mean, x.var(0, ddof=1)


@pytest.mark.parametrize(("make", "layers"), list(zip(MAKERS, (3, 2), strict=True)))
def test_layers_without_bias_each_with_batch_norm(make, layers):
    module = make(mlp_dim=12, embed_dim=8, dtype="float32")
    x = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
    params = parameters.start(module, x, train=True)["params"]
    stats_only = jax.jit(lambda x: module.init(KEY, x, train=True)["batch_stats"])
    variables = {"params": params, "batch_stats": stats_only(x)}
    apply = functools.partial(module.apply, train=True, mutable=["batch_stats"])
    got, new = jax.jit(apply)(variables, x)
    for number in range(1, layers + 1):
        assert set(params[f"fc{number}"]) == {"kernel"}
        x = x @ np.asarray(params[f"fc{number}"]["kernel"], np.float64)
        x, mean, var = normed(x)
        stats = new["batch_stats"][f"bn{number}"]
        np.testing.assert_allclose(stats["mean"], 0.1 * mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * var, rtol=1e-4)
        if number < layers:
            affine = params[f"bn{number}"]
            x = np.maximum(x * affine["scale"] + affine["bias"], 0)
    assert f"bn{layers}" not in params  # the last one is not affine
    np.testing.assert_allclose(got, x, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("make", MAKERS)
def test_initial_values_are_those_of_pytorch(make):
    module = make(mlp_dim=512, embed_dim=256, dtype="float32")
    x = np.zeros((2, 128), np.float32)
    params = jax.jit(lambda x: module.init(KEY, x, train=True))(x)["params"]
    for name, bound in (("fc1", 128**-0.5), ("fc2", 512**-0.5)):
        kernel = np.asarray(params[name]["kernel"])
        ends = kernel.min(), kernel.max()
        np.testing.assert_allclose(ends, (-bound, bound), rtol=1e-3)
        np.testing.assert_allclose(kernel.std(), bound / 3**0.5, rtol=0.01)
    np.testing.assert_array_equal(params["bn1"]["scale"], 1)
    np.testing.assert_array_equal(params["bn1"]["bias"], 0)


@pytest.mark.parametrize("make", MAKERS)
def test_results_and_statistics_are_float32_whatever_the_products(make):
    module = make(mlp_dim=12, embed_dim=8, dtype="bfloat16")
    x = np.ones((4, 6), np.float32)
    out, found = jax.eval_shape(
        lambda x: module.init_with_output(KEY, x, train=True), x
    )
    kinds = {leaf.dtype.name for leaf in jax.tree.leaves((out, found))}
    assert kinds == {"float32"}


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match=r"mlp_dim=0, embed_dim=8, expected at least"):
        projector.make_projector(mlp_dim=0, embed_dim=8, dtype="float32")
