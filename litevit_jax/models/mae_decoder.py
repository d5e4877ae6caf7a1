"""The pixel decoder of masked autoencoders.

Sizes are those of arXiv 2205.14443 (recipes 2.1), the function is that of the decoder
of He et al., arXiv 2111.06377. The original puts tokens back into image order and
predicts every patch. Attention does not depend on the order of tokens, so here the kept
tokens stay first, the masked ones follow, and only patches whose loss counts are
predicted.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from litevit_jax import choices
from litevit_jax.models import attention as attentions
from litevit_jax.models import layers, stack, vit

VARIANTS = {
    "tiny": {"width": 96, "depth": 1, "num_heads": 3},
    "small": {"width": 192, "depth": 1, "num_heads": 6},
    "base": {"width": 512, "depth": 8, "num_heads": 16},
    "large": {"width": 512, "depth": 8, "num_heads": 16},
    "huge": {"width": 512, "depth": 8, "num_heads": 16},
}


def make_decoder(
    *,
    variant: str | None = None,
    width: int | None = None,
    depth: int | None = None,
    num_heads: int | None = None,
    mlp_ratio: float = 4,
    dtype: str = "float32",
    attention: str = "auto",
    remat: bool = False,
) -> Decoder:
    """Builds a decoder; explicit sizes override those of the variant.

    Raises:
      ValueError: an unknown or incomplete choice, or sizes that do not fit.
    """
    given = {"width": width, "depth": depth, "num_heads": num_heads}
    sizes = vit.sizes_of("decoder", VARIANTS, variant, given)
    if sizes["width"] % 4:
        raise ValueError(
            f"decoder: width={sizes['width']} is not a multiple of 4, which its "
            "sin-cos position embedding needs"
        )
    choices.check("attention", attention, attentions.CHOICES)
    return Decoder(
        **sizes,
        mlp_ratio=mlp_ratio,
        dtype=str(dtype),
        attention=attention,
        remat=remat,
    )


class Decoder(nn.Module):
    """Predicts the pixels of masked patches from the tokens of kept ones.

    Attributes:
      width: of the decoder.
      depth: number of blocks.
      num_heads: A.
      mlp_ratio: hidden width of the MLPs over the width.
      dtype: of the computation; parameters are float32.
      attention: as of `vit.Encoder`.
      remat: less memory for more arithmetic; see `stack`.
    """

    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4
    dtype: str = "float32"
    attention: str = "auto"
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        latent: jax.Array,
        ids_shuffle: jax.Array,
        *,
        grid: tuple[int, int],
        patch_dim: int,
        all_patches: bool = False,
    ) -> jax.Array:
        """Predicts flat patches.

        Args:
          latent: the encoder's tokens `[B, 1 + M, D]`, cls first.
          ids_shuffle: a permutation of the patches `[B, N]`; its first M are kept.
          grid: rows and columns of patches.
          patch_dim: P*P*C, pixels of one patch.
          all_patches: predict every patch, in image order.

        Returns:
          `[B, N - M, P*P*C]` in the order of `ids_shuffle[:, M:]`, or
          `[B, N, P*P*C]` for `all_patches`.
        """
        first = 1 if all_patches else latent.shape[1]
        x = self._embed(latent, ids_shuffle, grid)

        def make(cls, **kwargs):
            mlp_dim = int(self.width * self.mlp_ratio)
            how = {"attention": self.attention}
            return cls(self.num_heads, mlp_dim, "mae", self.dtype, **how, **kwargs)

        # Behind the last attention only the predicted tokens are computed.
        x, _ = stack.run(
            self,
            make,
            self.depth,
            x,
            last_query=first,
            remat=self.remat,
        )
        if all_patches:
            x = layers.take_tokens(x, jnp.argsort(ids_shuffle, axis=1))
        x = layers.LayerNorm(self.dtype, name="norm")(x)
        return layers.dense("pred", "mae", (self.width, patch_dim), self.dtype)(x)

    def _embed(self, latent, ids_shuffle, grid):
        """Decoder tokens `[B, 1 + N, D]`: cls, kept, masked; positions added."""
        batch, num_masked = latent.shape[0], ids_shuffle.shape[1] - latent.shape[1] + 1
        sizes = (latent.shape[-1], self.width)
        kept = layers.dense("embed", "mae", sizes, self.dtype)(latent)
        token = self.param("mask_token", layers.normal(0.02), (1, 1, self.width))
        masked = jnp.broadcast_to(
            token.astype(self.dtype), (batch, num_masked, self.width)
        )
        table = jnp.asarray(layers.sincos_table(grid, self.width, "sincos"), self.dtype)
        # Row 0 of the table belongs to cls and is zero.
        ids = jnp.pad(ids_shuffle + 1, ((0, 0), (1, 0)))
        pos = table.at[ids].get(mode="promise_in_bounds")
        return jnp.concatenate([kept, masked], axis=1) + pos
