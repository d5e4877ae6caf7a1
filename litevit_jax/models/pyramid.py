"""The simple feature pyramid: maps of five sizes from the last one of an encoder.

ViTDet (arXiv 2203.16527), as in detectron2. A LayerNorm is over the channels of each
pixel.
"""

from __future__ import annotations

import flax.linen as nn
import jax

from litevit_jax.models import convolutions, layers, ops

LEVELS = (2, 3, 4, 5, 6)  # p2 has a pixel for 4 x 4 of an image, p6 for 64 x 64


class Pyramid(nn.Module):
    """Enlarges, keeps or shrinks one map, and convolves each result.

    Attributes:
      channels: C of every result.
      dtype: of the products.
    """

    channels: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """Maps `[B, h, w, D]` to `[B, 4h, 4w, C]`, `[B, 2h, 2w, C]`, .. of `LEVELS`."""
        maps = [
            _Level(self.channels, "enlarge_twice", self.dtype, name="p2")(x),
            _Level(self.channels, "enlarge", self.dtype, name="p3")(x),
            _Level(self.channels, "keep", self.dtype, name="p4")(x),
            _Level(self.channels, "shrink", self.dtype, name="p5")(x),
        ]
        return [*maps, maps[-1][:, ::2, ::2]]


class _Level(nn.Module):
    """One of the maps: resized, projected, convolved."""

    channels: int
    way: str
    dtype: str

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        if self.way == "shrink":
            x = nn.max_pool(x, (2, 2), (2, 2))
        elif self.way != "keep":
            x = convolutions.Enlarge(width // 2, self.dtype, name="up")(x)
        if self.way == "enlarge_twice":
            x = ops.gelu(layers.LayerNorm(self.dtype, name="up_norm")(x))
            x = convolutions.Enlarge(width // 4, self.dtype, name="up_again")(x)
        for name, side in (("project", 1), ("convolve", 3)):
            x = convolutions.conv(
                self.channels,
                side,
                self.dtype,
                name=name,
                init=convolutions.pytorch_uniform(side**2 * x.shape[-1]),
            )(x)
            x = layers.LayerNorm(self.dtype, name=f"{name}_norm")(x)
        return x
