"""Distance and entropy of attention: recorded values and closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax.analysis import attention
from tests import golden

GRID = (14, 14)
N = 196


@pytest.fixture(scope="module")
def recorded():
    """Attention among patches of the recorded logits `[2, 12, 196, 196]`."""
    logits = 4 * golden.noise(2 * 12 * 197 * 197, 0.5).reshape(2, 12, 197, 197)
    return attention.over_patches(jnp.asarray(logits, jnp.float32))


def test_both_agree_with_the_recorded_values(recorded):
    entropy = attention.entropy(recorded, "paper").mean(axis=0)
    golden.assert_close(entropy[:3], [4.198780, 4.196658, 4.199443])
    paper = attention.distances(GRID, attention.factor_of("paper", 16))
    distance = attention.distance(recorded, paper).mean(axis=0)
    golden.assert_close(distance[:3], [102.098894, 102.262384, 101.707660])
    pixels = attention.distances(GRID, attention.factor_of("exact", 16))
    got = attention.distance(recorded, pixels).mean(axis=0)
    golden.assert_close(got[:3], distance[:3] * 16 / 14)


def one_hot(places):
    return jnp.asarray(np.eye(N)[places][None, None], jnp.float32)


def test_uniform_attention_has_the_largest_entropy_and_the_mean_distance():
    uniform = jnp.full((1, 1, N, N), 1 / N)
    golden.assert_close(attention.entropy(uniform), [[math.log(N)]])
    golden.assert_close(attention.entropy(uniform, "paper"), [[5.277919]])
    for factor, want in ((14, 101.930699), (16, 116.492227)):
        apart = attention.distances(GRID, factor)
        golden.assert_close(attention.distance(uniform, apart), [[want]])


def test_a_head_that_looks_at_itself_has_no_entropy_and_no_distance():
    itself = one_hot(np.arange(N))
    assert attention.entropy(itself)[0, 0] == 0
    golden.assert_close(attention.entropy(itself, "paper"), [[-1e-6]])
    assert attention.distance(itself, attention.distances(GRID, 16))[0, 0] == 0


def test_a_head_that_looks_at_its_right_neighbour_looks_a_patch_far():
    row, column = np.divmod(np.arange(N), 14)
    neighbour = row * 14 + np.where(column < 13, column + 1, column - 1)
    apart = attention.distances(GRID, 16)
    golden.assert_close(attention.distance(one_hot(neighbour), apart), [[16]])


def test_a_head_that_looks_diagonally_looks_the_root_of_two_far():
    row, column = np.divmod(np.arange(N), 14)
    other = (row ^ 1) * 14 + (column ^ 1)
    apart = attention.distances(GRID, 4)
    got = attention.distance(one_hot(other), apart)
    golden.assert_close(got, [[4 * math.sqrt(2)]])


def test_rows_and_columns_of_a_grid_that_is_not_square_are_told_apart():
    apart = attention.distances((2, 3), 10)
    want = [0, 10, 20, 10, 10 * math.sqrt(2), 10 * math.sqrt(5)]
    golden.assert_close(apart[0], want)


def test_the_class_token_is_left_out_and_the_rest_sums_to_one():
    logits = jax.random.normal(jax.random.key(0), (2, 3, 5, 5))
    probs = attention.over_patches(logits)
    np.testing.assert_allclose(probs.sum(axis=-1), 1, rtol=1e-6)
    loud = logits.at[:, :, :, 0].set(50).at[:, :, 0].set(-7)
    np.testing.assert_array_equal(attention.over_patches(loud), probs)


def test_means_count_each_example_once_and_no_padding():
    rows = np.random.default_rng(0).normal(size=(10, 2, 3))
    whole, parts = attention.Means(), attention.Means()
    whole.add({"x": rows}, np.ones(10, bool))
    for start in (0, 4, 8):
        part = np.full((4, 2, 3), 1e9)
        part[: len(rows[start : start + 4])] = rows[start : start + 4]
        parts.add({"x": part}, np.arange(start, start + 4) < 10)
    assert parts.count == whole.count == 10
    np.testing.assert_allclose(parts.mean("x"), rows.mean(axis=0))
    np.testing.assert_allclose(whole.mean("x"), rows.mean(axis=0))
