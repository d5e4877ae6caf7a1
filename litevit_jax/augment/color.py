"""Pixel values on the device: uint8 -> normalised float32."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Normalize:
    """(image / 255 - mean) / std per channel; recipes for ImageNet: timm's values."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, key: jax.Array, batch: dict[str, Any]) -> dict[str, Any]:
        """Replaces `image` uint8 [B, H, W, C] by float32 [B, H, W, C]."""
        del key  # nothing is drawn
        scale = 1.0 / (255.0 * jnp.asarray(self.std, jnp.float32))
        shift = jnp.asarray(self.mean, jnp.float32) * 255.0
        image = (batch["image"].astype(jnp.float32) - shift) * scale
        return {**batch, "image": image}


def normalize(*, mean: tuple[float, ...], std: tuple[float, ...]) -> Normalize:
    """Builds `Normalize`; one mean and one std per image channel.

    Raises:
      ValueError: lengths differ or a std is not positive.
    """
    if len(mean) != len(std) or not all(s > 0 for s in std):
        raise ValueError(
            f"augment.normalize: mean={mean} and std={std} need one value per "
            "channel each, std positive"
        )
    return Normalize(tuple(mean), tuple(std))
