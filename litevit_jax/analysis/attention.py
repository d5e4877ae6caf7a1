"""How far and how widely heads look: distance and entropy of attention.

arXiv 2205.14443 (recipes 8.3). The class token is left out, as query and as key, and
attention is renormalised to sum to 1 over the patches.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

COMPAT = ("exact", "paper")
# The authors multiply distances in patches by 14, the number of patches in a row at 224
# pixels, instead of the patch size 16, and add 1e-6 inside the logarithm
# (recipes 8.3 and 12).
PAPER_FACTOR, PAPER_EPSILON = 14, 1e-6


def distances(grid: tuple[int, int], factor: float) -> np.ndarray:
    """Distances between the patches of a grid `[N, N]`, times `factor`; float32.

    Args:
      grid: rows and columns of patches, which are counted row by row.
      factor: the size of a patch in the unit wanted, such as its pixels.
    """
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    apart = [np.subtract.outer(x, x) for x in (rows, columns)]
    return (factor * np.hypot(*apart)).astype(np.float32)


def factor_of(compat: str, patch_size: int) -> float:
    """The patch size in pixels, or with 'paper' the factor that the authors use."""
    return PAPER_FACTOR if compat == "paper" else patch_size


def over_patches(logits: jax.Array) -> jax.Array:
    """Attention among patches `[B, A, N, N]`, from logits `[B, A, T, T]`, T = 1 + N."""
    return jax.nn.softmax(logits[:, :, 1:, 1:].astype(jnp.float32), axis=-1)


def entropy(probs: jax.Array, compat: str = "exact") -> jax.Array:
    """Mean entropy of the rows of `probs [B, A, N, N]`: `[B, A]`, in nats.

    log N if a head looks at all patches alike, 0 if it picks one. With 'paper' the
    logarithm is of a + 1e-6, and a head that picks one has -1e-6.
    """
    if compat == "paper":
        terms = -probs * jnp.log(probs + PAPER_EPSILON)
    else:
        terms = jax.scipy.special.entr(probs)
    return terms.sum(axis=-1).mean(axis=-1)


def distance(probs: jax.Array, apart: jax.Array | np.ndarray) -> jax.Array:
    """Mean distance between a query and the keys it attends to: `[B, A]`.

    Args:
      probs: `[B, A, N, N]`, rows sum to 1.
      apart: the result of `distances`, `[N, N]`; its unit is that of the mean.
    """
    return (probs * apart).sum(axis=-1).mean(axis=-1)


class Means:
    """Means over examples of numbers by name, each example counted once."""

    def __init__(self) -> None:
        self.count = 0
        self._sums: dict[str, np.ndarray] = {}

    def add(self, values: dict[str, np.ndarray], mask: np.ndarray) -> None:
        """Counts arrays `[B, ...]` of the examples whose `mask [B]` is set."""
        self.count += int(mask.sum())
        for name, rows in values.items():
            total = np.asarray(rows, np.float64)[mask].sum(axis=0)
            self._sums[name] = self._sums.get(name, 0) + total

    def mean(self, name: str) -> np.ndarray:
        """The mean of the arrays called `name`: `[...]`, float64."""
        return self._sums[name] / self.count
