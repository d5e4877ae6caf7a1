"""The vision transformer that encodes large images for detection.

ViTDet (arXiv 2203.16527), as in detectron2: most blocks attend within windows, all of
them have relative positions, and the table of positions is that of the images of
pre-training, interpolated in every pass. There is no class token and no final norm.
Parameters have the names and shapes of `vit.Encoder`, so a pre-trained one's fit.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from litevit_jax import choices
from litevit_jax.models import attention as attentions
from litevit_jax.models import interpolate, layers, relative, stack, vit

_WINDOW = 14  # the grid of pre-training at 224 pixels


def make_encoder(
    *,
    grid: tuple[int, int],
    variant: str | None = None,
    width: int | None = None,
    depth: int | None = None,
    num_heads: int | None = None,
    patch_size: int | None = None,
    mlp_ratio: float = 4,
    pos_grid: tuple[int, int] = (14, 14),
    window: int = _WINDOW,
    global_blocks: tuple[int, ...] = (),
    drop_path: float = 0.0,
    dtype: str = "float32",
    attention: str = "auto",
    remat: bool = False,
) -> Encoder:
    """Builds an encoder; explicit sizes override those of the variant.

    Args:
      grid: rows and columns of patches of its images.
      variant, width, depth, num_heads, patch_size: as `vit.make_encoder` takes them.
      global_blocks: numbers of the blocks that attend to the whole image, from 1; ():
        the last block of each quarter.
      mlp_ratio, pos_grid, window, drop_path, dtype, attention, remat: see `Encoder`.

    Raises:
      ValueError: an unknown or incomplete choice, or sizes that do not fit.
    """
    given = {"width": width, "depth": depth}
    given |= {"num_heads": num_heads, "patch_size": patch_size}
    sizes = vit.sizes_of("encoder", vit.VARIANTS, variant, given)
    choices.check("attention", attention, attentions.CHOICES)
    encoder = Encoder(
        **sizes,
        grid=tuple(grid),
        mlp_ratio=mlp_ratio,
        pos_grid=tuple(pos_grid),
        window=window,
        global_blocks=blocks_without_windows(sizes["depth"], global_blocks),
        drop_path=drop_path,
        dtype=str(dtype),
        attention=attention,
        remat=remat,
    )
    _check(encoder)
    return encoder


def blocks_without_windows(depth: int, chosen: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the chosen blocks, or of none the last one of each quarter, from 1."""
    usual = {max(1, round(depth * part / 4)) for part in (1, 2, 3, 4)}
    return tuple(chosen) or tuple(sorted(usual))


def _check(encoder):
    depth, grids = encoder.depth, (encoder.grid, encoder.pos_grid)
    if not all(1 <= block <= depth for block in encoder.global_blocks):
        raise ValueError(
            f"encoder: global_blocks={encoder.global_blocks}, expected numbers from 1 "
            f"to {depth}, or () for the last block of each quarter"
        )
    if encoder.window < 1 or min(*grids[0], *grids[1]) < 1:
        raise ValueError(
            f"encoder: window={encoder.window}, grid={grids[0]}, pos_grid={grids[1]}; "
            "expected at least 1 patch"
        )
    if not 0 <= encoder.drop_path < 1:
        raise ValueError(
            f"encoder: drop_path={encoder.drop_path}, expected 0 <= rate < 1"
        )
    if encoder.width % 4:
        raise ValueError(
            f"encoder: width={encoder.width} is not a multiple of 4, which its table "
            "of positions starts from"
        )


class Encoder(nn.Module):
    """A vision transformer that maps images to maps, without a class token.

    Attributes:
      width, depth, num_heads, patch_size, mlp_ratio: as of `vit.Encoder`.
      grid: rows and columns of patches that the tables of relative positions are for;
        for images of another size they are interpolated.
      pos_grid: rows and columns of patches of the table of positions, which has a row
        for the class token of pre-training too.
      window: side in patches of the windows.
      global_blocks: numbers of the blocks without windows, from 1.
      drop_path, dtype, attention, remat: as of `vit.Encoder`.
    """

    width: int
    depth: int
    num_heads: int
    patch_size: int
    grid: tuple[int, int]
    mlp_ratio: float = 4
    pos_grid: tuple[int, int] = (14, 14)
    window: int = _WINDOW
    global_blocks: tuple[int, ...] = (3, 6, 9, 12)
    drop_path: float = 0.0
    dtype: str = "float32"
    attention: str = "auto"
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        image: jax.Array,
        *,
        drop_keys: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, layers.Intermediates]:
        """Encodes normalised images `[B, H, W, C]`, whose sides patches divide.

        Args:
          image: the images.
          drop_keys: one typed key per example `[B]`; needed to train with `drop_path`.
          train: turns drop path on.

        Returns:
          The map `[B, h, w, D]`, and intermediates: 'patch_embed' `[B, N, D]`,
          'pos_embed' `[1, N, D]`, and those of each block as of `vit.Encoder`, but
          `[B, N, D]` and none inside its attention.
        """
        grid = layers.grid_of(image.shape, self.patch_size)
        patches = layers.patchify(image, self.patch_size)
        sizes = (patches.shape[-1], self.width, self.dtype)
        x = layers.patch_embed("classifier", *sizes)(patches)
        inside = {"patch_embed": x, "pos_embed": self._positions(grid)}
        x = x + inside["pos_embed"].astype(self.dtype)

        def make(cls, **fields):
            mlp_dim = int(self.width * self.mlp_ratio)
            sizes = (self.num_heads, mlp_dim, "classifier", self.dtype)
            return cls(*sizes, grid=grid, attention=self.attention, **fields)

        x, blocks = stack.run(
            self,
            make,
            self.depth,
            x,
            rates=np.linspace(0, self.drop_path, self.depth),
            drop_keys=drop_keys if train and self.drop_path else None,
            kinds=tuple(self._kind(number) for number in range(1, self.depth + 1)),
            remat=self.remat,
        )
        return x.reshape(x.shape[0], *grid, self.width), inside | blocks

    def _kind(self, number):
        whole = number in self.global_blocks
        kind = _attention(None if whole else self.window, tuple(self.grid))
        return {"make_attention": kind}

    def _positions(self, grid):
        """Position embeddings `[1, N, D]`, interpolated from those of pre-training."""
        table = layers.sincos_table(self.pos_grid, self.width, "sincos")[None]
        table = self.param("pos_embed", lambda _, s: jnp.asarray(table), table.shape)
        down, right = (
            interpolate.cubic_matrix(*sides).astype(np.float32)
            for sides in zip(self.pos_grid, grid, strict=True)
        )
        table = table[0, 1:].reshape(*self.pos_grid, self.width)
        table = jnp.einsum("rh,cw,hwd->rcd", down, right, table, precision="highest")
        return table.reshape(1, -1, self.width)


@functools.cache  # one object for blocks that are alike, so that they are traced once
def _attention(window, tables):
    return functools.partial(Attention, window=window, tables=tables)


class Attention(nn.Module):
    """Self-attention with decomposed relative positions, within windows or not.

    The logits of a query q are q . k / sqrt(E) + q . R_h + q . R_w: the rows of two
    tables by how far query and key are apart, down and right (arXiv 2112.01526). They
    are products with queries too, so they are computed as further channels of queries,
    for which keys have a one for their row and their column.

    Attributes:
      num_heads, init_style, dtype, block, fused_bias, grid, kernel: as of
        `layers.Attention`; `grid` is that of the tokens, of which none is a class's.
      window: side of the windows; None: the whole grid.
      tables: the grid that the tables are for where there are no windows.
    """

    num_heads: int
    init_style: str
    dtype: str
    block: int
    fused_bias: bool
    grid: tuple[int, int]
    kernel: str
    window: int | None
    tables: tuple[int, int]

    @nn.compact
    def __call__(
        self, x: jax.Array, first_query: int = 0
    ) -> tuple[jax.Array, layers.Intermediates]:
        """Maps tokens `[B, N, D]`, row by row of the grid, to `[B, N, D]`.

        Windows that reach over the edge have tokens of zeros there, which take part.
        """
        del first_query
        batch, count, width = x.shape
        x = x.reshape(batch, *self.grid, width)
        if self.window is not None:
            x = to_windows(x, self.window)
        sides, scale = x.shape[1:3], (width // self.num_heads) ** -0.5
        init = layers.dense_init(self.init_style, width, 3 * width)
        qkv = layers.Qkv(self.num_heads, self.dtype, init, name="qkv")
        q, k, v = qkv(x.reshape(x.shape[0], -1, width), 0)
        q, k = self._with_positions(q, k, sides, scale)
        out = attentions.attend(q, k, v, scale, None, self.kernel).swapaxes(1, 2)
        init = layers.dense_init(self.init_style, width, width)
        out = layers.Linear(width, self.dtype, init, name="proj")(
            out.reshape(*x.shape[:1], -1, width)
        )
        if self.window is not None:
            out = from_windows(out.reshape(x.shape), self.grid)
        return out.reshape(batch, count, width), {}

    def _with_positions(self, q, k, sides, scale):
        """Queries and keys with further channels, `[B, A, T, E + rows + columns]`."""
        rows, cols = sides
        size = q.shape[-1]
        axes = self.tables if self.window is None else (self.window, self.window)
        down, right = (
            self._by_offset(name, made_for, side, size)
            for name, made_for, side in zip("hw", axes, sides, strict=True)
        )
        queries = q.reshape(*q.shape[:2], rows, cols, size)
        down = jnp.einsum("bahwe,hke->bahwk", queries, down)
        right = jnp.einsum("bahwe,wke->bahwk", queries, right)
        further = jnp.concatenate([down, right], axis=-1) / scale
        further = further.reshape(*q.shape[:3], rows + cols)
        row, col = np.divmod(np.arange(rows * cols), cols)
        ones = np.concatenate([np.eye(rows)[row], np.eye(cols)[col]], axis=1)
        ones = jnp.asarray(ones, k.dtype)
        ones = jnp.broadcast_to(ones, (*k.shape[:2], *ones.shape))
        return jnp.concatenate([q, further], axis=-1), jnp.concatenate([k, ones], -1)

    def _by_offset(self, axis, made_for, side, size):
        """Rows of a table by query and key `[side, side, E]` along one axis."""
        shape = (2 * made_for - 1, size)
        table = self.param(f"rel_pos_{axis}", nn.initializers.zeros, shape)
        if side != made_for:
            shape = (2 * side - 1, size)
            table = jax.image.resize(table, shape, "linear", antialias=False)
        chosen = relative.one_hot_offsets(side)
        table = jnp.einsum("ijm,me->ije", chosen, table, precision="highest")
        return table.astype(self.dtype)


def to_windows(x: jax.Array, window: int) -> jax.Array:
    """Cuts maps `[B, h, w, D]` into `[B * n, window, window, D]`, padded with zeros."""
    batch, rows, cols, width = x.shape
    down, right = -rows % window, -cols % window
    x = jnp.pad(x, ((0, 0), (0, down), (0, right), (0, 0)))
    counts = (x.shape[1] // window, x.shape[2] // window)
    x = x.reshape(batch, counts[0], window, counts[1], window, width)
    return x.swapaxes(2, 3).reshape(-1, window, window, width)


def from_windows(x: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Joins windows `[B * n, s, s, D]` to maps `[B, h, w, D]`; undoes `to_windows`."""
    window, width = x.shape[1], x.shape[-1]
    counts = [-(-side // window) for side in grid]
    x = x.reshape(-1, *counts, window, window, width).swapaxes(2, 3)
    x = x.reshape(-1, counts[0] * window, counts[1] * window, width)
    return x[:, : grid[0], : grid[1]]
