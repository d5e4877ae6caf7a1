"""Output of jobs: a run at its start, results in a table, the report at the end.

A job is a file of this folder with `main(config, workdir, command)`, where `command` is
how the program was started. It checks the config, does the work, prints its results and
returns an `Ending`; the command line finds it by its name.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any, NamedTuple

import jax
import numpy as np

from litevit_jax import distributed, paths, terminal
from litevit_jax.terminal import counted
from litevit_jax.train import workdir as workdirs
from litevit_jax.train.job import Job


class Ending(NamedTuple):
    """The end of a job.

    Attributes:
      config: the config of what ran.
      result: directory or file that other jobs can use; None: nothing can follow.
      signal: number of the signal that stopped the job, or None.
    """

    config: Any
    result: str | None = None
    signal: int | None = None


def columns(rows: list[list[str]]) -> str:
    """Aligns rows of cells in columns; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


_STAMPS = ("step", "n", "params", "time", "seconds", "percent_of_run")


def results_table(results: dict[str, dict[str, Any]]) -> str:
    """Formats all evaluations of a run: last and best of the primary metric."""
    rows = [
        ["evaluation", "metric", "last", "step", "best", "step", "n", "also (last)"]
    ]
    for title, result in results.items():
        metric, last = result["metric"], result["last"]
        best = result.get("best")
        others = {
            k: v
            for k, v in last.items()
            if k not in (metric, *_STAMPS) and not isinstance(v, list)
        }
        best_cells = ["-", "-"]
        if best is not None:
            best_cells = [f"{best[metric]:.4g}", str(best["step"])]
        also = "  ".join(f"{k} {_short(v)}" for k, v in others.items())
        count = str(last.get("n", "-"))  # an evaluator of yours may count nothing
        cells = [f"{last[metric]:.4g}", str(last["step"]), *best_cells, count]
        rows.append([title, metric, *cells, also])
    return columns(rows)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


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
        f"({derived['warmup_steps']:,} of warm-up) on "
        f"{counted(job.mesh.size, f'{jax.default_backend().upper()} device')}{hosts}, "
        f"workdir {job.workdir}"
    )
    return text, parameter_overview.get_parameter_overview(params, include_stats=False)


def report_at_end(config: Any, workdir: str, command: str) -> None:
    """Draws the report of a complete run; a failure is printed and changes nothing."""
    if jax.process_index():
        return
    again = f"{command} --config=analysis:report --config.models={workdir}"
    if jax.process_count() > 1:
        print(f"a report is drawn by one process: {again}")
        return
    try:
        from litevit_jax.jobs import analyse  # late: it reads much

        page = analyse.after_training(config, workdir)
        terminal.ConsoleLine().say(f"report: {page}")
    except Exception as error:
        print(
            f"the report could not be drawn ({error}); the run is complete. Again: "
            f"{again}",
            file=sys.stderr,
        )
        if "LITEVIT_TRACEBACK" in os.environ:
            traceback.print_exception(error)
