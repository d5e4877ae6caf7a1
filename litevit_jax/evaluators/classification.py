"""Top-1, top-5 and cross-entropy of a classifier over a split."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from litevit_jax.evaluators import base


def make(*, context: base.Context, split: str = "eval") -> Classification:
    """`split`: 'eval' or 'train'."""
    return Classification(context, split)


@dataclasses.dataclass(frozen=True)
class Classification(base.Evaluator):
    """Sums over the split under the mask, divided once at the end."""

    split: str

    best: ClassVar[str | None] = "top1"
    labelled: ClassVar[bool] = True

    @property
    def reads(self) -> tuple[str, ...]:
        """Class scores."""
        return ("logits",)

    def run(self, state: Any, *, step: int) -> dict[str, float]:
        """top1, top5 (percent), loss (nats) and n, the examples counted."""
        sums = {"top1": 0.0, "top5": 0.0, "loss": 0.0, "n": 0.0}
        for batch, out in self.context.over(state, self.split, self.reads):
            mask = batch["mask"] * (batch["label"] >= 0)
            rows = _score(out["logits"].astype(np.float64), batch["label"])
            for name, values in rows.items():
                sums[name] += float((values * mask).sum())
            sums["n"] += float(mask.sum())
        n = max(sums["n"], 1.0)
        return {
            "top1": 100 * sums["top1"] / n,
            "top5": 100 * sums["top5"] / n,
            "loss": sums["loss"] / n,
            "n": int(sums["n"]),
        }


def _score(logits: np.ndarray, label: np.ndarray) -> dict[str, np.ndarray]:
    """Per-example hits and loss of logits [B, K] for label [B]."""
    own = logits[np.arange(len(label)), label]
    before = rank(logits, label)
    top = logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
    return {"top1": before < 1, "top5": before < 5, "loss": log_sum - own}


def rank(scores: np.ndarray, label: np.ndarray) -> np.ndarray:
    """How many classes come before label [B] in scores [B, K]: int [B].

    It counts classes that do not score lower, of equal ones those before the label;
    so constant scores are not called right, nor are those that are no numbers.
    """
    own = scores[np.arange(len(label)), label][:, None]
    after = np.arange(scores.shape[1])[None] > label[:, None]
    beaten = (scores < own) | ((scores == own) & after)
    return scores.shape[1] - 1 - beaten.sum(axis=1)
