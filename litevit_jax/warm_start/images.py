"""The images that an encoder knows: their size, channels and normalisation.

A run that starts from an encoder reads images as that encoder was trained, unless a
field says otherwise; where they differ, the run says so when it starts.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from litevit_jax.data import settings
from litevit_jax.terminal import counted
from litevit_jax.train import resolve

if TYPE_CHECKING:
    from litevit_jax.models.vit import Encoder
    from litevit_jax.warm_start.read import Checkpoint

# What a file of weights knows of its encoder, beside the images.
SIZES = ("width", "depth", "num_heads", "patch_size", "mlp_ratio")
FILE_FIELDS = (*SIZES, "pos_embed", "rpe_style")
_KERNEL = "encoder/patch_embed/kernel"


@dataclasses.dataclass(frozen=True)
class View:
    """The images that an encoder was trained on.

    Attributes:
      of: the flag that names the encoder, as '--config.init=RUN'.
      size: (H, W).
      channels: C.
      mean, std: of each channel, of pixels in 0..1; None if they are not recorded.
      range: of pixels of more than 8 bits, as in `data.range`; None: full.
    """

    of: str
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
    """Size, channels and normalisation of images, as far as `config` leaves them open.

    They are those of `init`, which is `loaded`, else of `like`, else of `teacher`,
    else the recipe's `fallback`.

    Returns:
      Lines for the start: which encoder it is from, of the images, how they differ
      from those that the encoders were trained on, and which parameters of `init` are
      taken.
    """
    known, text = [], []
    if "normalize" not in config.augment:  # misspelt: `augment.make` says so
        return text
    if loaded is not None:
        known.append(of(f"--config.init={config.init}", loaded))
        text = which_parameters(config, loaded)
    if config.like:
        from litevit_jax.warm_start import read

        known.append(
            of_run(f"--config.like={config.like}", read.run_config(config.like))
        )
    if teacher is not None:
        known.append(of(f"--config.teacher={config.teacher}", teacher))
    for view in known:
        take(config, view)
    take_default(config)
    text = [*lines(config, known), *text]
    taken = bool(config.init_load)
    return [*which_encoder(config, loaded, taken=taken), *text]


def which_encoder(
    config: Any, loaded: Checkpoint | None, *, taken: bool = True
) -> list[str]:
    """A line about the encoder that a job starts from, if it starts from one.

    `loaded` is what `init` names; if nothing is `taken` of it, it lends its sizes.
    """
    init, like = config.init, config.like
    if init and init != "random" and not taken:
        init, like = "random", init
    if loaded is None or init == "random":
        lent = f", like {like}" if like else ""
        return [f"encoder: random{lent}"] * bool(init or like)
    if "data" not in loaded.config:
        return [f"encoder: {init} (weights)"]
    method = loaded.config["objective"]["name"]
    return [f"encoder: {init}, step {loaded.step} ({method})"]


def which_parameters(config: Any, loaded: Checkpoint) -> list[str]:
    """A line about the parameters of `init`, if its run kept an average of them."""
    decay = loaded.config.get("optimizer", {}).get("ema_decay")
    if decay is None or config.init == "random":
        return []
    where = f"--config.init={config.init}, step {loaded.step}"
    if config.init_ema:
        return [f"{where}: the average of its parameters (decay {decay:g})"]
    return [
        f"{where}: its last parameters, not the average (decay {decay:g}) of which its "
        "own evaluations are; --config.init_ema=True takes that"
    ]


def of_run(flag: str, config: dict[str, Any]) -> View:
    """Those of a run, by its saved config."""
    data, normalize = config["data"], config["augment"]["normalize"]
    mean, std = (tuple(normalize[key]) for key in ("mean", "std"))
    size, levels = settings.image_size(data), data.get("range")
    return View(flag, size, data["channels"], mean, std, levels)


def of(flag: str, loaded: Checkpoint) -> View:
    """Those of a run or, as far as it tells, of a file of weights."""
    if "data" in loaded.config:
        return of_run(flag, loaded.config)
    block = loaded.config["objective"]["encoder"]
    side = block["patch_size"]
    rows, columns = block["grid"]
    channels = loaded.params[_KERNEL].shape[0] // side**2
    said = loaded.config.get("normalize", {})
    size = rows * side, columns * side
    levels = loaded.config.get("range")
    return View(flag, size, channels, said.get("mean"), said.get("std"), levels)


def take(config: ConfigDict, view: View) -> None:
    """Fills what `config` leaves open of its images with `view`."""
    height, width = view.size
    known: dict[str, Any] = {"channels": view.channels, "range": view.range}
    if config.data.image_size is None:
        known["image_size"] = height
        known["image_width"] = None if width == height else width
    resolve.fill_open(config.data, known)
    resolve.fill_open(config.augment.normalize, {"mean": view.mean, "std": view.std})


def take_default(config: ConfigDict) -> None:
    """Fills what is still open with `config.fallback`.

    Raises:
      ValueError: its means or deviations are not one for each channel.
    """
    default = config.fallback
    resolve.fill_open(
        config.data, {name: default[name] for name in ("image_size", "channels")}
    )
    normalize, channels = config.augment.normalize, config.data.channels
    for name in ("mean", "std"):
        if normalize[name] is not None:
            continue
        if len(default[name] or ()) != channels:
            raise ValueError(
                f"augment.normalize.{name} of images of {channels} channels is not "
                f"known: give a number for each with --config.augment.normalize.{name}="
            )
        resolve.assign(normalize, {name: tuple(default[name])})


def lines(config: ConfigDict, views: list[View]) -> list[str]:
    """What to say of the images at the start: patches, and how `views` differ."""
    (height, width), channels = (
        settings.image_size(config.data),
        config.data.channels,
    )
    side = encoder(config.objective.encoder).patch_size
    count = (height // side) * (width // side)
    shades = counted(channels, "channel")
    text = [
        f"images of {height}x{width} pixels, {shades}: {count:,} patches "
        f"of {side}x{side} an image"
    ]
    ours = of_run("", config.to_dict())
    for view in views:
        text += _differences(ours, view)
    return text


def _differences(ours: View, theirs: View) -> list[str]:
    pairs = {
        "size": ("{}x{}".format(*ours.size), "{}x{}".format(*theirs.size)),
        "channels": (ours.channels, theirs.channels),
        "range": (ours.range or "full", theirs.range or "full"),
        "mean": (ours.mean, theirs.mean),
        "std": (ours.std, theirs.std),
    }
    apart = [
        f"{name} {one}, there {other}"
        for name, (one, other) in pairs.items()
        if other is not None and one != other
    ]
    text = []
    if apart:
        text.append(
            f"the images differ from those that {theirs.of} was trained on: "
            f"{'; '.join(apart)}"
        )
    if theirs.mean is None:
        text.append(
            f"{theirs.of} does not say how its images were normalised: mean "
            f"{ours.mean} and std {ours.std} are assumed (--config.augment.normalize)"
        )
    return text


def encoder(block: Any) -> Encoder:
    """The encoder that a config's block describes, by what a checkpoint knows of it."""
    from litevit_jax.models import vit

    block = block.to_dict() if isinstance(block, ConfigDict) else block
    fields = {name: block.get(name) for name in ("variant", *FILE_FIELDS)}
    return vit.make_encoder(**{k: v for k, v in fields.items() if v is not None})


def grid(data: Any, block: Any) -> tuple[int, int]:
    """Rows and columns of patches."""
    height, width = settings.image_size(data)
    side = encoder(block).patch_size
    return height // side, width // side
