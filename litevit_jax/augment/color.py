"""Pixel values on the device: jitter, grey and solarize on bytes; normalisation."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from litevit_jax.augment import base

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Normalize:
    """Normalises each channel: (image / 255 - mean) / std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, key: jax.Array, batch: dict[str, Any]) -> dict[str, Any]:
        """Replaces `image` or `views` uint8 [..., H, W, C] by float32.

        With `size [B, 2]` an image has the mean colour, 0, beyond so many rows and
        columns: there it is padded.
        """
        del key  # nothing is drawn
        name = "views" if "views" in batch else "image"
        shift, scale = (jnp.asarray(x, jnp.float32) for x in self.affine())
        image = (batch[name].astype(jnp.float32) - shift) * scale
        if "size" in batch:
            image = jnp.where(_inside(batch["size"], *image.shape[-3:-1]), image, 0)
        return {**batch, name: image}

    def affine(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Returns (shift, scale) by channel: a byte becomes (byte - shift) * scale."""
        one, most = np.float32(1), np.float32(255)
        scale = one / (most * np.asarray(self.std, np.float32))
        shift = np.asarray(self.mean, np.float32) * most
        return tuple(map(float, shift)), tuple(map(float, scale))


def _inside(size: jax.Array, height: int, width: int) -> jax.Array:
    """Whether pixels belong to images of `size [B, 2]`: bool [B, H, W, 1]."""
    rows = jnp.arange(height)[None, :, None] < size[:, 0, None, None]
    columns = jnp.arange(width)[None, None] < size[:, 1, None, None]
    return (rows & columns)[..., None]


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


@dataclasses.dataclass(frozen=True)
class ColorJitter(base.ImageOp):
    """Changes brightness, contrast, saturation and hue at random, in random order.

    Attributes:
      brightness, contrast, saturation: ranges of the factors; (1, 1) leaves the
        images as they are.
      hue: range of the shift, in turns of the colour circle.
    """

    brightness: Range
    contrast: Range
    saturation: Range
    hue: Range

    def change(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Changes one image `[H, W, C]`, uint8, as drawn from `key`."""
        if self.hue != (0, 0) or self.saturation != (1, 1):
            base.check_rgb("color_jitter with saturation or hue", image)
        return self.apply(image, **self.draw(key))

    def draw(self, key: jax.Array) -> dict[str, jax.Array]:
        """Draws factors and order, the arguments of `apply` besides the image."""
        factor_key, hue_key, order_key, hue_at_key = jax.random.split(key, 4)
        low, high = jnp.array([self.brightness, self.contrast, self.saturation]).T
        return {
            "factors": jax.random.uniform(factor_key, (3,), minval=low, maxval=high),
            "turn": jax.random.uniform(hue_key, (), jnp.float32, *self.hue),
            "order": jnp.argsort(jax.random.uniform(order_key, (3,))),
            "hue_at": jax.random.randint(hue_at_key, (), 0, 4),
        }

    def apply(
        self,
        image: jax.Array,
        *,
        factors: jax.Array,
        turn: jax.Array,
        order: jax.Array,
        hue_at: jax.Array,
    ) -> jax.Array:
        """Changes one image `[H, W, C]`, uint8.

        A program for a batch computes every branch of a choice for every image. Hue
        costs most and is therefore written once: the three other changes stand both
        before and behind it, with a factor of 1 on one of the two sides.

        Args:
          image: bytes.
          factors: of brightness, contrast and saturation `[3]`.
          turn: of the hue.
          order: of brightness (0), contrast (1) and saturation (2), `[3]`.
          hue_at: how many of the three come before the hue.
        """
        planes = jnp.moveaxis(image, -1, 0)  # [C, H, W]: rows of pixels vectorise
        if self.hue == (0, 0):
            hue_at = jnp.int32(3)
        for index in range(3):
            factor = jnp.where(index < hue_at, factors[order[index]], 1.0)
            planes = _enhance(planes, order[index], factor)
        if self.hue != (0, 0):
            planes = turn_hue(planes, turn)
            for index in range(3):
                factor = jnp.where(index < hue_at, 1.0, factors[order[index]])
                planes = _enhance(planes, order[index], factor)
        return jnp.moveaxis(planes, 0, -1)


def color_jitter(
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    probability: Any = 1.0,
) -> ColorJitter:
    """Builds `ColorJitter` from its strengths, as torchvision names them.

    Factors are drawn from 1 +- strength (not below 0), the hue from +- `hue`.

    Raises:
      ValueError: a strength or probability out of range.
    """
    strengths = {"brightness": brightness, "contrast": contrast}
    strengths |= {"saturation": saturation}
    if any(s < 0 for s in strengths.values()) or not 0 <= hue <= 0.5:
        raise ValueError(
            f"augment.color_jitter: {strengths | {'hue': hue}}; expected strengths of "
            "0 or more and 0 <= hue <= 0.5"
        )
    ranges = {k: (max(0.0, 1.0 - s), 1.0 + s) for k, s in strengths.items()}
    chance = base.probabilities("color_jitter", probability)
    return ColorJitter(**ranges, hue=(-hue, hue), probability=chance)


def _enhance(planes: jax.Array, kind: jax.Array, factor: jax.Array) -> jax.Array:
    """Changes brightness (0), contrast (1) or saturation (2) of bytes `[C, H, W]`.

    All three move the image from or towards a dull one: black, its mean grey, or itself
    in grey. A factor of 1 changes nothing.
    """
    grey = luma(planes)
    mean = jnp.floor(grey.astype(jnp.int32).sum() / grey.size + 0.5)
    dull = jnp.where(kind == 0, 0.0, jnp.where(kind == 1, mean, grey))
    mixed = dull + factor * (planes.astype(jnp.float32) - dull)
    return jnp.clip(jnp.floor(mixed), 0, 255).astype(jnp.uint8)  # PIL cuts off


def luma(planes: jax.Array) -> jax.Array:
    """Converts bytes `[C, H, W]` to grey `[H, W]`.

    Three channels are weighted as in ITU-R 601-2, in PIL's fixed point; of any other
    number the mean is taken.
    """
    if planes.shape[0] != 3:
        grey = planes.astype(jnp.float32).mean(axis=0)
        return jnp.floor(grey + 0.5).astype(jnp.uint8)
    red, green, blue = planes.astype(jnp.int32)
    weighted = 19595 * red + 38470 * green + 7471 * blue  # 0.299, 0.587, 0.114
    return ((weighted + 2**15) >> 16).astype(jnp.uint8)


def turn_hue(planes: jax.Array, turn: jax.Array) -> jax.Array:
    """Turns the hue of bytes `[3, H, W]`; its resolution is 1/256, as PIL's."""
    hue, saturation, value = _to_hsv(planes.astype(jnp.float32))
    hue = jnp.mod(hue + jnp.trunc(turn * 255), 256)
    planes = of_sector(hue * (6 / 255), saturation, value)
    return jnp.floor(planes + 0.5).astype(jnp.uint8)


def of_sector(sector: jax.Array, saturation: jax.Array, value: jax.Array) -> jax.Array:
    """Returns colours `[3, H, W]`, 0 to 255, not rounded.

    `sector` is the place on the colour circle, 0 to 6; the others are 0 to 255.
    """
    fallen = []
    for start in (5, 3, 1):  # red, green and blue differ by a third of a turn
        k = jnp.mod(sector + start, 6)
        fall = jnp.clip(jnp.minimum(k, 4 - k), 0, 1)
        fallen.append(value * (1 - saturation * fall / 255))
    return jnp.stack(fallen)


def _to_hsv(rgb: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Converts RGB to hue, saturation and value `[H, W]`, whole numbers, 0 to 255."""
    red, green = rgb[:2]
    high, low = rgb.max(axis=0), rgb.min(axis=0)
    spread = high - low
    far = (high - rgb) / jnp.maximum(spread, 1)  # of each channel from the highest
    sixths = jnp.where(
        red == high,
        far[2] - far[1],
        jnp.where(green == high, 2 + far[0] - far[2], 4 + far[1] - far[0]),
    )
    hue = jnp.floor(jnp.mod(sixths / 6 + 1, 1) * 255)
    saturation = jnp.floor(spread / jnp.maximum(high, 1) * 255)
    return jnp.where(spread > 0, hue, 0), saturation, high


@dataclasses.dataclass(frozen=True)
class Grayscale(base.ImageOp):
    """Replaces colours by three equal channels, with a probability per view."""

    def change(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Makes one image `[H, W, 3]`, uint8, grey; nothing is drawn."""
        del key
        base.check_rgb("grayscale", image)
        grey = luma(jnp.moveaxis(image, -1, 0))
        return jnp.broadcast_to(grey[..., None], image.shape)


def grayscale(*, probability: Any) -> Grayscale:
    """Builds `Grayscale`."""
    return Grayscale(base.probabilities("grayscale", probability))


@dataclasses.dataclass(frozen=True)
class Solarize(base.ImageOp):
    """Inverts the bytes from `threshold` on, with a probability per view."""

    threshold: int

    def change(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Inverts one image `[H, W, C]`, uint8; nothing is drawn."""
        del key
        dark = image.astype(jnp.int32) < self.threshold  # 256 is no byte
        return jnp.where(dark, image, 255 - image)


def solarize(*, probability: Any, threshold: int = 128) -> Solarize:
    """Builds `Solarize`.

    Raises:
      ValueError: a threshold or probability out of range.
    """
    if not 0 <= threshold <= 256:
        raise ValueError(f"augment.solarize: threshold={threshold}, expected 0 to 256")
    return Solarize(base.probabilities("solarize", probability), threshold)


def for_channels(
    blocks: dict[str, dict[str, Any]], channels: int
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Adapts `blocks` of ops to images of `channels`; also returns what is left out.

    Only red, green and blue have saturation, hue and grey; brightness and contrast work
    on any number of channels.
    """
    if channels == 3:
        return blocks, []
    kept, left_out = dict(blocks), []
    for name in ("grayscale", "photometric"):
        if name in kept:
            del kept[name]
            left_out.append(name)
    jitter = kept.get("color_jitter", {})
    strong = [name for name in ("saturation", "hue") if jitter.get(name)]
    if strong:
        kept["color_jitter"] = {**jitter, **dict.fromkeys(strong, 0.0)}
        left_out.append(f"{' and '.join(strong)} of color_jitter")
    return kept, left_out
