"""Runs evaluators during a run and records evals/<title>/result.json."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from litevit_jax import checkpoint, distributed, paths, preemption, terminal
from litevit_jax.train import best
from litevit_jax.train import workdir as workdirs

if TYPE_CHECKING:
    from litevit_jax.evaluators import base
    from litevit_jax.train.job import TrainState
    from litevit_jax.train.optimizer import Optimizer

_MOST_ROWS = 500  # in the history of an evaluator
MANY = 12  # numbers of an evaluation: more of them are not for one line


class EvalRunner:
    """Runs evaluators and records their results and their cost.

    Args:
      evaluators: title -> (evaluator, every_steps).
      config: of the run, as it is saved.
      workdir: where evals/<title>/result.json is written.
      optimizer: of the run, which may keep an average; None without training.
      write: (step, row) -> logs a row.
      line: where results are shown.
      rule: by which the best step is told; None: there is none.

    Attributes:
      results: title -> content of its result.json, if it ran or was complete.
    """

    def __init__(
        self,
        evaluators: dict[str, tuple[base.Evaluator, int]],
        config: dict[str, Any],
        workdir: pathlib.Path,
        optimizer: Optimizer | None,
        write: Callable[[int, dict[str, Any]], None],
        line: terminal.ConsoleLine,
        rule: best.Rule | None = None,
    ) -> None:
        self._best = None if rule is None else best.Best(rule)
        self._evaluators = evaluators
        self._config, self._workdir = config, workdir
        self._optimizer = optimizer
        self._write, self._line = write, line
        self._start = time.perf_counter()
        self._spent = dict.fromkeys(evaluators, 0.0)
        self.results: dict[str, dict[str, Any]] = {}

    @property
    def best(self) -> dict[str, Any] | None:
        """The record of the best step, to be saved with a checkpoint."""
        return None if self._best is None else self._best.record

    @property
    def over(self) -> str:
        """Says why the run ends early; '' while it goes on."""
        return "" if self._best is None else self._best.over

    def resume(self, step: int, record: dict[str, Any] | None) -> None:
        """Goes on at a checkpoint with its record, and a result of the same step."""
        if self._best is None:
            return
        self._best.resume(record)
        rule = self._best.rule
        read = functools.partial(read_result, self._workdir, rule.title)
        last = (distributed.run_on_primary(read) or {"last": {}})["last"]
        if last.get("step") == step and rule.metric in last:
            self._best.update(step, last[rule.metric])
        if self.over:
            self._line.say(self.over)

    def due(self, step: int, *, last: bool) -> list[str]:
        """Returns the titles of the evaluators that run after update `step`."""
        evaluators = self._evaluators.items()
        return [t for t, (_, n) in evaluators if last or (n and step % n == 0)]

    def left_out(self, step: int) -> list[str]:
        """Returns the titles due after update `step` that a stop interrupted."""
        titles = self.due(step, last=False) if step else []
        missing = self.missing(step) if titles else []
        return [title for title in titles if title in missing]

    def missing(self, step: int) -> list[str]:
        """Returns the titles without a result at `step`; reads the other results."""
        missing = []
        for title in self._evaluators:
            read = functools.partial(read_result, self._workdir, title)
            result = distributed.run_on_primary(read)
            if result is None or result["last"]["step"] != step:
                missing.append(title)
            else:
                self.results[title] = result
        return missing

    def run(self, state: TrainState, step: int, titles: list[str]) -> None:
        """Evaluates `state`, which has done `step` updates.

        If the optimizer keeps an average, the averaged parameters are evaluated, and
        `ema_decay` is among the numbers.
        """
        if not titles:
            return
        optimizer = self._optimizer
        decay = None if optimizer is None else optimizer.ema_decay
        params = None
        for title in titles:
            evaluator, _ = self._evaluators[title]
            # The first run compiles; later ones take as long as the last.
            again = self._spent[title] > 0
            self._line.begin(f"step {step}  {title}: evaluating", quiet=again)
            if params is None:
                if optimizer is not None and decay is not None:
                    average = optimizer.average(state.opt_state, state.params)
                    state = dataclasses.replace(state, params=average)
                params = checkpoint.fingerprint(state)
            start = time.perf_counter()
            with preemption.at_once():  # on resuming it is made again
                numbers = evaluator.run(state, step=step)
            _check_numbers(title, numbers, evaluator.best)
            if evaluator.context.unmatched:
                numbers = {**numbers, "unmatched": evaluator.context.unmatched}
            if decay is not None:
                numbers = {**numbers, "ema_decay": decay}
            cost = self._cost(title, time.perf_counter() - start)
            stamp = {"params": params, "time": time.time()}
            row = {"step": step, **numbers, **cost, **stamp}
            about = self._about(title, numbers) | self._choice(title, step, numbers)
            record = functools.partial(
                record_result, self._workdir, title, row, evaluator.best, about
            )
            self.results[title] = distributed.run_on_primary(record)
            logged = {**numbers, **cost}
            self._write(step, {f"{title}/{k}": v for k, v in logged.items()})
            text = numbers_line(numbers, evaluator.metrics)
            self._line.say(f"step {step}  {title}: {text}  ({cost['seconds']:.1f} s)")
            if best.KEY in about and self.over:
                self._line.say(self.over)
        from litevit_jax import cpu

        cpu.give_back_memory()

    def _cost(self, title: str, seconds: float) -> dict[str, float]:
        """Returns the seconds of this evaluation, and the share of the run so far.

        The share is what all evaluations of `title` took, in percent of the time since
        the run started or resumed.
        """
        self._spent[title] += seconds
        percent = 100 * self._spent[title] / (time.perf_counter() - self._start)
        return {"seconds": seconds, "percent_of_run": percent}

    def _choice(
        self, title: str, step: int, numbers: dict[str, float]
    ) -> dict[str, Any]:
        """Counts the evaluation, if the best step is told by it; returns the record."""
        if self._best is None or title != self._best.rule.title:
            return {}
        metric = self._best.rule.metric
        _check_numbers(title, numbers, metric)
        # All processes decide by the first one's number.
        value = distributed.run_on_primary(lambda: float(numbers[metric]))
        self._best.update(step, value)
        return {best.KEY: self._best.record}

    def _about(self, title: str, numbers: dict[str, float]) -> dict[str, Any]:
        """Describes a result: what stands above all of its rows."""
        evaluator, _ = self._evaluators[title]
        classes = evaluator.context.classes
        return {
            "name": title,
            **({"classes": classes} if classes else {}),
            "evaluator": self._config["evals"][title]["name"],
            "metric": evaluator.best or next(iter(numbers)),
            "seed": self._config["seed"],
            "config": self._config,
        }


def _check_numbers(title: str, numbers: object, best: str | None) -> None:
    """Raises TypeError unless an evaluator returned numbers by name."""
    wanted = "at least one number" if best is None else f"the number {best!r}"
    if not isinstance(numbers, dict) or not numbers or best not in (None, *numbers):
        raise TypeError(
            f"evals.{title}: run of the evaluator returned {str(numbers)[:60]}, "
            f"expected a dict with {wanted} by its name"
        )


def numbers_line(numbers: Mapping[str, Any], metrics: Collection[str] = ()) -> str:
    """Returns 'top1 71.2  loss 0.9' for people; of many numbers, those of `metrics`."""
    shown = {k: v for k, v in numbers.items() if not isinstance(v, list)}
    more = ""
    if metrics and len(shown) > MANY:
        few = {k: v for k, v in shown.items() if k in (*metrics, "n")}
        more = f"  and {len(shown) - len(few)} more"
        shown = few
    return "  ".join(f"{k} {_short(v)}" for k, v in shown.items()) + more


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def read_result(workdir: pathlib.Path, title: str) -> dict[str, Any] | None:
    """Reads evals/<title>/result.json; None without the file."""
    path = workdir / "evals" / title / "result.json"
    again = "move it away; the evaluation of the last step is then made again"
    return paths.read_json(path, again) if path.exists() else None


def record_result(
    workdir: pathlib.Path,
    title: str,
    row: dict[str, Any],
    highest: str | None,
    about: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Saves `row` as the last result of `title`, and as the best if it is.

    The history is thinned to at most 500 rows (metrics.jsonl has all of them), so
    that frequent evaluations cost a long run neither memory nor time.

    Args:
      workdir: of the run.
      title: of the evaluator.
      row: its numbers and the step they belong to.
      highest: the number to maximise, or None if there is no best.
      about: what stands above the rows: metric, seed, config...
    """
    result = read_result(workdir, title) or {}
    # Results of later steps come from a run that went on elsewhere: forget them.
    history = [r for r in result.get("history", []) if r["step"] < row["step"]]
    last = {key: row[key] for key in ("n", "step", "params", "time") if key in row}
    result = {**(about or {}), **last, "last": row}
    if highest is not None:
        result["best"] = max([*history, row], key=lambda r: r[highest])
    result["history"] = _thinned([*history, row], highest)
    workdirs.write_json(workdir / "evals" / title / "result.json", result)
    return result


def _thinned(history: list[dict[str, Any]], best: str | None) -> list[dict[str, Any]]:
    """Drops every second row of a long history, but none that was the best so far."""
    if len(history) <= _MOST_ROWS:
        return history
    kept, highest = [], -math.inf
    for i, row in enumerate(history):
        record = best is not None and row[best] > highest
        highest = row[best] if best is not None and record else highest
        if record or i % 2 == 0 or i == len(history) - 1:
            kept.append(row)
    return kept
