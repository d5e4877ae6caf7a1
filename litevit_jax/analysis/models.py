"""Checkpoints and files of weights -> encoders that can be looked into."""

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

# What an encoder may leave: its last norm, which is applied apart, and all beside it.
_UNUSED = ("(?!encoder/(blocks|pos_embed)).*",)
_BETWEEN = re.compile(r",(?=[^,=/]*=)")  # commas before a name, not those of a path
_NAME = re.compile(r"[\w.+-]{1,40}")


@dataclasses.dataclass(frozen=True)
class View:
    """The images that a model knows.

    Attributes:
      size: (H, W).
      channels: C.
      mean, std: of each channel, by which pixels in 0..1 are normalised.
      crop: share of the shorter side that evaluation keeps; None: not recorded.
      range: of pixels of more than 8 bits, as in `data.range`.
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
      name: that the user gave.
      path: where it came from.
      step: updates that it had; 0 of a file.
      encoder: without its final norm, which `last_norm` names.
      params: of the encoder, a tree of host arrays.
      last_norm: 'norm', 'fc_norm' (a classifier's) or 'none', through which the
        last block's tokens go before they are compared.
      norm: its parameters, {'scale', 'bias'}; {} for 'none'.
      view: see View.
      painter, paint: what reconstructs images, and its parameters; None if the
        checkpoint has no decoder.
      run: directory of the run, or None.
      config: of the run; {} of a file.
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
    """'mae=RUN,moco=FILE' -> name to path; a lone path is named by its last part.

    Raises:
      ValueError: nothing is named, a name twice, or one that is no file's name.
    """
    found: dict[str, str] = {}
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
        if name in found:
            raise ValueError(
                f"--config.models: {name} stands for {found[name]} and {path}; give "
                "each checkpoint a name of its own, NAME=PATH"
            )
        found[name] = path.strip()
    if not found:
        raise ValueError(
            "which checkpoints? Give runs (or steps in them, RUN/checkpoints/STEP) or "
            "files of weights with --config.models=NAME=PATH,NAME=PATH"
        )
    return found


def plain(name: str) -> str:
    """A directory's name as models are named."""
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
    """The model of a run, a step inside it, a file, or `random:RUN` before training.

    Args:
      name: that the user gave.
      path: of it.
      num_heads, decoder_num_heads: of a file, where it does not tell; a decoder of
        unknown heads is left out.
      average: the run's average of its parameters.
      normalize: mean and std of images, for files, which do not record them.
      seed: of `random:`.

    Raises:
      FileNotFoundError: nothing is there.
      ValueError: it cannot be read, or its encoder is not whole.
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
        objective.encoder,
        params,
        step=loaded.step,
        view=view,
        **_painter(objective, params, view),
        run=loaded.directory,
        config=config,
    )


def _painter(objective: Any, params: dict[str, Any], view: View) -> dict[str, Any]:
    """What reconstructs images, if `objective` does."""
    if not isinstance(objective, mae.Mae):
        return {}
    image = jax.ShapeDtypeStruct((1, *view.size, view.channels), jnp.float32)
    shapes = states.abstract_variables(objective, {"image": image}).params
    found = fill.fill_leaves(shapes, params, load=(".*",), skip=(".*",))
    return {"painter": objective, "paint": found}


def _of_file(
    name: str, path: str, heads: dict[str, Any], normalize: dict[str, Any]
) -> Model:
    found = weights.read(path, **heads)
    params = found.params
    block = {k: v for k, v in found.encoder.items() if k != "grid"}
    encoder = vit.make_encoder(**block)
    side = encoder.patch_size
    channels = params["encoder/patch_embed/kernel"].shape[0] // side**2
    size = (found.grid[0] * side, found.grid[1] * side)
    known = {**normalize, **found.normalize}  # what the file records comes first
    mean, std = (tuple(known[key]) for key in ("mean", "std"))
    if len(mean) != channels:
        raise ValueError(
            f"{path}: images of {channels} channels, but fallback.mean has "
            f"{len(mean)}; give one mean and std per channel"
        )
    view = View(size, channels, mean, std)
    painter = None
    if found.decoder is not None:
        painter = mae.make(encoder=block, decoder=found.decoder)
    more = _painter(painter, params, view)
    return _model(name, path, encoder, params, view=view, **more)


def _random(name: str, path: str, seed: int) -> Model:
    """The model of a run with the parameters of another seed, never trained."""
    run = path.removeprefix("random:")
    config = reading.run_config(run)
    objective, view = predictor.objective_of(config), _view_of_run(config)
    encoder = getattr(objective, "student", objective).encoder
    image = jnp.zeros((1, *view.size, view.channels))
    made = jax.jit(encoder.init)(jax.random.key(seed), image)["params"]
    params = trees.flatten({"encoder": jax.device_get(made)})
    return _model(name, path, encoder, params, view=view)


def _model(
    name: str, path: str, encoder: vit.Encoder, params: dict[str, Any], **fields: Any
) -> Model:
    """Takes the encoder's parameters, strictly, and the norm at its end."""
    bare = encoder.clone(final_norm=False, dtype="float32", drop_path=0.0)
    view = fields["view"]
    image = jax.ShapeDtypeStruct((1, *view.size, view.channels), jnp.float32)
    shapes = jax.eval_shape(bare.init, states.abstract_key(), image)["params"]
    found = fill.fill_leaves({"encoder": shapes}, params, load=(".*",), skip=_UNUSED)
    places = {"norm": "encoder/norm", "fc_norm": "head/fc_norm", "none": ""}
    last = next(k for k, p in places.items() if not p or f"{p}/scale" in params)
    norm = {}
    if last != "none":
        norm = {k: params[f"{places[last]}/{k}"] for k in ("scale", "bias")}
    return Model(
        name=name,
        path=path,
        step=fields.pop("step", 0),
        encoder=bare,
        params=found["encoder"],
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
