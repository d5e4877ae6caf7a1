"""Spectrum, rank and token similarity against direct formulas."""

import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax.analysis import features
from litevit_jax.objectives import health


def moments(rows, size):
    """Counts rows `[n, L, D]` in batches of `size`, padded with nonsense."""
    found = features.Moments()
    for start in range(0, len(rows), size):
        part = np.full((size, *rows.shape[1:]), 1e6, np.float32)
        some = rows[start : start + size]
        part[: len(some)] = some
        found.add(part, np.arange(size) < len(some))
    return found


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    scales = np.array([[3.0, 1.0, 0.1, 0.0], [1.0, 1.0, 1.0, 1.0]])
    return (rng.normal(size=(50, 2, 4)) * scales + 2).astype(np.float32)


def test_the_spectrum_is_that_of_the_covariance(rows):
    got = moments(rows, 16).spectrum()
    for layer in range(2):
        want = np.linalg.eigvalsh(np.cov(rows[:, layer].T.astype(float), ddof=0))[::-1]
        np.testing.assert_allclose(got[layer], want, atol=1e-9)


def test_the_rank_is_that_of_the_training_log(rows):
    got = moments(rows, 16).effective_rank()
    want = [float(health.effective_rank(jnp.asarray(rows[:, i]))) for i in range(2)]
    np.testing.assert_allclose(got, want, rtol=1e-3)


def test_neither_batches_nor_order_change_them(rows):
    one = moments(rows, 50)
    other = moments(rows[np.random.default_rng(1).permutation(50)], 7)
    np.testing.assert_allclose(one.spectrum(), other.spectrum(), atol=1e-9)
    np.testing.assert_allclose(one.effective_rank(), other.effective_rank(), rtol=1e-9)


def test_similarity_of_tokens_is_the_mean_cosine_of_pairs():
    tokens = np.random.default_rng(2).normal(size=(3, 5, 7)) + 0.5
    unit = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    cosines = unit @ unit.swapaxes(1, 2)
    want = (cosines.sum(axis=(1, 2)) - 5) / 20
    np.testing.assert_allclose(features.token_similarity(tokens), want, atol=1e-6)


def test_tokens_that_are_alike_have_one_and_orthogonal_ones_none():
    alike = jnp.ones((2, 6, 4)) * 3
    np.testing.assert_allclose(features.token_similarity(alike), 1, rtol=1e-6)
    apart = jnp.eye(4)[None]
    np.testing.assert_allclose(features.token_similarity(apart), 0, atol=1e-7)


def test_components_are_the_principal_ones_with_signs_of_their_own():
    rng = np.random.default_rng(1)
    axes = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    parts = rng.normal(size=(2, 40, 6)) * [9, 5, 2, 0.1, 0.1, 0.1]
    tokens = (parts @ axes + 3).astype(np.float32)
    scores, share = features.principal(tokens)
    rows = tokens.reshape(-1, 6).astype(float)
    _, sizes, vectors = np.linalg.svd(rows - rows.mean(axis=0))
    np.testing.assert_allclose(share, (sizes**2 / sum(sizes**2))[:3], rtol=1e-6)
    for k in range(3):
        sign = np.sign(vectors[k][np.abs(vectors[k]).argmax()])
        want = (rows - rows.mean(axis=0)) @ vectors[k] * sign
        np.testing.assert_allclose(scores[..., k].ravel(), want, atol=1e-5)


def test_there_are_no_more_components_than_dimensions():
    tokens = np.arange(8, dtype=np.float32).reshape(1, 4, 2)
    scores, share = features.principal(tokens)
    assert scores.shape == (1, 4, 3) and not scores[..., 1:].any()
    np.testing.assert_allclose(share, [1, 0, 0], atol=1e-12)
    same, none = features.principal(np.ones((2, 3, 5), np.float32))
    assert not same.any() and not none.any()
