"""Convolutions on maps `[B, h, w, C]`, with the initial values of the references.

Parameters are float32 and products are of `dtype`.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from litevit_jax.models import layers, ops

HE_NORMAL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# PyTorch takes a transposed convolution's inputs for outputs.
HE_NORMAL_OF_ENLARGE = nn.initializers.variance_scaling(
    2.0, "fan_out", "normal", in_axis=3, out_axis=0
)


def pytorch_uniform(fan_in: int) -> layers.Initializer:
    """U(+-1 / sqrt(fan_in)): what PyTorch's convolutions start from, biases too."""
    return layers.uniform(1 / math.sqrt(fan_in))


def conv(
    features: int,
    side: int,
    dtype: str,
    *,
    name: str,
    init: layers.Initializer,
    bias: bool = False,
) -> nn.Conv:
    """A convolution of `side` x `side` pixels, an odd number, that keeps the size.

    A bias starts at 0.
    """
    return nn.Conv(
        features,
        (side, side),
        padding=side // 2,
        use_bias=bias,
        dtype=dtype,
        kernel_init=init,
        name=name,
    )


class Enlarge(nn.Module):
    """A transposed convolution of 2 x 2 pixels with stride 2.

    Attributes:
      features: C of the result.
      dtype: of the products.
      kernel_init: None: kernel and bias start as PyTorch's; else the bias starts at 0.
    """

    features: int
    dtype: str
    kernel_init: layers.Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, h, w, D]` to `[B, 2h, 2w, C]`."""
        batch, rows, cols, width = x.shape
        count = self.features
        usual = pytorch_uniform(4 * count)  # the fan of a transpose
        kernel_init = self.kernel_init or usual
        bias_init = nn.initializers.zeros if self.kernel_init else usual
        kernel = self.param("kernel", kernel_init, (width, 2, 2, count))
        bias = self.param("bias", bias_init, (count,))
        kernel = kernel.reshape(width, 4 * count)
        x = ops.linear(x.astype(self.dtype), kernel, jnp.tile(bias, 4))
        x = x.reshape(batch, rows, cols, 2, 2, count).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(batch, 2 * rows, 2 * cols, count)
