"""Ridge regression onto classes against its normal equations."""

import numpy as np
import pytest

from litevit_jax.evaluators import frozen


def drawn(count, width, classes=3):
    rng = np.random.default_rng(count)
    label = rng.integers(classes, size=count)
    centres = rng.normal(size=(classes, width))
    noise = rng.normal(size=(count, width))
    return (5 + centres[label] + noise).astype(np.float32), label


@pytest.mark.parametrize("count", [9, 40])  # both Gram matrices
def test_weights_solve_the_normal_equations(count):
    x, label = drawn(count, 20)
    l2 = (1e-3, 0.5)
    ridge = frozen.fit(x, label, 3, l2)
    z = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    z /= np.sqrt((z**2).sum(axis=1).mean())
    y = np.eye(3)[label] - np.eye(3)[label].mean(axis=0)
    for place, strength in enumerate(l2):
        gram = z.T @ z / count + strength * np.eye(20)
        weights = np.linalg.solve(gram, z.T @ y / count)
        want = z @ weights + np.eye(3)[label].mean(axis=0)
        np.testing.assert_allclose(ridge.scores(x, place), want, rtol=1e-7, atol=1e-9)


def test_the_scale_of_features_does_not_matter():
    x, label = drawn(40, 20)
    one, other = (frozen.fit(s * x, label, 3, (0.1,)) for s in (1, 64))
    np.testing.assert_allclose(one.scores(x, 0), other.scores(64 * x, 0), rtol=1e-6)


def test_the_strength_is_chosen_on_the_images_given():
    x, label = drawn(60, 50)
    x = (x - 5) * 0.2 + 5 + np.random.default_rng(0).normal(size=x.shape)
    l2 = (1e-8, 1e-2, 1.0, 2.0, 1e6)
    ridge = frozen.fit(x[:30], label[:30], 3, l2)
    scores = [ridge.scores(x[30:], place) for place in range(5)]
    right = [(s.argmax(axis=1) == label[30:]).mean() for s in scores]
    place, accuracy = frozen.choose(ridge, x[30:], label[30:])
    assert min(right) < max(right)  # it matters here
    assert (right[place], accuracy) == (max(right), 100 * max(right))
    assert max(right) not in right[place + 1 :]  # the strongest of equally good ones


def test_equal_features_say_nothing_but_do_no_harm():
    ridge = frozen.fit(
        np.ones((6, 4), np.float32), np.array([0, 0, 0, 0, 1, 1]), 2, (1.0,)
    )
    np.testing.assert_allclose(ridge.scores(np.ones((1, 4)), 0), [[2 / 3, 1 / 3]])
