"""The job 'train': pre-trains, fine-tunes or probes by a recipe."""

from __future__ import annotations

import pathlib

from ml_collections import ConfigDict

from litevit_jax import distributed, paths, terminal
from litevit_jax.jobs import summary
from litevit_jax.train import build, loop, resolve
from litevit_jax.train.job import Job
from litevit_jax.warm_start import start


def prepare(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    *,
    begin: bool = True,
    keep: bool = False,
) -> Job:
    """Resolves `config`, checks it and builds the run.

    With `begin` False the workdir is left as it is: all else is checked alone. With
    `keep` the programs are those that an earlier start kept, or are kept for the next.

    Raises:
      ValueError, KeyError, OSError: the user's mistake, before any compile.
    """
    config = resolve.settle(config)
    distributed.heartbeat("reading weights", grace=True, begun=False)
    warm_start = start.warm_start(config)
    return build.build_job(
        config, paths.path(workdir), warm_start, begin=begin, keep=keep
    )


def run(
    config: ConfigDict, workdir: str | pathlib.Path, *, keep: bool = False
) -> loop.RunOutcome:
    """Runs `config` in `workdir`, from where it stands there to its end.

    `keep`: as in `prepare`.

    Raises:
      ValueError, KeyError, OSError: the user's mistake, before any compile.
      BadDataError, WorkerError, FloatingPointError: in the run, which is saved first.
    """
    job = prepare(config, workdir, keep=keep)
    summary.log_start(job, terminal.ConsoleLine())
    return loop.run(job)


def main(config: ConfigDict, workdir: str, command: str) -> summary.Ending:
    """Runs the job and prints its results; raises as `run`."""
    outcome = run(config, workdir, keep=True)
    if outcome.signal is not None:
        return summary.Ending(config, signal=outcome.signal)
    say = terminal.ConsoleLine().say
    if outcome.results:
        say(summary.results_table(outcome.results))
    if config.log.report:
        summary.report_at_end(config, workdir, command)
    say(f"done: step {outcome.step}, everything is in {workdir}")
    return summary.Ending(config, workdir)
