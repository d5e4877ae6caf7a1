"""The projector and predictor of MoCo v3 (arXiv 2104.02057; recipes 4.1)."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from litevit_jax.models import heads, layers


def make_projector(*, mlp_dim: int, embed_dim: int, dtype: str) -> BatchNormMlp:
    """Builds the projector: three layers behind the encoder, in both branches.

    Raises:
      ValueError: a size below 1.
    """
    return _make((mlp_dim, mlp_dim, embed_dim), dtype)


def make_predictor(*, mlp_dim: int, embed_dim: int, dtype: str) -> BatchNormMlp:
    """Builds the predictor: two layers, in the student's branch alone.

    Raises:
      ValueError: a size below 1.
    """
    return _make((mlp_dim, embed_dim), dtype)


def _make(widths: tuple[int, ...], dtype: str) -> BatchNormMlp:
    if min(widths) < 1:
        raise ValueError(
            f"projector and predictor: mlp_dim={widths[0]}, embed_dim={widths[-1]}, "
            "expected at least 1"
        )
    return BatchNormMlp(widths, dtype)


class BatchNormMlp(nn.Module):
    """Linear layers without bias, a BatchNorm behind each, ReLU between them.

    The last BatchNorm has no affine parameters. Statistics are computed in float32 over
    the global batch of one call, so each view is normalised alone.

    Attributes:
      widths: of the layers.
      dtype: of the matrix products; the result is float32.
    """

    widths: tuple[int, ...]
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps features `[B, D]` to float32 `[B, E]`."""
        for number, width in enumerate(self.widths, start=1):
            last = number == len(self.widths)
            fan_in = x.shape[-1]
            kernel_init = layers.uniform(1 / math.sqrt(fan_in))  # PyTorch's default
            x = _Linear(width, self.dtype, kernel_init, name=f"fc{number}")(x)
            norm = heads.BatchNorm(1e-5, affine=not last, name=f"bn{number}")
            x = norm(x.astype(jnp.float32), train=train)
            x = x if last else nn.relu(x)
        return x


class _Linear(nn.Module):
    """A linear layer without bias; parameters are float32, the result is `dtype`."""

    features: int
    dtype: str
    kernel_init: layers.Initializer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        no_bias = jnp.zeros(self.features, self.dtype)  # jit removes the sum
        return layers.linear(x.astype(self.dtype), kernel, no_bias)
