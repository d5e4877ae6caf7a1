"""Reads checkpoints and files of weights as encoders to analyse."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from litevit_jax import trees, weights
from litevit_jax.models import layers, vit
from litevit_jax.objectives import distill, mae
from litevit_jax.train import state as states
from litevit_jax.warm_start import fill, predictor
from litevit_jax.warm_start import read as reading

# Parameters that an encoder may leave unread: the last norm, which is applied
# separately, and all that are not the encoder's.
_UNUSED = ("(?!encoder/(blocks|pos_embed)).*",)
_BETWEEN = re.compile(r",(?=[^,=/]*=)")  # commas before a name, not inside a path
_NAME = re.compile(r"[\w.+-]{1,40}")


@dataclasses.dataclass(frozen=True)
class View:
    """The form of a model's images.

    Attributes:
      size: (H, W).
      channels: C.
      mean, std: one per channel, by which pixels in 0..1 are normalised.
      crop: share of the shorter side that evaluation keeps; None: not recorded.
      range: how pixels of more than 8 bits are scaled, as in `data.range`.
    """

    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float | None = None
    range: str = "full"


@dataclasses.dataclass(frozen=True)
class Model:
    """An encoder with its parameters.

    Attributes:
      name: the name given by the user.
      path: of the run, checkpoint or file.
      step: number of its updates; 0 for a file.
      encoder: without its final norm, which `last_norm` names.
      params: the encoder's, a tree of host arrays.
      last_norm: the norm that the last block's tokens go through before they are
        compared: 'norm', 'fc_norm' (a classifier's) or 'none'.
      norm: its parameters, {'scale', 'bias'}; {} for 'none'.
      view: the form of its images.
      painter, paint: the objective that reconstructs images, and its parameters; None
        if the checkpoint has no decoder.
      run: directory of the run, or None.
      config: the run's; {} for a file.
    """

    name: str
    path: str
    step: int
    encoder: vit.Encoder
    params: Any
    last_norm: str
    norm: dict[str, np.ndarray]
    view: View
    painter: mae.Mae | None = None
    paint: Any = None
    run: pathlib.Path | None = None
    config: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return layers.grid_of((1, *self.view.size, 1), self.encoder.patch_size)


def named(text: str | None) -> dict[str, str]:
    """Parses 'mae=RUN,moco=FILE' to {name: path}; a lone path gets its last part.

    Raises:
      ValueError: no model, a name given twice, or one with other characters.
    """
    paths: dict[str, str] = {}
    for piece in filter(None, _BETWEEN.split(text or "")):
        name, equals, path = piece.partition("=")
        if not equals:
            name, path = plain(pathlib.Path(piece).name), piece
        name = name.strip()
        if not _NAME.fullmatch(name) or not path:
            raise ValueError(
                f"--config.models: {piece!r}; expected NAME=PATH, the name of letters, "
                "digits and . _ + - alone"
            )
        if name in paths:
            raise ValueError(
                f"--config.models: {name} stands for {paths[name]} and {path}; give "
                "each checkpoint a name of its own, NAME=PATH"
            )
        paths[name] = path.strip()
    if not paths:
        raise ValueError(
            "which checkpoints? Give runs (or steps in them, RUN/checkpoints/STEP) or "
            "files of weights with --config.models=NAME=PATH,NAME=PATH"
        )
    return paths


def plain(name: str) -> str:
    """Turns a directory's name into a valid name of a model."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)[:40]


def read(
    name: str,
    path: str,
    *,
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
    average: bool = False,
    normalize: dict[str, Any],
    seed: int = 0,
) -> Model:
    """Reads the model of a run, a step of it, a file, or `random:RUN` before training.

    Args:
      name: the name given by the user.
      path: of the run, step or file.
      num_heads, decoder_num_heads: for a file that does not record them; a decoder with
        unknown heads is left out.
      average: whether to read the run's average of its parameters.
      normalize: mean and std of images, for files that do not record them.
      seed: the seed for `random:`.

    Raises:
      FileNotFoundError: no such run or file.
      ValueError: it cannot be read, or its encoder is incomplete.
    """
    try:
        if path.startswith("random:"):
            return _random(name, path, seed)
        if pathlib.Path(path).is_file():
            heads = {"num_heads": num_heads, "decoder_num_heads": decoder_num_heads}
            return _of_file(name, path, heads, normalize)
        loaded = reading.read_params(path, average=average)
        return _of_run(name, path, loaded, loaded.params)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--config.models={name}={error}") from None
    except ValueError as error:
        hint = ""
        if "num_heads" in str(error) and num_heads is None:
            hint = "; here: --config.num_heads=A"
        raise ValueError(f"--config.models={name}: {error}{hint}") from None


def _of_run(
    name: str, path: str, loaded: reading.Checkpoint, params: dict[str, np.ndarray]
) -> Model:
    config = loaded.config
    objective = predictor.objective_of(config)
    view = _view_of_run(config)
    if isinstance(objective, distill.Distill):
        objective = objective.student
    return _model(
        name,
        path,
        _encoder(objective, config),
        params,
        step=loaded.step,
        view=view,
        **_painter(objective, params, view),
        run=loaded.directory,
        config=config,
    )


def _encoder(objective: Any, config: dict[str, Any]) -> vit.Encoder:
    """Returns the encoder of an objective if it is one that can be looked into."""
    encoder = getattr(objective, "encoder", None)
    if not isinstance(encoder, vit.Encoder):
        raise ValueError(
            f"objective {config['objective']['name']!r}: its encoder attends within "
            "windows and has no class token, and analyses look into plain encoders "
            "alone; give the run that it started from"
        )
    return encoder


def _painter(objective: Any, params: dict[str, Any], view: View) -> dict[str, Any]:
    """The fields `painter` and `paint`, if `objective` reconstructs images."""
    if not isinstance(objective, mae.Mae):
        return {}
    image = jax.ShapeDtypeStruct((1, *view.size, view.channels), jnp.float32)
    shapes = states.abstract_variables(objective, {"image": image}).params
    paint = fill.fill_leaves(shapes, params, load=(".*",), skip=(".*",))
    return {"painter": objective, "paint": paint}


def _of_file(
    name: str, path: str, heads: dict[str, Any], normalize: dict[str, Any]
) -> Model:
    file = weights.read(path, **heads)
    params = file.params
    block = {k: v for k, v in file.encoder.items() if k != "grid"}
    encoder = vit.make_encoder(**block)
    side = encoder.patch_size
    channels = params["encoder/patch_embed/kernel"].shape[0] // side**2
    size = (file.grid[0] * side, file.grid[1] * side)
    known = {**normalize, **file.normalize}  # the file's own values come first
    mean, std = (tuple(known[key]) for key in ("mean", "std"))
    if len(mean) != channels:
        raise ValueError(
            f"{path}: images of {channels} channels, but fallback.mean has "
            f"{len(mean)}; give one mean and std per channel"
        )
    view = View(size, channels, mean, std)
    painter = None
    if file.decoder is not None:
        painter = mae.make(encoder=block, decoder=file.decoder)
    more = _painter(painter, params, view)
    return _model(name, path, encoder, params, view=view, **more)


def _random(name: str, path: str, seed: int) -> Model:
    """The model of a run with fresh parameters, never trained."""
    run = path.removeprefix("random:")
    config = reading.run_config(run)
    objective, view = predictor.objective_of(config), _view_of_run(config)
    encoder = _encoder(getattr(objective, "student", objective), config)
    image = jnp.zeros((1, *view.size, view.channels))
    fresh = jax.jit(encoder.init)(jax.random.key(seed), image)["params"]
    params = trees.flatten({"encoder": jax.device_get(fresh)})
    return _model(name, path, encoder, params, view=view)


def _model(
    name: str, path: str, encoder: vit.Encoder, params: dict[str, Any], **fields: Any
) -> Model:
    """Builds a model from the encoder's parameters, checked strictly, and its norm."""
    bare = encoder.clone(final_norm=False, dtype="float32", drop_path=0.0)
    view = fields["view"]
    image = jax.ShapeDtypeStruct((1, *view.size, view.channels), jnp.float32)
    shapes = jax.eval_shape(bare.init, states.abstract_key(), image)["params"]
    filled = fill.fill_leaves({"encoder": shapes}, params, load=(".*",), skip=_UNUSED)
    prefixes = {"norm": "encoder/norm", "fc_norm": "head/fc_norm", "none": ""}
    last = next(k for k, p in prefixes.items() if not p or f"{p}/scale" in params)
    norm = {}
    if last != "none":
        norm = {k: params[f"{prefixes[last]}/{k}"] for k in ("scale", "bias")}
    return Model(
        name=name,
        path=path,
        step=fields.pop("step", 0),
        encoder=bare,
        params=filled["encoder"],
        last_norm=last,
        norm=norm,
        **fields,
    )


def _view_of_run(config: dict[str, Any]) -> View:
    data, normalize = config["data"], config["augment"]["normalize"]
    size = (data["image_size"], data.get("image_width") or data["image_size"])
    mean, std = (tuple(normalize[key]) for key in ("mean", "std"))
    crop, levels = data["eval_crop_fraction"], data.get("range") or "full"
    return View(size, data["channels"], mean, std, crop, levels)
