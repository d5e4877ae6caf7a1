"""CKA: recorded values, and what similarity must not depend on."""

import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax.analysis import cka
from tests import golden


def similarity(batches):
    """CKA `[S, S]` of minibatches, each a list of S features `[B, ...]`."""
    found = cka.Minibatches()
    for batch in batches:
        found.add(np.stack([cka.gram(jnp.asarray(x, jnp.float32)) for x in batch]))
    return found


@pytest.fixture(scope="module")
def recorded():
    x = golden.noise(2 * 32 * 4 * 8, 0.5).reshape(2, 32, 4, 8)
    y = golden.noise(2 * 32 * 4 * 6, 1.5).reshape(2, 32, 4, 6) + 0.5 * x[..., :6]
    return x, y


def test_it_agrees_with_the_recorded_values(recorded):
    found = similarity(zip(*recorded, strict=True))
    want = [[3.248899, 0.630535], [0.630535, 4.172316]]
    golden.assert_close(found.hsic(), want)
    golden.assert_close(found.cka(), [[1, 0.171259], [0.171259, 1]])


def test_rotations_and_scales_of_features_leave_it_alone(recorded):
    x, y = (part.reshape(2, 32, -1) for part in recorded)
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(x.shape[-1],) * 2))[0]
    want = similarity(zip(x, y, strict=True)).cka()
    got = similarity(zip(7 * x @ turn, 0.3 * y, strict=True)).cka()
    np.testing.assert_allclose(got, want, atol=1e-5)
    # But not any linear map: it is no canonical correlation.
    skewed = similarity(zip(x @ np.diag(np.arange(x.shape[-1])), y, strict=True))
    assert abs(skewed.cka()[0, 1] - want[0, 1]) > 1e-3


def test_a_mean_that_all_examples_share_costs_no_digits(recorded):
    x, y = recorded
    want = similarity(zip(x, y, strict=True)).cka()
    far = similarity(zip(x + 100, y - 300, strict=True)).cka()
    np.testing.assert_allclose(far, want, atol=1e-4)


def test_the_order_within_a_minibatch_does_not_matter_and_pairing_does(recorded):
    x, y = recorded
    order = np.random.default_rng(1).permutation(32)
    want = similarity(zip(x, y, strict=True)).cka()
    got = similarity(zip(x[:, order], y[:, order], strict=True)).cka()
    np.testing.assert_allclose(got, want, atol=1e-6)
    parted = similarity(zip(x[:, order], y, strict=True)).cka()
    assert abs(parted[0, 1]) < want[0, 1] / 2


def test_the_size_of_minibatches_does_not_bias_it():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(4096, 12))
    y = x @ rng.normal(size=(12, 6)) + 2 * rng.normal(size=(4096, 6))
    of_size = {
        n: similarity((x[i : i + n], y[i : i + n]) for i in range(0, 4096, n)).cka()
        for n in (8, 64, 512)
    }
    assert 0.3 < of_size[512][0, 1] < 0.8
    for n in (8, 64):  # the biased estimate is above 0.7 at 8
        assert of_size[n][0, 1] == pytest.approx(of_size[512][0, 1], abs=0.03)


def test_independent_features_have_none():
    rng = np.random.default_rng(3)
    pairs = [rng.normal(size=(2, 16, 200)) for _ in range(64)]
    assert abs(similarity(pairs).cka()[0, 1]) < 0.01


def test_constant_features_are_no_number():
    x = np.random.default_rng(4).normal(size=(8, 3))
    assert np.isnan(similarity([[x, np.ones((8, 2))]]).cka()[0, 1])


def test_too_few_examples_and_unequal_minibatches_are_refused():
    with pytest.raises(
        ValueError, match=r"minibatch of 3 examples; expected 4 or more"
    ):
        cka.hsic(np.zeros((1, 3, 3)))
    found = cka.Minibatches()
    found.add(np.zeros((1, 8, 8)))
    with pytest.raises(ValueError, match=r"of 6 examples after ones of 8"):
        found.add(np.zeros((1, 6, 6)))
