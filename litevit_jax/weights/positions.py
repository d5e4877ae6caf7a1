"""Position embeddings and tables of relative positions for another grid of patches."""

from __future__ import annotations

import numpy as np

from litevit_jax.models import interpolate

_OF_CLS = 3  # rows of a table of relative positions for the class token
_RATIOS = (1.01, 1.5)  # between which its stretching looks for q


def resize(
    table: np.ndarray, grid_from: tuple[int, int], grid_to: tuple[int, int]
) -> np.ndarray:
    """Resizes a table of positions by bicubic interpolation; the cls row stays.

    It agrees with `torch.nn.functional.interpolate(mode='bicubic',
    align_corners=False)` without antialiasing, which timm's and DeiT's fine-tuning
    at another resolution use.

    Args:
      table: `[1, 1 + N, D]`, the class token's row first, then rows of patches.
      grid_from: rows and columns of patches of `table`.
      grid_to: rows and columns wanted.

    Returns:
      `[1, 1 + N', D]` in the type of `table`.

    Raises:
      ValueError: the table does not have the rows of `grid_from`, or an empty grid.
    """
    table = np.asarray(table)
    rows, cols = grid_from
    if min(*grid_from, *grid_to) < 1:
        raise ValueError(
            f"pos_embed: grids {grid_from} -> {grid_to}, expected at least 1 x 1"
        )
    if table.ndim != 3 or table.shape[:2] != (1, 1 + rows * cols):
        raise ValueError(
            f"pos_embed: got shape {table.shape}, expected (1, {1 + rows * cols}, D): "
            f"a class token and {rows} x {cols} patches"
        )
    if tuple(grid_from) == tuple(grid_to):
        return table
    # [N, D] -> [rows, cols, D]
    patches = table[0, 1:].astype(np.float64).reshape(rows, cols, -1)
    vertical, horizontal = (
        interpolate.cubic_matrix(a, b) for a, b in zip(grid_from, grid_to, strict=True)
    )
    patches = np.einsum("rh,cw,hwd->rcd", vertical, horizontal, patches, optimize=True)
    patches = patches.reshape(1, -1, table.shape[-1]).astype(table.dtype)
    return np.concatenate([table[:, :1], patches], axis=1)


def resize_offsets(table: np.ndarray, rows: int) -> np.ndarray:
    """Resizes a table by offsets along an axis, `[2 K - 1, E]`, to `[rows, E]`.

    Linear with half-pixel centres, as detectron2 does it in every pass.
    """
    count = len(table)
    at = (np.arange(rows) + 0.5) * count / rows - 0.5
    columns = [np.interp(at, np.arange(count), x) for x in table.astype(np.float64).T]
    return np.stack(columns, axis=1).astype(table.dtype)


def stretch_bias(
    table: np.ndarray, grid_from: tuple[int, int], grid_to: tuple[int, int]
) -> np.ndarray:
    """Stretches a table of relative positions to a larger grid of patches.

    As in BEiT, whose code mmsegmentation's encoders load tables with: the rows stand
    for offsets 0, 1, 1 + q, 1 + q + q^2, ..., with a q by which the last reaches the
    largest offset of the new grid. So near offsets keep their resolution. A cubic
    spline through them gives the whole offsets in between.

    Args:
      table: `[rows, A]`, offsets of patches row-major, then three of the class token,
        which stay.
      grid_from: rows and columns of patches of `table`.
      grid_to: rows and columns wanted, none of them fewer.

    Returns:
      `[rows', A]` in the type of `table`.

    Raises:
      ValueError: the table does not have the rows of `grid_from`, or the new grid has
        fewer rows or columns.
    """
    lengths, wanted = ([2 * n - 1 for n in grid] for grid in (grid_from, grid_to))
    count = lengths[0] * lengths[1]
    if table.ndim != 2 or len(table) != count + _OF_CLS:
        raise ValueError(
            f"relative positions: got shape {table.shape}, expected "
            f"({count + _OF_CLS}, heads) for {grid_from[0]} x {grid_from[1]} patches"
        )
    if grid_to[0] < grid_from[0] or grid_to[1] < grid_from[1]:
        raise ValueError(
            f"relative positions: grids {grid_from} -> {grid_to}; tables can be "
            "stretched, not shrunk"
        )
    values = table[:count].astype(np.float64).reshape(*lengths, -1)
    for axis in (0, 1):
        values = _stretched(values, axis, wanted[axis])
    values = values.reshape(-1, table.shape[1]).astype(table.dtype)
    return np.concatenate([values, table[count:]])


def _stretched(values: np.ndarray, axis: int, length: int) -> np.ndarray:
    """Interpolates the offsets on one axis to `length` of them, an odd number."""
    from scipy import interpolate  # only who loads such a table needs it

    side, reach = values.shape[axis] // 2, length // 2
    if side == reach or not side:
        return np.repeat(values, 1 if side else length, axis=axis)
    steps = geometric_ratio(side, reach) ** np.arange(side)
    known = np.concatenate([-np.cumsum(steps)[::-1], [0], np.cumsum(steps)])
    degree = min(3, 2 * side)
    spline = interpolate.make_interp_spline(known, values, k=degree, axis=axis)
    return spline(np.clip(np.arange(-reach, reach + 1), known[0], known[-1]))


def geometric_ratio(terms: int, total: float) -> float:
    """Finds q in 1.01 to 1.5 for which 1 + q + q^2 + ..., of `terms`, is `total`."""
    low, high = _RATIOS
    q = (low + high) / 2
    while high - low > 1e-6:
        q = (low + high) / 2
        if (1 - q**terms) / (1 - q) > total:
            high = q
        else:
            low = q
    return q
