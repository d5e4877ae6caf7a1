"""k nearest neighbours in feature space: no training, no hyper-parameter search.

Weighted vote of Wu et al. 2018 (arXiv 1805.01978): cosine similarity s of the k
nearest training images, each voting for its class with weight exp(s / T).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from litevit_jax.evaluators import base, classification, frozen


def make(
    *,
    context: base.Context,
    split: str = "eval",
    bank: str = "train",
    features: str = "features",
    k: int = 20,
    temperature: float = 0.07,
) -> Knn:
    """Builds the evaluator.

    Args:
      context: see base.
      split: the images that are classified.
      bank: the labelled images they are compared with.
      features: which prediction to compare.
      k: how many neighbours vote.
      temperature: T of the vote.

    Raises:
      ValueError: k or temperature out of range.
    """
    if k < 1 or temperature <= 0:
        raise ValueError(f"knn: {k=} must be >= 1 and {temperature=} > 0")
    return Knn(context, split, bank, features, k, temperature)


@dataclasses.dataclass(frozen=True)
class Knn(base.Evaluator):
    """Compares every image of `split` with all of `bank`."""

    split: str
    bank: str
    features: str
    k: int
    temperature: float

    best: ClassVar[str | None] = "top1"
    labelled: ClassVar[bool] = True

    @property
    def reads(self) -> tuple[str, ...]:
        """The features that are compared."""
        return (self.features,)

    def run(self, state: Any, *, step: int) -> dict[str, float]:
        """Returns top1, top5 (percent), n images counted and bank_n images that vote.

        See `classification.tops` for when top5 is left out.
        """
        del step
        bank, bank_label, _ = frozen.gather(
            self.context, state, self.bank, self.features
        )
        query, label, _ = frozen.gather(self.context, state, self.split, self.features)
        scores = votes(
            query,
            bank,
            bank_label,
            k=self.k,
            temperature=self.temperature,
            num_classes=self.context.num_classes,
        )
        before = classification.rank(scores, label)
        numbers = {
            name: 100 * float((before < most).mean())
            for name, most in classification.tops(self.context.num_classes).items()
        }
        return {**numbers, "n": len(query), "bank_n": len(bank)}


def votes(
    query: np.ndarray,
    bank: np.ndarray,
    bank_label: np.ndarray,
    *,
    k: int,
    temperature: float,
    num_classes: int,
) -> np.ndarray:
    """Computes votes [n, K] of the neighbours of queries [n, D] in a bank [m, D].

    All of the bank votes if there are fewer than k. Features that are no numbers
    get votes that are none either.
    """
    # As many queries at a time as keep their similarities below half a gigabyte.
    rows = int(min(1024, max(1, 2**27 // len(bank)), len(query)))
    settings = {"k": min(k, len(bank)), "temperature": temperature}
    unit, parts = jnp.asarray(_unit(bank)), []
    for start in range(0, len(query), rows):
        part = _unit(query[start : start + rows])
        full = np.zeros((rows, part.shape[1]), np.float32)  # one shape compiles once
        full[: len(part)] = part
        part_votes = _vote(full, unit, bank_label, num_classes=num_classes, **settings)
        parts.append(np.asarray(part_votes)[: len(part)])
    return np.concatenate(parts)


def _unit(features: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(norm, 1e-12)


@functools.partial(jax.jit, static_argnames=("k", "temperature", "num_classes"))
def _vote(
    query: Any, bank: Any, bank_label: Any, *, k: int, temperature: float, num_classes
) -> jax.Array:
    """Computes votes [n, K] for unit queries [n, D] from a unit bank [m, D]."""
    similarity = jnp.dot(query, bank.T, precision="highest")
    nearest, index = jax.lax.top_k(similarity, k)
    weight = jnp.exp((nearest - nearest[:, :1]) / temperature)
    one_hot = jax.nn.one_hot(bank_label[index], num_classes)
    return jnp.einsum("nk,nkc->nc", weight, one_hot)
