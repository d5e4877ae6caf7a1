"""The best of a grid of linear probes (objective `probe_grid`), honestly chosen.

Learning rate and features are chosen on images held out of the training split; only
then is the winner's accuracy on the test split the result.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from litevit_jax.evaluators import base, classification


def make(
    *,
    context: base.Context,
    features: tuple[str, ...],
    lrs: tuple[float, ...],
    split: str = "eval",
    select: str = "select",
) -> ProbeGrid:
    """Builds the evaluator.

    Args:
      context: see base.
      features: names of the objective's features.
      lrs: its learning rates.
      split: the images that are counted.
      select: the images by which the winner is chosen.

    Raises:
      ValueError: both are the same images.
    """
    if split == select:
        raise ValueError(
            f"probe_grid: split and select are both {split!r}; the best of a grid on "
            "the images it was chosen by says too much: choose on select='select'"
        )
    return ProbeGrid(context, tuple(features), tuple(lrs), split, select)


@dataclasses.dataclass(frozen=True)
class ProbeGrid(base.Evaluator):
    """Compares all heads; see `make` for the fields."""

    features: tuple[str, ...]
    lrs: tuple[float, ...]
    split: str
    select: str

    best: ClassVar[str | None] = "top1"
    labelled: ClassVar[bool] = True

    @property
    def reads(self) -> tuple[str, ...]:
        """The rank of the label and the loss, for each of the features."""
        kinds = ("grid_rank", "grid_loss")
        return tuple(f"{kind}/{name}" for name in self.features for kind in kinds)

    @property
    def _tops(self) -> dict[str, int]:
        return classification.tops(self.context.num_classes)

    def run(self, state: Any, *, step: int) -> dict[str, Any]:
        """Returns top1, top5 and loss on `split` of the head that is best on `select`.

        Of heads that are right as often the one of lower loss is best. See
        `classification.tops` for when top5 is left out.

        Returns:
          Those, the winner's 'feature' and 'lr', 'n' images counted, 'select_n'
          images chosen by, and 'table': all heads, with 'select_top1' and
          'select_loss'.
        """
        del step
        counted, n = self._score(state, self.split)
        chosen, select_n = self._score(state, self.select)
        table: list[dict[str, Any]] = [
            {"feature": name, "lr": lr}
            | {f"select_{k}": chosen[name][k][g] for k in ("top1", "loss")}
            | {k: values[g] for k, values in counted[name].items()}
            for name in self.features
            for g, lr in enumerate(self.lrs)
        ]
        best = max(table, key=lambda r: (r["select_top1"], -r["select_loss"]))
        numbers = {k: best[k] for k in (*self._tops, "loss", "feature", "lr")}
        return numbers | {"n": n, "select_n": select_n, "table": table}

    def _score(
        self, state: Any, split: str
    ) -> tuple[dict[str, dict[str, list[float]]], int]:
        """Scores all heads: (feature -> top1, top5, loss of each, images counted)."""
        names = (*self._tops, "loss")
        sums = {f: {k: np.zeros(len(self.lrs)) for k in names} for f in self.features}
        n = 0
        for batch, out in self.context.over(state, split, self.reads):
            keep = (batch["mask"] > 0) & (batch["label"] >= 0)
            n += int(keep.sum())
            for name, total in sums.items():
                rank, loss = (out[f"grid_{k}/{name}"][keep] for k in ("rank", "loss"))
                self._check_width(rank)
                for top, most in self._tops.items():
                    total[top] += 100 * (rank < most).sum(axis=0)
                total["loss"] += loss.sum(axis=0, dtype=np.float64)
        return {
            f: {k: (x / max(n, 1)).tolist() for k, x in s.items()}
            for f, s in sums.items()
        }, n

    def _check_width(self, rank: np.ndarray) -> None:
        if rank.shape[1] != len(self.lrs):
            raise ValueError(
                f"probe_grid: the objective trains {rank.shape[1]} learning rates, the "
                f"evaluator was given {len(self.lrs)}; give both the same lrs"
            )
