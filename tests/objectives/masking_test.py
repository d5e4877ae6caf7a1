"""Masks are fair permutations, patches survive the round trip."""

import jax
import numpy as np
import pytest

from litevit_jax.objectives import masking


@pytest.mark.parametrize("shape", [(2, 8, 12, 3), (1, 4, 4, 1), (2, 12, 4, 4)])
def test_unpatchify_undoes_patchify(shape):
    image = np.arange(np.prod(shape)).reshape(shape)
    patches = masking.patchify(image, 4)
    grid = masking.grid_of(shape, 4)
    np.testing.assert_array_equal(masking.unpatchify(patches, grid, 4), image)


def test_masks_are_permutations_and_fair():
    keys = jax.random.split(jax.random.key(0), 2000)
    ids = np.asarray(masking.random_masking(keys, 10))
    np.testing.assert_array_equal(
        np.sort(ids, axis=1), np.arange(10)[None].repeat(2000, 0)
    )
    for place in (0, 9):
        share = np.bincount(ids[:, place], minlength=10) / 2000
        np.testing.assert_allclose(share, 0.1, atol=0.03)


def test_a_mask_follows_its_key():
    keys = jax.random.split(jax.random.key(0), 8)
    whole = masking.random_masking(keys, 16)
    np.testing.assert_array_equal(masking.random_masking(keys[2:5], 16), whole[2:5])
    assert len({tuple(row) for row in whole.tolist()}) == 8


def test_normalized_patches_follow_the_formula():
    patches = np.random.default_rng(0).normal(3, 2, (2, 4, 48)).astype(np.float32)
    patches[0, 0] = 7  # a flat patch divides by sqrt(1e-6)
    mean = patches.mean(-1, keepdims=True)
    var = ((patches - mean) ** 2).sum(-1, keepdims=True) / 47
    expected = (patches - mean) / np.sqrt(var + 1e-6)
    normed = masking.normalize_patches(patches)
    np.testing.assert_allclose(normed, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("ratio", "patches", "kept"), [(0.75, 196, 49), (0.75, 256, 64), (0.6, 196, 78)]
)
def test_kept_patches_are_rounded_down(ratio, patches, kept):
    assert masking.count_kept(ratio, patches) == kept


@pytest.mark.parametrize(("ratio", "kept"), [(0.95, 0), (0.0, 16)])
def test_a_mask_keeps_and_hides_something(ratio, kept):
    message = rf"mask_ratio={ratio} keeps {kept} of 16 patches; expected at least one"
    with pytest.raises(ValueError, match=message):
        masking.count_kept(ratio, 16)
