"""Reads what a conversion starts from, the model of a run or a file; writes files."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from litevit_jax import paths, weights
from litevit_jax.jobs import hub_folder
from litevit_jax.models import mae_decoder, vit
from litevit_jax.warm_start import detectors
from litevit_jax.warm_start import read as checkpoints
from litevit_jax.weights import exportable as models
from litevit_jax.weights import names

T = TypeVar("T")
_SIZES = ("variant", "width", "depth", "num_heads", "patch_size", "mlp_ratio")
# What is kept of what a file of ours says.
_OF_HEAD = (names.CLASSES, names.PROBABILITIES)
_KEPT = ("mean", "std", "range", "crop", names.LICENCE, names.DETECTOR, *_OF_HEAD)
_NON_COMMERCIAL = ("mae", "moco_v3")  # sources, as `weights.read` names them


@dataclasses.dataclass(frozen=True)
class Source:
    """A vision transformer of a run or a file.

    Attributes:
      params: 'encoder/norm/scale' -> array, and those of other parts.
      encoder: sizes, as `vit.make_encoder` takes them.
      image_size: height and width in pixels.
      notes: text that goes with the exported file.
      pool: 'avg' or 'cls' where it is known, see `weights.Weights`.
      remarks: lines for the user.
      results: of the run at that step.
    """

    params: models.Arrays
    encoder: dict[str, Any]
    image_size: tuple[int, int]
    notes: dict[str, str]
    pool: str | None = None
    remarks: tuple[str, ...] = ()
    results: hub_folder.Results = ()


class Reading(NamedTuple):
    """Says how a source is read, by the fields of these names of configs/convert.py.

    All but `ema` and `num_heads` are of files of weights; a run has recorded them.
    """

    num_heads: int | None = None
    branch: str | None = None
    grid: str | None = None
    pool: str | None = None
    act: str | None = None
    norm: str | None = None
    allow_half: bool = False
    ema: bool = False


def read(path: str, how: Reading, part: str) -> Source:
    """Reads the run or file at `path`, as `read_model` does, whatever it holds."""
    if pathlib.Path(path).is_file():
        return _from_file(path, how)
    return _from_run(path, how, part)


def read_model(
    path: str, how: Reading, *, part: str, image_size: int | None
) -> tuple[models.Model, Source]:
    """Reads the model that the run or file at `path` holds.

    Args:
      path: `config.source`.
      how: it is read.
      part: 'all', or 'encoder' to leave a classifier's last layer out.
      image_size: to change the encoder to images of this size; None: its own.

    Raises:
      FileNotFoundError: no run and no file there.
      ValueError: it cannot be read, or holds something else than a plain encoder.
    """
    try:
        source = read(path, how, part)
        params = source.params
        if is_detector(params):
            raise ValueError(
                "its encoder is a detector's, without class token and with windows, "
                "which is written by detectron2's names alone: "
                "--config.format=detectron2, and --config.part=encoder without heads"
            )
        if part == "encoder":
            params = {k: v for k, v in params.items() if not k.startswith("head/fc/")}
            for key in _OF_HEAD:
                source.notes.pop(key, None)
        elif any(k.startswith("head_dist/") for k in params):
            raise ValueError(
                "a distilled classifier predicts the mean of two heads, for which "
                "other programs have no place; give --config.part=encoder"
            )
        has_head = any(name.startswith("head/") for name in params)
        model = models.make(
            params,
            source.encoder,
            image_size=source.image_size,
            pool=source.pool if has_head else how.pool,
            notes=source.notes,
        )
        if image_size is not None:
            model = model.resized((image_size,) * 2)
    except (FileNotFoundError, ValueError) as error:
        raise named(path, error) from None
    return model, source


def named(path: str, error: Exception) -> Exception:
    """Returns the error about `config.source` with the flags that help."""
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"--config.source={error}")
    text = str(error).removeprefix(f"{path}: ")
    flags = {"give num_heads": "num_heads=A", "give grid": "grid=ROWSxCOLUMNS"}
    flags["allow_half takes"] = "allow_half=True"
    hint = [f"; here: --config.{flag}" for k, flag in flags.items() if k in text]
    return ValueError(f"--config.source={path}: {text}{''.join(hint)}")


def is_detector(params: models.Arrays) -> bool:
    """Whether parameters are those of a detector, or of its encoder."""
    return any("/rel_pos_" in name or name.startswith("rpn/") for name in params)


def _from_file(path: str, how: Reading) -> Source:
    if how.ema:
        raise ValueError(
            "a file of weights holds one set of parameters and no average; leave "
            "--config.ema out"
        )
    fields = how._asdict()
    del fields["ema"]
    fields["grid"] = names.grid_of_flag("grid", how.grid)
    model = weights.read(path, **fields)
    side = model.encoder["patch_size"]
    kept = {k: model.metadata[k] for k in _KEPT if k in model.metadata}
    notes = {**kept, "source": model.source}
    if model.decoder is not None:
        notes[names.DECODER_NUM_HEADS] = str(model.decoder["num_heads"])
    remarks = [f"read as {model.source!r}", *model.notes]
    if model.unused:
        remarks.append(f"not read: {shortened(model.unused)}")
    if model.source in _NON_COMMERCIAL:
        notes.setdefault(names.LICENCE, "cc-by-nc-4.0")
        remarks.append(
            "the weights that MAE's and MoCo v3's authors publish are under CC BY-NC "
            "4.0, and so is what is made of them"
        )
    rows, columns = model.windows["grid"] if model.windows else model.grid
    size = (rows * side, columns * side)
    if is_detector(model.params):
        notes[names.GRID] = "{}x{}".format(*model.grid)
    encoder = _sizes(model.encoder)
    return Source(model.params, encoder, size, notes, model.pool, tuple(remarks))


def _from_run(path: str, how: Reading, part: str) -> Source:
    for name in ("grid", "pool", "act", "norm", "branch"):
        value = getattr(how, name)
        if value is not None:
            raise ValueError(
                f"--config.{name}={value} says how a file of weights is read; "
                "a run has recorded it: leave it out"
            )
    loaded = checkpoints.read_params(path, average=how.ema)
    objective, data = loaded.config["objective"], loaded.config["data"]
    encoder = _sizes(objective["encoder"])
    num_heads = vit.make_encoder(**encoder).num_heads
    if how.num_heads not in (None, num_heads):
        raise ValueError(
            f"config.num_heads={how.num_heads}, but the run recorded {num_heads}; "
            "leave it out"
        )
    if objective.get("head") == "probe_bn" and part == "all":
        raise ValueError(
            "the linear probe's head normalises by running statistics, for which "
            "other programs have no place; export its encoder (--config.part=encoder) "
            "or train a probe with :protocol=moco"
        )
    normalize = loaded.config["augment"]["normalize"]
    notes = {k: json.dumps(v) for k, v in normalize.items()}
    classes = loaded.config.get("derived", {}).get("classes")
    if "head/fc/kernel" in loaded.params:
        notes |= names.of_head(classes, objective.get("loss") == "bce")
    if is_detector(loaded.params):
        notes[names.GRID] = "{}x{}".format(*objective["encoder"]["pos_grid"])
        notes[names.CLASSES] = json.dumps(list(classes or []))
        notes[names.DETECTOR] = json.dumps(detectors.recorded(objective))
    averaged = ", averaged parameters" if how.ema else ""
    if data.get("range") not in (None, "full"):
        notes["range"] = data["range"]
    if data.get("eval_crop_fraction"):
        notes["crop"] = str(data["eval_crop_fraction"])
    notes["source"] = f"{loaded.config['name']}, step {loaded.step}{averaged}"
    if "decoder/mask_token" in loaded.params and "decoder" in objective:
        block = {k: v for k, v in objective["decoder"].items() if v is not None}
        heads = mae_decoder.make_decoder(**block).num_heads
        notes[names.DECODER_NUM_HEADS] = str(heads)
    width = data["image_size"] if data["image_width"] is None else data["image_width"]
    size = (data["image_size"], width)
    results = hub_folder.results_of(loaded, average=how.ema)
    return Source(loaded.params, encoder, size, notes, results=results)


def _sizes(block: Any) -> dict[str, Any]:
    """Selects the fields of an encoder's block that say which function it computes."""
    fields = (*_SIZES, "pos_embed", "rpe_style")
    return {k: block[k] for k in fields if block.get(k) is not None}


def shortened(names: Sequence[str]) -> str:
    """Lists the first names of arrays, and how many there are."""
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown}, ... ({len(names)} arrays)"


def write_checked(
    target: pathlib.Path, data: bytes, check: Callable[[pathlib.Path], T]
) -> T:
    """Writes a local file, which gets its name after `check` of what was written.

    Nothing is left if it raises.

    Raises:
      OSError: the target cannot be written.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
    except OSError as error:
        if partial.parent.is_dir():
            partial.unlink(missing_ok=True)
        raise OSError(
            f"{target} cannot be written: {error.strerror}; name another target"
        ) from None
    try:
        result = check(partial)
        paths.rename(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return result
