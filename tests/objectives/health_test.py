"""Health metrics: closed forms, and what they see of a batch."""

import jax
import numpy as np
import pytest

from litevit_jax.models import vit
from litevit_jax.objectives import health
from tests import params as parameters

feature_std = jax.jit(health.feature_std)
effective_rank = jax.jit(health.effective_rank)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_the_spread_is_0_collapsed_and_1_isotropic():
    same = np.broadcast_to(normal(1, 16), (64, 16))
    np.testing.assert_allclose(feature_std(same), 0, atol=1e-6)
    np.testing.assert_allclose(feature_std(normal(4096, 64)), 1, rtol=0.01)
    axes = np.concatenate([np.eye(4), -np.eye(4)])  # each deviates by sqrt(1/4)
    np.testing.assert_allclose(feature_std(axes), 1, rtol=1e-6)


def test_the_spread_ignores_lengths():
    x = normal(32, 8)
    lengths = np.linspace(0.1, 50, 32, dtype=np.float32)[:, None]
    want = feature_std(x)
    np.testing.assert_allclose(feature_std(x * lengths), want, rtol=1e-5)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e12])
def test_the_rank_is_the_entropy_of_the_singular_values(shape, scale):
    x = np.asarray(normal(*shape), np.float64) * scale
    values = np.linalg.svd(x, compute_uv=False)
    share = values / values.sum()
    want = np.exp(-(share * np.log(share)).sum())
    got = effective_rank(x.astype(np.float32))
    np.testing.assert_allclose(got, want, rtol=1e-4)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_equal_directions_count_one_each_and_rounding_counts_nothing(rank):
    columns = np.linalg.qr(np.asarray(normal(64, rank)))[0]
    rows = np.linalg.qr(np.asarray(normal(32, rank, seed=1)))[0]
    got = effective_rank(columns @ rows.T)
    np.testing.assert_allclose(got, rank, rtol=1e-3)


def test_nothing_at_all_has_finite_numbers():
    for found in (effective_rank, feature_std):
        assert np.isfinite(found(np.zeros((8, 4))))


def test_attention_entropy_is_log_t_for_uniform_and_0_for_one_hot():
    uniform = np.full((2, 5, 5), 1 / 5)
    one_hot = np.broadcast_to(np.eye(5), (2, 5, 5))
    halves = one_hot / 2 + np.roll(one_hot, 1, axis=-1) / 2
    probs = np.stack([uniform, one_hot, halves], axis=1).astype(np.float32)
    want = [np.log(5), 0, np.log(2)]
    got = jax.jit(health.attention_entropy)(probs)
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "count"), [(8, 8), (600, 200), (514, 171), (1024, 256)]
)
def test_some_are_evenly_spaced_examples_with_all_that_belongs_to_them(size, count):
    index = np.arange(size)
    batch = {"views": np.stack([index, -index])[..., None], "index": index}
    got = health.some_examples(batch)
    assert got["index"].tolist() == list(range(0, size, -(-size // 256)))[:count]
    assert len(got["index"]) == count
    np.testing.assert_array_equal(got["views"][0, :, 0], got["index"])
    np.testing.assert_array_equal(got["views"][1, :, 0], -got["index"])


def test_an_encoder_is_described_by_its_last_block_and_pooled_tokens():
    encoder = vit.make_encoder(width=16, depth=2, num_heads=2, patch_size=4)
    batch = {"image": normal(6, 8, 8, 1)}
    params = parameters.start(encoder, batch["image"])["params"]

    @jax.jit
    def run(params, batch):
        of_encoder = health.of_encoder(encoder, params, batch, pool="avg")
        return of_encoder, encoder.apply({"params": params}, batch["image"])

    got, (tokens, found) = run(params, batch)
    pooled = tokens[:, 1:].mean(axis=1)
    want = {
        "feature_std": feature_std(pooled),
        "effective_rank": effective_rank(pooled),
    }
    entropy = health.attention_entropy(found["block_01/attn_probs"])
    want |= {f"attn_entropy/head_{a + 1:02d}": entropy[a] for a in (0, 1)}
    assert got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)
