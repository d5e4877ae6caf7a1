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

from litevit_jax.evaluators import base


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
        """The features asked for."""
        return (self.features,)

    def run(self, state: Any, *, step: int) -> dict[str, float]:
        """top1, top5 (percent) and n, the examples counted."""
        bank, bank_label = self._features(state, self.bank)
        query, label = self._features(state, self.split)
        hits = np.zeros(2)
        for start in range(0, len(query), 1024):
            part = slice(start, start + 1024)
            votes = _vote(
                query[part],
                bank,
                bank_label,
                k=min(self.k, len(bank)),
                temperature=self.temperature,
                num_classes=self.context.num_classes,
            )
            order = np.argsort(-np.asarray(votes), axis=1, kind="stable")[:, :5]
            right = order == label[part][:, None]
            hits += right[:, 0].sum(), right.any(axis=1).sum()
        top1, top5 = 100 * hits / max(len(query), 1)
        return {"top1": float(top1), "top5": float(top5), "n": len(query)}

    def _features(self, state: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Unit features [n, D] and labels [n] of the labelled images of a split."""
        features, labels = [], []
        for batch, out in self.context.over(state, split, self.reads):
            keep = (batch["mask"] > 0) & (batch["label"] >= 0)
            features.append(out[self.features][keep].astype(np.float32))
            labels.append(batch["label"][keep])
        stacked = np.concatenate(features)
        norm = np.linalg.norm(stacked, axis=1, keepdims=True)
        return stacked / np.maximum(norm, 1e-12), np.concatenate(labels)


@functools.partial(jax.jit, static_argnames=("k", "temperature", "num_classes"))
def _vote(
    query: Any, bank: Any, bank_label: Any, *, k: int, temperature: float, num_classes
) -> jax.Array:
    """Votes [n, K] for unit queries [n, D] from a unit bank [m, D]."""
    similarity = jnp.dot(query, bank.T, precision="highest")
    nearest, index = jax.lax.top_k(similarity, k)
    weight = jnp.exp((nearest - nearest[:, :1]) / temperature)
    one_hot = jax.nn.one_hot(bank_label[index], num_classes)
    return jnp.einsum("nk,nkc->nc", weight, one_hot)
