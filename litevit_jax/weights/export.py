"""Writes a vision transformer in the format of another program, and checks it.

The safetensors formats differ in names and in what they hold (`layouts`); ONNX and
StableHLO files hold the computation too.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import jax
import numpy as np

import litevit_jax
from litevit_jax import choices
from litevit_jax.weights import exportable as models
from litevit_jax.weights import (
    layouts,
    names,
    numpy_vit,
    onnx_graph,
    onnx_images,
    safetensors,
    stablehlo,
)

DETECTOR = "detectron2"  # the format of a detector, which `write` does not write
# Ending of a file -> the formats that such a file can have, the usual one first.
ENDINGS = {
    ".safetensors": (*layouts.LAYOUTS, DETECTOR),
    ".pth": (DETECTOR,),
    ".onnx": ("onnx",),
    ".stablehlo": ("stablehlo",),
}
FORMATS = tuple(dict.fromkeys(kind for kinds in ENDINGS.values() for kind in kinds))
# Tolerance where a file resizes images, of whose levels a few are rounded otherwise, or
# has weights of 16 bits.
ROUNDED = 1e-2
_BACKBONES = ("vitdet", "mmseg")  # they cannot hold a head


@dataclasses.dataclass(frozen=True)
class Written:
    """The contents of a file, and the names of parameters that it leaves out.

    `beside` is the content of a JSON file beside it, for a format without metadata.
    """

    data: bytes
    left_out: tuple[str, ...]
    beside: dict[str, str] | None = None


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference between a written file's outputs and the source's.

    Attributes:
      largest: the largest absolute difference.
      scale: the source's largest absolute output.
      shape: of the outputs.
      what: a description of the two sides.
    """

    largest: float
    scale: float
    shape: tuple[int, ...]
    what: str

    @property
    def relative(self) -> float:
        """Returns `largest` divided by `scale`, or by 1 if the scale is smaller."""
        return self.largest / max(self.scale, 1.0)

    def __str__(self) -> str:
        return (
            f"largest difference {self.largest:.2e} of {list(self.shape)} outputs up "
            f"to {self.scale:.3g} ({self.what})"
        )


def write(
    model: models.Model,
    kind: str,
    *,
    decoder: models.Arrays,
    preprocess: bool = False,
    half: bool = False,
) -> Written:
    """The contents of a file of format `kind`.

    Args:
      model: what is exported.
      kind: one of `FORMATS`.
      decoder: parameters of a pixel decoder by our names, or {}; only 'mae' can hold
        them.
      preprocess: whether the file prepares images itself, which 'onnx' alone can.
      half: whether it has weights of 16 bits, to compute in 32; 'onnx' too.

    Raises:
      ValueError: an unknown format, or a model that it cannot hold.
      RuntimeError: a package that the format needs is not installed.
    """
    choices.check("format", kind, FORMATS)
    if kind == DETECTOR:
        raise ValueError(
            f"format {kind!r} holds a detector, and this is none; format 'vitdet' "
            "holds its encoder alone"
        )
    about = metadata(model)
    if (preprocess or half) and kind != "onnx":
        name = "preprocess" if preprocess else "half"
        raise ValueError(
            f"--config.{name}=True is of .onnx files, this one has format {kind!r}; "
            "leave it out, or write an .onnx file"
        )
    if kind != "mae":
        about.pop(names.DECODER_NUM_HEADS, None)
    if kind in _BACKBONES:
        about.pop(names.CLASSES, None)
        about.pop(names.PROBABILITIES, None)
    if kind in layouts.LAYOUTS:
        layout = layouts.LAYOUTS[kind](model, decoder)
        arrays = {k: np.asarray(v, np.float32) for k, v in layout.arrays.items()}
        return Written(safetensors.write(arrays, about), layout.left_out)
    if kind == "onnx":
        layouts.check_plain(model, kind)
        about |= {"input": "uint8 [B, H, W, C] of any size"} if preprocess else {}
        data = onnx_graph.write(model, about, preprocess=preprocess, half=half)
        return Written(data, tuple(decoder))
    return Written(stablehlo.write(model), tuple(decoder), beside=about)


def metadata(model: models.Model) -> dict[str, str]:
    """Returns, as text, the facts that the shapes of the arrays do not give."""
    encoder, crop = model.encoder, model.notes.get("crop")
    prepared = {}
    if crop:
        sides = (math.floor(side / float(crop)) for side in model.image_size)
        prepared = {"resize": "{}x{}".format(*sides), "interpolation": "bicubic"}
    return {
        "format": "pt",  # other readers of safetensors ask for the framework
        names.WRITER: names.PACKAGE,
        "version": litevit_jax.__version__,
        names.NUM_HEADS: str(encoder.num_heads),
        names.GRID: "{}x{}".format(*model.grid),
        "image_size": "{}x{}".format(*model.image_size),
        "channels": str(model.channels),
        "pos_embed": encoder.pos_embed,
        "output": model.output,
        "pool": model.pool or "none",
        **prepared,
        **model.notes,
    }


def compare(
    model: models.Model, data: bytes, kind: str, *, preprocess: bool = False
) -> Difference:
    """Compares the outputs of a file's contents and of `model` for fixed images.

    Args:
      model: the exported model.
      data: the bytes of the file.
      kind: its format.
      preprocess: whether the file prepares images itself: then they are bytes of
        several sizes, and the other side is an evaluation's preparation.
    """
    if preprocess:
        return _compare_prepared(model, data)
    image = models.fixed_images(model)
    if kind in _BACKBONES:
        model = model.without_head()
    file_outputs = call(model, data, kind)(image)
    with jax.default_matmul_precision("float32"):
        source_outputs = np.asarray(jax.jit(model.with_params)(model.params, image))
    return Difference(
        largest=float(abs(source_outputs - file_outputs).max()),
        scale=float(abs(source_outputs).max()),
        shape=source_outputs.shape,
        what=f"{_READERS[kind]} on the file, JAX on the source",
    )


def _compare_prepared(model: models.Model, data: bytes) -> Difference:
    call = onnx_graph.read(data, preprocess=True)
    mean, std = (np.array(json.loads(model.notes[k])) for k in ("mean", "std"))
    outputs, wanted = [], []
    for images in onnx_images.examples(model):
        pixels = onnx_images.prepared(model, images)
        normal = ((pixels / 255 - mean) / std).astype(np.float32)
        with jax.default_matmul_precision("float32"):
            wanted.append(np.asarray(jax.jit(model.with_params)(model.params, normal)))
        outputs.append(call(images))
    source = np.concatenate(wanted)
    return Difference(
        largest=float(abs(source - np.concatenate(outputs)).max()),
        scale=float(abs(source).max()),
        shape=source.shape,
        what="onnxruntime on bytes of three sizes, evaluation and JAX on the source",
    )


_READERS = {
    **dict.fromkeys(layouts.LAYOUTS, "plain NumPy in float64"),
    "vitdet": "plain NumPy in float64, class token and final norm lent,",
    "onnx": "onnxruntime",
    "stablehlo": "jax.export",
}


def call(model: models.Model, data: bytes, kind: str) -> Any:
    """image `[B, H, W, C]` -> output, computed from the file's contents alone.

    A 'vitdet' file has neither class token nor final norm: the model's are lent.
    """
    if kind == "onnx":
        return onnx_graph.read(data)
    if kind == "stablehlo":
        return stablehlo.read(data)
    arrays, about = safetensors.load(data)
    if kind == "vitdet":
        prefix = layouts.VITDET_PREFIX
        arrays = {name.removeprefix(prefix): value for name, value in arrays.items()}
        whole = layouts.timm(model, {}).arrays
        arrays |= {k: whole[k] for k in layouts.NOT_IN_VITDET if k in whole}
    return lambda image: numpy_vit.forward(
        arrays,
        image,
        num_heads=int(about[names.NUM_HEADS]),
        layout=kind,
        pool=model.pool,
    )
