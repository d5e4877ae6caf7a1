"""Augmentations that move or mix pixels on the device: flip and blur (recipes 4.4)."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from litevit_jax.augment import base

_PASSES = 3  # box blurs in PIL's Gaussian


@dataclasses.dataclass(frozen=True)
class Flip(base.ImageOp):
    """Swaps left and right, with a probability per view."""

    def change(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Flips one image `[H, W, C]`; nothing is drawn."""
        del key
        return image[:, ::-1]


def flip(*, probability: Any = 0.5) -> Flip:
    """Builds `Flip`."""
    return Flip(base.probabilities("flip", probability))


@dataclasses.dataclass(frozen=True)
class GaussianBlur(base.ImageOp):
    """The Gaussian blur of PIL: three box blurs along each axis.

    Attributes:
      sigma: range of the standard deviation in pixels (PIL's `radius`).
    """

    sigma: tuple[float, float]

    def change(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Blurs one image `[H, W, C]`, uint8, with a sigma drawn from `key`."""
        return self.blur(image, self.draw(key))

    def draw(self, key: jax.Array) -> jax.Array:
        """Draws a sigma."""
        return jax.random.uniform(key, (), jnp.float32, *self.sigma)

    def blur(self, image: jax.Array, sigma: jax.Array) -> jax.Array:
        """Blurs one image `[H, W, C]`, uint8, and rounds after each pass as PIL does.

        The boxes are a few pixels wide, so shifted copies are cheaper than a
        product with a band matrix, and need no table per image.
        """
        weights = box_weights(sigma, math.floor(_whole_radius(self.sigma[1])) + 1)
        # A loop keeps its operands in memory. Unrolled, XLA for CPUs would recompute
        # the op before the blur for each tap: over ten times as long.
        for axis in (1, 0):
            blur = functools.partial(_box_blur, weights=weights, axis=axis)
            image = jax.lax.fori_loop(0, _PASSES, lambda _, x, f=blur: f(x), image)
        return image


def gaussian_blur(
    *, sigma: tuple[float, float] = (0.1, 2.0), probability: Any = 1.0
) -> GaussianBlur:
    """Builds `GaussianBlur`.

    Raises:
      ValueError: a sigma or probability out of range.
    """
    if len(sigma) != 2 or not 0 < sigma[0] <= sigma[1]:
        raise ValueError(
            f"augment.gaussian_blur: sigma={tuple(sigma)}; expected (low, high) in "
            "pixels with 0 < low <= high"
        )
    chance = base.probabilities("gaussian_blur", probability)
    return GaussianBlur(chance, (float(sigma[0]), float(sigma[1])))


def _whole_radius(sigma: Any) -> Any:
    """The radius, before rounding down, of the box with a third of the variance."""
    return ((12 * sigma**2 / _PASSES + 1) ** 0.5 - 1) / 2


def box_weights(sigma: jax.Array, reach: int) -> jax.Array:
    """Weights `[2 reach + 1]` of one box blur of three that make a Gaussian.

    The box has a whole radius and one partly counted pixel at either end, chosen
    so that its variance is a third of the Gaussian's (Gwosdek et al. 2011,
    "Theoretical foundations of Gaussian convolution by extended box filtering").
    """
    variance = sigma**2 / _PASSES
    whole = jnp.floor(_whole_radius(sigma))
    end = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    end = end / (6 * (variance - (whole + 1) ** 2))
    radius = whole + end
    distance = jnp.abs(jnp.arange(-reach, reach + 1))
    return jnp.clip(radius + 1 - distance, 0, 1) / (2 * radius + 1)


def _box_blur(image: jax.Array, weights: jax.Array, axis: int) -> jax.Array:
    """Averages bytes `[H, W, C]` along an axis; border pixels are repeated outside."""
    reach, size = weights.shape[0] // 2, image.shape[axis]
    pad = [(reach, reach) if a == axis else (0, 0) for a in range(image.ndim)]
    padded = jnp.pad(image, pad, mode="edge")
    total = jnp.float32(0.5)  # rounds to the nearest when cut off
    for tap in range(weights.shape[0]):
        part = jax.lax.slice_in_dim(padded, tap, tap + size, axis=axis)
        total = total + weights[tap] * part.astype(jnp.float32)
    return total.astype(jnp.uint8)
