"""Convolutions on maps `[B, h, w, C]`, with the initial values of the references.

Parameters are float32 and products are of `dtype`.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from litevit_jax.models import layers, ops

# On CPUs the gradient of a kernel of 3 x 3 is a product for each of its pixels from so
# many channels on: with 256 in 0.4 to 0.7 of the time, with 128 and less in the same.
# That of 1 x 1 always is: in a half to a sixteenth.
_WIDE = 192
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
        conv_general_dilated=_flax_convolve,
        name=name,
    )


def _flax_convolve(x, kernel, strides, padding, **kwargs):
    """Takes what `nn.Conv` passes on, all of which follows from the kernel."""
    del strides, padding, kwargs
    return convolve(x, kernel)


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves `[B, h, w, C]` with `[s, s, C, O]`, s odd, to `[B, h, w, O]`."""
    return _convolve(x, kernel)


def _convolve(x, kernel):
    side = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=((side, side), (side, side)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _forward(x, kernel):
    return convolve(x, kernel), (x, kernel)


def _backward(saved, grad):
    x, kernel = saved
    grad_x = jax.vjp(lambda x: _convolve(x, kernel), x)[1](grad)[0]
    ways = {"default": _by_autodiff}
    if len(kernel) == 1 or min(kernel.shape[2:]) >= _WIDE:
        ways["cpu"] = _by_pixels
    return grad_x, jax.lax.platform_dependent(x, kernel, grad, **ways)


def _by_autodiff(x, kernel, grad):
    return jax.vjp(lambda kernel: _convolve(x, kernel), kernel)[1](grad)[0]


def _by_pixels(x, kernel, grad):
    """The kernel's gradient, a product for each of its pixels."""
    side, (rows, cols) = kernel.shape[0], x.shape[1:3]
    edge = (side // 2, side // 2)
    x = jnp.pad(x, ((0, 0), edge, edge, (0, 0)))

    def pixel(i, j):
        part = x[:, i : i + rows, j : j + cols]
        return jax.lax.dot_general(
            part.reshape(-1, part.shape[-1]),
            grad.reshape(-1, grad.shape[-1]),
            (((0,), (0,)), ((), ())),
            preferred_element_type=jnp.float32,
        ).astype(kernel.dtype)

    return jnp.stack(
        [jnp.stack([pixel(i, j) for j in range(side)]) for i in range(side)]
    )


convolve.defvjp(_forward, _backward)


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
