"""Patches, random masks and pixel targets of masked image modelling.

He et al., arXiv 2111.06377, section 3; agrees with `models_mae.py` of the
official repository (recipes 2.1).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from litevit_jax.models.layers import grid_of, patchify, take_tokens

__all__ = [
    "count_kept",
    "grid_of",
    "normalize_patches",
    "patch_stats",
    "patchify",
    "random_masking",
    "take_tokens",
    "unpatchify",
]


def unpatchify(patches: jax.Array, grid: tuple[int, int], patch_size: int) -> jax.Array:
    """Puts flat patches `[B, N, P*P*C]` back into images `[B, H, W, C]`.

    Args:
      patches: in row-major order, pixels ordered (row, column, channel).
      grid: rows and columns of patches.
      patch_size: P.
    """
    batch, side = patches.shape[0], patch_size
    x = patches.reshape(batch, *grid, side, side, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, grid[0] * side, grid[1] * side, -1)


def random_masking(keys: jax.Array, num_patches: int) -> jax.Array:
    """Draws a uniform permutation of the patches for each key `[B]`: ids `[B, N]`.

    The first M ids of a row are its kept patches, the others are masked.
    """
    noise = jax.vmap(lambda key: jax.random.uniform(key, (num_patches,)))(keys)
    return jnp.argsort(noise, axis=1)


def count_kept(mask_ratio: float, num_patches: int) -> int:
    """The number M of kept patches: `num_patches * (1 - mask_ratio)`, rounded down.

    Raises:
      ValueError: no patch would be kept, or none masked.
    """
    num_kept = int(num_patches * (1 - mask_ratio))
    if not 0 < num_kept < num_patches:
        raise ValueError(
            f"mask_ratio={mask_ratio} keeps {num_kept} of {num_patches} patches; "
            "expected at least one kept and one masked patch"
        )
    return num_kept


def patch_stats(patches: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of each patch `[B, N, P*P*C]`: two `[B, N, 1]`."""
    mean = patches.mean(axis=-1, keepdims=True)
    # Unbiased, and 1e-6 under the root (recipes 2.1).
    var = patches.var(axis=-1, keepdims=True, ddof=1)
    return mean, jnp.sqrt(var + 1e-6)


def normalize_patches(patches: jax.Array) -> jax.Array:
    """Normalises each patch `[B, N, P*P*C]` to mean 0 and variance 1: MAE's target."""
    mean, std = patch_stats(patches)
    return (patches - mean) / std
