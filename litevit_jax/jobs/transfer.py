"""The job 'transfer': sweeps fine-tuning on another data set, then tests the best.

Every point of the grid is a run, trained on a part of the training data and evaluated
on the rest (or on the data set's validation split). The best one is trained again on
all of it and evaluated on the test split, which nothing else sees. sweep.json holds
the finished points, so that a stopped sweep continues; several processes may work on
one.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
import re
from typing import Any

from ml_collections import ConfigDict

from litevit_jax import array_digest, choices, paths, terminal
from litevit_jax.data import splits
from litevit_jax.jobs import ledger, summary, train
from litevit_jax.train import resolve
from litevit_jax.warm_start import read
from litevit_jax.weights import names

# The axes of the grid may grow in the same directory; what a point is may not change.
_AXES = ("sweep.lr_base", "sweep.layer_decay", "sweep.epochs", "sweep.warmup_epochs")
_SHOWN = ("top1", "mean_per_class", "top5")
_TEST = re.compile(r"(?<![a-z])test(?![a-z])")  # in the title of an evaluation


@dataclasses.dataclass(frozen=True)
class Point:
    """One setting of the grid."""

    lr_base: float
    layer_decay: float
    epochs: int
    warmup_epochs: float

    @property
    def name(self) -> str:
        """The name of its directory; `lr` is per 256 images, as in `config.lr.base`."""
        return (
            f"lr{self.lr_base:g}-decay{self.layer_decay:g}-epochs{self.epochs}"
            f"-warmup{self.warmup_epochs:g}"
        )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The end of a sweep.

    Attributes:
      table: of its points.
      signal: that stopped it, or None.
      final: directory of the winner's run on all training data, if it came to that.
    """

    table: str
    signal: int | None = None
    final: pathlib.Path | None = None


def single(config: ConfigDict) -> ConfigDict:
    """Returns `config` without its sweep: a single run."""
    return resolve.changed(config, {"job": "train"}, without=["sweep"])


def main(config: ConfigDict, workdir: str, command: str) -> summary.Ending:
    """Runs the sweep, or a single run without one, and prints the results."""
    if not config.sweep.on:
        return train.main(single(config), workdir, command)
    outcome, say = Sweep(config, paths.path(workdir)).run(), terminal.ConsoleLine().say
    say(outcome.table)
    if outcome.signal is not None:
        return summary.Ending(config, signal=outcome.signal)
    say(f"done: all points are in {os.path.join(workdir, 'sweep.json')}")
    return summary.Ending(config, str(outcome.final))


class Sweep:
    """The grid of a config, and the results of its points.

    `parts` is `sweep.json` in `workdir`: the metric, a list of points with their
    settings and validation results, the winner and its test results.
    """

    def __init__(self, config: ConfigDict, workdir: pathlib.Path) -> None:
        self._config = resolve.changed(config, {})
        self._sweep = self._config.sweep
        self._workdir = workdir
        self._title = choices.check(
            "sweep.evaluator", self._sweep.evaluator, sorted(self._config.evals)
        )
        self.points = _grid(self._sweep)
        self._check_and_open()
        self.parts = ledger.Parts(workdir / "sweep.json", metric=self._metric)

    def run(self) -> Outcome:
        """Runs the points that are not finished, then the final run.

        Raises:
          ValueError, OSError: a mistake in the config or data, before any compile.
          FloatingPointError: all points diverged, or the final run did.
          Exception: whatever else ended a point's run; the sweep goes on from there.
        """
        finish = self.parts.finish
        signal = finish(self.points, "point", self._run, row=self._row)
        if signal is not None:
            return Outcome(self.table(), signal)
        best = self.best()
        signal = finish([best], "final run", self._run_final, done=self._is_winner)
        if signal is not None:
            return Outcome(self.table(), signal)
        return Outcome(self.table(), final=self.directory(best, final=True))

    def _run(self, point: Point) -> int | None:
        directory = self.directory(point)
        with ledger.working_in(directory):
            outcome = train.run(self.config_of(point), directory)
        if outcome.signal is None:
            ledger.check_finite(outcome.results)
            self.record(point, outcome.results)
        return outcome.signal

    def _run_final(self, best: Point) -> int | None:
        directory = self.directory(best, final=True)
        with ledger.working_in(directory):
            say = terminal.ConsoleLine().say
            say(f"best on validation: {best.name}; now on all training data")
            outcome = train.run(self.config_of(best, final=True), directory)
        if outcome.signal is None:
            self.record_final(best, outcome.results)
        return outcome.signal

    def _is_winner(self, point: Point) -> bool:
        return self.parts.rest.get("winner") == point.name

    def config_of(self, point: Point, *, final: bool = False) -> ConfigDict:
        """Returns the config of a point's run, or of the final run."""
        fields: dict[str, Any] = {
            "lr.base": point.lr_base,
            "lr.warmup_epochs": point.warmup_epochs,
            "optimizer.layer_decay": point.layer_decay,
            "epochs": point.epochs,
        }
        if not final:
            fields |= _select(self._sweep)
            evals = self._config.evals
            fields["evals"] = {_validation(t): block for t, block in evals.items()}
            if len(fields["evals"]) < len(evals):
                raise ValueError(
                    f"evals {', '.join(sorted(evals))}: on a sweep's points 'test' is "
                    "called 'validation'; give one of them another name"
                )
        return resolve.changed(single(self._config), fields)

    def directory(self, point: Point, *, final: bool = False) -> pathlib.Path:
        """Returns the directory of a point's run."""
        return self._workdir / ("final" if final else "points") / point.name

    def record(self, point: Point, results: dict[str, dict[str, Any]]) -> None:
        """Records the validation results of a point's run."""
        validation = results[_validation(self._title)]["last"]
        self.parts.add(point.name, **self._row(point), validation=validation)

    def _row(self, point: Point) -> dict[str, Any]:
        return {**dataclasses.asdict(point), "peak_lr": self._peak(point.lr_base)}

    def record_final(self, point: Point, results: dict[str, dict[str, Any]]) -> None:
        """Records the test results of the final run."""
        test = {title: result["last"] for title, result in results.items()}
        self.parts.close(winner=point.name, test=test)

    def best(self) -> Point:
        """Returns the point whose last evaluation is best; of equal ones the first.

        Raises:
          FloatingPointError: none has one, as all diverged.
        """
        rows, metric = self.parts.rows, self._metric
        finished = [point for point in self.points if self.parts.has_results(point)]
        if not finished:
            why = rows[self.points[0].name][ledger.FAILED]
            raise FloatingPointError(
                f"all {len(self.points)} points failed, the first one with: {why}"
            )
        return max(finished, key=lambda p: rows[p.name]["validation"][metric])

    def table(self) -> str:
        """Formats all points, and the final run on the test split, in columns."""
        title, test = self._title, self.parts.rest.get("test", {})
        every = [row.get("validation", {}) for row in self.parts.rows.values()]
        shown = [name for name in _SHOWN if any(name in row for row in every)]
        rows = [["data", "lr", "layer decay", "epochs", "warm-up", "n", *shown]]
        failed = []
        for point in self.points:
            row = self.parts.rows.get(point.name, {})
            if self.parts.has_results(point):
                numbers = _numbers(row["validation"], shown)
                rows.append(["validation", *_cells(point), *numbers])
            elif row:
                failed.append(f"\npoint {point.name} failed: {row[ledger.FAILED]}")
        for point in self.points:
            if point.name == self.parts.rest.get("winner"):
                rows.append(["test", *_cells(point), *_numbers(test[title], shown)])
        return (
            f"chosen by {self._metric} on validation images; lr is per 256 images, as "
            f"in the names of points: its peak is {self._peak(1.0):g} times that\n"
            f"{summary.columns(rows)}{''.join(failed)}"
        )

    @property
    def _metric(self) -> str:
        return self._config.evals[self._title].get("metric") or "top1"

    def _peak(self, base: float) -> float:
        return base * self._config.batch_size / 256

    def _check_and_open(self) -> None:
        """Checks a point and the final run, and that the workdir is this sweep's.

        The weights and the data that all points start from are part of its config.
        """
        first, derived = self.points[0], {}
        for final in (False, True):
            directory = self.directory(first, final=final)
            job = train.prepare(
                self.config_of(first, final=final), directory, begin=False
            )
            derived["train_fingerprint"] = job.config["derived"]["train_fingerprint"]
        self._check_splits()
        if self._config.init != "random":
            derived["init_fingerprint"] = array_digest.digest(
                read.read(
                    self._config.init,
                    num_heads=self._config.objective.encoder.num_heads,
                    grid=names.grid_of_flag("init_grid", self._config.init_grid),
                    average=self._config.init_ema,
                ).params
            )
        plain = {**self._config.to_dict(), "derived": derived}
        ledger.check_config(self._workdir, plain, free=_AXES)

    def _check_splits(self) -> None:
        """Refuses a sweep that would choose by the test split."""
        data = self._config.data
        other = resolve.changed(self._config, _select(self._sweep)).data
        if other.holdout.eval:
            return
        same = _names(other.eval_split) & _names(data.eval_split)
        prints = {
            splits.open_split(block, "eval").fingerprint() for block in (data, other)
        }
        if same or len(prints) == 1:
            raise ValueError(
                f"sweep.eval_split={other.eval_split!r} is the test split "
                f"{data.eval_split!r}, or a part of it; points are chosen on other "
                "data: name another split, or leave it out to hold out "
                "sweep.holdout of the training data"
            )


def _select(sweep: ConfigDict) -> dict[str, Any]:
    """Returns the data fields of a point: a part to train on, one to choose by.

    Raises:
      ValueError: only one of the sweep's splits is given.
    """
    if (sweep.train_split is None) != (sweep.eval_split is None):
        raise ValueError(
            f"sweep.train_split={sweep.train_split}, sweep.eval_split="
            f"{sweep.eval_split}; give both, or neither to hold out "
            "sweep.holdout of data.train_split"
        )
    if sweep.train_split is not None:
        return {
            "data.train_split": sweep.train_split,
            "data.eval_split": sweep.eval_split,
        }
    if not 0 < sweep.holdout < 1:
        raise ValueError(
            f"sweep.holdout={sweep.holdout}; expected a share of "
            "the training data, between 0 and 1"
        )
    return {"data.holdout.eval": sweep.holdout}


def _names(text: str) -> set[str]:
    """Returns the names of the splits in 'a[:50%]+b'."""
    return {part.partition("[")[0].strip() for part in text.split("+")}


def _validation(title: str) -> str:
    """Renames 'test' in a title: a point's run never sees a test image."""
    return _TEST.sub("validation", title)


def _cells(point: Point) -> list[str]:
    values = (point.lr_base, point.layer_decay, point.epochs, point.warmup_epochs)
    return [f"{value:g}" for value in values]


def _numbers(row: dict[str, Any], shown: list[str]) -> list[str]:
    values = (row.get(name) for name in shown)
    return [str(row["n"]), *("" if v is None else f"{v:.2f}" for v in values)]


def _grid(sweep: ConfigDict) -> list[Point]:
    """Lists all points of the grid; epochs and warm-up form pairs.

    Raises:
      ValueError: an axis is empty or out of range, or pairs do not match.
    """
    for name in ("lr_base", "layer_decay", "epochs", "warmup_epochs"):
        values = sweep[name]
        if not values or min(values) < 0 or (0 in values and name != "warmup_epochs"):
            raise ValueError(f"sweep.{name}={values}; expected positive numbers")
    if len(sweep.epochs) != len(sweep.warmup_epochs):
        raise ValueError(
            f"sweep.epochs={sweep.epochs} and sweep.warmup_epochs="
            f"{sweep.warmup_epochs} are pairs; expected as many of both"
        )
    if any(epochs != int(epochs) for epochs in sweep.epochs):
        raise ValueError(f"sweep.epochs={sweep.epochs}; expected whole numbers")
    pairs = zip(sweep.epochs, sweep.warmup_epochs, strict=True)
    axes = itertools.product(pairs, sweep.layer_decay, sweep.lr_base)
    return [
        Point(float(lr), float(decay), int(epochs), float(warmup))
        for (epochs, warmup), decay, lr in axes
    ]
