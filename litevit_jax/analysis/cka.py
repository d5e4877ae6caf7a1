"""Similarity of representations: linear CKA from minibatches, unbiased HSIC.

arXiv 2205.14443 (recipes 8.2), after Nguyen, Raghu & Kornblith (arXiv 2010.15327):
HSIC is estimated without bias in every minibatch and averaged over minibatches of equal
size; CKA is a ratio of these means. No example has to be kept, and the estimate does
not depend on the size of the minibatch as a biased one would.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

LEAST = 4  # examples in a minibatch: the estimator divides by n - 3


def gram(features: jax.Array) -> jax.Array:
    """Inner products of examples `[B, B]`, float32, 0 on the diagonal.

    Features are centred first, for float32's sake. The estimator's value stays, since
    it ignores what is added to whole rows and columns.

    Args:
      features: one row per example, `[B, ...]`.
    """
    rows = features.reshape(features.shape[0], -1).astype(jnp.float32)
    rows = rows - rows.mean(axis=0)
    products = jnp.dot(rows, rows.T, precision="highest")
    return products * (1 - jnp.eye(len(rows), dtype=products.dtype))


def hsic(grams: np.ndarray) -> np.ndarray:
    """Unbiased HSIC of every pair of `grams [S, B, B]`: `[S, S]`, float64.

    With K and L of zero diagonal, (tr KL + 1'K1 1'L1 / ((n-1)(n-2)) - 2 1'KL1 / (n-2))
    / (n (n-3)), equation 3 of arXiv 2010.15327.

    Raises:
      ValueError: fewer than 4 examples.
    """
    grams = np.asarray(grams, np.float64)
    n = grams.shape[-1]
    if n < LEAST:
        raise ValueError(f"cka: a minibatch of {n} examples; expected {LEAST} or more")
    flat, sums = grams.reshape(len(grams), -1), grams.sum(axis=2)
    totals = sums.sum(axis=1)
    trace, crossed = flat @ flat.T, sums @ sums.T
    outer = np.multiply.outer(totals, totals) / ((n - 1) * (n - 2))
    return (trace + outer - 2 / (n - 2) * crossed) / (n * (n - 3))


class Minibatches:
    """The mean of `hsic` over minibatches of equal size, each with the same weight."""

    def __init__(self) -> None:
        self.count, self.size, self._sum = 0, 0, np.zeros(())

    def add(self, grams: np.ndarray) -> None:
        """Adds `grams [S, B, B]` of one minibatch.

        Raises:
          ValueError: its size differs from that of the earlier ones.
        """
        if self.count and grams.shape[-1] != self.size:
            raise ValueError(
                f"cka: a minibatch of {grams.shape[-1]} examples after ones of "
                f"{self.size}; expected the same size, as all have the same weight"
            )
        self.count, self.size = self.count + 1, grams.shape[-1]
        self._sum = self._sum + hsic(grams)

    def cka(self) -> np.ndarray:
        """The CKA `[S, S]`: 1 on the diagonal, NaN for a constant representation."""
        mean = self._sum / self.count
        norms = np.sqrt(np.maximum(np.diag(mean), 0))
        with np.errstate(divide="ignore", invalid="ignore"):
            return mean / np.multiply.outer(norms, norms)

    def hsic(self) -> np.ndarray:
        """The mean HSIC `[S, S]`."""
        return self._sum / self.count
