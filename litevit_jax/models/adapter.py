"""Linear maps from a student's sizes to its teacher's (recipes 3)."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from litevit_jax.models import layers


class Adapter(nn.Module):
    """A linear layer along one axis without bias, in float32.

    Along the heads of attention logits it equals the 1x1 convolution of the authors.

    Attributes:
      features: size of the result along the axis.
      axis: -3 for heads of `[B, A, T, T]`, -1 for the width of `[B, T, D]`.
    """

    features: int
    axis: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps the axis to `features` entries; the others stay."""
        fan_in = x.shape[self.axis]
        init = layers.uniform(1 / math.sqrt(fan_in))  # PyTorch's default
        kernel = self.param("kernel", init, (fan_in, self.features))
        mapped = jnp.tensordot(x.astype(jnp.float32), kernel, axes=(self.axis, 0))
        return jnp.moveaxis(mapped, -1, self.axis)
