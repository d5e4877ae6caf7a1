"""A config -> everything a run needs; all that can be refused is refused here.

Nothing is compiled until `prepare` returns: shapes are checked by abstract
evaluation, data by listing it, the workdir by writing to it.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from litevit_jax import augment, checkpoint, distributed, registry, sharding
from litevit_jax.data import fast, pipeline
from litevit_jax.data import ops as data_ops
from litevit_jax.evaluators import base as evaluators_base
from litevit_jax.models import attention
from litevit_jax.objectives import base as objectives
from litevit_jax.train import batches, evaluation, inherit, inputs, slices, views
from litevit_jax.train import optimizer as optimizers
from litevit_jax.train import state as states
from litevit_jax.train import step as steps
from litevit_jax.train import workdir as workdirs

# Training images of ImageNet-1k. The recipes' authors leave out what remains of each
# epoch after its whole batches: 312 updates at a batch of 4096.
_IMAGENET = 1_281_167


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
      resumes: whether the workdir holds this run already.
      total_steps: of the run.
      notes: lines about encoder, images and classes, for the start.
    """

    config: dict[str, Any]
    workdir: pathlib.Path
    mesh: Mesh
    objective: Any
    optimizer: optimizers.Optimizer
    state: states.TrainState
    fixed: dict[str, Any]
    create: Callable[[], states.TrainState]
    step: Callable[..., Any]
    stream: Callable[[int], Any]
    evaluators: evaluation.Evaluators
    resumes: bool
    total_steps: int
    notes: list[str]


@dataclasses.dataclass(frozen=True)
class Design:
    """What is learned and how, by shapes alone: no example is read, nothing placed.

    Attributes:
      objective, optimizer, step: as in `Job`.
      create: key -> the initial TrainState on the mesh.
      variables: abstract Variables of the objective.
      state: abstract TrainState with shardings.
      batch: the host's batch by shape; `step.lower(state, batch)` is the program.
      slices: parts in which a device computes its examples, one after the other.
    """

    objective: Any
    optimizer: optimizers.Optimizer
    variables: Any
    state: states.TrainState
    batch: batches.Shapes
    create: Callable[[jax.Array], states.TrainState]
    step: Any  # of jax.jit
    slices: int


def design(
    config: ConfigDict,
    mesh: Mesh,
    source: Callable[[str], Any],
    memory: float | None = None,
) -> Design:
    """Designs a run on `mesh`; fills what `config` leaves to be derived.

    Args:
      config: unlocked and settled; it gets `derived`, and a batch size if it has none.
      mesh: of real devices, or of those of a topology that is only planned for.
      source: split -> its examples; of 'train', their number and classes are used.
      memory: bytes that JAX may use of a device that is not here to be asked.

    Raises:
      ValueError, KeyError: the user's mistake, named in the message.
    """
    lr_batch, steps_at_least = config.batch_size, 0
    if lr_batch is None:
        config.batch_size = slices.batch_size(config, source)
        lr_batch = config.auto_batch.lr_batch or config.batch_size
        steps_at_least = config.auto_batch.steps_at_least
    slices.check(config, mesh)
    _derive(config, source("train"), lr_batch, steps_at_least)
    batches.leave_out_colours(config)
    ops = augment.make(batches.augmentation(config))
    objective = _objective(config, mesh, source)
    batch = _batch(config, objective, ops)
    variables = states.abstract_variables(objective, batch)
    optimizer = _optimizer(config, variables.params)
    create, shardings = states.creator(objective, optimizer, batch, mesh)
    state = _abstract_state(create, shardings)
    fitting = functools.partial(
        slices.images_that_fit, mesh, objective, variables, batch, state, memory
    )
    count = slices.count(config, mesh, objective, fitting)
    jitted = _step(config, objective, optimizer, ops, shardings, count)
    host = batches.host(config)
    placed = sharding.batch_sharding(mesh)
    host = {
        k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed)
        for k, x in host.items()
    }
    # Traces the whole step by shapes: a model that does not fit fails here. Of batches
    # placed as these are, jit keeps the trace for the run.
    jax.eval_shape(jitted, state, host)
    return Design(
        objective=objective,
        optimizer=optimizer,
        variables=variables,
        state=state,
        batch=host,
        create=create,
        step=jitted,
        slices=count,
    )


def saved_bytes(state: states.TrainState, fixed: Iterable[str]) -> int:
    """Bytes of a checkpoint of `state` without its parts `fixed`."""
    parts = [getattr(state, part) for part in checkpoint.PARTS if part not in fixed]
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(parts))


def prepare(config: ConfigDict, workdir: pathlib.Path, *, begin: bool = True) -> Job:
    """Resolves `config`, checks it and builds the run.

    With `begin` False the workdir is left as it is: all else is checked alone.

    Raises:
      ValueError, KeyError, OSError: the user's mistake, named in the message.
    """
    config = config.copy_and_resolve_references().unlock()
    settle(config)
    distributed.beat("reading weights", grace=True, begun=False)
    loaded, taught = inherit.inherit(config), inherit.teacher(config)
    notes = views.settle(config, loaded, taught)
    doing = "listing the images and designing the run"
    distributed.beat(doing, grace=True, begun=False)
    inputs.settle_range(config.data, config.data.train_split)
    source = inputs.sources(config.data)
    mesh = slices.make_mesh(config, source)
    made = design(config, mesh, source)
    transform = data_ops.train_ops(**inputs.image_block(config.data))
    fixed = _fixed(config, made.objective, made.variables, taught)
    inherit.check(made.state.params, loaded, config)
    plain = workdirs.plain(config.to_dict())
    evaluators = evaluation.make(
        config, made.objective, made.variables, source, mesh=mesh, workdir=workdir
    )
    size = saved_bytes(made.state, fixed)
    workdirs.check_space(workdir, size, config.checkpoint.keep)
    # Last: only a sound run is begun.
    resumes = begin and workdirs.open_run(workdir, plain)
    return Job(
        config=plain,
        workdir=workdir,
        mesh=mesh,
        objective=made.objective,
        optimizer=made.optimizer,
        state=made.state,
        fixed=fixed,
        create=functools.partial(
            inherit.start,
            made.create,
            made.state,
            loaded,
            fixed,
            config,
            made.optimizer,
        ),
        step=made.step,
        stream=functools.partial(_stream, config, source("train"), transform),
        evaluators=evaluators,
        resumes=resumes,
        total_steps=config.derived.total_steps,
        notes=[*notes, *evaluation.notes(evaluators)],
    )


def settle(config: ConfigDict) -> None:
    """Checks all numbers, and puts what 'auto' means in its place.

    Raises:
      ValueError: a number out of its bounds.
    """
    registry.check_fields(config)
    distributed.check_joined()
    config.data.decoder = fast.choose(config.data.decoder)


def _derive(
    config: ConfigDict, source: Any, lr_batch: int, steps_at_least: int
) -> None:
    """Adds config.derived: what follows from the data and the settings."""
    length = _length(config, len(source), steps_at_least)
    config.derived = {
        "train_examples": len(source),
        "train_fingerprint": source.fingerprint(),
        "num_classes": len(source.classes),
        "classes": list(source.classes),
        **length,
        "peak_lr": config.lr.base * lr_batch / 256,
    }


def _length(config: ConfigDict, images: int, steps_at_least: int) -> dict[str, float]:
    """How many updates a run takes, and of them an epoch and the warm-up.

    An epoch is a pass over the images: images / batch_size updates, a fraction of one
    if the batch is larger, for no image is dropped. Of ImageNet's images it is whole
    batches, as the recipes count.

    Raises:
      ValueError: a run without a step, or a warm-up that does not fit into it.
    """
    epochs, warmup_epochs = config.epochs, config.lr.warmup_epochs
    if epochs <= 0 or (config.steps is not None and config.steps < 1):
        raise ValueError(
            f"steps={config.steps}, epochs={epochs}: a run needs at least one"
        )
    used = images
    if images == _IMAGENET and images >= config.batch_size:
        used -= images % config.batch_size
    by_epochs = max(round(epochs * used / config.batch_size), 1)
    total = max(by_epochs, steps_at_least) if config.steps is None else config.steps
    warmup = round(warmup_epochs * used / config.batch_size)
    if total != by_epochs:  # a run of another length keeps its proportions
        warmup = round(total * warmup_epochs / epochs)
    if warmup >= total:
        raise ValueError(
            f"a warm-up of {warmup} steps does not fit a run of {total}: "
            f"lr.warmup_epochs={warmup_epochs:g}, epochs={epochs}; set "
            f"--config.lr.warmup_epochs={epochs / 10:g} (a tenth of the run), or train "
            "longer"
        )
    return {
        "steps_per_epoch": used / config.batch_size,
        "total_steps": total,
        "warmup_steps": warmup,
    }


def _objective(config: ConfigDict, mesh: Mesh, source: Callable[[str], Any]) -> Any:
    block = inherit.without_none(config.objective.to_dict())
    block = objectives.complete(block, config.derived)
    name = block.pop("name")
    field = objectives.classes_field(name)
    if field is not None:
        _check_classes(config, field, block[field], source("train"))
        config.objective[field] = block[field]
    # How blocks run, not what they compute.
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
    return objective


def _check_classes(config: ConfigDict, field: str, count: int, images: Any) -> None:
    """Raises ValueError unless `images` have labels, of at most `count` classes."""
    what = f"objective {config.objective.name!r}, split 'train'"
    evaluators_base.check_labels(images, what)
    found = config.derived.num_classes
    if count < found:
        raise ValueError(
            f"objective.{field}={count}, but the data has {found} classes; leave it "
            "out to take the data's"
        )


def _batch(config: ConfigDict, objective: Any, ops: tuple[augment.Op, ...]) -> Any:
    """The batch as the objective sees it, by shape."""
    if objective.num_views != config.data.views:
        raise ValueError(
            f"objective {config.objective.name!r} reads {objective.num_views} view(s) "
            f"of each image, but data.views={config.data.views}; set "
            f"--config.data.views={objective.num_views}"
        )
    return batches.training(config, ops)


def _fixed(config: ConfigDict, objective: Any, variables: Any, taught: Any) -> Any:
    """The frozen teacher, if there is one; its fingerprint joins config.derived."""
    if objective.frozen_teacher != (taught is not None):
        raise ValueError(
            inherit.no_teacher(config) if taught else inherit.which_teacher(config)
        )
    if taught is None:
        return {}
    shapes, whole = variables.teacher, jax.numpy.float32
    read = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, whole), shapes)
    arrays = inherit.fill_teacher(read, taught, config)
    # Of what was read: in which type an accelerator holds it makes no other teacher.
    config.derived.teacher_fingerprint = inherit.fingerprint(arrays)
    held = jax.tree.map(lambda x, like: x.astype(like.dtype), arrays, shapes)
    return {"teacher": held}


def _step(
    config: ConfigDict,
    objective: Any,
    optimizer: Any,
    ops: Any,
    shardings: Any,
    count: int,
) -> Callable[..., Any]:
    return steps.make_train_step(
        objective,
        optimizer,
        ops,
        seed=config.seed,
        mesh=shardings.step.mesh,
        state_sharding=shardings,
        slices=count,
        health_every=config.log.every_steps if config.log.health else None,
        total_steps=config.derived.total_steps,
    )


def _optimizer(config: ConfigDict, params: Any) -> optimizers.Optimizer:
    schedule = optimizers.warmcos(
        peak=config.derived.peak_lr,
        total_steps=config.derived.total_steps,
        warmup_steps=config.derived.warmup_steps,
        start=config.lr.start,
        end=config.lr.end,
    )
    return optimizers.make(params, schedule, **config.optimizer)


def _abstract_state(create: Any, shardings: Any) -> states.TrainState:
    abstract = jax.eval_shape(create, states.abstract_key())
    sharding.check_fsdp(shardings.step.mesh, abstract)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        abstract,
        shardings,
    )


def _stream(config: ConfigDict, source: Any, transform: Any, start_step: int) -> Any:
    return pipeline.train_batches(
        source,
        transform,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        process_index=distributed.index(),
        process_count=distributed.count(),
        workers=config.data.workers,
        threads=config.data.threads,
        max_bad_fraction=config.data.max_bad_fraction,
    )
