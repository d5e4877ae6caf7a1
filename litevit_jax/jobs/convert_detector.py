"""Writes a detector, or its encoder, by detectron2's names."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np

import litevit_jax
from litevit_jax import weights
from litevit_jax.jobs import convert_source
from litevit_jax.models import vit
from litevit_jax.weights import detectron2, names, safetensors, torch_write

_BARE = (
    "a .pth has no metadata: whoever reads it must know the run's anchor_sizes and "
    "rules; a .safetensors records them"
)
# Fields of a conversion that have no meaning here, and their usual values.
_USUAL = {"image_size": None, "preprocess": False, "half": False}


def run(
    target: pathlib.Path,
    how: convert_source.Reading,
    /,
    *,
    source: str,
    part: str,
    licence: str | None,
    **others: Any,
) -> str:
    """Writes the detector of a run or file to `target`; returns a report as text.

    What is written is read again, and has the bits of the source.

    Args:
      target: a file; `.pth` is as torch.save writes it, without metadata.
      how: the source is read.
      source: path of a run or file.
      part: 'all', or 'encoder' without pyramid and heads.
      licence: of the weights, or None.
      **others: further fields of the conversion.

    Raises:
      ValueError, OSError: a mistake in the config or its files, or no right to write.
      RuntimeError: the file reads as something else; nothing is left then.
    """
    for name, value in _USUAL.items():
        if others[name] != value:
            raise ValueError(
                f"--config.{name}={others[name]} does not go with format "
                "'detectron2', which writes parameters as they are; leave it out"
            )
    model = _read(source, how, part)
    if licence:
        model.notes[names.LICENCE] = licence
    encoder = vit.make_encoder(**model.encoder)
    arrays = detectron2.to_detectron2(model.params, patch_size=encoder.patch_size)
    if target.suffix == ".pth":
        data = torch_write.write(arrays)
    else:
        data = safetensors.write(arrays, _metadata(model, encoder))

    def check(path: pathlib.Path) -> None:
        grid = names.parse_grid(model.notes[names.GRID])
        back = weights.read(path, num_heads=encoder.num_heads, grid=grid).params
        if not _equal(back, model.params):
            raise RuntimeError(f"{target} was not written: it reads as something else")

    convert_source.write_checked(target, data, check)
    count = sum(x.size for x in model.params.values())
    lines = [
        *model.remarks,
        f"{target}: detectron2, {len(data):,} bytes, {len(arrays)} arrays of {count:,} "
        f"parameters, {encoder.num_heads} heads; read again, they have the same bits",
    ]
    bare = target.suffix == ".pth" and part == "all"
    return "\n".join([*lines, *[_BARE] * bare])


def _read(path, how, part):
    """Reads the detector at `path`, or a part of it, as a `convert_source.Source`."""
    try:
        model = convert_source.read(path, how, part)
        if not convert_source.is_detector(model.params):
            raise ValueError(
                "it is no detector, which format 'detectron2' holds; "
                "--config.format=vitdet writes its encoder"
            )
    except (FileNotFoundError, ValueError) as error:
        raise convert_source.named(path, error) from None
    if part == "all":
        return model
    params = {k: v for k, v in model.params.items() if k.startswith("encoder/")}
    of_heads = (names.CLASSES, names.DETECTOR)
    notes = {k: v for k, v in model.notes.items() if k not in of_heads}
    return dataclasses.replace(model, params=params, notes=notes)


def _equal(one, other):
    return one.keys() == other.keys() and all(
        np.array_equal(one[name], x) for name, x in other.items()
    )


def _metadata(model, encoder) -> dict[str, str]:
    """Returns what shapes do not tell, as text."""
    kernel = model.params["encoder/patch_embed/kernel"]
    return {
        "format": "pt",
        names.WRITER: names.PACKAGE,
        "version": litevit_jax.__version__,
        names.NUM_HEADS: str(encoder.num_heads),
        "image_size": "{}x{}".format(*model.image_size),
        "channels": str(len(kernel) // encoder.patch_size**2),
        "output": "detections" if "rpn/logits/kernel" in model.params else "map",
        **model.notes,
    }
