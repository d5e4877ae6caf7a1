"""Linear and k-NN probes of every block of an encoder.

The linear classifier is fitted in closed form (`frozen.fit`) to the features that
leave the block, and the vote is that of `knn`. Nothing is trained, so that it can run
beside a pre-training.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from litevit_jax import choices
from litevit_jax.evaluators import base, classification, frozen, knn

_POOLS = {"cls": "features_blocks", "avg": "features_blocks_avg"}


def make(
    *,
    context: base.Context,
    split: str = "eval",
    bank: str = "train",
    pool: str = "cls",
    examples: int = 50_000,
    holdout: float = 0.1,
    seed: int = 0,
    l2: tuple[float, ...] = frozen.L2,
    k: int = 20,
    temperature: float = 0.07,
) -> Layers:
    """Builds the evaluator.

    Args:
      context: see base.
      split: the images that are classified.
      bank: the images that are learned from.
      pool: 'cls' or 'avg', the mean of the patch tokens.
      examples: at most so many images of the bank, drawn by `seed`.
      holdout: share of these on which `l2` and the block are chosen.
      seed: of the drawing.
      l2: strengths of regularisation to choose from, see `frozen.fit`.
      k, temperature: of the vote, see `knn`.

    Raises:
      ValueError: a value out of range.
    """
    choices.check("layers: pool", pool, _POOLS)
    if examples < 2 or not 0 < holdout < 1:
        raise ValueError(
            f"layers: {examples=}, {holdout=}; expected at least 2 images and "
            "a share in (0, 1)"
        )
    if k < 1 or temperature <= 0:
        raise ValueError(f"layers: {k=} must be >= 1 and {temperature=} > 0")
    frozen.check_l2("layers", l2)
    fields = {"examples": examples, "holdout": holdout, "seed": seed}
    vote = {"k": k, "temperature": temperature}
    return Layers(
        context, split=split, bank=bank, pool=pool, **fields, l2=tuple(l2), vote=vote
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layers(base.Evaluator):
    """Probes the pooled tokens that leave every block; see `make` for the fields."""

    split: str
    bank: str
    pool: str
    examples: int
    holdout: float
    seed: int
    l2: tuple[float, ...]
    vote: dict[str, Any]

    best: ClassVar[str | None] = "top1"
    labelled: ClassVar[bool] = True

    @property
    def reads(self) -> tuple[str, ...]:
        """Pooled tokens of every block."""
        return (_POOLS[self.pool],)

    def check_data(self) -> None:
        """Raises ValueError for data without labels or an empty share to choose by."""
        super().check_data()
        count = min(self.examples, len(self.context.source(self.bank)))
        if not 0 < self._held_out(count) < count:
            raise ValueError(
                f"layers: holdout={self.holdout} of {count} images of "
                f"split {self.bank!r} leaves nothing to choose by, or nothing to learn "
                "from; choose another share, or give more images"
            )

    def _held_out(self, count: int) -> int:
        return round(self.holdout * count)

    def run(self, state: Any, *, step: int) -> dict[str, Any]:
        """Returns accuracies on `split` by block, in percent.

        Returns:
          'top1': linear, after 'block', the one that is best on held-out training
          images; 'select_top1': there, of 'select_n' images; 'linear_LL' and
          'knn_LL': after block LL, counted from 01; 'pool'; 'n': images counted;
          'table': the same block by block, with 'l2'.
        """
        del step
        order = np.random.default_rng(self.seed).permutation(
            len(self.context.source(self.bank))
        )
        rows = order[: self.examples]
        bank, bank_label = frozen.gather_rows(
            self.context, state, self.bank, rows, *self.reads
        )
        test, label, _ = frozen.gather(self.context, state, self.split, *self.reads)
        table = []
        for block in range(bank.shape[1]):
            learn = (bank[:, block], bank_label)
            row = self._linear(*learn, test[:, block], label)
            votes = knn.votes(
                test[:, block],
                *learn,
                num_classes=self.context.num_classes,
                **self.vote,
            )
            table.append({"block": block + 1, **row, "knn": _top1(votes, label)})
        best = max(table, key=lambda row: row["select_top1"])
        numbers = {"top1": best["linear"], "block": best["block"]}
        numbers["select_top1"] = best["select_top1"]
        for kind in ("linear", "knn"):
            numbers |= {f"{kind}_{row['block']:02d}": row[kind] for row in table}
        counts = {"n": len(label), "select_n": self._held_out(len(bank))}
        return numbers | counts | {"pool": self.pool, "table": table}

    def _linear(self, bank, bank_label, test, label) -> dict[str, float]:
        """Fits and chooses l2: (l2, accuracy on held-out images, on `split`)."""
        held, classes = self._held_out(len(bank)), self.context.num_classes
        ridge = frozen.fit(bank[held:], bank_label[held:], classes, self.l2)
        index, select_top1 = frozen.choose(ridge, bank[:held], bank_label[:held])
        chosen = self.l2[index]
        ridge = frozen.fit(bank, bank_label, classes, (chosen,))
        top1 = _top1(ridge.scores(test, 0), label)
        return {"l2": chosen, "select_top1": select_top1, "linear": top1}


def _top1(scores: np.ndarray, label: np.ndarray) -> float:
    """Computes the percentage of label [n] that is first in scores [n, K]."""
    return 100 * float((classification.rank(scores, label) < 1).mean())
