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
    keep: pathlib.Path | None = None,
) -> Job:
    """Resolves `config`, checks it and builds the run.

    With `begin` False the workdir is left as it is: all else is checked alone. `keep`
    is the folder of the programs that earlier starts kept.

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
    config: ConfigDict,
    workdir: str | pathlib.Path,
    *,
    keep: pathlib.Path | None = None,
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
    outcome = run(config, workdir, keep=_folder_of_programs())
    if outcome.signal is not None:
        return summary.Ending(config, signal=outcome.signal)
    say = terminal.ConsoleLine().say
    if outcome.results:
        say(summary.results_table(outcome.results))
    if config.log.report:
        summary.report_at_end(config, workdir, command)
    say(f"done: step {outcome.step}, everything is in {workdir}")
    return summary.Ending(config, workdir)


def _folder_of_programs() -> pathlib.Path | None:
    """Returns the folder of kept programs; None with plug-ins, which may change."""
    from litevit_jax import compilation, plugins

    return None if plugins.roots() else compilation.bounded_folder()
