"""The job 'convert': writes the weights of a run or a file for another program.

A target appears only after its outputs agreed with the source's.
"""

from __future__ import annotations

import json
import pathlib

from ml_collections import ConfigDict

from litevit_jax import choices, paths, terminal
from litevit_jax.jobs import convert_detector, convert_source, hub_folder, summary
from litevit_jax.weights import export, latency, names
from litevit_jax.weights import exportable as models

PARTS = ("all", "encoder")
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
    reading = convert_source.Reading
    how = reading(**{name: config[name] for name in reading._fields})
    if kind == export.DETECTOR:
        return convert_detector.run(target, how, **config.to_dict())
    model, source = convert_source.read_model(
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
        shown = convert_source.shortened(left_out)
        lines.append(f"left out, as {kind!r} has no place: {shown}")
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
    readable = config.target.endswith((".safetensors", ".pth"))  # by other recipes
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
        endings = [x for x, kinds in export.ENDINGS.items() if kind in (None, *kinds)]
        wanted = ("" if kind else "one of ") + ", ".join(endings)
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

    def check(path: pathlib.Path) -> export.Difference:
        data = path.read_bytes()
        difference = export.compare(model, data, kind, preprocess=preprocess)
        if not difference.relative <= tolerance:  # not a number fails too
            raise RuntimeError(
                f"{target} was not written: the file computes something else than its "
                f"source; {difference}, expected at most {tolerance:g} of the larger "
                "of 1 and the largest output (--config.tolerance)"
            )
        return difference

    difference = convert_source.write_checked(target, written.data, check)
    if written.beside is not None:
        _beside(target).write_text(json.dumps(written.beside, indent=1) + "\n")
    return written, difference


def _beside(target: pathlib.Path) -> pathlib.Path:
    """Returns the path of the metadata for formats that cannot hold them."""
    return target.with_name(f"{target.name}.json")


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
