"""The job 'convert': writes the weights of a run or a file for another program.

A target appears only after its outputs agreed with the source's.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from litevit_jax import choices, paths, terminal, weights
from litevit_jax.jobs import hub_folder, summary
from litevit_jax.models import mae_decoder, vit
from litevit_jax.warm_start import read
from litevit_jax.weights import export, latency, names
from litevit_jax.weights import exportable as models

PARTS = ("all", "encoder")
_SIZES = ("variant", "width", "depth", "num_heads", "patch_size", "mlp_ratio")
# What is kept of what a file of ours says.
_OF_HEAD = (names.CLASSES, names.PROBABILITIES)
_KEPT = ("mean", "std", "range", "crop", names.LICENCE, *_OF_HEAD)
_NON_COMMERCIAL = ("mae", "moco_v3")  # sources, as `weights.read` names them
_FOLDER = "model.safetensors"  # in a folder for timm


def run(config: ConfigDict) -> str:
    """Converts `config.source` to `config.target`; returns a report as text.

    Raises:
      ValueError, OSError: a mistake in the config or its files, or no right or room
        to write.
      RuntimeError: a package of the format is missing, or the written file computes
        something else; nothing is left at the target then.
    """
    for name in ("source", "target"):
        if not config[name]:
            raise ValueError(
                f"config.{name} is missing; a conversion needs --config.source=RUN_DIR "
                "or FILE, and --config.target=FILE.safetensors (or .onnx, .stablehlo)"
            )
    choices.check("part", config.part, list(PARTS))
    target, folder = pathlib.Path(config.target), None
    if config.target.endswith("/"):
        folder = hub_folder.check_new(target, config.format)
        target = folder / _FOLDER
    kind = _check_format(target, config.format)
    how = Reading(**{name: config[name] for name in Reading._fields})
    model, source = read_model(
        config.source, how, part=config.part, image_size=config.image_size
    )
    if config.licence:
        model.notes[names.LICENCE] = config.licence
    beside = (
        {} if folder is None else hub_folder.texts(folder.name, model, source.results)
    )
    decoder = {k: v for k, v in source.params.items() if k.startswith("decoder/")}
    written, difference = write(
        model,
        target,
        kind,
        decoder=decoder,
        tolerance=config.tolerance,
        preprocess=config.preprocess,
        half=config.half,
    )
    for name, text in beside.items():
        paths.replace_text(target.with_name(name), text)
    lines = [
        *source.remarks,
        f"{target}: {kind}, {len(written.data):,} bytes, output {model.output!r}",
        f"{difference}",
    ]
    others = [k for k in source.params if k not in model.params and k not in decoder]
    left_out = (*written.left_out, *others)
    if left_out:
        lines.append(f"left out, as {kind!r} has no place: {_shortened(left_out)}")
    lines += [f"beside it: {', '.join(beside)}"] * bool(beside)
    as_usual = not (config.preprocess or config.half)
    rows = _rows(model, kind * as_usual, written.data, config.latency)
    return "\n".join([*lines, latency.table(rows)] if rows else lines)


def main(config: ConfigDict, workdir: str | None, command: str) -> summary.Ending:
    """Runs the job and prints what was written; raises as `run`."""
    del command
    if workdir:
        raise ValueError(
            f"--workdir={workdir}: a conversion has no run directory, it writes "
            "--config.target alone; leave the flag out"
        )
    say = terminal.ConsoleLine().say
    say(f"{config.name}: convert {config.source} to {config.target}")
    say(run(config))
    readable = config.target.endswith(".safetensors")  # which the other recipes read
    return summary.Ending(config, config.target if readable else None)


def _check_format(target: pathlib.Path, kind: str | None) -> str:
    """Returns the format of `config.target`, checked before anything is read."""
    if kind is not None:
        choices.check("format", kind, list(export.FORMATS))
    try:
        return check_target(target, kind)
    except (ValueError, FileExistsError) as error:
        raise type(error)(f"--config.target={error}") from None


def check_target(target: pathlib.Path, kind: str | None = None) -> str:
    """Returns the format of a file to be written: `kind`, or the usual one.

    Raises:
      ValueError: no format, or not this one, has such an ending.
      FileExistsError: the file is there, or the one beside it.
    """
    formats = export.ENDINGS.get(target.suffix)
    if formats is None or kind not in (None, *formats):
        endings = {k: end for end, kinds in export.ENDINGS.items() for k in kinds}
        wanted = endings[kind] if kind else "one of " + ", ".join(export.ENDINGS)
        got = f"ends in {target.suffix!r}" if target.suffix else "has no ending"
        raise ValueError(
            f"{target} {got}, expected {wanted}"
            + (f" for format {kind!r}" if kind else "")
        )
    if target.exists():
        raise FileExistsError(f"{target} is there already; remove it or name another")
    if formats[0] == "stablehlo" and _beside(target).exists():
        raise FileExistsError(
            f"{target}: {_beside(target)}, where its metadata go, is there already; "
            "remove it or name another target"
        )
    return kind or formats[0]


def write(
    model: models.Model,
    target: pathlib.Path,
    kind: str,
    *,
    decoder: models.Arrays,
    tolerance: float,
    preprocess: bool = False,
    half: bool = False,
) -> tuple[export.Written, export.Difference]:
    """Writes `model` to `target` and compares what the file computes with it.

    Args:
      model: the exported model.
      target: see `check_target`.
      kind: its format.
      decoder: parameters of a decoder; most formats leave them out.
      tolerance: the largest relative difference of outputs.
      preprocess, half: see `export.write`.

    Raises:
      ValueError: the format cannot hold the model, or no preparation.
      OSError: the target cannot be written.
      RuntimeError: a package of the format is missing, or the file computes something
        else; nothing is left at the target then.
    """
    written = export.write(
        model, kind, decoder=decoder, preprocess=preprocess, half=half
    )
    if preprocess or half:
        tolerance = max(tolerance, export.ROUNDED)
    compare = functools.partial(export.compare, kind=kind, preprocess=preprocess)
    difference = _write(target, written.data, model, compare, tolerance)
    if written.beside is not None:
        _beside(target).write_text(json.dumps(written.beside, indent=1) + "\n")
    return written, difference


def _beside(target: pathlib.Path) -> pathlib.Path:
    """Returns the path of the metadata for formats that cannot hold them."""
    return target.with_name(f"{target.name}.json")


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
        if pathlib.Path(path).is_file():
            source = _from_file(path, how)
        else:
            source = _from_run(path, how, part)
        params = source.params
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
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--config.source={error}") from None
    except ValueError as error:
        text = str(error).removeprefix(f"{path}: ")
        flags = {"give num_heads": "num_heads=A", "give grid": "grid=ROWSxCOLUMNS"}
        flags["allow_half takes"] = "allow_half=True"
        hint = [f"; here: --config.{flag}" for k, flag in flags.items() if k in text]
        raise ValueError(f"--config.source={path}: {text}{''.join(hint)}") from None
    return model, source


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
        remarks.append(f"not read: {_shortened(model.unused)}")
    if model.source in _NON_COMMERCIAL:
        notes.setdefault(names.LICENCE, "cc-by-nc-4.0")
        remarks.append(
            "the weights that MAE's and MoCo v3's authors publish are under CC BY-NC "
            "4.0, and so is what is made of them"
        )
    size = (model.grid[0] * side, model.grid[1] * side)
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
    loaded = read.read_params(path, average=how.ema)
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


def _write(
    target: pathlib.Path,
    data: bytes,
    model: models.Model,
    compare: Callable[..., export.Difference],
    tolerance: float,
) -> export.Difference:
    """Writes `data` to `target` if, read back, it computes what `model` does."""
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
        difference = compare(model, partial.read_bytes())
        if not difference.relative <= tolerance:  # not a number fails too
            raise RuntimeError(
                f"{target} was not written: the file computes something else than its "
                f"source; {difference}, expected at most {tolerance:g} of the larger "
                "of 1 and the largest output (--config.tolerance)"
            )
        paths.rename(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return difference


def _rows(
    model: models.Model, kind: str, data: bytes, block: ConfigDict
) -> tuple[latency.Row, ...]:
    """Measures the rows of the table of times; none if no heads are asked for."""
    if not block.heads:
        return ()
    calls = latency.jitted(model, block.heads)
    if kind == "onnx":
        heads = model.encoder.num_heads
        calls[f"onnxruntime, {heads} heads"] = export.call(model, data, kind)
    return latency.time_calls(model, calls, repeats=block.repeats)


def _shortened(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown}, ... ({len(names)} arrays)"
