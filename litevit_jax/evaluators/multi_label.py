"""Average precision of each class over images that have several labels."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from litevit_jax.evaluators import base


def make(*, context: base.Context, split: str = "eval") -> MultiLabel:
    """Builds the evaluator.

    Args:
      context: see base.
      split: 'eval' or 'train'.
    """
    return MultiLabel(context, split)


@dataclasses.dataclass(frozen=True)
class MultiLabel(base.Evaluator):
    """Ranks the images by the logit of each class, and cuts at a probability of 0.5."""

    split: str

    best: ClassVar[str | None] = "map"

    @property
    def metrics(self) -> dict[str, bool]:
        """Precision and F1, and the loss."""
        return {"map": True, "macro_f1": True, "micro_f1": True, "loss": False}

    @property
    def reads(self) -> tuple[str, ...]:
        """The logits of the objective."""
        return ("logits",)

    def check_data(self) -> None:
        """Raises ValueError if images of the split have one label at most."""
        source = self.context.source(self.split)
        base.check_multi_label(source, f"split {self.split!r}")

    def run(self, state: Any, *, step: int) -> dict[str, Any]:
        """Returns mean average precision and scores of each class, in percent.

        Returns:
          'map': the mean over the classes that occur of 'ap', the average precision;
          'macro_f1': that of 'f1'; 'micro_f1': F1 of all labels together; 'loss': mean
          binary cross-entropy in nats; 'n': images counted; 'table': for each class
          its 'images', 'ap', 'recall', 'precision' and 'f1' (None where it has no
          image, or is never called).
        """
        del step
        logits, labels = [], []
        for batch, out in self.context.over(state, self.split, self.reads):
            keep = batch["mask"] > 0
            logits.append(out["logits"][keep].astype(np.float64))
            labels.append(batch["labels"][keep] > 0)
        scores, truth = np.concatenate(logits), np.concatenate(labels)
        rows = table(scores, truth, self.context.source(self.split).classes)
        occurring = [row for row in rows if row["images"]]
        right, called = ((scores > 0) & truth).sum(), (scores > 0).sum()
        loss = np.logaddexp(0, scores) - truth * scores
        return {
            "map": _mean([row["ap"] for row in occurring]),
            "macro_f1": _mean([row["f1"] for row in rows if row["f1"] is not None]),
            "micro_f1": float(200 * right / max(truth.sum() + called, 1)),
            "loss": float(loss.mean()),
            "n": len(scores),
            "table": rows,
        }


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def table(
    scores: np.ndarray, truth: np.ndarray, classes: list[str]
) -> list[dict[str, Any]]:
    """Returns the scores of each class in percent; see `MultiLabel.run`.

    Args:
      scores: logits [N, K].
      truth: bool [N, K], the labels.
      classes: their names.
    """
    rows = []
    for name, score, own in zip(classes, scores.T, truth.T, strict=True):
        called = score > 0
        right = int((called & own).sum())
        rows.append(
            {
                "class": str(name),
                "images": int(own.sum()),
                "ap": _percent(average_precision(score, own), own.any()),
                "recall": _percent(right, own.sum()),
                "precision": _percent(right, called.sum()),
                "f1": _percent(2 * right, own.sum() + called.sum()),
            }
        )
    return rows


def _percent(part: float, whole: Any) -> float | None:
    return float(100 * part / whole) if whole else None


def average_precision(score: np.ndarray, own: np.ndarray) -> float:
    """Returns the average precision of a ranking by `score [N]` of `own [N]`.

    The sum over all thresholds of the precision there, times the recall that it adds;
    equal scores are one threshold. Scores that are no numbers come last.
    """
    score = np.where(np.isnan(score), -np.inf, score)
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(own[order])
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    recall = hits[last] / max(hits[-1], 1)
    return float((np.diff(recall, prepend=0.0) * hits[last] / (last + 1)).sum())
