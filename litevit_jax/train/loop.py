"""Runs a job: feed, step, log, save, evaluate, stop; the same for every objective.

Metrics of a step are read after the next one is dispatched, so the device never
waits for the host. Everything is resumable from the step count alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from typing import Any

import jax
import numpy as np

from litevit_jax import checkpoint, distributed, preemption, terminal
from litevit_jax.train import log
from litevit_jax.train.job import Job, TrainState


@dataclasses.dataclass
class RunOutcome:
    """The end of a run: `signal` is None when it is complete.

    >>> litevit_jax.RunOutcome(step=6, results={}).signal  # None
    """

    step: int
    results: dict[str, dict[str, Any]]
    signal: int | None = None


class Run:
    """One run from its latest checkpoint to its end."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.config = job.config
        self.line = terminal.ConsoleLine()
        self.throughput = log.Throughput(job.config["data"])
        self.pace = log.Pace(live=self.line.live)
        self.step = log.Program(job.step, self.line, self.throughput)
        self.guard = log.NonFiniteGuard(**self.config["nonfinite"])
        keep, fixed = self.config["checkpoint"]["keep"], job.fixed
        self.checkpoints = checkpoint.Checkpoints(job.workdir, keep=keep, fixed=fixed)
        self.writer = job.writer()
        self.evaluations = job.eval_runner(self.write, self.line)
        self.pending: tuple[int, dict[str, jax.Array], np.ndarray] | None = None

    def start(self) -> TrainState:
        """Restores the latest checkpoint, or creates a new state."""
        restored = self.checkpoints.restore(self.job.state)
        if restored is None:
            return self.job.create()
        state, meta = restored
        self.guard.skipped = meta["skipped_steps"]
        step = int(state.step)
        self.line.say(f"resuming at step {step} of {self.job.total_steps}")
        self.evaluations.resume(step, meta.get("best"))
        self.write(step, {"event": "resume", "total_steps": self.job.total_steps})
        return state

    def write(self, step: int, row: dict[str, Any]) -> None:
        """Logs a row; only the first process does."""
        if distributed.is_primary():
            self.writer.write(step, row)

    def save(self, state: TrainState) -> None:
        """Starts an asynchronous checkpoint of `state`."""
        self.flush()
        self.writer.flush()
        distributed.heartbeat("saving", grace=True)
        about = {"skipped_steps": self.guard.skipped, "best": self.evaluations.best}
        self.checkpoints.save(state, config=self.config, **about)

    def flush(self) -> None:
        """Reads the metrics of the last dispatched updates, if not read yet."""
        if self.pending is None:
            return
        (last, metrics, index), self.pending = self.pending, None
        values = {k: np.ravel(v) for k, v in jax.device_get(metrics).items()}
        for number, examples in enumerate(index):
            row = {k: float(v[number]) for k, v in values.items()}
            self.report(last - len(index) + 1 + number, row, examples)

    def report(self, step: int, metrics: dict[str, float], index: np.ndarray) -> None:
        """Logs and shows update `step` of the examples `index`."""
        skipped = self.guard.check(step, metrics.pop("nonfinite") > 0, index)
        if skipped is not None:
            self.write(step, skipped)
        last = step == self.job.total_steps
        logged = last or step % self.config["log"]["every_steps"] == 0
        if not self.pace.due(step, logged=logged):
            return
        images = self.config["batch_size"]
        row = {"epoch": step * images / self.config["derived"]["train_examples"]}
        row |= {**metrics, **self.throughput.read(images)}
        if self.guard.skipped:
            row["skipped_steps"] = self.guard.skipped
        if logged:
            self.throughput.reset()
            self.write(step, {**row, "time": time.time()})
        text = log.progress_text(row, step, self.job.total_steps)
        self.line.show(text + self.step.compile_note(), keep=last)

    def evaluate(self, state: TrainState, step: int, titles: list[str]) -> None:
        """Runs evaluators; keeps last and best in evals/<title>/result.json."""
        if titles:
            self.flush()
            self.evaluations.run(state, step, titles)
            if (self.evaluations.best or {}).get("step") == step:
                self.save(state)
            self.throughput.reset()

    def train(self, state: TrainState, stop: preemption.Preemption) -> TrainState:
        """Updates `state` until the run is complete or a signal came."""
        first = step = int(state.step)
        every = self.config["checkpoint"]["every_steps"]
        total, evals, mesh = self.job.total_steps, self.evaluations, self.job.mesh
        try:
            self.evaluate(state, step, evals.left_out(step))
            with contextlib.closing(self.job.feed(step)) as feed:
                self.throughput.reset()
                while not (step >= total or evals.over or stop.requested(mesh)):
                    new = step < first + 2  # the step is compiled
                    distributed.heartbeat(f"data of step {step + 1}", grace=new)
                    with stop.at_once():
                        fed = next(feed)
                    distributed.heartbeat(f"step {step + 1}", grace=new)
                    with jax.transfer_guard("disallow"):
                        state, metrics = self.step(state, fed.batch)
                    stop.unsaved = True
                    step += fed.updates
                    self.flush()  # of the call before; ends its interval
                    self.throughput.tick(fed.wait_s, fed.updates)
                    self.pending = (step, metrics, fed.index.reshape(fed.updates, -1))
                    if step == first + 1:
                        self.flush()  # shown as soon as it is done
                    if step % every == 0 or step == total:
                        self.save(state)
                    self.evaluate(state, step, evals.due(step, last=step == total))
                self.flush()
        except preemption.Stopped as error:  # between two steps
            stop.caught(error)
        finally:
            # Also when bad data or numbers end the run: the state is kept. One of
            # several processes cannot save alone: the last checkpoint stands.
            self.pending = None
            kept = distributed.all_reach_here(sys.exception()) and not stop.urgent
            if kept and not state.step.is_deleted() and int(state.step) > 0:
                self.save(state)
        return state

    def go(self, stop: preemption.Preemption) -> None:
        """Trains from the latest checkpoint to the end, evaluates, and closes."""
        try:
            distributed.heartbeat("restoring or creating the state", grace=True)
            with stop.at_once():
                state = self.start()
            state = self.train(state, stop)
            step = int(state.step)
            if stop.signal is None:
                self.evaluate(state, step, self.evaluations.missing(step))
        except preemption.Stopped as error:
            stop.caught(error)
        finally:
            self.close()

    def close(self) -> None:
        """Waits for the last checkpoint, closes the logs and frees the workdir."""
        if distributed.all_reach_here(sys.exception()):
            self.checkpoints.wait()
            self.checkpoints.close()
        self.writer.close()
        self.job.release()

    def outcome(self, signal: int | None) -> RunOutcome:
        """Describes how the closed run ended; prints a line if a signal stopped it."""
        step = max(self.checkpoints.steps(), default=0)
        if signal is not None:
            saved = f"saved step {step}" if step else "nothing to save yet"
            self.line.say(f"{preemption.Stopped(signal)}; {saved}")
        return RunOutcome(step, self.evaluations.results, signal)


def run(job: Job) -> RunOutcome:
    """Runs `job` from the latest checkpoint in its workdir to its end.

    Raises:
      BadDataError, WorkerError, FloatingPointError: in the run, which is saved first.
    """
    started = Run(job)
    with preemption.handlers() as stop:
        with stop.training(started.close), started.checkpoints.disk_errors():
            started.go(stop)
        return started.outcome(stop.signal)
