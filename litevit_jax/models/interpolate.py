"""Interpolation as a product with a matrix, of which each row holds the weights."""

from __future__ import annotations

import numpy as np

_A = -0.75  # of the cubic kernel: PyTorch's choice; Pillow and JAX have -0.5


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
