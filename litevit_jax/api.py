"""The package in your programs: encoders, their features, training and evaluation.

The names are used as `litevit_jax.load` and so on; docs/python.md has the whole way.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import warnings
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from litevit_jax import choices, cli, compilation, cpu, recipes, registry, trees
from litevit_jax.analysis import images as analysis_images
from litevit_jax.data.sources.base import Source as Source
from litevit_jax.encoder import Encoder, batches
from litevit_jax.evaluators import predict as prediction
from litevit_jax.evaluators.base import Evaluator as Evaluator
from litevit_jax.jobs import convert
from litevit_jax.jobs import evaluate as evaluate_job
from litevit_jax.jobs import train as train_job
from litevit_jax.models import vit
from litevit_jax.objectives.base import Objective as Objective
from litevit_jax.train import state as states
from litevit_jax.train.loop import RunOutcome as RunOutcome
from litevit_jax.warm_start import fill, match, predictor, read
from litevit_jax.warm_start import images as known_images
from litevit_jax.weights import exportable, names

POOLS = ("avg", "cls")
_CALLS = {"train": "litevit_jax.train", "evaluate": "litevit_jax.evaluate"}
_SIZES = ("width", "depth", "num_heads", "patch_size", "mlp_ratio", "pos_embed")


def load(
    path: str | os.PathLike[str], *, num_heads: int | None = None, average: bool = False
) -> Encoder:
    """Loads the encoder of a run, of a step in it, or of a file of weights.

    >>> encoder = litevit_jax.load("runs/mae_tiny-smoke")
    >>> encoder.image_size, encoder.channels, encoder.mean
    ((8, 8), 1, (0.305,))

    Args:
      path: what `--config.init` takes: a run directory (its newest step), a step
        inside it (RUN/checkpoints/STEP), or a file by timm, Hugging Face, PyTorch or
        this package.
      num_heads: attention heads, for a file that does not record them.
      average: the average of the parameters that the run kept, of which its own
        evaluations are. Without it, a run that kept one is warned about.

    Raises:
      FileNotFoundError: nothing is there.
      ValueError: it cannot be read, or does not say how many heads it has.
    """
    path = _path("load", path, "a run directory, a step in it or a file of weights")
    loaded = _read(path, num_heads, average)
    is_run = "data" in loaded.config
    if is_run:
        block = predictor.block_of(loaded.config)
        crop = loaded.config["data"]["eval_crop_fraction"]
    else:
        block = predictor.block_of_file(loaded)
        crop = float(loaded.config["crop"] or analysis_images.CROP)
    _check_heads(path, block, num_heads)
    objective = predictor.make(block)
    _check_encodes(path, objective, block["name"])
    view = known_images.spec_of(path, loaded)
    variables = _variables(objective, (*view.size, view.channels))
    try:
        params = fill.fill_leaves(
            variables.params, loaded.params, load=(".*",), skip=("decoder/.*",)
        )
        model_state = fill.fill_leaves(
            variables.model_state, loaded.model_state, load=(".*",), skip=()
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    mean, std = _statistics(path, view)
    return Encoder(
        path=path,
        image_size=view.size,
        channels=view.channels,
        module=getattr(objective, "student", objective).encoder.in_float32(),
        params=params["encoder"],
        mean=mean,
        std=std,
        crop=crop,
        range=view.range or "full",
        classes=tuple(match.classes_of(loaded.config)) if "head" in params else (),
        objective=objective,
        others={name: part for name, part in params.items() if name != "encoder"},
        model_state=model_state,
    )


def _check_encodes(path: str, objective: Any, name: str) -> None:
    """Raises ValueError if an objective has no encoder, as a detector's."""
    if not hasattr(getattr(objective, "student", objective), "encoder"):
        raise ValueError(
            f"{path}: a run of {name!r} has no encoder for single images; "
            "what it sees on yours, litevit_jax.evaluate(config, DIR) writes with "
            "config = litevit_jax.recipes.get('predict'), config.init, config.images"
        )


def _path(what: str, path: Any, expected: str) -> str:
    """Returns a path as text.

    Raises:
      ValueError: it is none; `what` was given it, `expected` was another.
    """
    if isinstance(path, str | os.PathLike) and os.fspath(path):
        return os.fspath(path)
    raise ValueError(f"{what}: got {path!r}, expected the path of {expected}")


def _check_encoder(what: str, encoder: Any) -> None:
    if not isinstance(encoder, Encoder):
        raise ValueError(
            f"{what}: got {type(encoder).__name__} as the encoder, expected what "
            f"litevit_jax.load(PATH) returns; give it first: {what}(encoder, ...)"
        )


def _read(path: str, num_heads: int | None, average: bool) -> read.Checkpoint:
    whole = isinstance(num_heads, int) and not isinstance(num_heads, bool)
    if num_heads is not None and not (whole and num_heads > 0):
        raise ValueError(f"load: got num_heads={num_heads!r}, expected 1 or more")
    loaded = read.read(path, num_heads=num_heads, average=average)
    kept = loaded.config.get("optimizer", {}).get("ema_decay") is not None
    if kept and not average:
        warnings.warn(
            f"{path}: these are its last parameters; its own evaluations are of their "
            "average, which average=True loads",
            stacklevel=3,
        )
    return loaded


def _check_heads(path: str, block: dict[str, Any], num_heads: int | None) -> None:
    heads = vit.of_block(block["encoder"]).num_heads
    if num_heads not in (None, heads):
        raise ValueError(
            f"{path}: num_heads={num_heads}, but it records {heads}; leave it out"
        )


def _variables(objective: Any, image: tuple[int, ...]) -> Any:
    """Returns the objective's Variables by shape."""
    batch = {"image": jax.ShapeDtypeStruct((1, *image), "float32")}
    if objective.num_views > 1:
        views = (objective.num_views, 1, *image)
        batch["views"] = jax.ShapeDtypeStruct(views, "float32")
    return states.abstract_variables(objective, batch)


def _statistics(path: str, view: known_images.ImageSpec) -> tuple[Any, Any]:
    """Returns mean and std; if a file has none, those that an evaluation assumes.

    They are ImageNet's; for another number of channels None and None.
    """
    if view.mean is not None and view.std is not None:
        return tuple(view.mean), tuple(view.std)
    assumed = recipes.get("evaluate").fallback
    mean, std = tuple(assumed.mean), tuple(assumed.std)
    if len(mean) != view.channels:
        return None, None
    warnings.warn(
        f"{path} does not say how its images were normalised: mean {mean} and std "
        f"{std} are assumed; dataclasses.replace(encoder, mean=..., std=...) gives "
        "others",
        stacklevel=3,
    )
    return mean, std


def features(
    encoder: Encoder, images_or_paths: Any, pool: str | None = None
) -> np.ndarray:
    """Computes a feature vector for each image.

    >>> encoder = litevit_jax.load("runs/mae_tiny-smoke")
    >>> images = np.zeros((3, 8, 8), np.uint8)
    >>> litevit_jax.features(encoder, list(images)).shape
    (3, 24)

    Args:
      encoder: see `load`.
      images_or_paths: a path or image as `Encoder.preprocess` takes it, or any number
        of them: a list, or an array `[B, H, W, C]`. Arrays of floats count as
        preprocessed.
      pool: 'cls' for the class token, 'avg' for the mean of the patch tokens. None
        takes what evaluators such as k-NN compare: the class token after pre-training;
        of a classifier the input of its last layer.

    Returns:
      float32 `[B, D]`.

    Raises:
      ValueError: no images, or one that cannot be read; see `Encoder.preprocess`.
    """
    _check_encoder("features", encoder)
    if pool is not None:
        choices.check("pool", pool, POOLS)
    parts = batches(encoder, "features", images_or_paths)
    return np.concatenate([encoder.features(x, pool)[:n] for x, n in parts])


def predict(
    encoder: Encoder, images_or_paths: Any, top: int = 5
) -> list[list[tuple[str, float]]]:
    """Tells the likeliest classes of each image, as the recipe `predict` does.

    >>> encoder = litevit_jax.load("runs/deit_tiny-smoke")
    >>> [pairs] = litevit_jax.predict(encoder, np.zeros((8, 8), np.uint8), top=2)
    >>> [type(name).__name__ for name, probability in pairs]
    ['str', 'str']

    Args:
      encoder: of a classifier: a fine-tuned run, a probe or a file with a head.
      images_or_paths: as for `features`.
      top: classes of each image; all if there are fewer.

    Returns:
      (name, probability) of the likeliest classes of each image, the likeliest first.
      A model that records no names says numbers.

    Raises:
      ValueError: no head, no images, or one that cannot be read.
    """
    _check_encoder("predict", encoder)
    if not isinstance(top, int) or isinstance(top, bool) or top < 1:
        raise ValueError(f"predict: got top={top!r}, expected 1 class or more")
    rows, alone = [], encoder.objective.multi_label
    for batch, count in batches(encoder, "predict", images_or_paths):
        logits = encoder.logits(batch)[:count]
        for likeliest in prediction.likeliest(logits, top, alone=alone):
            numbers = ((int(k), float(p)) for k, p in likeliest)
            names = encoder.classes
            rows.append([(names[k] if names else str(k), p) for k, p in numbers])
    return rows


def save(encoder: Encoder, path: str | os.PathLike[str]) -> None:
    """Writes an encoder to a file that `load` and other programs read.

    `.safetensors` has timm's names, and `load` gives the same parameters, bit for bit;
    `.onnx` and `.stablehlo` files hold the computation for other runtimes. A plain
    classifier keeps its head, which its features depend on. The file appears after its
    outputs were compared with the encoder's.

    >>> encoder = litevit_jax.load("runs/mae_tiny-smoke")
    >>> litevit_jax.save(encoder, "encoder.safetensors")
    >>> litevit_jax.load("encoder.safetensors").image_size
    (8, 8)

    Args:
      encoder: see `load`.
      path: of the new file; its ending says which format it has.

    Raises:
      ValueError: another ending, or an encoder that the format cannot hold.
      FileExistsError: the file is there already.
      OSError: it cannot be written.
    """
    _check_encoder("save", encoder)
    target = pathlib.Path(_path("save", path, "a new file, as encoder.safetensors"))
    kind = convert.check_target(target)
    module, head = encoder.module, _plain_head(encoder)
    params = trees.flatten({"encoder": encoder.params}) | head
    statistics = {"mean": encoder.mean, "std": encoder.std}
    notes = {k: json.dumps(list(x)) for k, x in statistics.items() if x is not None}
    notes |= {"crop": str(encoder.crop), "source": encoder.path}
    if encoder.range != "full":
        notes["range"] = encoder.range
    if "head/fc/kernel" in params:
        notes |= names.of_head(encoder.classes, encoder.objective.multi_label)
    try:
        model = exportable.make(
            {name: np.asarray(x) for name, x in params.items()},
            {name: getattr(module, name) for name in _SIZES},
            image_size=encoder.image_size,
            pool=getattr(encoder.objective, "pool", None) if head else None,
            notes=notes,
        )
    except ValueError as error:
        raise ValueError(f"{encoder.path}: {error}") from None
    convert.write(
        model,
        target,
        kind,
        decoder={},
        tolerance=recipes.get("convert").tolerance,
    )


def _plain_head(encoder: Encoder) -> dict[str, Any]:
    """Returns the parameters of a head that files have a place for, by name.

    Of a head with running statistics, of two, or of many, that is the norm before it.
    """
    head = trees.flatten({"head": encoder.others.get("head", {})})
    norm = {k: x for k, x in head.items() if k.startswith("head/fc_norm/")}
    linear = {"head/fc/kernel", "head/fc/bias"}
    plain = head.keys() - norm.keys() == linear and head["head/fc/kernel"].ndim == 2
    one = not encoder.model_state and "head_dist" not in encoder.others
    return head if plain and one else norm


def train(config: ConfigDict, workdir: str | os.PathLike[str]) -> RunOutcome:
    """Trains as `litevit --config=... --workdir=...` does, or resumes the run there.

    >>> config = litevit_jax.recipes.get("mae_tiny", "smoke")
    >>> config.steps = 1
    >>> config.objective.encoder.update(width=24, depth=1, num_heads=2)
    >>> outcome = litevit_jax.train(config, "runs/mae_tiny-smoke")
    >>> outcome.step, sorted(outcome.results)
    (1, ['reconstruction'])

    Args:
      config: of a recipe, see `recipes.get`, or a ConfigDict of yours; it stays as it
        is.
      workdir: of the run; a local directory or one in a store.

    Returns:
      The step that was reached, the last result of each evaluator by its title, and
      the signal that stopped the run, None if it is complete.

    Raises:
      ValueError, KeyError, OSError: a mistake, before anything is compiled.
    """
    _start(config, "train")
    return train_job.run(config, _path("train", workdir, "the run's directory"))


def evaluate(
    config: ConfigDict, workdir: str | os.PathLike[str]
) -> dict[str, dict[str, Any]]:
    """Evaluates a run or a file of weights, which `config.init` names.

    >>> config = litevit_jax.recipes.get("evaluate", "knn,digits")
    >>> config.init = "runs/mae_tiny-smoke"
    >>> results = litevit_jax.evaluate(config, "evals")
    >>> sorted(results["knn"]["last"])[:4]
    ['bank_n', 'n', 'params', 'percent_of_run']

    Args:
      config: of the recipe 'evaluate', see `recipes.get`.
      workdir: where results are written.

    Returns:
      The result of each evaluator by its title, as in its result.json.

    Raises:
      ValueError, KeyError, OSError: a mistake, before anything is compiled.
    """
    _start(config, "evaluate")
    folder = _path("evaluate", workdir, "a directory for the results")
    return evaluate_job.run(config, folder)


def _start(config: Any, job: str) -> None:
    """Readies JAX, as the command line does.

    Raises:
      ValueError: the config is of another job, or none; or a number is out of bounds.
      RuntimeError: the accelerator that JAX_PLATFORMS asks for cannot be used.
    """
    if not isinstance(config, ConfigDict) or "job" not in config:
        raise ValueError(
            f"{job}: got {type(config).__name__}, expected a config, as litevit_jax."
            "recipes.get('mae_tiny', 'digits') returns it"
        )
    registry.check_fields(config)
    if config.job != job:
        call = _CALLS.get(
            config.job, f"the command line: litevit --config={config.name}"
        )
        raise ValueError(
            f"{config.name} is a config of the job {config.job!r}, expected {job!r}; "
            f"use {call}"
        )
    if job == "train":
        with contextlib.suppress(RuntimeError):  # JAX has started: it has its devices
            cli.prepare_cpu(config)
    note = compilation.use(config.compilation_cache)
    if note is not None:
        warnings.warn(note, stacklevel=3)
    # A program may have asked for CPUs itself.
    if getattr(jax.config, "jax_platforms", None) != "cpu":
        cpu.devices()
