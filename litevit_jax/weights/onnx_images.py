"""The preparation of images as nodes of an ONNX graph: bytes of any size in.

They do what `data.transforms.ResizeCenterCrop` does with PIL: a bicubic, antialiased
resize, first of the width and then of the height, each rounded to whole levels, and the
central crop; then the normalisation.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from litevit_jax.data import transforms
from litevit_jax.weights import exportable as models

OPSET = 18  # the first one whose Resize is antialiased
_LEVELS = 255.0


def check(model: models.Model) -> None:
    """Raises ValueError unless the preparation is known, and that of bytes."""
    lacking = [k for k in ("mean", "std", "crop") if k not in model.notes]
    if lacking:
        raise ValueError(
            f"--config.preprocess=True: the source does not say {', '.join(lacking)} "
            "of its images; export a run, or leave preprocess out"
        )
    if model.notes.get("range", "full") != "full":
        raise ValueError(
            f"--config.preprocess=True takes bytes, and the images have range="
            f"{model.notes['range']}; leave preprocess out"
        )


def add(graph: Any, model: models.Model) -> str:
    """Adds the nodes from 'image' uint8 `[B, H, W, C]` to normalised `[B, C, h, w]`."""
    x = graph.add("Cast", "image", to=graph.onnx.TensorProto.FLOAT)
    x = graph.add("Transpose", x, perm=[0, 3, 1, 2])
    height, width = (graph.add("Shape", x, start=i, end=i + 1) for i in (2, 3))
    covering = _covering(graph, model, height, width)
    x = _resized(graph, x, height, covering[1])
    x = _resized(graph, x, covering[0], covering[1])
    for axis, side, size in zip((2, 3), covering, model.image_size, strict=True):
        x = _cropped(graph, x, axis, side, size)
    mean, std = (json.loads(model.notes[key]) for key in ("mean", "std"))
    shape = (1, model.channels, 1, 1)
    x = graph.add("Div", x, graph.constant(_LEVELS))
    x = graph.add("Sub", x, graph.constant(np.reshape(mean, shape)))
    return graph.add("Div", x, graph.constant(np.reshape(std, shape)))


def _covering(graph: Any, model: models.Model, height: str, width: str) -> list[str]:
    """Returns the size to resize to, see `transforms.ResizeCenterCrop`."""
    crop = float(model.notes["crop"])
    rows, columns = (math.floor(side / crop) for side in model.image_size)
    by_rows = graph.add("Mul", width, graph.constant([rows]))
    by_columns = graph.add("Mul", height, graph.constant([columns]))
    wide = graph.add("Greater", by_rows, by_columns)
    other = graph.add("Div", by_columns, width), graph.add("Div", by_rows, height)
    return [
        graph.add("Where", wide, graph.constant([rows]), other[0]),
        graph.add("Where", wide, other[1], graph.constant([columns])),
    ]


def _resized(graph: Any, x: str, height: str, width: str) -> str:
    start = graph.add("Shape", x, start=0, end=2)
    sizes = graph.add("Concat", start, height, width, axis=0)
    x = graph.add(
        "Resize",
        x,
        "",
        "",
        sizes,
        mode="cubic",
        cubic_coeff_a=-0.5,
        antialias=1,
        exclude_outside=1,
        coordinate_transformation_mode="half_pixel",
    )
    x = graph.add("Floor", graph.add("Add", x, graph.constant(0.5)))
    return graph.add("Clip", x, graph.constant(0.0), graph.constant(_LEVELS))


def _cropped(graph: Any, x: str, axis: int, side: str, size: int) -> str:
    more = graph.add("Sub", side, graph.constant([size]))
    half = graph.add("Cast", more, to=graph.onnx.TensorProto.FLOAT)
    half = graph.add("Round", graph.add("Mul", half, graph.constant(0.5)))
    first = graph.add("Cast", half, to=graph.onnx.TensorProto.INT64)
    last = graph.add("Add", first, graph.constant([size]))
    return graph.add("Slice", x, first, last, graph.constant([axis]))


def examples(model: models.Model) -> list[np.ndarray]:
    """Returns images uint8 `[2, H, W, C]` of several sizes, the same at every call."""
    rng = np.random.default_rng(0)
    height, width = model.image_size
    sizes = [(height, width), (2 * height + 3, 3 * width), (height + 1, width // 2 + 1)]
    shapes = [(2, h, w, model.channels) for h, w in sizes]
    return [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]


def prepared(model: models.Model, images: np.ndarray) -> np.ndarray:
    """Prepares images uint8 `[B, H, W, C]` as evaluations do: bytes `[B, h, w, C]`."""
    transform = transforms.eval_ops(
        image_size=model.image_size,
        channels=model.channels,
        eval_crop_fraction=float(model.notes["crop"]),
    )
    rng = np.random.default_rng(0)  # nothing is drawn
    rows = [np.asarray(transform(image, rng)) for image in images]
    return np.stack(rows).reshape(len(images), *model.image_size, model.channels)
