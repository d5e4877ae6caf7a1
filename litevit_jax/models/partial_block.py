"""The beginning of a transformer block, for a loss that reads no more of it.

The last block that a distillation teacher runs, and the attention-only 13th block
of a decoupled student (recipes 3), are of this kind. Parameters have the same names and
shapes as in `layers.Block`, so those of a whole block fit.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from litevit_jax.models import layers

PARTS = ("norm1", "logits", "qkv")


class PartialBlock(nn.Module):
    """A transformer block up to its first norm, its attention logits, or q, k and v.

    Attributes:
      num_heads: A.
      init_style: as of `layers.Block`.
      dtype: of the computation; parameters are float32.
      part: 'norm1'; 'logits', which computes queries and keys but no values; or
        'qkv', which computes the values too.
    """

    num_heads: int
    init_style: str
    dtype: str
    part: str

    @nn.compact
    def __call__(self, x: jax.Array) -> layers.Intermediates:
        """Returns intermediates of tokens `[B, T, D]`, named as in `layers.Block`."""
        normed = layers.LayerNorm(self.dtype, name="norm1")(x)
        intermediates = {"in": x, "norm1": normed}
        if self.part == "norm1":
            return intermediates
        attention = _Logits(
            self.num_heads,
            self.init_style,
            self.dtype,
            with_values=self.part == "qkv",
            name="attn",
        )
        return intermediates | attention(normed)


class _Logits(nn.Module):
    """Attention as far as its logits."""

    num_heads: int
    init_style: str
    dtype: str
    with_values: bool

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        fan_out = width if self.init_style == "moco" else 3 * width
        kernel_init = layers.dense_init(self.init_style, width, fan_out)
        qkv = layers.Linear(3 * width, self.dtype, kernel_init, name="qkv")
        # q, k and v lie side by side in the kernel: the v part is not multiplied.
        count = 3 if self.with_values else 2
        parts = jnp.split(qkv(x, columns=slice(count * width)), count, axis=-1)
        parts = [layers.split_heads(part, self.num_heads) for part in parts]
        intermediates = dict(zip("qkv", parts, strict=False))
        scaled = intermediates["q"] * (width // self.num_heads) ** -0.5
        intermediates["attn_logits"] = jnp.einsum(
            "bhnd,bhmd->bhnm",
            scaled,
            intermediates["k"],
            preferred_element_type=jnp.float32,
        )
        return intermediates
