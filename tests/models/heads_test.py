"""Heads: initial values, and BatchNorm against the rule of PyTorch."""

import jax
import numpy as np
import pytest

from litevit_jax.models import heads

KEY = jax.random.key(0)


def test_batch_norm_follows_pytorch():
    """Biased variance normalises, unbiased is averaged with momentum 0.1."""
    rng = np.random.default_rng(0)
    module = heads.BatchNorm()
    x = rng.normal(2, 3, (3, 5, 4)).astype(np.float32)
    variables = module.init(KEY, x[0], train=True)
    mean, var = np.zeros(4), np.ones(4)
    for batch in x:
        np.testing.assert_allclose(variables["batch_stats"]["mean"], mean, rtol=1e-5)
        np.testing.assert_allclose(variables["batch_stats"]["var"], var, rtol=1e-5)
        out, variables = module.apply(
            variables, batch, train=True, mutable=["batch_stats"]
        )
        expected = (batch - batch.mean(0)) / np.sqrt(batch.var(0) + 1e-6)
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
        mean = 0.9 * mean + 0.1 * batch.mean(0)
        var = 0.9 * var + 0.1 * batch.var(0, ddof=1)
    out = module.apply(variables, x[0], train=False)
    expected = (x[0] - mean) / np.sqrt(var + 1e-6)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_an_affine_batch_norm_scales_and_shifts():
    module = heads.BatchNorm(1e-5, affine=True)
    x = jax.random.normal(KEY, (8, 3))
    variables = module.init(KEY, x, train=True)
    plain = module.apply(variables, x, train=False)
    scale, bias = np.array([2.0, 3.0, -1.0]), np.array([0.5, 0.0, 1.0])
    variables = variables | {"params": {"scale": scale, "bias": bias}}
    got = module.apply(variables, x, train=False)
    np.testing.assert_allclose(got, plain * scale + bias, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "stddev", "has_state"),
    [("linear", 0.02, False), ("probe", 0.01, False), ("probe_bn", 0.01, True)],
)
def test_initial_values(name, stddev, has_state):
    head = heads.make_head(head=name, num_classes=1000, fc_norm=False)
    x = jax.random.normal(KEY, (4, 32))
    variables = head.init(KEY, x)
    assert ("batch_stats" in variables) == has_state
    params = variables["params"]
    assert set(params) == {"fc"}
    np.testing.assert_allclose(np.std(params["fc"]["kernel"]), stddev, rtol=0.03)
    np.testing.assert_array_equal(params["fc"]["bias"], 0)


def test_features_are_what_follows_fc_norm():
    head = heads.make_head(head="linear", num_classes=3, fc_norm=True)
    x = 5 + 2 * jax.random.normal(KEY, (4, 32))
    variables = head.init(KEY, x)
    logits, features = head.apply(variables, x)
    np.testing.assert_allclose(features.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(features.std(axis=1), 1, atol=1e-4)
    kernel = variables["params"]["fc"]["kernel"]
    np.testing.assert_allclose(logits, features @ kernel, atol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"head": "probe_nb"}, r"head 'probe_nb' unknown; did you mean probe_bn"),
        ({"num_classes": 0}, r"num_classes=0, expected at least 1"),
    ],
)
def test_errors_say_what_to_do(kwargs, message):
    good = {"head": "linear", "num_classes": 3, "fc_norm": False}
    with pytest.raises(ValueError, match=message):
        heads.make_head(**good | kwargs)
