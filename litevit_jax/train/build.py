"""Builds a run from its resolved config, and refuses what cannot work.

Nothing is compiled until `build_job` returns: shapes are checked by abstract
evaluation, data by listing it, the workdir by writing to it.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from litevit_jax import augment, distributed, registry, sharding
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
    from litevit_jax.train.on_device import Feed, Held


@dataclasses.dataclass(frozen=True)
class BuiltStep:
    """A run's objective, optimizer and step, by shapes: no array is created.

    Attributes:
      objective, optimizer, step: as in `job.Job`.
      create: key -> the initial TrainState on the mesh.
      variables: abstract Variables of the objective.
      state: abstract TrainState with shardings.
      batch: the host's, or a call, by shape; `step.lower(state, batch)` is the program.
      slices: equal parts in which a device computes its examples.
      eval_shape: as JAX's; may know results from an earlier start.
      chosen: a line about the settings that were chosen.
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
    chosen: list[str]


def build_step(
    config: ConfigDict,
    mesh: Mesh,
    source: Callable[[str], Source],
    memory: float | None = None,
    *,
    keep: pathlib.Path | None = None,
    held: Held | None = None,
) -> BuiltStep:
    """Builds the step of a run on `mesh`, and derives what `config` leaves open.

    Args:
      config: settled; it gets `derived`, and a batch size if it has none.
      mesh: of real devices, or of those of a topology that is only planned for.
      source: split -> its examples; of 'train', their number and classes are used.
      memory: bytes that JAX may use of a device that is not here to be asked.
      keep: folder of the programs that earlier starts kept; None keeps none.
      held: the training images on the devices; None: the host's batches have them.

    Raises:
      ValueError, KeyError: the user's mistake, named in the message.
    """
    chosen = resolve.derive(config, source, "host" if held is None else "device")
    microbatch.check(config.microbatch, config.batch_size, mesh)
    ops = augment.make(batch_shapes.augmentation(config.augment, config.data))
    name, data, size = config.objective.name, config.data, config.batch_size
    how = _how_blocks_run(config.attention, mesh, remat=config.remat)
    objective = _objective(config.objective, config.derived, how, data, source("train"))
    batch_shapes.check_batch(objective, name, size, mesh, views=data.views)
    batch = batch_shapes.training(data, config.augment, size, ops)
    host = batch_shapes.host(data, config.augment.normalize, size)
    layout = sharding.batch_sharding(mesh)
    host = held.call(size) if held else states.laid_out(host, layout)
    kept = _kept(keep, config.to_dict() | {"call": str(host)}, mesh)
    make = functools.partial(_optimizer, config.optimizer, config.lr, config.derived)
    count = functools.partial(
        microbatch.count_microbatches, config.microbatch, size, data, name=name
    )
    memory = held.memory_left() if held else memory
    design = kept.design or _design(objective, make, batch, mesh, memory, count)
    optimizer = make(design.variables.params)
    create, state = states.creator(objective, optimizer, batch, mesh, design.state)
    about = objective, optimizer, ops, mesh, state, design.slices, config.seed
    step = _step(*about, config.log, config.derived.total_steps, held)
    if kept.design is None:
        # A model that does not fit fails here; jit keeps the trace for the run.
        jax.eval_shape(step, state, host)
        kept.keep_design(design)
    return BuiltStep(
        objective,
        optimizer,
        design.variables,
        state,
        host,
        create=kept.wrap("create", create),
        step=kept.wrap("step", step),
        slices=design.slices,
        eval_shape=kept.eval_shape,
        chosen=chosen,
    )


def _kept(
    folder: pathlib.Path | None, config: dict[str, Any], mesh: Mesh
) -> states.Tracing:
    """Looks for the programs that earlier starts of this run kept in `folder`."""
    if folder is None:
        return states.Tracing()
    from litevit_jax.train import programs

    # On devices the seed is an argument of the step.
    apart = {"seed"} if config["derived"]["cropped_on"] == "device" else set()
    about = {k: v for k, v in config.items() if k not in apart}
    return programs.find(folder, about, mesh)


def _design(
    objective: Objective,
    make: Callable[[PyTree], optimizers.Optimizer],
    batch: Shapes,
    mesh: Mesh,
    memory: float | None,
    count: Callable[..., int],
) -> states.Design:
    """Traces the parts of a run, to find out their shapes.

    `make` is (parameters) -> optimizer, `count` (mesh, objective, () -> how many images
    fit) -> slices of a device's batch.
    """
    variables = states.abstract_variables(objective, batch)
    _, state = states.creator(objective, make(variables.params), batch, mesh)
    sharding.check_fsdp(mesh, state)

    def fitting() -> int:
        from litevit_jax.train import gpu_memory

        return gpu_memory.images_that_fit(
            mesh, objective, variables, batch, state, memory
        )

    slices = count(mesh, objective, fitting)
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    return states.Design(variables, state, slices)


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
    from litevit_jax.train import beside, best, eval_setup, on_device, schedule

    distributed.heartbeat("listing images, designing the run", grace=True, begun=False)
    source, transform = _images(config.data)
    mesh = microbatch.make_mesh(
        config.mesh, config.batch_size, config.auto_batch, source
    )
    how = {"steps_per_call": config.steps_per_call, "seed": config.seed}
    held, about = on_device.open_set(config.data, mesh, source, workdir, **how)
    built = build_step(config, mesh, source, keep=keep, held=held)
    fixed = _fixed(built, start, config.derived)
    plain = workdirs.plain(config.to_dict())
    make = functools.partial(eval_setup.make, config, built.objective, built.variables)
    most, shapes = held.for_evaluations() if held else None, built.eval_shape
    evaluators = make(source, mesh=mesh, workdir=workdir, eval_shape=shapes, most=most)
    size = states.saved_bytes(built.state, fixed)
    rule = best.rule(plain, evaluators)
    workdirs.check_space(workdir, size, config.checkpoint.keep + bool(rule))
    stream, feed = _batches(held, config.data, plain, mesh, source("train"), transform)
    notes = [*start.notes, *built.chosen, *about]
    notes += schedule.extension(config.lr.decay, config.derived)
    resumes = begin and workdirs.open_run(workdir, plain)  # last: the run is sound
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
        stream=stream,
        feed=feed,
        total_steps=config.derived.total_steps,
        notes=[*notes, *eval_setup.notes(evaluators, rule)],
        **beside.of_run(evaluators, rule, plain, workdir, built.optimizer, resumes),
    )


def _images(data: ConfigDict) -> tuple[Callable[[str], Source], Transform]:
    """Opens the splits of `data`; also returns what is done to a training image."""
    from litevit_jax.data import splits, transforms

    resolve.pixel_range(data, data.train_split)
    source = splits.open_splits(data)
    return source, transforms.for_training(**settings.image_settings(data))


def _fixed(built: BuiltStep, start: Start, derived: ConfigDict) -> dict[str, Any]:
    """Reads the frozen teacher, if there is one.

    Its fingerprint joins `derived`.
    """
    start.check(built.state.params)
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


def _how_blocks_run(attention: str, mesh: Mesh, *, remat: bool) -> dict[str, Any]:
    """Returns part of a model -> how its blocks run, not what they compute."""
    from litevit_jax.models import attention as kernels

    kernels.check(attention, mesh.devices.flat[0].platform)
    kernel = {"attention": attention}
    blocks = kernel | ({"remat": True} if remat else {})
    return {"encoder": blocks, "decoder": blocks, "teacher": kernel}


def _objective(
    block: ConfigDict,
    derived: ConfigDict,
    how: dict[str, Any],
    data: ConfigDict,
    images: Source,
) -> Objective:
    """Builds the objective of `block` for the classes of the training `images`.

    `how` is that of `_how_blocks_run`, `data` says what the run reads.
    """
    from litevit_jax.evaluators import base

    fields, classes = resolve.objective(block, derived)
    name = fields.pop("name")
    if classes is not None:
        several = fields.get("loss") == "bce"
        if not (images.annotations or several):  # those may have the labels
            base.check_labels(images, f"objective {name!r}, split 'train'")
        if fields[classes] < derived.num_classes:
            raise ValueError(
                f"objective.{classes}={fields[classes]}, but the data has "
                f"{derived.num_classes} classes; leave it out to take the data's"
            )
    for part in how.keys() & fields.keys():
        fields[part] |= how[part]
    objective = registry.make("objectives", name, **fields)
    read = settings.annotations_of(data)
    base.check_annotations(objective, name, classes is not None, read, images)
    return objective


def _step(
    objective: Objective,
    optimizer: optimizers.Optimizer,
    ops: tuple[augment.Op, ...],
    mesh: Mesh,
    state: TrainState,
    slices: int,
    seed: int,
    log: ConfigDict,
    total_steps: int,
    held: Held | None,
) -> jax.stages.Wrapped:
    """Builds the jitted step in `slices`, with health metrics where `log` has them."""
    return steps.make_train_step(
        objective,
        optimizer,
        ops,
        seed=seed,
        mesh=mesh,
        state_sharding=jax.tree.map(lambda x: x.sharding, state),
        slices=slices,
        health_every=log.every_steps if log.health else None,
        total_steps=total_steps,
        held=held,
    )


def _optimizer(
    block: ConfigDict, lr: ConfigDict, derived: ConfigDict, params: PyTree
) -> optimizers.Optimizer:
    """Builds the optimizer of `block` with the learning rates of `lr`."""
    from litevit_jax.train import schedule as schedules

    schedule = schedules.of_run(lr, derived)
    return optimizers.make(params, schedule, **block.to_dict())


def _batches(
    held: Held | None,
    data: ConfigDict,
    run: dict[str, Any],
    mesh: Mesh,
    images: Source,
    transform: Transform,
) -> tuple[Callable[[int], Iterator[dict[str, np.ndarray]]], Feed]:
    """Returns step -> host batches, and step -> calls of the step, from there on.

    `run` is the config as it is saved.
    """
    from litevit_jax.train import on_device

    about = data, run["batch_size"], run["seed"], images, transform
    stream = functools.partial(_stream, *about)
    blocks = [*run["evals"].values(), run["log"], run["checkpoint"]]
    feed = on_device.feeder(
        held,
        mesh,
        stream,
        batch_size=run["batch_size"],
        every=[block.get("every_steps", 0) for block in blocks],
        total_steps=run["derived"]["total_steps"],
    )
    return stream, feed


def _stream(
    data: ConfigDict,
    batch_size: int,
    seed: int,
    images: Source,
    transform: Transform,
    start_step: int,
) -> Iterator[dict[str, np.ndarray]]:
    """Opens the endless stream of training batches from `start_step` on."""
    from litevit_jax.data import pipeline

    return pipeline.train_batches(
        images,
        transform,
        batch_size=batch_size,
        seed=seed,
        start_step=start_step,
        process_index=distributed.process_index(),
        process_count=distributed.process_count(),
        workers=data.workers,
        threads=data.threads,
        max_bad_fraction=data.max_bad_fraction,
    )
