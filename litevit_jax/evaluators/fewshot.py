"""Few-shot classification: a linear classifier from few labelled images of each class.

It is fitted in closed form (ridge regression onto one-hot classes, as in the few-shot
evaluation of ViT, arXiv 2010.11929, section 4.1), for several numbers of images and
several drawings of them. The strength of the regularisation is chosen on further
training images, never on those that are counted.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import numpy as np

from litevit_jax.data import subsets
from litevit_jax.evaluators import base, classification, frozen


def make(
    *,
    context: base.Context,
    split: str = "eval",
    bank: str = "train",
    features: str = "features",
    shots: tuple[int, ...] = (1, 5, 10, 25),
    seeds: int = 5,
    held_out: int = 5,
    l2: tuple[float, ...] = frozen.L2,
) -> FewShot:
    """Builds the evaluator.

    Args:
      context: see base.
      split: the images that are classified.
      bank: the images that are drawn from.
      features: which prediction to classify by.
      shots: images of each class; a smaller number is part of a larger one.
      seeds: how many drawings: seeds 0, 1, ...
      held_out: further images of each class on which `l2` is chosen.
      l2: strengths to choose from, see `frozen.fit`. With a single one nothing is
        chosen and `held_out` has no effect.

    Raises:
      ValueError: a value out of range.
    """
    if not shots or min(shots) < 1 or seeds < 1 or held_out < 1:
        raise ValueError(
            f"fewshot: shots={tuple(shots)}, {seeds=}, {held_out=}; expected numbers "
            "of images and drawings, each at least 1"
        )
    frozen.check_l2("fewshot", l2)
    return FewShot(
        context,
        split=split,
        bank=bank,
        features=features,
        shots=tuple(sorted(shots)),
        seeds=seeds,
        held_out=held_out if len(l2) > 1 else 0,
        l2=tuple(l2),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShot(base.Evaluator):
    """Classifies `split` after a few images of `bank`; see `make` for the fields."""

    split: str
    bank: str
    features: str
    shots: tuple[int, ...]
    seeds: int
    held_out: int
    l2: tuple[float, ...]

    best: ClassVar[str | None] = "top1"
    labelled: ClassVar[bool] = True

    @property
    def reads(self) -> tuple[str, ...]:
        """The features that the classifiers read."""
        return (self.features,)

    @functools.cached_property
    def draws(self) -> np.ndarray:
        """Rows of the bank [seeds, K, shots + held_out], in the order of drawing.

        Raises:
          ValueError: a class has too few images; it is named.
        """
        most = self.shots[-1]
        what = f"fewshot: shots={most}"
        if self.held_out:
            what += f" and held_out={self.held_out} (to choose l2)"
        rows = [
            subsets.draw_per_class(
                self.context.source(self.bank),
                count=most + self.held_out,
                seed=seed,
                what=f"{what} of each class",
                lower="the evaluator's shots",
            )
            for seed in range(self.seeds)
        ]
        return np.stack(rows)

    def check_data(self) -> None:
        """Raises ValueError for unlabelled data or too few images of a class."""
        super().check_data()
        assert self.draws.size

    def run(self, state: Any, *, step: int) -> dict[str, Any]:
        """Returns accuracies by the number of images of each class, in percent.

        Returns:
          'top1': mean over all shots and drawings; 'top1_S': mean over the drawings
          of S images of each class; 'top1_S_std': their standard deviation (ddof 1;
          not for a single drawing); 'n': images counted; 'table': every fit.
        """
        del step
        draws = self.draws
        rows = np.unique(draws)
        bank, _, index = frozen.gather(
            frozen.part(self.context, self.bank, rows), state, self.bank, self.features
        )
        assert np.array_equal(index, np.arange(len(rows)))  # what is bad has raised
        test = frozen.gather(self.context, state, self.split, self.features)[:2]
        table = [
            {"shots": shots, "seed": seed}
            | self._fit(bank[np.searchsorted(rows, drawn)], shots, test)
            for shots in self.shots
            for seed, drawn in enumerate(draws)
        ]
        numbers: dict[str, Any] = {"top1": float(np.mean([r["top1"] for r in table]))}
        for shots in self.shots:
            top1 = [row["top1"] for row in table if row["shots"] == shots]
            numbers[f"top1_{shots}"] = float(np.mean(top1))
            if self.seeds > 1:
                numbers[f"top1_{shots}_std"] = float(np.std(top1, ddof=1))
        return numbers | {"n": len(test[1]), "table": table}

    def _fit(self, drawn: np.ndarray, shots: int, test: Any) -> dict[str, float]:
        """Fits on the first `shots` of the images drawn [K, N, D]: l2 and top1."""
        classes, most = drawn.shape[0], self.shots[-1]
        x, label = _flat(drawn[:, :shots])
        ridge, index = frozen.fit(x, label, classes, self.l2), 0
        if self.held_out:
            index, _ = frozen.choose(ridge, *_flat(drawn[:, most:]))
        scores = ridge.scores(test[0], index)
        rank = classification.rank(scores, test[1])
        return {"l2": self.l2[index], "top1": 100 * float((rank < 1).mean())}


def _flat(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flattens images drawn [K, N, D]: features [K N, D] and labels [K N]."""
    classes, count, width = drawn.shape
    return drawn.reshape(-1, width), np.repeat(np.arange(classes), count)
