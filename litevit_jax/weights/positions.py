"""Position embeddings for another grid of patches."""

from __future__ import annotations

import numpy as np

_A = -0.75  # of the cubic kernel: PyTorch's choice; Pillow and JAX have -0.5


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
        cubic_matrix(a, b) for a, b in zip(grid_from, grid_to, strict=True)
    )
    patches = np.einsum("rh,cw,hwd->rcd", vertical, horizontal, patches, optimize=True)
    patches = patches.reshape(1, -1, table.shape[-1]).astype(table.dtype)
    return np.concatenate([table[:, :1], patches], axis=1)


def cubic_matrix(size_from: int, size_to: int) -> np.ndarray:
    """The weights `[size_to, size_from]` of bicubic resizing along one axis.

    Pixels beyond the edge count as the edge's. A row has 4 taps also when the
    result is smaller, as nothing is antialiased.
    """
    centre = (np.arange(size_to) + 0.5) * (size_from / size_to) - 0.5
    left = np.floor(centre).astype(int)
    matrix = np.zeros((size_to, size_from))
    for tap in (-1, 0, 1, 2):
        column = np.clip(left + tap, 0, size_from - 1)
        weight = _cubic(centre - (left + tap))
        np.add.at(matrix, (np.arange(size_to), column), weight)
    return matrix


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys's cubic convolution kernel at distances `x`, at most 2."""
    x = abs(x)
    near = ((_A + 2) * x - (_A + 3)) * x * x + 1
    far = ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A
    return np.where(x <= 1, near, far)
