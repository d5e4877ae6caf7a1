"""A run, ready to start: all that the loop needs."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jax
    from jax.sharding import Mesh

    from litevit_jax.data.pipeline import Stream
    from litevit_jax.evaluators import base as evaluators
    from litevit_jax.objectives import base as objectives
    from litevit_jax.train import eval_runner
    from litevit_jax.train.optimizer import Optimizer
    from litevit_jax.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class Job:
    """A run, ready to start.

    Attributes:
      config: resolved; plain dict as it is saved.
      workdir: of the run.
      mesh: devices.
      objective: what is learned.
      optimizer: how.
      state: abstract TrainState with shardings.
      fixed: part of the state -> host arrays that never change and are not saved.
      create: () -> the initial TrainState on the mesh.
      step: jitted (state, batch) -> (state, metrics).
      stream: start step -> endless host batches.
      evaluators: title -> (evaluator, every_steps).
      eval_runner: (write, line) -> EvalRunner of these evaluators.
      release: lets another process use the workdir.
      resumes: whether the workdir holds this run already.
      total_steps: of the run.
      notes: lines about encoder, images and classes, for the start.
    """

    config: dict[str, Any]
    workdir: pathlib.Path
    mesh: Mesh
    objective: objectives.Objective
    optimizer: Optimizer
    state: TrainState
    fixed: dict[str, Any]
    create: Callable[[], TrainState]
    step: jax.stages.Wrapped
    stream: Callable[[int], Stream]
    evaluators: dict[str, tuple[evaluators.Evaluator, int]]
    eval_runner: Callable[..., eval_runner.EvalRunner]
    release: Callable[[], None]
    resumes: bool
    total_steps: int
    notes: list[str]
