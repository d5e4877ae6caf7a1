"""The pairs of classes that a classifier confuses most."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from litevit_jax.evaluators import base


def make(*, context: base.Context, split: str = "eval", k: int = 10) -> Confusion:
    """Builds the evaluator.

    Args:
      context: see base.
      split: 'eval' or 'train'.
      k: the most pairs in the table.

    Raises:
      ValueError: k is below 1.
    """
    if k < 1:
        raise ValueError(f"evaluator 'confusion': k={k} pairs; expected 1 or more")
    return Confusion(context, split, k)


@dataclasses.dataclass(frozen=True)
class Confusion(base.Evaluator):
    """Counts which class is called which; 'classification' tells the best step."""

    split: str
    k: int

    labelled: ClassVar[bool] = True

    @property
    def reads(self) -> tuple[str, ...]:
        """The logits of the objective."""
        return ("logits",)

    def run(self, state: Any, *, step: int) -> dict[str, Any]:
        """Returns accuracy and the most frequent confusions over the split.

        Returns:
          'top1', in percent; 'pairs': how many ordered pairs of classes are confused
          at all; 'n': images counted, those with a label; 'table': up to k of the
          pairs, the most frequent first, each with 'class', what it was 'called',
          'count' and 'percent' of the images of its class.
        """
        del step
        counts = self.count(state)
        n, right = counts.sum(), np.trace(counts)
        wrong = counts.copy()
        np.fill_diagonal(wrong, 0)
        return {
            "top1": float(100 * right / max(n, 1)),
            "pairs": int(np.count_nonzero(wrong)),
            "n": int(n),
            "table": self._table(wrong, counts.sum(axis=1)),
        }

    def count(self, state: Any) -> np.ndarray:
        """Counts images by class and by what they are called: int [K, K + 1].

        The last column is of logits that are no numbers. Of equal logits the first
        class is called.
        """
        classes = self.context.num_classes
        counts = np.zeros((classes, classes + 1), np.int64)
        for batch, out in self.context.over(state, self.split, self.reads):
            logits, label = out["logits"], batch["label"]
            broken = np.isnan(logits).any(axis=1)
            called = np.where(broken, classes, logits.argmax(axis=1))
            counted = (batch["mask"] > 0) & (label >= 0)
            np.add.at(counts, (label[counted], called[counted]), 1)
        return counts

    def _table(self, wrong: np.ndarray, images: np.ndarray) -> list[dict[str, Any]]:
        """Lists the largest counts of `wrong` [K, K + 1], of `images` [K]; see `run`.

        Of equal counts the pair of the first classes comes first.
        """
        classes = self.context.source(self.split).classes or range(len(images))
        names = [*map(str, classes), "not a number"]
        order = np.argsort(-wrong, axis=None, kind="stable")[: self.k]
        pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
        return [
            {
                "class": names[own],
                "called": names[called],
                "count": int(wrong[own, called]),
                "percent": float(100 * wrong[own, called] / images[own]),
            }
            for own, called in pairs
            if wrong[own, called]
        ]
