"""The heads of Mask R-CNN: the class, the box and the mask of what a box holds.

As in detectron2's ViTDet: each convolution has a LayerNorm over a pixel's channels.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from litevit_jax.models import convolutions, layers

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of the offsets that the head predicts
_CLASS_STD, _REST_STD = 0.01, 0.001  # of initial kernels: classes; offsets and masks


def _convolved(x, convs, channels, dtype):
    for i in range(1, convs + 1):
        conv = convolutions.conv(
            channels, 3, dtype, name=f"conv_{i}", init=convolutions.HE_NORMAL
        )
        x = nn.relu(layers.LayerNorm(dtype, name=f"conv_{i}_norm")(conv(x)))
    return x


class BoxHead(nn.Module):
    """Classifies pooled boxes and moves them, for each class in its own way.

    Attributes:
      num_classes: K.
      convs: number of convolutions.
      channels: of the convolutions.
      hidden: width of the layer before the outputs.
      dtype: of the products; results are float32.
    """

    num_classes: int
    convs: int
    channels: int
    hidden: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps `[R, s, s, C]` to logits `[R, K + 1]` and offsets `[R, K, 4]`.

        The last class is background. Offsets are `boxes.encode`'s by `BOX_WEIGHTS`.
        """
        x = _convolved(x, self.convs, self.channels, self.dtype)
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)  # as detectron2 flattens
        xavier = layers.uniform(math.sqrt(3 / x.shape[-1]))
        x = nn.relu(layers.Linear(self.hidden, self.dtype, xavier, name="fc")(x))

        def linear(features, std, name):
            layer = layers.Linear(features, "float32", layers.normal(std), name=name)
            return layer(x)

        logits = linear(self.num_classes + 1, _CLASS_STD, "logits")
        offsets = linear(4 * self.num_classes, _REST_STD, "offsets")
        return logits, offsets.reshape(-1, self.num_classes, 4)


class MaskHead(nn.Module):
    """Predicts the mask of a pooled box, for one class of each.

    Attributes:
      num_classes, convs, channels, dtype: as of `BoxHead`.
    """

    num_classes: int
    convs: int
    channels: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, classes: jax.Array) -> jax.Array:
        """Maps `[R, s, s, C]` and classes `[R]` to logits `[R, 2s, 2s]`, float32."""
        x = _convolved(x, self.convs, self.channels, self.dtype)
        enlarge = convolutions.Enlarge(
            self.channels, self.dtype, convolutions.HE_NORMAL_OF_ENLARGE, name="up"
        )
        return _OfClass(self.num_classes, name="logits")(nn.relu(enlarge(x)), classes)


class _OfClass(nn.Module):
    """A convolution of 1 x 1 to K channels, of which one a box is computed."""

    num_classes: int

    @nn.compact
    def __call__(self, x, classes):
        shape = (1, 1, x.shape[-1], self.num_classes)
        kernel = self.param("kernel", layers.normal(_REST_STD), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,))
        own = jax.nn.one_hot(classes, self.num_classes)  # a lookup's gradient: no order
        kernel = jnp.einsum("rk,ck->rc", own, kernel[0, 0], precision="highest")
        x = jnp.einsum(
            "ryxc,rc->ryx",
            x,
            kernel.astype(x.dtype),
            preferred_element_type=jnp.float32,
        )
        return x + jnp.dot(own, bias, precision="highest")[:, None, None]
