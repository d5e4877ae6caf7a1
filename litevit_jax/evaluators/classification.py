"""Top-1, top-5, mean-per-class accuracy and cross-entropy over a split."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from litevit_jax import choices
from litevit_jax.evaluators import base


def make(
    *, context: base.Context, split: str = "eval", metric: str = "top1"
) -> Classification:
    """Builds the evaluator.

    Args:
      context: see base.
      split: 'eval' or 'train'.
      metric: the primary one, by which the best step is told: 'top1', or
        'mean_per_class', which is customary where classes differ much in size.

    Raises:
      ValueError: another metric.
    """
    kinds = {"mean_per_class": ByClass, "top1": Classification}
    choices.check("metric of evaluator 'classification'", metric, list(kinds))
    return kinds[metric](context, split)


@dataclasses.dataclass(frozen=True)
class Classification(base.Evaluator):
    """Accuracy and loss: sums over the split under the mask, divided at the end."""

    split: str

    best: ClassVar[str | None] = "top1"
    labelled: ClassVar[bool] = True

    @property
    def metrics(self) -> dict[str, bool]:
        """Accuracies, and the loss."""
        shares = dict.fromkeys(
            (*tops(self.context.num_classes), "mean_per_class"), True
        )
        return {**shares, "loss": False}

    @property
    def reads(self) -> tuple[str, ...]:
        """The logits of the objective."""
        return ("logits",)

    def run(self, state: Any, *, step: int) -> dict[str, float]:
        """Returns top1, top5, mean_per_class (percent), loss (nats), n images counted.

        mean_per_class is the mean, over the classes that have examples here, of the
        share of each that is right. See `tops` for when top5 is left out.
        """
        hits = np.zeros(self.context.num_classes)
        counts, loss = np.zeros_like(hits), 0.0
        right = dict.fromkeys(tops(len(hits)), 0.0)
        for batch, out in self.context.over(state, self.split, self.reads):
            mask = batch["mask"] * (batch["label"] >= 0)
            rows = _score(out["logits"].astype(np.float64), batch["label"])
            label = np.maximum(batch["label"], 0)
            counts += np.bincount(label, mask, minlength=len(counts))
            hits += np.bincount(label, mask * (rows["rank"] < 1), minlength=len(counts))
            for name, most in tops(len(hits)).items():
                right[name] += float(((rows["rank"] < most) * mask).sum())
            loss += float((rows["loss"] * mask).sum())
        n, occurring = max(counts.sum(), 1.0), counts > 0
        shares = hits[occurring] / counts[occurring]
        return {
            **{name: float(100 * count / n) for name, count in right.items()},
            "mean_per_class": float(100 * shares.mean()) if occurring.any() else 0.0,
            "loss": float(loss / n),
            "n": int(counts.sum()),
        }


@dataclasses.dataclass(frozen=True)
class ByClass(Classification):
    """Classification whose number to maximise is mean_per_class."""

    best: ClassVar[str | None] = "mean_per_class"


def _score(logits: np.ndarray, label: np.ndarray) -> dict[str, np.ndarray]:
    """Computes rank and loss of each example, of logits [B, K] and label [B]."""
    own = logits[np.arange(len(label)), label]
    top = logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
    return {"rank": rank(logits, label), "loss": log_sum - own}


def tops(num_classes: int) -> dict[str, int]:
    """Maps the name of an accuracy to the rank below which a label counts as right.

    Of five classes or fewer all labels are among the first five: there is no top5.
    """
    return {"top1": 1, "top5": 5} if num_classes > 5 else {"top1": 1}


def rank(scores: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Counts the classes that come before label [B] in scores [B, K]: int [B].

    It counts classes that do not score lower, of equal ones those before the label;
    so constant scores are not called right, nor are those that are no numbers.
    """
    own = scores[np.arange(len(label)), label][:, None]
    after = np.arange(scores.shape[1])[None] > label[:, None]
    beaten = (scores < own) | ((scores == own) & after)
    return scores.shape[1] - 1 - beaten.sum(axis=1)
