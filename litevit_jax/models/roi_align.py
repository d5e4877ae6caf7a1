"""Cuts boxes out of maps, as products with two matrices of weights a box.

The products have a gradient of the same form, which is summed in a fixed order on any
platform; that of a lookup is not.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

_CHUNK = 32  # boxes at once: the rows of one are as wide as the map


def roi_align(
    maps: list[jax.Array],
    boxes: jax.Array,
    level: jax.Array,
    *,
    strides: tuple[float, ...],
    size: int,
    samples: int | tuple[int, int] = 2,
) -> jax.Array:
    """Pools boxes of one image `[R, size, size, C]`; `jax.vmap` does a batch.

    RoIAlign (arXiv 1703.06870) with `aligned=True`, as detectron2 and torchvision
    define it: a bin is the mean of its samples, each interpolated between four pixels.
    One up to a pixel outside of the map takes the pixels at the edge, one further
    outside is 0.

    Args:
      maps: `[h, w, C]`, one of each level.
      boxes: `[R, 4]` in pixels of the image.
      level: int `[R]`, the number of a map for each box.
      strides: pixels of the image on one side of a map's pixel.
      size: bins on one side.
      samples: on one side of a bin, down and right where they differ.
    """
    down, right = (samples, samples) if isinstance(samples, int) else samples

    @jax.checkpoint
    def pool(box, level):
        pooled = jnp.zeros((size, size, maps[0].shape[-1]), maps[0].dtype)
        for i, (x, stride) in enumerate(zip(maps, strides, strict=True)):
            left, top, far_right, bottom = (box[j] / stride for j in range(4))
            rows = _weights(top, bottom, x.shape[0], size, down) * (level == i)
            columns = _weights(left, far_right, x.shape[1], size, right)
            pooled = pooled + _between(rows, x, columns)
        return pooled

    if len(boxes) <= _CHUNK:
        return jax.vmap(pool)(boxes, level)
    return jax.lax.map(lambda x: pool(*x), (boxes, level), batch_size=_CHUNK)


def _between(rows, x, columns):
    """Sums `[h, w, C]` by weights of rows `[y, h]` and columns `[x, w]`."""
    product = functools.partial(jnp.einsum, precision="highest")
    x = product("yh,hwc->ywc", rows.astype(x.dtype), x)
    return product("xw,ywc->yxc", columns.astype(x.dtype), x)


def _weights(low, high, length, size, samples):
    """Weights `[size, length]` of the pixels of one axis in each bin."""
    low, high = low - 0.5, high - 0.5  # centres of pixels are whole numbers
    side = (high - low) / size
    start = low + jnp.arange(size)[:, None] * side
    at = start + (jnp.arange(samples) + 0.5) * side / samples  # [size, samples]
    touches = (at >= -1) & (at <= length)
    return (_hat(jnp.clip(at, 0, length - 1), length) * touches[..., None]).mean(axis=1)


def _hat(at, length):
    """Weights `[..., length]` of linear interpolation at positions `[...]`."""
    return jnp.maximum(1 - jnp.abs(at[..., None] - jnp.arange(length)), 0)


def crop_masks(
    masks: jax.Array, boxes: jax.Array, targets: jax.Array, size: int
) -> jax.Array:
    """The part of masks that lies in other boxes: bool `[R, size, size]`.

    Args:
      masks: `[R, m, m]`, zeros and ones, each laid over its own box.
      boxes: `[R, 4]`, the boxes of the masks.
      targets: `[R, 4]`, the boxes whose part is taken; sides are at least 0.1.
      size: pixels of the result on one side.
    """

    def crop(mask, box, target):
        rows, columns = (
            _hat(_centres(box[i], box[i + 2], target[i], target[i + 2], size, n), n)
            for i, n in ((1, mask.shape[0]), (0, mask.shape[1]))
        )
        x = mask.astype(jnp.float32)[..., None]
        return _between(rows, x, columns)[..., 0] >= 0.5

    return jax.vmap(crop)(masks, boxes, targets)


def _centres(low, high, target_low, target_high, size, length):
    """Centres of a target's pixels on one axis, in pixels of a mask over a box."""
    side = jnp.maximum(target_high - target_low, 0.1)
    at = target_low + (jnp.arange(size) + 0.5) * side / size
    return (at - low) / jnp.maximum(high - low, 1e-6) * length - 0.5
