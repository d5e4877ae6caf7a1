"""Crops and resizes bytes on the device as Pillow does: antialiased, 8 bits a pass."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Numbers of a box: its sides in pixels, and 1 for a bicubic kernel, 0 for a bilinear.
BOX = ("left", "top", "right", "bottom", "cubic")


def resized_crops(
    columns: jax.Array, boxes: jax.Array, size: tuple[int, int]
) -> jax.Array:
    """Cuts boxes out of images and resizes them to uint8 `[B, H, W, C]`.

    Each axis is a product with a matrix that holds Pillow's kernel, stretched by the
    scale where the crop shrinks and cut at the box. As in Pillow the width comes first,
    and each pass ends with bytes.

    Args:
      columns: uint8 `[B, w, h, C]`, images by columns: the first product then needs no
        other order in memory.
      boxes: float32 `[B, 5]`, see `BOX`; sides may be fractions of a pixel.
      size: (H, W) of the result.
    """
    left, top, right, bottom, cubic = jnp.moveaxis(boxes, -1, 0)
    _, width, height, _ = columns.shape
    across = _weights(left, right, cubic, inputs=width, outputs=size[1])
    down = _weights(top, bottom, cubic, inputs=height, outputs=size[0])
    narrow = _bytes(_product("bow,bwhc->bohc", across, columns))
    return _bytes(_product("bph,bohc->bpoc", down, narrow))


def _product(axes: str, weights: jax.Array, pixels: jax.Array) -> jax.Array:
    # Accelerators round float32 factors to fewer bits than a byte needs.
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum(axes, weights, pixels.astype(jnp.float32), precision=highest)


def _bytes(values: jax.Array) -> jax.Array:
    return jnp.clip(jnp.floor(values + 0.5), 0, 255).astype(jnp.uint8)


def _weights(
    start: jax.Array, stop: jax.Array, cubic: jax.Array, *, inputs: int, outputs: int
) -> jax.Array:
    """Returns the weight of each input pixel in each output pixel: `[B, out, in]`.

    `start`, `stop` and `cubic` are `[B]`; the rows of weights add up to 1.
    """
    start, stop, cubic = (x[:, None, None] for x in (start, stop, cubic))
    scale = (stop - start) / outputs
    centre = start + (jnp.arange(outputs)[:, None] + 0.5) * scale
    pixel = jnp.arange(inputs)
    distance = jnp.abs(pixel + 0.5 - centre) / jnp.maximum(scale, 1)
    kernel = jnp.where(cubic > 0, _bicubic(distance), _bilinear(distance))
    inside = (pixel >= jnp.floor(start)) & (pixel < jnp.ceil(stop))
    kernel = jnp.where(inside, kernel, 0)
    return kernel / kernel.sum(axis=-1, keepdims=True)


def _bilinear(distance: jax.Array) -> jax.Array:
    return jnp.maximum(1 - distance, 0)


def _bicubic(distance: jax.Array) -> jax.Array:
    """Returns the kernel of Keys (1981) with slope -0.5 at 1."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return jnp.where(distance < 1, near, jnp.where(distance < 2, far, 0))
