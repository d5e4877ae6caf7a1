"""Evaluators on a checkpoint: what a run does at its end, without the training."""

from __future__ import annotations

import pathlib

from ml_collections import ConfigDict

from litevit_jax.train import loop, progress, setup


def run(config: ConfigDict, workdir: str | pathlib.Path) -> loop.Outcome:
    """Runs the evaluators of `config` on its initial state, as `init` gives it.

    Results are those of step 0 of the run in `workdir`; what is there already is not
    done again.

    Raises:
      ValueError, KeyError, OSError: a mistake of the user's, before any compile.
    """
    job = setup.prepare(config, pathlib.Path(workdir))
    this = loop.Run(job)
    progress.announce(job, this.line)
    this.line.say("evaluating the initial parameters; nothing is trained")
    try:
        this.finish(job.create())
        return loop.Outcome(0, this.results)
    finally:
        this.close()
