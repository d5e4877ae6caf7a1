"""Runs evaluators during a run and records evals/<title>/result.json."""

from __future__ import annotations

import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any

from litevit_jax import checkpoint, distributed, preemption, terminal
from litevit_jax.evaluators import base
from litevit_jax.train import workdir as workdirs


class EvalRunner:
    """Runs evaluators and records their numbers and what they cost.

    Args:
      evaluators: title -> (evaluator, every_steps).
      config: of the run; plain dict as it is saved.
      workdir: where evals/<title>/result.json is written.
      optimizer: of the run, which may keep an average; None if there is none.
      write: (step, row) -> logs a row.
      line: where results are shown.

    `results`: title -> what is in its result.json, of those that ran or are complete.
    """

    def __init__(
        self,
        evaluators: dict[str, tuple[base.Evaluator, int]],
        config: dict[str, Any],
        workdir: pathlib.Path,
        optimizer: Any,
        write: Callable[[int, dict[str, Any]], None],
        line: terminal.ConsoleLine,
    ) -> None:
        self._evaluators = evaluators
        self._config, self._workdir = config, workdir
        self._optimizer = optimizer
        self._write, self._line = write, line
        self._start = time.perf_counter()
        self._spent = dict.fromkeys(evaluators, 0.0)
        self.results: dict[str, dict[str, Any]] = {}

    def due(self, step: int, *, last: bool) -> list[str]:
        """Titles of the evaluators that run after update `step`."""
        evaluators = self._evaluators.items()
        return [t for t, (_, n) in evaluators if last or (n and step % n == 0)]

    def left_out(self, step: int) -> list[str]:
        """Titles due after update `step` that a stop kept from their end."""
        titles = self.due(step, last=False) if step else []
        missing = self.missing(step) if titles else []
        return [title for title in titles if title in missing]

    def missing(self, step: int) -> list[str]:
        """Titles without a result at `step`; the results of the others are read."""
        missing = []
        for title in self._evaluators:
            read = functools.partial(workdirs.read_result, self._workdir, title)
            result = distributed.run_on_primary(read)
            if result is None or result["last"]["step"] != step:
                missing.append(title)
            else:
                self.results[title] = result
        return missing

    def run(self, state: Any, step: int, titles: list[str]) -> None:
        """Evaluates `state`, which has done `step` updates.

        Of the averaged parameters, if the optimizer keeps an average: then `ema_decay`
        is among the numbers.
        """
        if not titles:
            return
        decay = self._optimizer and self._optimizer.ema_decay
        params = None
        for title in titles:
            evaluator, _ = self._evaluators[title]
            # The first time it is compiled; later ones are as quick as the last.
            again = self._spent[title] > 0
            self._line.begin(f"step {step}  {title}: evaluating", quiet=again)
            if params is None:
                if decay is not None:
                    average = self._optimizer.average(state.opt_state, state.params)
                    state = state.replace(params=average)
                params = checkpoint.fingerprint(state)
            start = time.perf_counter()
            with preemption.at_once():  # on resuming it is made again
                numbers = evaluator.run(state, step=step)
            if evaluator.context.unmatched:
                numbers = {**numbers, "unmatched": evaluator.context.unmatched}
            if decay is not None:
                numbers = {**numbers, "ema_decay": decay}
            cost = self._cost(title, time.perf_counter() - start)
            stamp = {"params": params, "time": time.time()}
            row = {"step": step, **numbers, **cost, **stamp}
            about = self._about(title, numbers)
            record = functools.partial(
                workdirs.record_result, self._workdir, title, row, evaluator.best, about
            )
            self.results[title] = distributed.run_on_primary(record)
            logged = {**numbers, **cost}
            self._write(step, {f"{title}/{k}": v for k, v in logged.items()})
            shown = ((k, v) for k, v in numbers.items() if not isinstance(v, list))
            said = "  ".join(f"{k} {_short(v)}" for k, v in shown)
            self._line.say(f"step {step}  {title}: {said}  ({cost['seconds']:.1f} s)")
        from litevit_jax import cpu

        cpu.give_back_memory()

    def _cost(self, title: str, seconds: float) -> dict[str, float]:
        """Seconds of this evaluation; percentage that all of `title` took of the time
        since the run started, or was resumed."""
        self._spent[title] += seconds
        percent = 100 * self._spent[title] / (time.perf_counter() - self._start)
        return {"seconds": seconds, "percent_of_run": percent}

    def _about(self, title: str, numbers: dict[str, float]) -> dict[str, Any]:
        """What a result is of, whichever of its rows is read."""
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


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
