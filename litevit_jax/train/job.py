"""A run, ready to start: all that the loop needs."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import flax.struct
import jax
import numpy as np
from jax.sharding import Mesh

from litevit_jax.trees import PyTree

if TYPE_CHECKING:
    from litevit_jax.data.device import Fed


@flax.struct.dataclass
class TrainState:
    """The state that a run resumes from; `step` counts the updates done."""

    step: jax.Array
    params: PyTree
    model_state: PyTree
    teacher: PyTree
    opt_state: PyTree


class Writer(Protocol):
    """Writes a run's rows, as `writers.Writer` does."""

    def write(self, step: int, row: dict[str, Any]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class EvalRunner(Protocol):
    """Runs the evaluators of a run, as `eval_runner.EvalRunner` does."""

    results: dict[str, dict[str, Any]]

    @property
    def best(self) -> dict[str, Any] | None: ...

    @property
    def over(self) -> str: ...

    def resume(self, step: int, record: dict[str, Any] | None) -> None: ...

    def due(self, step: int, *, last: bool) -> list[str]: ...

    def left_out(self, step: int) -> list[str]: ...

    def missing(self, step: int) -> list[str]: ...

    def run(self, state: TrainState, step: int, titles: list[str]) -> None: ...


@dataclasses.dataclass(frozen=True)
class Job:
    """A run, ready to start.

    Attributes:
      config: resolved; plain dict as it is saved.
      workdir: of the run.
      mesh: devices.
      objective: what is learned.
      state: abstract TrainState with shardings.
      fixed: part of the state -> host arrays that never change and are not saved.
      create: () -> the initial TrainState on the mesh.
      step: jitted (state, batch) -> (state, metrics); of several updates a call if the
        devices hold the images.
      stream: start step -> endless host batches.
      feed: start step -> endless calls of the step, on the mesh.
      evaluators: title -> (evaluator, every_steps).
      eval_runner: (write, line) -> EvalRunner of these evaluators.
      writer: opens the Writer of metrics.jsonl and of `log.writers`.
      release: lets another process use the workdir.
      resumes: whether the workdir holds this run already.
      total_steps: of the run.
      notes: lines about encoder, images and classes, for the start.
    """

    config: dict[str, Any]
    workdir: pathlib.Path
    mesh: Mesh
    objective: object
    state: TrainState
    fixed: dict[str, Any]
    create: Callable[[], TrainState]
    step: jax.stages.Wrapped
    stream: Callable[[int], Iterator[dict[str, np.ndarray]]]
    feed: Callable[[int], Generator[Fed, None, None]]
    evaluators: Mapping[str, tuple[object, int]]
    eval_runner: Callable[..., EvalRunner]
    writer: Callable[[], Writer]
    release: Callable[[], None]
    resumes: bool
    total_steps: int
    notes: list[str]
