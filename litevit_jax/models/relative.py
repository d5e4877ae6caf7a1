"""Relative position bias of attention, with a class token (recipes 1.5).

A table has a row for each offset (query minus key) of two patches of the grid and
three for the class token, and a column for each head.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

_OF_CLS = 3  # rows: class token asks a patch, a patch asks it, it asks itself


@dataclasses.dataclass(frozen=True)
class Style:
    """Options of blocks with relative position bias, besides the bias itself.

    Attributes:
      fused_bias: whether q, k and v have one stored bias, as without the table; else
        q and v have their own and k has none.
      layer_scale: initial factor of both residual branches; None: no factor.
    """

    fused_bias: bool
    layer_scale: float | None


# 'v2023' is the authors' code of 2023, 'qv_bias' the default of their revision of
# 2025, 'dense' the encoder of mmsegmentation. Only 'fused' and 'dense' can take every
# parameter of a pre-trained block, and as they start both compute what it does.
STYLES = {
    "dense": Style(fused_bias=True, layer_scale=1.0),
    "fused": Style(fused_bias=True, layer_scale=None),
    "qv_bias": Style(fused_bias=False, layer_scale=None),
    "v2023": Style(fused_bias=False, layer_scale=0.1),
}


def table_rows(grid: tuple[int, int]) -> int:
    """The number of rows of a table for `grid`, rows and columns of patches."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + _OF_CLS


def index(grid: tuple[int, int]) -> np.ndarray:
    """The row of a table that each query and key read, int64 `[T, T]`.

    (r_i - r_j + R - 1)(2C - 1) + c_i - c_j + C - 1 for patches at rows r and columns c
    of R x C; the last three rows where one of the two is the class token.
    """
    rows, cols = grid
    row, col = np.divmod(np.arange(rows * cols), cols)
    down, right = row[:, None] - row + rows - 1, col[:, None] - col + cols - 1
    table_row = np.pad(down * (2 * cols - 1) + right, ((1, 0), (1, 0)))
    last = table_rows(grid) - _OF_CLS
    table_row[0], table_row[1:, 0], table_row[0, 0] = last, last + 1, last + 2
    return table_row


def expand(table: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """The bias of every query and key `[A, T, T]` from a table `[rows, A]`, float32.

    It is `table[index(grid)]`, written as products with zeros and ones, rows and
    columns apart. The gradient of a lookup is summed in no fixed order on GPUs, so that
    a run would not repeat bit for bit, and one by one on TPUs.

    Args:
      table: offsets of patches, row-major, then the class token's rows.
      grid: rows and columns of patches; T is 1 plus their product.
    """
    rows, cols = grid
    count, heads = rows * cols, table.shape[1]
    offsets = table[:-_OF_CLS].reshape(2 * rows - 1, 2 * cols - 1, heads)
    # [R, R, 2R - 1], [2R - 1, 2C - 1, A] -> [R, R, 2C - 1, A] -> [A, R, C, R, C]
    bias = jnp.einsum(
        "rsm,mna->rsna", one_hot_offsets(rows), offsets, precision="highest"
    )
    bias = jnp.einsum(
        "cdn,rsna->arcsd", one_hot_offsets(cols), bias, precision="highest"
    )
    bias = bias.reshape(heads, count, count)
    to_patch, to_cls, own = table[-_OF_CLS:, :, None, None]
    first = jnp.broadcast_to(to_patch, (heads, 1, count))
    column = jnp.broadcast_to(to_cls, (heads, count, 1))
    first = jnp.concatenate([own, first], axis=2)
    return jnp.concatenate([first, jnp.concatenate([column, bias], axis=2)], axis=1)


def one_hot_offsets(length: int) -> np.ndarray:
    """One-hot offsets `[i, j, m]`: 1 where query `i` and key `j` have offset `m`."""
    position = np.arange(length)
    offset = position[:, None] - position[None] + length - 1
    return np.eye(2 * length - 1, dtype=np.float32)[offset]
