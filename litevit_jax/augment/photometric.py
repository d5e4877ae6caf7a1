"""Changes brightness, contrast, saturation and hue as segmentation recipes do.

Each change happens with a probability of its own, on bytes, in OpenCV's colour circle
of 180 steps (docs/dense.md).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from litevit_jax.augment import base, color

_CIRCLE = 180  # steps of the hue
_FRACTION = 12  # bits of OpenCV's tables of quotients


@dataclasses.dataclass(frozen=True)
class Photometric(base.ImageOp):
    """Brightness, contrast, saturation and hue, contrast as the second or the last.

    Attributes:
      brightness: the most that is added to a byte, or taken from it.
      contrast, saturation: ranges of factors.
      hue: the most steps by which the hue turns, of 180; whole.
      each: probability of each of the four.
    """

    brightness: float
    contrast: color.Range
    saturation: color.Range
    hue: int
    each: float

    def change(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Changes one image `[H, W, 3]`, uint8, as drawn from `key`."""
        base.check_rgb("photometric", image)
        return self.apply(image, **self.draw(key))

    def draw(self, key: jax.Array) -> dict[str, jax.Array]:
        """Draws the arguments of `apply` besides the image; 0 or 1 changes nothing."""
        pick_key, *keys = jax.random.split(key, 6)
        picked = jax.random.uniform(pick_key, (4,)) < self.each

        def between(key: jax.Array, low: float, high: float) -> jax.Array:
            return jax.random.uniform(key, (), jnp.float32, low, high)

        shift = between(keys[0], -self.brightness, self.brightness)
        turn = jax.random.randint(keys[3], (), -self.hue, max(self.hue, 1))
        return {
            "shift": jnp.where(picked[0], shift, 0.0),
            "contrast": jnp.where(picked[1], between(keys[1], *self.contrast), 1.0),
            "saturation": jnp.where(picked[2], between(keys[2], *self.saturation), 1.0),
            "turn": jnp.where(picked[3] & (self.hue > 0), turn, 0),
            "contrast_last": jax.random.bernoulli(keys[4]),
        }

    def apply(
        self,
        image: jax.Array,
        *,
        shift: jax.Array,
        contrast: jax.Array,
        saturation: jax.Array,
        turn: jax.Array,
        contrast_last: jax.Array,
    ) -> jax.Array:
        """Changes one image `[H, W, 3]`, uint8.

        Args:
          image: bytes, red, green and blue.
          shift: of the brightness.
          contrast, saturation: factors.
          turn: of the hue, in steps of 180.
          contrast_last: whether contrast comes after the others, not after brightness.
        """
        planes = jnp.moveaxis(image, -1, 0)  # [3, H, W]: rows of pixels vectorise
        planes = _scaled(planes, 1.0, shift)
        planes = _scaled(planes, jnp.where(contrast_last, 1.0, contrast), 0.0)
        hue, strength, value = to_hsv(planes)
        changed = from_hsv(hue, _scaled(strength, saturation, 0.0), value)
        planes = jnp.where(saturation == 1, planes, changed)
        hue, strength, value = to_hsv(planes)
        changed = from_hsv(jnp.mod(hue + turn, _CIRCLE), strength, value)
        planes = jnp.where(turn == 0, planes, changed)
        planes = _scaled(planes, jnp.where(contrast_last, contrast, 1.0), 0.0)
        return jnp.moveaxis(planes, 0, -1)


def make(
    *,
    brightness: float = 32.0,
    contrast: color.Range = (0.5, 1.5),
    saturation: color.Range = (0.5, 1.5),
    hue: int = 18,
    each: float = 0.5,
) -> Photometric:
    """Builds `Photometric`.

    Raises:
      ValueError: a strength, a range or a probability out of range.
    """
    ranges = {"contrast": tuple(contrast), "saturation": tuple(saturation)}
    ordered = all(len(x) == 2 and 0 <= x[0] <= x[1] for x in ranges.values())
    if not (0 <= brightness <= 255 and ordered and 0 <= hue <= _CIRCLE // 2):
        raise ValueError(
            f"augment.photometric: brightness={brightness}, hue={hue}, {ranges}; "
            f"expected 0 to 255 levels, 0 to {_CIRCLE // 2} steps, and (low, high) "
            "with 0 <= low <= high"
        )
    base.probabilities("photometric.each", each)
    return Photometric(
        (1.0,), brightness=float(brightness), hue=int(hue), each=float(each), **ranges
    )


def _scaled(values: jax.Array, factor: Any, shift: Any) -> jax.Array:
    """Returns bytes times a factor plus a shift, cut to 0 to 255 and cut off."""
    return jnp.clip(values.astype(jnp.float32) * factor + shift, 0, 255).astype(
        jnp.uint8
    )


def to_hsv(planes: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Converts bytes `[3, H, W]` to hue (0 to 179), saturation and value (0 to 255)."""
    red, green, blue = planes.astype(jnp.int32)
    value = planes.max(axis=0).astype(jnp.int32)
    spread = value - planes.min(axis=0).astype(jnp.int32)
    saturation = _quotient(spread, 255, value)
    sixths = jnp.where(
        value == red,
        green - blue,
        jnp.where(value == green, blue - red + 2 * spread, red - green + 4 * spread),
    )
    hue = _quotient(sixths, _CIRCLE / 6, spread)
    return jnp.where(hue < 0, hue + _CIRCLE, hue), saturation, value


def _quotient(number: jax.Array, scale: float, by: jax.Array) -> jax.Array:
    """Returns number * scale / by, rounded in OpenCV's fixed point; 0 where by is 0."""
    inverse = np.zeros(256, np.int32)
    inverse[1:] = np.rint(2**_FRACTION * scale / np.arange(1, 256))
    product = number * jnp.asarray(inverse)[by]
    return (product + 2 ** (_FRACTION - 1)) >> _FRACTION


def from_hsv(hue: jax.Array, saturation: jax.Array, value: jax.Array) -> jax.Array:
    """Converts hue (0 to 179), saturation and value (0 to 255) to bytes `[3, H, W]`."""
    sector = hue.astype(jnp.float32) * (6 / _CIRCLE)
    planes = color.of_sector(sector, saturation.astype(jnp.float32), value)
    return jnp.round(planes).astype(jnp.uint8)
