"""Random erasing on the device (Zhong et al., arXiv 1708.04896; recipes 5.2).

A box of the normalised image is filled with N(0, 1) noise, one number for each pixel
and channel: timm's 'pixel' mode. An example's box and noise come from its position in
the global batch, so they are the same on any mesh.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Erase:
    """Fills one box of an image with noise, with the given probability.

    Attributes:
      probability: that an image loses a box.
      area: (least, most) share of the image that the box covers.
      aspect: (least, most) height / width of the box, drawn log-uniformly. A box
        that does not fit is drawn again; after 10 failures nothing is erased.
    """

    probability: float
    area: tuple[float, float]
    aspect: tuple[float, float]

    _ATTEMPTS: ClassVar[int] = 10

    def __call__(self, key: jax.Array, batch: dict[str, Any]) -> dict[str, Any]:
        """Erases in `image`, float [B, H, W, C]; `slot [B]` names the examples."""
        if "image" not in batch:
            raise ValueError("augment.erase needs one image an example: data.views=1")
        image = batch["image"]
        if not jnp.issubdtype(image.dtype, jnp.floating):
            raise ValueError(
                f"augment.erase: image is {image.dtype}, expected normalised floats; "
                "give the config an augment.normalize, which runs before"
            )
        if not self.probability:
            return batch
        slot = batch.get("slot", jnp.arange(image.shape[0]))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, slot)
        return {**batch, "image": jax.vmap(self._one)(keys, image)}

    def _one(self, key: jax.Array, image: jax.Array) -> jax.Array:
        chance_key, box_key, noise_key = jax.random.split(key, 3)
        top, left, height, width = self.box(box_key, *image.shape[:2])
        row = jnp.arange(image.shape[0])[:, None] - top
        column = jnp.arange(image.shape[1])[None] - left
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        inside &= jax.random.uniform(chance_key) < self.probability
        noise = jax.random.normal(noise_key, image.shape, image.dtype)
        return jnp.where(inside[..., None], noise, image)

    def box(self, key: jax.Array, height: int, width: int) -> tuple[jax.Array, ...]:
        """Draws a box in an image of that size: (top, left, height, width), int32."""
        area_key, aspect_key, top_key, left_key = jax.random.split(key, 4)
        shape, aspect = (self._ATTEMPTS,), [math.log(a) for a in self.aspect]
        area = jax.random.uniform(
            area_key, shape, minval=self.area[0], maxval=self.area[1]
        )
        area = area * (height * width)
        ratio = jnp.exp(
            jax.random.uniform(aspect_key, shape, minval=aspect[0], maxval=aspect[1])
        )
        tall = jnp.round(jnp.sqrt(area * ratio)).astype(jnp.int32)
        wide = jnp.round(jnp.sqrt(area / ratio)).astype(jnp.int32)
        fits = (tall < height) & (wide < width)
        first = jnp.argmax(fits)
        tall, wide = (jnp.where(fits.any(), x[first], 0) for x in (tall, wide))
        top = jax.random.randint(top_key, (), 0, height - tall + 1)
        left = jax.random.randint(left_key, (), 0, width - wide + 1)
        return top, left, tall, wide


def make(
    *,
    probability: float,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> Erase:
    """Builds `Erase`; a probability of 0 turns it off.

    Raises:
      ValueError: a probability or range out of bounds.
    """
    if not 0 <= probability <= 1:
        raise ValueError(
            f"augment.erase: probability={probability}, expected a number from 0 to 1"
        )
    if len(area) != 2 or not 0 < area[0] <= area[1] <= 1:
        raise ValueError(
            f"augment.erase: area={area}, expected (low, high) with 0 < low <= high "
            "<= 1"
        )
    if len(aspect) != 2 or not 0 < aspect[0] <= aspect[1]:
        raise ValueError(
            f"augment.erase: aspect={aspect}, expected (low, high) with 0 < low <= high"
        )
    return Erase(probability, tuple(area), tuple(aspect))
