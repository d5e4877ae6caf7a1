"""The job 'train': pre-trains, fine-tunes or probes by a recipe."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

import jax
import numpy as np
from ml_collections import ConfigDict

from litevit_jax import distributed, paths, terminal
from litevit_jax.terminal import counted
from litevit_jax.train import build, loop, resolve
from litevit_jax.train import start as starts
from litevit_jax.train import workdir as workdirs
from litevit_jax.train.job import Job

if TYPE_CHECKING:
    from litevit_jax.jobs import summary


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
    named = any(config[field] for field in starts.ABOUT_CHECKPOINTS)
    if named or "teacher" in config.objective:
        from litevit_jax.warm_start import start as warm_starts

        start = warm_starts.warm_start(config)
    else:
        start = starts.random_start(
            config.objective,
            config.data,
            config.augment,
            config.fallback,
            seed=config.seed,
            name=config.name,
        )
    return build.build_job(config, paths.path(workdir), start, begin=begin, keep=keep)


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
    log_start(job, terminal.ConsoleLine())
    return loop.run(job)


def main(config: ConfigDict, workdir: str, command: str) -> summary.Ending:
    """Runs the job and prints its results; raises as `run`."""
    from litevit_jax.jobs import summary
    from litevit_jax.train import best

    outcome = run(config, workdir, keep=folder_of_programs())
    if outcome.signal is not None:
        return summary.Ending(config, signal=outcome.signal)
    say = terminal.ConsoleLine().say
    if outcome.results:
        say(summary.results_table(outcome.results))
        if chosen := best.sentence(outcome.results, workdir):
            say(chosen)
    if config.log.report:
        summary.report_at_end(workdir, command)
    say(f"done: step {outcome.step}, everything is in {workdir}")
    return summary.Ending(config, workdir)


def folder_of_programs() -> pathlib.Path | None:
    """Returns the folder of kept programs; None with plug-ins, which may change."""
    from litevit_jax import compilation, plugins

    return None if plugins.roots() else compilation.bounded_folder()


def log_start(job: Job, line: terminal.ConsoleLine) -> None:
    """Says what runs where; writes the environment and the parameter table."""
    summary, table = describe(job)
    if distributed.is_primary():
        (job.workdir / "parameters.txt").write_text(table + "\n")
        devices = [str(d) for d in jax.devices()]
        environment = workdirs.environment(devices)
        environment["processes"] = distributed.process_count()
        paths.append_line(job.workdir / "environment.jsonl", environment)
    line.say("\n".join([summary, *job.notes]))


def describe(job: Job) -> tuple[str, str]:
    """Returns two lines about a Job, and clu's table of all its parameters."""
    from clu import parameter_overview  # slow to import

    params, derived, data = job.state.params, job.config["derived"], job.config["data"]
    counts = {
        name: sum(np.prod(x.shape, dtype=int) for x in jax.tree.leaves(tree))
        for name, tree in params.items()
    }
    parts = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    directory = f" in {data['dir']}" if data["dir"] else ""
    processes = distributed.process_count()
    hosts = f" of {processes} processes" if processes > 1 else ""
    text = (
        f"{job.config['name']}: {sum(counts.values()):,} parameters ({parts}; table in "
        f"{job.workdir}/parameters.txt)\n{derived['train_examples']:,} training images "
        f"({data['source']}{directory}, decoder {data['decoder']}), "
        f"{counted(job.total_steps, 'step')} of {job.config['batch_size']} "
        f"({derived['warmup_steps']:,} of warm-up, peak learning rate "
        f"{derived['peak_lr']:.3g}) on "
        f"{counted(job.mesh.size, f'{jax.default_backend().upper()} device')}{hosts}, "
        f"workdir {job.workdir}"
    )
    return text, parameter_overview.get_parameter_overview(params, include_stats=False)
