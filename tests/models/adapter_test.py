"""The adapter maps one axis and starts as PyTorch's layers do."""

import jax
import numpy as np
import pytest

from litevit_jax.models import adapter

KEY = jax.random.key(0)


@pytest.mark.parametrize("axis", [-3, -1])
def test_it_maps_one_axis_linearly(axis):
    x = np.random.default_rng(0).normal(size=(2, 6, 5, 6)).astype(np.float32)
    module = adapter.Adapter(4, axis)
    variables = module.init(KEY, x)
    kernel = np.asarray(variables["params"]["kernel"])
    assert kernel.shape == (6, 4) and set(variables["params"]) == {"kernel"}
    got = module.apply(variables, x)
    spelled = "bhij,hg->bgij" if axis == -3 else "bijh,hg->bijg"
    np.testing.assert_allclose(got, np.einsum(spelled, x, kernel), atol=1e-5)


def test_it_starts_uniform_within_one_over_the_root_of_its_inputs():
    kernel = adapter.Adapter(64, -1).init(KEY, np.zeros((1, 1, 12)))["params"]["kernel"]
    bound = 12**-0.5  # 0.288675: recipes 3
    assert 0.98 * bound < np.abs(kernel).max() <= bound
    np.testing.assert_allclose(np.std(kernel), bound / 3**0.5, rtol=0.1)
