"""The job 'evaluate': the numbers of a checkpoint or a file of weights, no training.

What is evaluated is the whole model that the checkpoint holds: its encoder, and its
decoder or head with running statistics. A file of weights is a classifier if it has a
head, else an encoder whose features can be compared.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from litevit_jax import checkpoint, distributed, paths, registry, sharding
from litevit_jax.data import split_names
from litevit_jax.models import layers, vit
from litevit_jax.objectives import base as objectives
from litevit_jax.train import (
    batches,
    entries,
    evaluation,
    inherit,
    inputs,
    progress,
    views,
)
from litevit_jax.train import state as states
from litevit_jax.train import workdir as workdirs

_HEAD = "head/fc/kernel"


@dataclasses.dataclass(frozen=True)
class Job:
    """An evaluation, ready to start: what `evaluation.Evaluations` needs, and more.

    Attributes:
      config: resolved; plain dict as it is saved.
      workdir: where results go.
      evaluators: title -> (evaluator, every_steps).
      step: of the checkpoint; 0 for a file.
      place: () -> what holds its `params` and `model_state`, on the mesh.
      notes: lines about encoder, images, parameters and classes, for the start.
    """

    config: dict[str, Any]
    workdir: pathlib.Path
    evaluators: evaluation.Evaluators
    step: int
    place: Callable[[], Any]
    notes: list[str]
    optimizer: ClassVar[None] = None


def run(config: ConfigDict, workdir: str | pathlib.Path) -> dict[str, dict[str, Any]]:
    """Evaluates `config.init` with `config.evals`; title -> its result.

    Raises:
      ValueError, KeyError, OSError: a mistake of the user's, before any compile.
    """
    line = progress.Line()
    doing = "reading the model and listing the images"
    distributed.beat(doing, grace=True, begun=False)
    line.say(f"{doing} ...")
    job = prepare(config, paths.path(workdir))
    writer = progress.Writer(job.workdir, tensorboard=False)

    def write(step: int, row: dict[str, Any]) -> None:
        if distributed.primary():
            writer.write(step, row)

    line.say("\n".join(job.notes))
    evaluations = evaluation.Evaluations(job, write, line)
    evaluations.run(job.place(), job.step, list(job.evaluators))
    writer.close()
    return evaluations.results


def prepare(config: ConfigDict, workdir: pathlib.Path) -> Job:
    """Resolves `config`, checks it and reads what is evaluated.

    Raises:
      ValueError, OSError: the user's mistake, named in the message.
    """
    config = config.copy_and_resolve_references().unlock()
    registry.check_fields(config)
    asked = config.objective.to_dict()
    loaded = _read(config, asked["encoder"])
    complete = _from_run if "data" in loaded.config else _from_file
    known = complete(config, loaded)
    _take_asked(config, asked)
    view = views.of(f"--config.init={config.init}", loaded)
    views.take(config, view)
    views.take_default(config)
    mesh = sharding.make_mesh(**config.mesh)
    sharding.check_batch(config.batch_size, mesh)
    source = _source(config)
    classes = source("eval").classes
    config.derived = {"num_classes": len(classes), "classes": classes}
    average = loaded.config.get("optimizer", {}).get("ema_decay") is not None
    if average and config.init != "random":
        config.derived.parameters = "average" if config.init_ema else "last"
    objective = _objective(config)
    batch = _batch(config, objective)
    variables = states.abstract_variables(objective, batch)
    evaluators = evaluation.make(
        config,
        objective,
        variables,
        source,
        mesh=mesh,
        workdir=workdir,
        known=known,
    )
    if config.init == "random":
        place = functools.partial(_place_random, objective, batch, config.seed, mesh)
    else:
        params = inherit.fill_all(variables.params, loaded, config)
        theirs = loaded.model_state
        state = checkpoint.fill(variables.model_state, theirs, load=(".*",), skip=())
        place = functools.partial(_place, params, state, mesh)
    plain = workdirs.plain(config.to_dict())
    workdirs.open_run(workdir, plain)
    notes = [
        *entries.which_encoder(config, loaded),
        *views.lines(config, [view]),
        *entries.which_parameters(config, loaded),
        *evaluation.notes(evaluators),
    ]
    return Job(plain, workdir, evaluators, loaded.step, place, notes)


def _read(config: ConfigDict, encoder: dict[str, Any]) -> checkpoint.Checkpoint:
    """What `init` names; of `random` the config of `like`, without parameters."""
    if not config.init or (config.init == "random" and not config.like):
        raise ValueError(
            f"{config.name}: what is evaluated? Give a run with --config.init=RUN_DIR "
            "(or a step in it, RUN_DIR/checkpoints/STEP), or a file of weights; or "
            "--config.init=random --config.like=RUN_DIR for its model before training"
        )
    if config.init != "random":
        average = bool(config.init_ema)
        grid = config.init_grid
        return inherit.read_flag(
            "init", config.init, encoder, average=average, grid=grid
        )
    like = views.run_config(config.like)
    return checkpoint.Checkpoint({}, like, 0, pathlib.Path(config.like))


def _source(config: ConfigDict) -> Callable[[str], Any]:
    """`inputs.sources`, with 'eval' opened: nothing is trained, so it may be all."""
    try:
        inputs.settle_range(config.data, config.data.eval_split)
        source = inputs.sources(config.data)
        source("eval")
    except split_names.NoTestSplit as error:
        raise ValueError(
            f"{error.where} has no 'test' split. Evaluate all of its images with "
            f"--config.data.eval_split={error.whole} (k-NN needs other images than "
            "those that vote), or keep a share of them for testing with "
            "--config.data.holdout.test=0.1, or provide a test split"
        ) from None
    return source


def _from_run(config: ConfigDict, loaded: checkpoint.Checkpoint) -> evaluation.Known:
    """Takes objective, data and evaluators of the run; returns its classes."""
    run = loaded.config
    config.objective = _block_of(run)
    if config.data.source is None:
        inherit.take_data(config, run)
    if not config.evals:
        config.evals = _tuples(run["evals"])
    return evaluation.Known.of(run["derived"])


def _from_file(config: ConfigDict, loaded: checkpoint.Checkpoint) -> evaluation.Known:
    """An objective that predicts what the file's parameters can; its classes."""
    if config.data.source is None:
        inherit.take_data(config, loaded.config)  # says that there is none
    encoder, params = dict(loaded.config["objective"]["encoder"]), loaded.params
    encoder.pop("grid")
    encoder["final_norm"] = "encoder/norm/scale" in params
    pool = loaded.config["objective"]["pool"]
    config.objective = {"name": "encoder", "encoder": encoder, "pool": pool}
    evaluator = {"name": "knn", "split": "eval", "every_steps": 0}
    kernel = params.get(_HEAD)
    if kernel is not None:
        config.objective.update(name="supervised", num_classes=kernel.shape[1])
        evaluator["name"] = "classification"
    if any(name.startswith("head_dist/") for name in params):
        # Two heads are read with the second one's teacher; none of it is loaded.
        config.objective.update(teacher=dict(encoder), distill={})
    if not config.evals:
        config.evals = {"test": evaluator}
    names = loaded.config["classes"]
    count = 0 if kernel is None else kernel.shape[1]
    return evaluation.Known(count, names if len(names) == count else [])


def _take_asked(config: ConfigDict, asked: dict[str, Any]) -> None:
    """What the command line says of the objective, where a checkpoint can differ."""
    if asked["dtype"] is not None:
        config.objective.dtype = asked["dtype"]
    heads, given = asked["encoder"]["num_heads"], config.objective.encoder
    if heads is not None and given.get("num_heads") not in (None, heads):
        raise ValueError(
            f"objective.encoder.num_heads={heads}, but the checkpoint {config.init} "
            f"has {given.num_heads}; leave it out"
        )


def objective_of(run: dict[str, Any]) -> Any:
    """The objective of a run's saved config."""
    return _objective(ConfigDict({"objective": _block_of(run)}))


def _block_of(run: dict[str, Any]) -> dict[str, Any]:
    block = _tuples(run["objective"])
    derived = run["derived"]
    return block | objectives.complete(inherit.without_none(block), derived)


def _objective(config: ConfigDict) -> Any:
    block = inherit.without_none(config.objective.to_dict())
    name = block.pop("name")
    if name == "encoder":
        return Encoder(vit.make_encoder(**block["encoder"]), block.get("pool"))
    return registry.make("objectives", name, **block)


def _batch(config: ConfigDict, objective: Any) -> batches.Shapes:
    """A batch that the objective's parameters are made for, by shape."""
    size = batches.image_size(config.data)
    image = (config.batch_size, *size, config.data.channels)
    batch = {"image": jax.ShapeDtypeStruct(image, "float32")}
    views = objective.num_views
    if views > 1:
        batch["views"] = jax.ShapeDtypeStruct((views, *image), "float32")
    return batch


@dataclasses.dataclass(frozen=True)
class Encoder:
    """What a file without a classifier predicts: features.

    With `pool` they are pooled so and go through a norm, as in a classifier whose last
    layer was taken away.
    """

    encoder: vit.Encoder
    pool: str | None = None
    num_views: ClassVar[int] = 1

    def init(self, key: jax.Array, batch: dict[str, Any]) -> objectives.Variables:
        """Parameters {'encoder'}, and with `pool` {'head': {'fc_norm'}}."""
        image = jax.numpy.zeros((1, *batch["image"].shape[1:]))
        params = {"encoder": self.encoder.init(key, image)["params"]}
        if self.pool is not None:
            pooled = jax.numpy.zeros((1, self.encoder.width))
            params["head"] = {"fc_norm": self._norm.init(key, pooled)["params"]}
        return objectives.Variables(params, {}, {})

    def predict(
        self, params: Any, model_state: Any, batch: dict[str, Any]
    ) -> dict[str, jax.Array]:
        """Features, see `vit.features_of`."""
        del model_state
        found: Any = self.encoder.apply({"params": params["encoder"]}, batch["image"])
        features = vit.features_of(*found)
        if self.pool is not None:
            norm = {"params": params["head"]["fc_norm"]}
            pooled = vit.pool_tokens(found[0], self.pool)
            features["features"] = jax.numpy.asarray(self._norm.apply(norm, pooled))
        return features

    @property
    def _norm(self) -> layers.LayerNorm:
        return layers.LayerNorm("float32")


def _tuples(value: Any) -> Any:
    """Lists, which JSON makes of tuples, as tuples again, at any depth."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    return value


def _place(params: Any, model_state: Any, mesh: Mesh) -> Any:
    model = {"params": params, "model_state": model_state}
    placed = sharding.put(model, sharding.tree_sharding(mesh, model))
    return SimpleNamespace(**placed)


def _place_random(objective: Any, batch: batches.Shapes, seed: int, mesh: Mesh) -> Any:
    """What a run with this seed starts from."""

    def init(key: jax.Array) -> tuple[Any, Any]:
        zeros = jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), batch)
        made = objective.init(key, zeros)
        return made.params, made.model_state

    params, model_state = jax.jit(init)(jax.random.key(seed))
    return _place(params, model_state, mesh)
