"""Output of jobs at their end: results in a table, and the report.

A job is a file of this folder with `main(config, workdir, command)`, where `command` is
how the program was started. It checks the config, does the work, prints its results and
returns an `Ending`; the command line finds it by its name.
"""

from __future__ import annotations

import os
import sys
import textwrap
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from litevit_jax import terminal
from litevit_jax.train.eval_runner import MANY, numbers_line


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
    """Formats all evaluations of a run: last and best of the primary metric.

    An evaluation of many numbers has them in lines of their own, below the table.
    """
    rows = [
        ["evaluation", "metric", "last", "step", "best", "step", "n", "also (last)"]
    ]
    below: list[str] = []
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
        also = numbers_line(others)
        if len(others) > MANY:
            below += textwrap.wrap(f"{title}: {also}", break_on_hyphens=False, width=88)
            also = "below"
        count = str(last.get("n", "-"))  # an evaluator of yours may count nothing
        cells = [f"{last[metric]:.4g}", str(last["step"]), *best_cells, count]
        rows.append([title, metric, *cells, also])
    return "\n".join([columns(rows), *below])


def report_at_end(workdir: str, command: str) -> None:
    """Draws the report of a complete run, see `draw_at_end`."""

    def draw() -> object:
        from litevit_jax.jobs import analyse  # late: it reads much

        return analyse.after_training(workdir)

    draw_at_end(draw, f"{command} --config=analysis:report --config.models={workdir}")


def draw_at_end(draw: Callable[[], object], again: str) -> None:
    """Prints the page that `draw` returns; a failure is printed and changes nothing.

    `again` is the command that draws it once more.
    """
    if jax.process_index():
        return
    if jax.process_count() > 1:
        print(f"a report is drawn by one process: {again}")
        return
    try:
        terminal.ConsoleLine().say(f"report: {draw()}")
    except Exception as error:
        print(
            f"the report could not be drawn ({error}); what was run is complete. "
            f"Again: {again}",
            file=sys.stderr,
        )
        if "LITEVIT_TRACEBACK" in os.environ:
            traceback.print_exception(error)
