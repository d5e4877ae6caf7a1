"""Builds a run from its resolved config, and refuses what cannot work.

Nothing is compiled until `build_job` returns: shapes are checked by abstract
evaluation, data by listing it, the workdir by writing to it.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from litevit_jax import (
    augment,
    checkpoint,
    distributed,
    registry,
    sharding,
)
from litevit_jax.data import settings
from litevit_jax.data.settings import Transform
from litevit_jax.train import batch_shapes, microbatch, resolve
from litevit_jax.train import optimizer as optimizers
from litevit_jax.train import state as states
from litevit_jax.train import step as steps
from litevit_jax.train import workdir as workdirs
from litevit_jax.train.job import Job, TrainState
from litevit_jax.train.start import Start
from litevit_jax.train.state import Shapes
from litevit_jax.trees import PyTree

if TYPE_CHECKING:
    from litevit_jax.data.sources.base import Source
    from litevit_jax.objectives.base import Objective, Variables


@dataclasses.dataclass(frozen=True)
class BuiltStep:
    """A run's objective, optimizer and step, by shapes: no array is created.

    Attributes:
      objective, optimizer, step: as in `job.Job`.
      create: key -> the initial TrainState on the mesh.
      variables: abstract Variables of the objective.
      state: abstract TrainState with shardings.
      batch: the host's batch by shape; `step.lower(state, batch)` is the program.
      slices: equal parts in which a device computes its examples.
      eval_shape: as JAX's; may know results from an earlier start.
    """

    objective: Objective
    optimizer: optimizers.Optimizer
    variables: Variables
    state: TrainState
    batch: Shapes
    create: Callable[[jax.Array], TrainState]
    step: jax.stages.Wrapped
    slices: int
    eval_shape: Callable[..., Shapes]


def build_step(
    config: ConfigDict,
    mesh: Mesh,
    source: Callable[[str], Source],
    memory: float | None = None,
    *,
    keep: pathlib.Path | None = None,
) -> BuiltStep:
    """Builds the step of a run on `mesh`, and derives what `config` leaves open.

    Args:
      config: settled; it gets `derived`, and a batch size if it has none.
      mesh: of real devices, or of those of a topology that is only planned for.
      source: split -> its examples; of 'train', their number and classes are used.
      memory: bytes that JAX may use of a device that is not here to be asked.
      keep: folder of the programs that earlier starts kept; None keeps none.

    Raises:
      ValueError, KeyError: the user's mistake, named in the message.
    """
    resolve.derive(config, source)
    microbatch.check(config.microbatch, config.batch_size, mesh)
    ops = augment.make(batch_shapes.augmentation(config.augment, config.data))
    objective = _objective(config, mesh, source)
    batch = _batch(config, objective, ops)
    kept = _kept(keep, config.to_dict(), mesh)
    design = kept.design or _design(config, objective, batch, mesh, memory)
    optimizer = _optimizer(config, design.variables.params)
    create, state = states.creator(objective, optimizer, batch, mesh, design.state)
    step = _step(config, objective, optimizer, ops, mesh, state, design.slices)
    normalize = config.augment.normalize
    host = batch_shapes.host(config.data, normalize, config.batch_size)
    host = states.laid_out(host, sharding.batch_sharding(mesh))
    if kept.design is None:
        # Traces the whole step by shapes: a model that does not fit fails here. Of
        # batches sharded as these are, jit keeps the trace for the run.
        jax.eval_shape(step, state, host)
        kept.keep_design(design)
    return BuiltStep(
        objective=objective,
        optimizer=optimizer,
        variables=design.variables,
        state=state,
        batch=host,
        create=kept.wrap("create", create),
        step=kept.wrap("step", step),
        slices=design.slices,
        eval_shape=kept.eval_shape,
    )


def _kept(
    folder: pathlib.Path | None, config: dict[str, Any], mesh: Mesh
) -> states.Tracing:
    """Looks for the programs that earlier starts of this run kept in `folder`."""
    if folder is None:
        return states.Tracing()
    from litevit_jax.train import programs

    return programs.find(folder, config, mesh)


def _design(
    config: ConfigDict,
    objective: Objective,
    batch: Shapes,
    mesh: Mesh,
    memory: float | None,
) -> states.Design:
    """Traces the parts of a run, to find out their shapes."""
    variables = states.abstract_variables(objective, batch)
    optimizer = _optimizer(config, variables.params)
    _, state = states.creator(objective, optimizer, batch, mesh)
    sharding.check_fsdp(mesh, state)

    def fitting() -> int:
        from litevit_jax.train import gpu_memory

        return gpu_memory.images_that_fit(
            mesh, objective, variables, batch, state, memory
        )

    count = microbatch.count_microbatches(config, mesh, objective, fitting)
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    return states.Design(variables, state, count)


def build_job(
    config: ConfigDict,
    workdir: pathlib.Path,
    start: Start,
    *,
    begin: bool = True,
    keep: pathlib.Path | None = None,
) -> Job:
    """Checks a run and builds it.

    Args:
      config: settled; it gets `derived`.
      workdir: of the run.
      start: its notes, and the checkpoints that it reads, if any.
      begin: False leaves the workdir as it is: all else is checked alone.
      keep: as in `build_step`.

    Raises:
      ValueError, KeyError, OSError: the user's mistake, named in the message.
    """
    from litevit_jax.data import splits, transforms
    from litevit_jax.train import eval_runner, eval_setup

    doing = "listing the images and designing the run"
    distributed.heartbeat(doing, grace=True, begun=False)
    resolve.pixel_range(config.data, config.data.train_split)
    source = splits.open_splits(config.data)
    mesh = microbatch.make_mesh(config, source)
    built = build_step(config, mesh, source, keep=keep)
    transform = transforms.for_training(**settings.image_settings(config.data))
    fixed = _fixed(built, start, config.derived)
    start.check(built.state.params)
    plain = workdirs.plain(config.to_dict())
    make = functools.partial(eval_setup.make, config, built.objective, built.variables)
    shapes, size = built.eval_shape, saved_bytes(built.state, fixed)
    evaluators = make(source, mesh=mesh, workdir=workdir, eval_shape=shapes)
    workdirs.check_space(workdir, size, config.checkpoint.keep)
    # Last: only a sound run is begun.
    resumes = begin and workdirs.open_run(workdir, plain)
    return Job(
        config=plain,
        workdir=workdir,
        mesh=mesh,
        objective=built.objective,
        state=built.state,
        fixed=fixed,
        create=functools.partial(
            start.state, built.create, built.state, fixed, built.optimizer
        ),
        step=built.step,
        stream=functools.partial(_stream, config, source("train"), transform),
        evaluators=evaluators,
        eval_runner=functools.partial(
            eval_runner.EvalRunner, evaluators, plain, workdir, built.optimizer
        ),
        release=functools.partial(workdirs.close_run, workdir),
        resumes=resumes,
        total_steps=config.derived.total_steps,
        notes=[*start.notes, *eval_setup.notes(evaluators)],
    )


def _fixed(built: BuiltStep, start: Start, derived: ConfigDict) -> dict[str, Any]:
    """Reads the frozen teacher, if there is one.

    Its fingerprint joins `derived`.
    """
    needed = built.objective.frozen_teacher
    start.check_teacher(needed=needed)
    if not needed:
        return {}
    from litevit_jax import array_digest

    shapes, whole = built.variables.teacher, jax.numpy.float32
    float_shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, whole), shapes)
    arrays = start.teacher_arrays(float_shapes)
    # Of the arrays as read: the type in which an accelerator holds them does not count.
    resolve.assign(derived, {"teacher_fingerprint": array_digest.digest(arrays)})
    teacher = jax.tree.map(lambda x, like: x.astype(like.dtype), arrays, shapes)
    return {"teacher": teacher}


def saved_bytes(state: TrainState, fixed: Iterable[str]) -> int:
    """Counts the bytes of a checkpoint of `state` without its parts `fixed`."""
    parts = [getattr(state, part) for part in checkpoint.PARTS if part not in fixed]
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(parts))


def _objective(
    config: ConfigDict, mesh: Mesh, source: Callable[[str], Source]
) -> Objective:
    """Builds the objective, with this run's classes and attention kernel."""
    block, field = resolve.objective(config)
    name = block.pop("name")
    if field is not None:
        from litevit_jax.evaluators import base

        images, known = source("train"), config.derived.num_classes
        if not images.annotations:  # those may have the labels
            base.check_labels(images, f"objective {name!r}, split 'train'")
        if block[field] < known:
            raise ValueError(
                f"objective.{field}={block[field]}, but the data has {known} classes; "
                "leave it out to take the data's"
            )
    # These change how blocks run, not what they compute.
    from litevit_jax.models import attention

    attention.check(config.attention, mesh.devices.flat[0].platform)
    kernel = {"attention": config.attention}
    blocks = kernel | ({"remat": True} if config.remat else {})
    for part, how in (("encoder", blocks), ("decoder", blocks), ("teacher", kernel)):
        if part in block:
            block[part] |= how
    objective = registry.make("objectives", name, **block)
    least = objective.min_batch_per_device * mesh.size
    if config.batch_size < least:
        raise ValueError(
            f"batch_size={config.batch_size} is {config.batch_size // mesh.size} "
            f"on each of {mesh.size} devices; objective {name!r} needs at least "
            f"{objective.min_batch_per_device} there: set "
            f"--config.batch_size={least} or more"
        )
    from litevit_jax.evaluators import base

    read = settings.annotations_of(config.data)
    base.check_annotations(objective, name, field is not None, read, source("train"))
    return objective


def _batch(
    config: ConfigDict, objective: Objective, ops: tuple[augment.Op, ...]
) -> Shapes:
    """Returns the batch as the objective sees it, by shape."""
    if objective.num_views != config.data.views:
        raise ValueError(
            f"objective {config.objective.name!r} reads {objective.num_views} view(s) "
            f"of each image, but data.views={config.data.views}; set "
            f"--config.data.views={objective.num_views}"
        )
    return batch_shapes.training(config.data, config.augment, config.batch_size, ops)


def _step(
    config: ConfigDict,
    objective: Objective,
    optimizer: optimizers.Optimizer,
    ops: tuple[augment.Op, ...],
    mesh: Mesh,
    state: TrainState,
    count: int,
) -> jax.stages.Wrapped:
    """Builds the jitted step in `count` slices."""
    return steps.make_train_step(
        objective,
        optimizer,
        ops,
        seed=config.seed,
        mesh=mesh,
        state_sharding=jax.tree.map(lambda x: x.sharding, state),
        slices=count,
        health_every=config.log.every_steps if config.log.health else None,
        total_steps=config.derived.total_steps,
    )


def _optimizer(config: ConfigDict, params: PyTree) -> optimizers.Optimizer:
    from litevit_jax.train import schedule as schedules

    schedule = schedules.warmcos(
        peak=config.derived.peak_lr,
        total_steps=config.derived.total_steps,
        warmup_steps=config.derived.warmup_steps,
        start=config.lr.start,
        end=config.lr.end,
        decay=config.lr.get("decay", "cosine"),
    )
    return optimizers.make(params, schedule, **config.optimizer)


def _stream(
    config: ConfigDict, source: Source, transform: Transform, start_step: int
) -> Iterator[dict[str, np.ndarray]]:
    """Opens the endless stream of training batches from `start_step` on."""
    from litevit_jax.data import pipeline

    return pipeline.train_batches(
        source,
        transform,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        process_index=distributed.process_index(),
        process_count=distributed.process_count(),
        workers=config.data.workers,
        threads=config.data.threads,
        max_bad_fraction=config.data.max_bad_fraction,
    )
