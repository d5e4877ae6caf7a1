"""Statistics of a layer's features: spectrum, rank, how much its tokens differ."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def token_similarity(tokens: jax.Array) -> jax.Array:
    """Mean cosine between different tokens of an image: `[B]`; 1 if all are alike.

    Args:
      tokens: patch tokens `[B, N, D]`, without the class token.
    """
    x = tokens.astype(jnp.float32)
    norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
    total = (x / jnp.maximum(norm, 1e-12)).sum(axis=1)
    n = tokens.shape[1]
    return (jnp.square(total).sum(axis=-1) - n) / max(n * (n - 1), 1)


def principal(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Projects tokens onto their first three principal components.

    The largest weight of a component is positive, so that signs do not depend on the
    machine.

    Args:
      tokens: of several images together, `[B, N, D]`.

    Returns:
      float64 `[B, N, 3]`, and the share of the variance that each explains `[3]`;
      zeros beyond the rank of the tokens.
    """
    rows = tokens.reshape(-1, tokens.shape[-1]).astype(np.float64)
    rows = rows - rows.mean(axis=0)
    values, vectors = np.linalg.eigh(rows.T @ rows)
    axes, variance = vectors.T[:-4:-1], np.maximum(values[:-4:-1], 0)
    largest = np.abs(axes).argmax(axis=1)[:, None]
    axes = axes * np.sign(np.take_along_axis(axes, largest, 1))
    # Float32 tokens: below this a component is rounding.
    axes[variance <= variance[0] * np.finfo(np.float32).eps ** 2] = 0
    missing = 3 - len(axes)
    scores = np.pad(rows @ axes.T, [(0, 0), (0, missing)])
    share = np.pad(variance, (0, missing)) / max(np.maximum(values, 0).sum(), 1e-300)
    return scores.reshape(*tokens.shape[:2], 3), share


class Moments:
    """Sums of features and of their products, from which a spectrum follows.

    Memory is `[L, D, D]`, however many examples are added.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sum: Any = 0.0
        self._products: Any = 0.0

    def add(self, features: np.ndarray, mask: np.ndarray) -> None:
        """Adds the rows of `features [B, L, D]` whose `mask [B]` is set."""
        x = np.asarray(features, np.float64)[mask].swapaxes(0, 1)
        self.count += x.shape[1]
        self._sum = self._sum + x.sum(axis=1)
        self._products = self._products + x.swapaxes(1, 2) @ x

    def spectrum(self) -> np.ndarray:
        """Eigenvalues of the covariance of each layer `[L, D]`, the largest first."""
        mean = self._sum / self.count
        outer = mean[:, :, None] * mean[:, None, :]
        values = np.linalg.eigvalsh(self._products / self.count - outer)
        return np.maximum(values, 0)[:, ::-1]

    def effective_rank(self) -> np.ndarray:
        """Dimensions in use `[L]`, from 1 to D: RankMe (arXiv 2210.02885).

        The exponential of the entropy of the singular values, scaled to sum to 1, of
        the features, not centred; as `effective_rank` in metrics.jsonl.
        """
        squares = np.maximum(np.linalg.eigvalsh(self._products), 0)
        # Float32 features: below this an eigenvalue is rounding.
        noise = squares.max(axis=1, keepdims=True) * np.finfo(np.float32).eps ** 2
        values = np.sqrt(np.where(squares > noise, squares, 0))
        share = values / np.maximum(values.sum(axis=1, keepdims=True), 1e-300)
        logs = np.log(np.where(share > 0, share, 1))
        return np.exp(-(share * logs).sum(axis=1))
