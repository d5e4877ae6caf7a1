"""Evaluations, writers and the lock of a run: all that it has beside training."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

from litevit_jax.train import best, eval_runner, eval_setup, writers
from litevit_jax.train import workdir as workdirs
from litevit_jax.train.optimizer import Optimizer


def of_run(
    evaluators: eval_setup.Evaluators,
    rule: best.Rule | None,
    config: dict[str, Any],
    workdir: pathlib.Path,
    optimizer: Optimizer,
    resumes: bool,
) -> dict[str, Any]:
    """Returns the fields of a Job that are not about training; see `job.Job`.

    Args:
      evaluators: of the run.
      rule: by which its best step is told, if one is kept.
      config: of the run, as it is saved.
      workdir: of the run.
      optimizer: which may keep an average.
      resumes: whether the workdir held the run already.
    """
    about = evaluators, config, workdir, optimizer
    return {
        "evaluators": evaluators,
        "eval_runner": functools.partial(eval_runner.EvalRunner, *about, rule=rule),
        "writer": functools.partial(writers.open_writer, workdir, config),
        "release": functools.partial(workdirs.close_run, workdir),
        "resumes": resumes,
    }
