"""The images that an encoder was trained on: size, channels and normalisation.

A run that starts from an encoder reads images as that encoder was trained, unless a
config field says otherwise; the run prints the differences when it starts.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from litevit_jax.data import settings
from litevit_jax.models import vit
from litevit_jax.train import resolve
from litevit_jax.train import start as starts
from litevit_jax.warm_start import Checkpoint

_KERNEL = "encoder/patch_embed/kernel"


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """The images that an encoder was trained on.

    Attributes:
      flag: names the encoder, as '--config.init=RUN'.
      size: (H, W).
      channels: C.
      mean, std: per channel, of pixels in 0..1; None if they are not recorded.
      range: of pixels of more than 8 bits, as in `data.range`; None: full.
    """

    flag: str
    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    range: str | None = None


def settle(
    config: ConfigDict,
    loaded: Checkpoint | None,
    teacher: Checkpoint | None,
) -> list[str]:
    """Fills the size, channels and normalisation that `config` leaves open.

    They come from `init`, which is `loaded`, else from `like`, else from `teacher`,
    else from the recipe's `fallback`.

    Returns:
      Lines for the start: the encoder, the images, how they differ from those that
      the encoders were trained on, and which parameters of `init` are loaded.
    """
    if "normalize" not in config.augment:  # misspelt: `augment.make` raises
        return []
    specs, parameters = [], []
    if loaded is not None:
        specs.append(spec_of(f"--config.init={config.init}", loaded))
        parameters = which_parameters(
            config.init, loaded, average=bool(config.init_ema)
        )
    if config.like:
        from litevit_jax.warm_start import read

        flag, run = f"--config.like={config.like}", read.run_config(config.like)
        specs.append(spec_of_run(flag, run))
    if teacher is not None:
        specs.append(spec_of(f"--config.teacher={config.teacher}", teacher))
    data, normalize = config.data, config.augment.normalize
    for spec in specs:
        take(spec, data, normalize)
    starts.take_fallback(data, normalize, config.fallback)
    return [
        *which_encoder(config.init, config.like, loaded, loads=bool(config.init_load)),
        *notes(data, normalize, config.objective.encoder, specs),
        *parameters,
    ]


def which_encoder(
    init: str | None,
    like: str | None,
    loaded: Checkpoint | None,
    *,
    loads: bool = True,
) -> list[str]:
    """Describes the encoder that a job starts from, in one line; [] without one.

    `loaded` is what `init` names; without `loads` only its sizes are used.
    """
    if init and init != "random" and not loads:
        init, like = "random", init
    if loaded is None or init == "random":
        lent = f", like {like}" if like else ""
        return [f"encoder: random{lent}"] * bool(init or like)
    if "data" not in loaded.config:
        return [f"encoder: {init} (weights)"]
    method = loaded.config["objective"]["name"]
    return [f"encoder: {init}, step {loaded.step} ({method})"]


def which_parameters(init: str, loaded: Checkpoint, *, average: bool) -> list[str]:
    """Says which parameters of `init` are loaded, if its run also kept an average."""
    decay = loaded.config.get("optimizer", {}).get("ema_decay")
    if decay is None or init == "random":
        return []
    where = f"--config.init={init}, step {loaded.step}"
    if average:
        return [f"{where}: the average of its parameters (decay {decay:g})"]
    return [
        f"{where}: its last parameters, not the average (decay {decay:g}) of which its "
        "own evaluations are; --config.init_ema=True takes that"
    ]


def spec_of_run(flag: str, config: dict[str, Any]) -> ImageSpec:
    """Returns the images of a run, by its saved config."""
    return spec_of_blocks(flag, config["data"], config["augment"]["normalize"])


def spec_of_blocks(flag: str, data: Any, normalize: Any) -> ImageSpec:
    """Returns the images that two blocks of a config describe."""
    mean, std = (tuple(normalize[key]) for key in ("mean", "std"))
    size, levels = settings.image_size(data), data.get("range")
    return ImageSpec(flag, size, data["channels"], mean, std, levels)


def spec_of(flag: str, loaded: Checkpoint) -> ImageSpec:
    """Returns the images of a run, or what a file of weights records of them."""
    if "data" in loaded.config:
        return spec_of_run(flag, loaded.config)
    block = loaded.config["objective"]["encoder"]
    side = block["patch_size"]
    rows, columns = block["grid"]
    channels = loaded.params[_KERNEL].shape[0] // side**2
    if windows := loaded.config.get("windows"):  # positions are those of pre-training
        rows, columns = windows["grid"]
    normalize = loaded.config.get("normalize", {})
    mean, std = normalize.get("mean"), normalize.get("std")
    size = rows * side, columns * side
    return ImageSpec(flag, size, channels, mean, std, loaded.config.get("range"))


def take(spec: ImageSpec, data: ConfigDict, normalize: ConfigDict) -> None:
    """Fills what the blocks of a config leave open of its images with `spec`."""
    height, width = spec.size
    known: dict[str, Any] = {"channels": spec.channels, "range": spec.range}
    if data.image_size is None:
        known["image_size"] = height
        known["image_width"] = None if width == height else width
    resolve.fill_open(data, known)
    if spec.channels == data.channels:  # else a number for each channel is missing
        resolve.fill_open(normalize, {"mean": spec.mean, "std": spec.std})


def notes(
    data: ConfigDict, normalize: ConfigDict, encoder: ConfigDict, specs: list[ImageSpec]
) -> list[str]:
    """Describes the images in lines for the start: patches, and how `specs` differ."""
    own = spec_of_blocks("", data, normalize)
    first = starts.images_note(data, encoder)
    return [first, *(line for spec in specs for line in _differences(own, spec))]


def _differences(own: ImageSpec, other: ImageSpec) -> list[str]:
    """Describes how the run's `own` images differ from those of another encoder."""
    pairs = {
        "size": ("{}x{}".format(*own.size), "{}x{}".format(*other.size)),
        "channels": (own.channels, other.channels),
        "range": (own.range or "full", other.range or "full"),
        "mean": (own.mean, other.mean),
        "std": (own.std, other.std),
    }
    differing = [
        f"{name} {value}, there {other_value}"
        for name, (value, other_value) in pairs.items()
        if other_value is not None and value != other_value
    ]
    lines = []
    if differing:
        lines.append(
            f"the images differ from those that {other.flag} was trained on: "
            f"{'; '.join(differing)}"
        )
    if other.mean is None:
        lines.append(
            f"{other.flag} does not say how its images were normalised: mean "
            f"{own.mean} and std {own.std} are assumed (--config.augment.normalize)"
        )
    return lines


def grid(data: Any, block: Any) -> tuple[int, int]:
    """Returns rows and columns of patches that an encoder has positions for.

    They are those of images of `data`, or `pos_grid` where the encoder has that.
    """
    if block.get("pos_grid"):
        return tuple(block["pos_grid"])
    height, width = settings.image_size(data)
    side = vit.of_block(block).patch_size
    return height // side, width // side


def trained_grid(config: dict[str, Any]) -> tuple[int, int]:
    """Returns `grid` of the encoder in the config of a run or of a file of weights."""
    block = config["objective"]["encoder"]
    return grid(config["data"], block) if "data" in config else tuple(block["grid"])
