"""The job 'evaluate': evaluates a checkpoint or a file of weights, without training.

It evaluates the whole model of a checkpoint: encoder, and decoder or head with running
statistics. A file of weights is a classifier if it has a head, else an encoder whose
features are compared.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from litevit_jax import distributed, paths, sharding, terminal
from litevit_jax.analysis.images import CROP
from litevit_jax.data import settings, split_names, splits
from litevit_jax.evaluators import base
from litevit_jax.jobs import pictures, summary
from litevit_jax.train import batch_shapes, eval_runner, eval_setup, resolve, writers
from litevit_jax.train import start as starts
from litevit_jax.train import state as states
from litevit_jax.train import workdir as workdirs
from litevit_jax.warm_start import fill, images, predictor, read, start


@dataclasses.dataclass(frozen=True)
class Job:
    """An evaluation, ready to start.

    Attributes:
      config: resolved, as it is saved.
      workdir: where results go.
      evaluators: title -> (evaluator, every_steps).
      step: of the checkpoint; 0 for a file.
      create: () -> object with `params` and `model_state`, on the mesh.
      notes: lines about encoder, images, parameters and classes, for the start.
    """

    config: dict[str, Any]
    workdir: pathlib.Path
    evaluators: eval_setup.Evaluators
    step: int
    create: Callable[[], Any]
    notes: list[str]


def run(config: ConfigDict, workdir: str | pathlib.Path) -> dict[str, dict[str, Any]]:
    """Evaluates `config.init` with `config.evals`; title -> its result.

    Raises:
      ValueError, KeyError, OSError: a mistake of the user's, before any compile.
    """
    line = terminal.ConsoleLine()
    doing = "reading the model and listing the images"
    distributed.heartbeat(doing, grace=True, begun=False)
    line.say(f"{doing} ...")
    job = prepare(config, paths.path(workdir))
    writer = writers.Writer(job.workdir)

    def write(step: int, row: dict[str, Any]) -> None:
        if distributed.is_primary():
            writer.write(step, row)

    line.say("\n".join(job.notes))
    runner = eval_runner.EvalRunner(
        job.evaluators, job.config, job.workdir, None, write, line
    )
    runner.run(job.create(), job.step, list(job.evaluators))
    writer.close()
    workdirs.close_run(job.workdir)
    if "sheet_images" in job.config:
        pictures.show(job.config, job.evaluators, runner.results, line.say)
    return runner.results


def main(config: ConfigDict, workdir: str, command: str) -> summary.Ending:
    """Runs the job and prints its results; raises as `run`."""
    results, say = run(config, workdir), terminal.ConsoleLine().say
    if "sheet_images" in config:  # the rows are printed
        return summary.Ending(config)
    say(summary.results_table(results))
    if config.log.report:
        summary.report_at_end(workdir, command)
    say(f"done: results are in {os.path.join(workdir, 'evals')}")
    return summary.Ending(config, workdir)


def prepare(config: ConfigDict, workdir: pathlib.Path, *, begin: bool = True) -> Job:
    """Resolves and checks `config`, and reads the model to evaluate.

    With `begin` False the workdir is left as it is: all else is checked alone.

    Raises:
      ValueError, OSError: the user's mistake, named in the message.
    """
    config = resolve.copy(config)
    asked = config.objective.to_dict()
    _check_named(config.init, config.like, config.name)
    if "sheet_images" in config:
        pictures.check(config.name, config.data.source, dict(config.items()))
    average, asked_grid = bool(config.init_ema), config.init_grid
    loaded = _read(config.init, config.like, asked["encoder"], average, asked_grid)
    data, normalize = config.data, config.augment.normalize
    if data.source is None:  # of a file it says that there is none
        start.take_data(data, loaded.config, init=config.init, name=config.name)
    model = _of_run(loaded) if "data" in loaded.config else _of_file(loaded)
    resolve.assign(config, {"objective": model.objective})
    if not config.evals:
        resolve.assign(config, {"evals": model.evals})
    resolve.fill_open(data, {"joint": predictor.tuples(model.joint)})
    _take_asked(config.objective, asked, config.init)
    view = images.spec_of(f"--config.init={config.init}", loaded)
    images.take(view, data, normalize)
    resolve.fill_open(data, {"eval_crop_fraction": _crop(loaded)})
    starts.take_fallback(data, normalize, config.fallback)
    mesh = sharding.make_mesh(**config.mesh)
    sharding.check_batch(config.batch_size, mesh)
    source = _source(data)
    classes = source("eval").classes
    derived = {"num_classes": len(classes), "classes": classes}
    average_of = loaded.config.get("optimizer", {}).get("ema_decay")
    if average_of is not None and config.init != "random":
        derived["parameters"] = "average" if average else "last"
    resolve.assign(config, {"derived": derived})
    objective = predictor.make(config.objective.to_dict())
    batch = _batch(data, config.batch_size, objective)
    variables = states.abstract_variables(objective, batch)
    known = model.known
    evaluators = eval_setup.make(
        config, objective, variables, source, mesh=mesh, workdir=workdir, known=known
    )
    if config.init == "random":
        create = functools.partial(_random_state, objective, batch, config.seed, mesh)
    else:
        grid = images.grid(data, config.objective.encoder)
        create = _loaded_state(variables, loaded, config.init, grid, mesh)
    plain = workdirs.plain(config.to_dict())
    if begin:
        workdirs.open_run(workdir, plain, free=_free(workdir, config.name, evaluators))
    notes = [
        *images.which_encoder(config.init, config.like, loaded),
        *images.notes(data, normalize, config.objective.encoder, [view]),
        *images.which_parameters(config.init, loaded, average=average),
        *eval_setup.notes(evaluators),
    ]
    return Job(plain, workdir, evaluators, loaded.step, create, notes)


def _check_named(init: str | None, like: str | None, name: str) -> None:
    """Raises ValueError if nothing says what recipe `name` evaluates."""
    if not init or (init == "random" and not like):
        raise ValueError(
            f"{name}: what is evaluated? Give a run with --config.init=RUN_DIR "
            "(or a step in it, RUN_DIR/checkpoints/STEP), or a file of weights; or "
            "--config.init=random --config.like=RUN_DIR for its model before training"
        )


def _read(
    init: str, like: str, encoder: dict[str, Any], average: bool, grid: str | None
) -> read.Checkpoint:
    """Reads what `init` names; for `random` only the config of run `like`.

    `encoder` is the command line's block; `average` and `grid` say how `init` is read.
    """
    if init != "random":
        return read.read_flag("init", init, encoder, average=average, grid=grid)
    return read.Checkpoint({}, read.run_config(like), 0, pathlib.Path(like))


def _free(
    workdir: pathlib.Path, name: str, evaluators: eval_setup.Evaluators
) -> tuple[str, ...]:
    """Returns which fields may differ from those of the last command in `workdir`.

    All may, of the same recipe, if the results are in files of their own.
    """
    if not all(evaluator.own_file for evaluator, _ in evaluators.values()):
        return ()
    last = workdirs.read_config(workdir)
    return ("*",) if last is not None and last.get("name") == name else ()


def _crop(loaded: read.Checkpoint) -> float:
    """Returns the share of an image that evaluations of the model keep."""
    data = loaded.config.get("data")
    crop = loaded.config.get("crop") if data is None else data["eval_crop_fraction"]
    return float(crop or CROP)


def _source(data: ConfigDict) -> Callable[[str], Any]:
    """Opens the splits; as nothing is trained, 'eval' may be all images of a set."""
    try:
        resolve.pixel_range(data, data.eval_split)
        source = splits.open_splits(data)
        source("eval")
    except split_names.NoTestSplit as error:
        raise ValueError(
            f"{error.where} has no 'test' split. Evaluate all of its images with "
            f"--config.data.eval_split={error.whole} (k-NN needs other images than "
            "those that vote), or keep a share of them for testing with "
            "--config.data.holdout.test=0.1, or provide a test split"
        ) from None
    return source


class Model(NamedTuple):
    """The model of a checkpoint, and how it was evaluated.

    Attributes:
      objective: its block, complete.
      evals: the evaluators to run unless the command line names others.
      known: the classes that it tells apart.
      joint: what is read beside images, and how they are resized, if at all.
    """

    objective: dict[str, Any]
    evals: dict[str, Any]
    known: eval_setup.Known
    joint: dict[str, Any]


def _of_run(loaded: read.Checkpoint) -> Model:
    """Returns the model of a run, and the run's evaluators."""
    run = loaded.config
    known = eval_setup.Known.of(run["derived"])
    evals, joint = predictor.tuples(run["evals"]), run["data"].get("joint") or {}
    return Model(predictor.block_of(run), evals, known, joint)


def _of_file(loaded: read.Checkpoint) -> Model:
    """Returns a model that fits a file's parameters, and an evaluator of it."""
    objective = predictor.block_of_file(loaded)
    count = objective.get("num_classes", 0)
    several = objective.get("loss") == "bce"
    name = ("multi_label" if several else "classification") if count else "knn"
    evaluator, joint = {"name": name, "split": "eval", "every_steps": 0}, {}
    if objective["name"] == "detect":
        masks = objective["masks"]
        evaluator |= {"name": "coco", "masks": masks, "images": 4}
        joint = {"annotations": ("objects",) if masks else ("boxes",)}
        if not loaded.config["detector"] and distributed.is_primary():
            print(
                f"{loaded.directory}: anchor_sizes and rules are not recorded; those "
                "of the published detector are assumed. If it has others, set "
                "--config.objective.anchor_sizes and --config.objective.rules.*",
                flush=True,
            )
    names = loaded.config["classes"]
    known = eval_setup.Known(count, names if len(names) == count else [])
    return Model(objective, {"test": evaluator}, known, joint)


def _take_asked(objective: ConfigDict, asked: dict[str, Any], init: str) -> None:
    """Sets what the command line asks of the objective; refuses other heads."""
    if asked["dtype"] is not None:
        resolve.assign(objective, {"dtype": asked["dtype"]})
    heads, encoder = asked["encoder"]["num_heads"], objective.encoder
    if heads is not None and encoder.get("num_heads") not in (None, heads):
        raise ValueError(
            f"objective.encoder.num_heads={heads}, but the checkpoint {init} "
            f"has {encoder.num_heads}; leave it out"
        )


def _batch(data: ConfigDict, batch_size: int, objective: Any) -> batch_shapes.Shapes:
    """Returns a batch for the objective's parameters, by shape."""
    image = (batch_size, *settings.image_size(data), data.channels)
    batch = {"image": jax.ShapeDtypeStruct(image, "float32")}
    if objective.num_views > 1:
        image = (objective.num_views, *image)
        batch["views"] = jax.ShapeDtypeStruct(image, "float32")
    return batch


def _on_mesh(params: Any, model_state: Any, mesh: Mesh) -> base.Model:
    """Puts a model on the mesh."""
    model = {"params": params, "model_state": model_state}
    placed = sharding.put(model, sharding.tree_sharding(mesh, model))
    return base.Model(**placed)


def _loaded_state(
    variables: Any,
    loaded: read.Checkpoint,
    path: str,
    grid: tuple[int, int],
    mesh: Mesh,
) -> Callable[[], Any]:
    """Returns () -> the model of a checkpoint, which fits `variables`, on the mesh.

    `path` names it, `grid` are the rows and columns of patches of the images.
    """
    params = fill.fill_all(variables.params, loaded, path, grid)
    arrays = loaded.model_state
    state = fill.fill_leaves(variables.model_state, arrays, load=(".*",), skip=())
    return functools.partial(_on_mesh, params, state, mesh)


def _random_state(
    objective: Any, batch: batch_shapes.Shapes, seed: int, mesh: Mesh
) -> Any:
    """Creates the parameters that a run with this seed starts from, on the mesh."""

    def init(key: jax.Array) -> tuple[Any, Any]:
        zeros = jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), batch)
        variables = objective.init(key, zeros)
        return variables.params, variables.model_state

    params, model_state = jax.jit(init)(jax.random.key(seed))
    return _on_mesh(params, model_state, mesh)
