"""The vision transformer encoder and the table of its variants.

Architecture: arXiv 2205.14443 (recipes 1.1 to 1.4). It agrees with the encoder of
the authors' MAE and with timm 0.4.12's `VisionTransformer`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from litevit_jax import choices
from litevit_jax.models import attention as attentions
from litevit_jax.models import layers, partial_block, pixels, relative, stack

# The `_std` variants have the head counts of timm and DeiT. They hold the same
# parameter shapes as their namesakes but compute another function.
VARIANTS = {
    "tiny": {"width": 192, "depth": 12, "num_heads": 12, "patch_size": 16},
    "tiny_std": {"width": 192, "depth": 12, "num_heads": 3, "patch_size": 16},
    "small": {"width": 384, "depth": 12, "num_heads": 12, "patch_size": 16},
    "small_std": {"width": 384, "depth": 12, "num_heads": 6, "patch_size": 16},
    "base": {"width": 768, "depth": 12, "num_heads": 12, "patch_size": 16},
    "large": {"width": 1024, "depth": 24, "num_heads": 16, "patch_size": 16},
    "huge": {"width": 1280, "depth": 32, "num_heads": 16, "patch_size": 14},
}

# What runs and files of weights record of an encoder; the first ones are its sizes.
SIZES = ("width", "depth", "num_heads", "patch_size", "mlp_ratio")
FIELDS = (*SIZES, "pos_embed", "rpe_style")


def sizes_of(what: str, variants: dict, variant: str | None, given: dict) -> dict:
    """Returns the sizes of `variant`, overridden by those of `given` (except None).

    Raises:
      ValueError: an unknown variant, or a missing size.
    """
    if variant is not None:
        choices.check(f"{what} variant", variant, tuple(variants))
    sizes = dict(variants[variant]) if variant is not None else {}
    sizes |= {name: value for name, value in given.items() if value is not None}
    missing = sorted(set(given) - set(sizes))
    if missing:
        raise ValueError(
            f"{what}: {', '.join(missing)} not given; name a variant "
            f"({', '.join(variants)}) or give every size"
        )
    check_divides(what, sizes["width"], sizes["num_heads"])
    return sizes


def check_divides(what: str, width: int, num_heads: int) -> None:
    """Raises a ValueError if the width cannot be split into heads."""
    if width % num_heads:
        raise ValueError(
            f"{what}: width={width} is not a multiple of num_heads={num_heads}"
        )


def of_block(block: Any) -> Encoder:
    """Builds the encoder of a config's block, by the fields that a checkpoint has."""
    fields = {name: block.get(name) for name in ("variant", *FIELDS)}
    return make_encoder(**{k: x for k, x in fields.items() if x is not None})


def make_encoder(
    *,
    variant: str | None = None,
    width: int | None = None,
    depth: int | None = None,
    num_heads: int | None = None,
    patch_size: int | None = None,
    mlp_ratio: float = 4,
    pos_embed: str = "sincos",
    drop_path: float = 0.0,
    final_norm: bool = True,
    init_style: str = "mae",
    rpe_style: str = "none",
    dtype: str = "float32",
    attention: str = "auto",
    remat: bool = False,
) -> Encoder:
    """Builds an encoder; explicit sizes override those of the variant.

    Raises:
      ValueError: an unknown or incomplete choice, or sizes that do not fit.
    """
    given = {
        "width": width,
        "depth": depth,
        "num_heads": num_heads,
        "patch_size": patch_size,
    }
    sizes = sizes_of("encoder", VARIANTS, variant, given)
    choices.check("pos_embed", pos_embed, layers.POS_EMBEDS)
    choices.check("init_style", init_style, layers.INIT_STYLES)
    choices.check("rpe_style", rpe_style, ("none", *relative.STYLES))
    choices.check("attention", attention, attentions.CHOICES)
    if "sincos" in pos_embed and sizes["width"] % 4:
        raise ValueError(
            f"encoder: width={sizes['width']} is not a multiple of 4, which "
            f"pos_embed={pos_embed!r} needs"
        )
    if not 0 <= drop_path < 1:
        raise ValueError(f"encoder: drop_path={drop_path}, expected 0 <= rate < 1")
    return Encoder(
        **sizes,
        mlp_ratio=mlp_ratio,
        pos_embed=pos_embed,
        drop_path=drop_path,
        final_norm=final_norm,
        init_style=init_style,
        rpe_style=rpe_style,
        dtype=str(dtype),
        attention=attention,
        remat=remat,
    )


class Encoder(nn.Module):
    """A vision transformer without a head.

    Attributes:
      width: D.
      depth: number of blocks.
      num_heads: A.
      patch_size: P.
      mlp_ratio: hidden width of the MLPs over D.
      pos_embed: 'sincos' (MAE) and 'sincos_moco' are fixed tables and no
        parameters. 'learned' is a parameter; 'learned_sincos' and
        'learned_sincos_moco' are parameters that start from the table.
      drop_path: rate of the last block; it grows linearly from 0 over the blocks.
      final_norm: whether the tokens returned went through the final LayerNorm. A
        classifier with average pooling has none (recipes 1.3).
      init_style: 'mae', 'classifier', 'moco' or 'rpe' (recipes 1.4).
      rpe_style: 'none', or one of `relative.STYLES`: each block adds a bias of its
        own, by the offset of the patches, to its attention logits (recipes 1.5).
      dtype: of the computation; parameters are float32, and so are softmax and
        the statistics of LayerNorm.
      last_block: the part of the last block that is computed; see `cut`.
      attention: how it is computed, one of `attention.CHOICES`.
      remat: less memory for more arithmetic; see `stack`.
    """

    width: int
    depth: int
    num_heads: int
    patch_size: int
    mlp_ratio: float = 4
    pos_embed: str = "sincos"
    drop_path: float = 0.0
    final_norm: bool = True
    init_style: str = "mae"
    rpe_style: str = "none"
    dtype: str = "float32"
    last_block: str = "full"
    attention: str = "auto"
    remat: bool = False

    def in_float32(self) -> Encoder:
        """The encoder for features: in float32, with the platform's default attention.

        The field `attention` is for training; cuDNN has no float32.
        """
        return self.clone(dtype="float32", attention="auto")

    def cut(self, depth: int, last_block: str = "full") -> Encoder:
        """The first `depth` blocks, for a loss that reads no later one.

        It has only the parameters of those blocks, and no final norm. It returns the
        tokens that leave its last whole block.

        Args:
          depth: number of blocks of the new encoder.
          last_block: 'full', or one of `partial_block.PARTS`: 'norm1' ends with the
            first LayerNorm of the last block, 'logits' with its attention logits,
            'qkv' with its queries, keys and values (and logits).

        Raises:
          ValueError: more blocks than the encoder has, or an unknown part.
        """
        choices.check("last_block", last_block, ("full", *partial_block.PARTS))
        if self.rpe_style != "none" and last_block in ("logits", "qkv"):
            raise ValueError(
                f"encoder: cut to the {last_block} of a block with rpe_style="
                f"{self.rpe_style!r}: only those of plain blocks can be taken alone"
            )
        if not 0 < depth <= self.depth:
            raise ValueError(
                f"encoder: cut to {depth} blocks, expected 1 to {self.depth}"
            )
        rate = self.drop_path
        if self.depth > 1:  # the kept blocks keep their rates
            rate *= (depth - 1) / (self.depth - 1)
        return self.clone(
            depth=depth, last_block=last_block, final_norm=False, drop_path=rate
        )

    @nn.compact
    def __call__(
        self,
        image: jax.Array | pixels.Pixels,
        ids_keep: jax.Array | None = None,
        *,
        hide: tuple[jax.Array, jax.Array] | None = None,
        drop_keys: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, layers.Intermediates]:
        """Encodes images, or only the patches of them that `ids_keep` names.

        Args:
          image: normalised images `[B, H, W, C]`, or their bytes as `Pixels`.
          ids_keep: patches to encode `[B, M]`, in this order; None takes all. They
            are gathered before the projection, so the others cost nothing.
          hide: a mask `[B, N]` and a token `[1, 1, D]`; the embedding of a patch
            whose mask is 1 becomes the token.
          drop_keys: one typed key per example `[B]`; needed to train with
            `drop_path`.
          train: turns drop path on.

        Returns:
          Tokens `[B, T, D]`, the class token first, and every intermediate:
          'patch_embed' `[B, M, D]` (before positions are added), 'pre_norm' `[B, T, D]`
          (before the final norm), and for each block, as in 'block_00/in':
          in, norm1, attn, norm2, mlp, out `[B, T, D]` (residual stream entering,
          after LN1, attention branch, after LN2, MLP branch, stream leaving);
          q, k, v `[B, A, T, D/A]`; attn_logits and attn_probs `[B, A, T, T]`,
          float32, the logits scaled and before the softmax.
          jit removes what nobody reads.

        Raises:
          ValueError: `ids_keep` with a relative position bias, whose table is for a
            whole grid.
        """
        self._check_whole(ids_keep)
        grid = layers.grid_of(image.shape, self.patch_size)
        table = self._pos_table(grid)
        patches, pos = pixels.patches(image, self.patch_size, ids_keep), table[:, 1:]
        if ids_keep is not None:
            pos = jnp.asarray(pos)[0].at[ids_keep].get(mode="promise_in_bounds")
        embed = layers.patch_embed(
            self.init_style, patches.shape[-1], self.width, self.dtype
        )
        intermediates = {"patch_embed": embed(patches)}
        x = intermediates["patch_embed"]
        if hide is not None:
            x = jnp.where(hide[0][..., None] > 0, hide[1].astype(x.dtype), x)
        x = x + jnp.asarray(pos, self.dtype)
        x = jnp.concatenate([self._cls(table, x.shape[0]), x], axis=1)
        keys = drop_keys if self._drops(drop_keys, train) else None
        x = self._blocks(x, intermediates, keys, grid)
        intermediates["pre_norm"] = x
        if self.final_norm:
            x = layers.LayerNorm(self.dtype, name="norm")(x)
        return x, intermediates

    def _check_whole(self, ids_keep):
        if ids_keep is not None and self.rpe_style != "none":
            raise ValueError(
                f"encoder: rpe_style={self.rpe_style!r} needs all patches, but some "
                "are left out; expected rpe_style='none' for masked pre-training"
            )

    def _blocks(self, x, intermediates, drop_keys, grid):
        def make(cls, **kwargs):
            mlp_dim = int(self.width * self.mlp_ratio)
            sizes = (self.num_heads, mlp_dim, self.init_style, self.dtype)
            how = {"attention": self.attention, **self._relative(grid)}
            return cls(*sizes, **how, **kwargs)

        rates = np.linspace(0, self.drop_path, self.depth)
        whole = self.depth - (self.last_block != "full")
        x, inside = stack.run(
            self,
            make,
            whole,
            x,
            rates=rates[:whole],
            drop_keys=drop_keys,
            remat=self.remat,
        )
        intermediates |= inside
        if whole < self.depth:
            intermediates |= stack.numbered(whole, self._partial_block(whole)(x))
        return x

    def _relative(self, grid):
        if self.rpe_style == "none":
            return {}
        style = relative.STYLES[self.rpe_style]
        return {"grid": grid, **dataclasses.asdict(style)}

    def _partial_block(self, i):
        return partial_block.PartialBlock(
            self.num_heads,
            self.init_style,
            self.dtype,
            self.last_block,
            name=f"blocks_{i}",
        )

    def _cls(self, table, batch):
        init = layers.cls_init(self.init_style)
        cls = self.param("cls_token", init, (1, 1, self.width))
        cls = (cls + table[:, :1]).astype(self.dtype)
        return jnp.broadcast_to(cls, (batch, 1, self.width))

    def _drops(self, drop_keys, train):
        if not (train and self.drop_path):
            return False
        if drop_keys is None:
            raise ValueError(
                f"encoder: drop_path={self.drop_path} in training needs drop_keys, "
                "one typed key per example; got None"
            )
        return True

    def _pos_table(self, grid):
        """Position embeddings `[1, 1 + N, D]`, cls first."""
        order = self.pos_embed.removeprefix("learned_")
        if order == "learned":
            init = layers.normal(0.02)
            shape = (1, 1 + grid[0] * grid[1], self.width)
            return self.param("pos_embed", init, shape)
        table = layers.sincos_table(grid, self.width, order)[None]
        if order == self.pos_embed:
            return table
        return self.param("pos_embed", lambda _, s: jnp.asarray(table), table.shape)


def pool_tokens(tokens: jax.Array, pool: str) -> jax.Array:
    """Pools tokens `[B, T, D]` to float32 `[B, D]`.

    Args:
      tokens: class token first.
      pool: 'cls' takes the class token, 'avg' the mean over patch tokens.
    """
    choices.check("pool", pool, ("avg", "cls"))
    tokens = tokens.astype(jnp.float32)
    return tokens[:, 0] if pool == "cls" else tokens[:, 1:].mean(axis=1)


def features_of(
    tokens: jax.Array, intermediates: layers.Intermediates
) -> dict[str, jax.Array]:
    """Pools an encoder's results in every way: float32 arrays by name.

    Args:
      tokens: `[B, T, D]`, the class token first.
      intermediates: the encoder's intermediates.

    Returns:
      'features' and 'features_cls' `[B, D]`: the class token, of which a classifier
      replaces the first by what its head reads; 'features_avg' `[B, D]`: the mean of
      the patch tokens; 'tokens' `[B, N, D]`: these; and the arrays of `blocks_of`.
    """
    pooled = dict.fromkeys(("features", "features_cls"), pool_tokens(tokens, "cls"))
    pooled["features_avg"] = pool_tokens(tokens, "avg")
    pooled["tokens"] = tokens[:, 1:].astype(jnp.float32)
    return pooled | blocks_of(intermediates)


def blocks_of(intermediates: layers.Intermediates) -> dict[str, jax.Array]:
    """Pooled tokens as they leave each block, before any norm, float32.

    Args:
      intermediates: the encoder's intermediates.

    Returns:
      'features_blocks' `[B, L, D]`, class tokens, and 'features_blocks_avg'
      `[B, L, D]`, means of the patch tokens; the first block first.
    """
    outs = [
        intermediates[name] for name in sorted(intermediates) if name.endswith("/out")
    ]
    return {
        name: jnp.stack([pool_tokens(x, pool) for x in outs], axis=1)
        for name, pool in (("features_blocks", "cls"), ("features_blocks_avg", "avg"))
    }
