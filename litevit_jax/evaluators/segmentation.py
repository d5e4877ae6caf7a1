"""Intersection over union of label maps, at the original size of every image."""

from __future__ import annotations

import colorsys
import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from litevit_jax import distributed, paths
from litevit_jax.data import decode
from litevit_jax.evaluators import base, reconstruction, views

IGNORED = 255  # the label of pixels that have none
TILE = 160  # pixels of a side in a picture
_MOST_LOGITS = 2**24  # that are enlarged at once


def make(
    *,
    context: base.Context,
    split: str = "eval",
    stride: int | None = None,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    images: int = 4,
    each_block: bool = False,
) -> Segmentation:
    """Builds the evaluator.

    Args:
      context: see base; its `size` is that of a window.
      split: 'eval' or 'train'.
      stride, scales, flip: see `views.decoding`.
      images: how many are drawn; 0: no picture.
      each_block: whether the predictions of a head on each block are compared.

    Raises:
      ValueError: a value out of range.
    """
    how = views.decoding(context, stride, scales, flip)
    return Segmentation(context, split, how, images, each_block)


@dataclasses.dataclass(frozen=True)
class Segmentation(base.Evaluator):
    """Counts pixels by class and by what they are called.

    Images are resized as training resizes them at ratio 1, covered by windows of the
    size that the model learned from, and the logits of all windows on a pixel averaged
    and enlarged to the original size. Of several views the softmax is averaged there.
    """

    split: str
    how: views.Decoding
    images: int
    each_block: bool = False

    best: ClassVar[str | None] = "miou"
    same_classes: ClassVar[bool] = True

    @property
    def metrics(self) -> dict[str, bool]:
        """Mean IoU, and accuracies."""
        return {"miou": True, "aacc": True, "macc": True}

    @property
    def reads(self) -> tuple[str, ...]:
        """The logits of the objective."""
        if self.each_block:
            return ("segmentation_logits_each",)
        return ("segmentation_logits",)

    def check_data(self) -> None:
        """Raises ValueError if the split has no label maps."""
        if "label_map" not in self.context.source(self.split).annotations:
            raise ValueError(
                f"split {self.split!r} needs label maps, but its images have none: "
                "give a source that has them, such as segfolder"
            )

    def run(self, state: Any, *, step: int) -> dict[str, Any]:
        """Returns intersection over union and accuracies, in percent.

        Returns:
          'miou': the mean of the classes that occur in a label or a prediction; 'aacc':
          the share of all labelled pixels that are right; 'macc': the mean over classes
          of the share of each; 'n': images counted; 'table': for each class its 'iou'
          and 'acc' (None where it has no pixel) and 'pixels', the labelled ones. With a
          head on each block these are the last block's, and 'blocks' has the scores of
          each 'block', from 1.
        """
        source, classes = self.context.source(self.split), self.context.num_classes
        n, drawn, totals = 0, {}, {}
        (name,) = self.reads
        for image in views.predict(self.context, state, self.split, self.how, name):
            label, called = checked(source, image.index, classes), None
            for block, head in enumerate(image.of_each_head(), start=1):
                counted, called = count(head, label)
                totals[block] = totals.get(block, 0) + counted
            n += 1
            if image.index < self.images:
                drawn[image.index] = (label, called)
        if distributed.is_primary() and drawn:
            path = self.context.outdir / f"segmentation_{step:07d}.png"
            picture = _picture(source, drawn, len(self.context.mean))
            paths.make_folder(path.parent)
            with path.open("wb") as file:
                Image.fromarray(picture).save(file, format="png")
        totals = totals or {1: np.zeros((classes, classes + 1), np.int64)}
        last = totals[max(totals)]
        result = {**scores(last), "n": n, "table": table(last, source.classes)}
        if self.each_block:
            rows = [{"block": block, **scores(x)} for block, x in totals.items()]
            result["blocks"] = rows
        return result


def checked(source: Any, index: int, classes: int) -> np.ndarray:
    """Returns the label map `[H, W]` of an image.

    Raises:
      ValueError: a label that is neither 255 nor one of the classes.
    """
    label = np.asarray(source.label_map(index))
    wrong = label[(label >= classes) & (label != IGNORED)]
    if wrong.size:
        raise ValueError(
            f"{source.name_of(index)}: its label map has the label {int(wrong[0])} "
            f"({wrong.size} pixels have such labels); expected 0 to {classes - 1}, or "
            f"{IGNORED} for pixels without a label"
        )
    return label


def count(image: views.Predicted, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts the pixels of an image by class and by what they are called.

    Args:
      image: its logits.
      label: `[H, W]` uint8 at the original size.

    Returns:
      int64 `[K, K + 1]`, whose last column is of logits that are no numbers; and what
      each pixel is called, uint8 `[H, W]`.
    """
    rows, cols = label.shape
    wide = np.full((_padded(rows), _padded(cols)), IGNORED, np.uint8)
    wide[:rows, :cols] = label
    counts, called = _count(image.crop, image.views, wide, (rows, cols))
    return np.asarray(counts, np.int64), np.asarray(called)[:rows, :cols]


def scores(counts: np.ndarray) -> dict[str, float]:
    """Computes 'miou', 'aacc' and 'macc' in percent from counts `[K, K + 1]`.

    Classes that occur nowhere are left out; one that is only predicted has an
    intersection of 0.
    """
    right, labelled, union = _sums(counts)
    occurring = union > 0
    iou = right[occurring] / union[occurring]
    acc = right[labelled > 0] / labelled[labelled > 0]
    return {
        "miou": float(100 * iou.mean()) if iou.size else 0.0,
        "aacc": float(100 * right.sum() / max(labelled.sum(), 1)),
        "macc": float(100 * acc.mean()) if acc.size else 0.0,
    }


def table(counts: np.ndarray, classes: Any) -> list[dict[str, Any]]:
    """Lists each class with its scores in percent; see `Segmentation.run`."""
    rows = zip(classes, *_sums(counts), strict=True)
    return [
        {
            "class": str(name),
            "iou": float(100 * right / union) if union else None,
            "acc": float(100 * right / labelled) if labelled else None,
            "pixels": int(labelled),
        }
        for name, right, labelled, union in rows
    ]


def _sums(counts):
    """Pixels of each class that are right, labelled, and either of the two."""
    right, labelled = np.diagonal(counts), counts.sum(axis=1)
    return right, labelled, labelled + counts[:, :-1].sum(axis=0) - right


def palette(count: int) -> np.ndarray:
    """Returns a colour for each class, uint8 `[count, 3]`; neighbours differ much.

    Class 0 is dark grey; hues go round by the golden ratio.
    """
    colours = [(0.25, 0.25, 0.25)]
    for number in range(1, count):
        value = (1.0, 0.75, 0.5)[number // 16 % 3]
        colours.append(colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.85, value))
    return np.round(255 * np.array(colours[:count])).astype(np.uint8)


def coloured(label: np.ndarray, count: int) -> np.ndarray:
    """Colours a label map `[H, W]` of `count` classes: uint8 `[H, W, 3]`.

    Pixels without a label are white.
    """
    colours = np.full((256, 3), 255, np.uint8)
    colours[:count] = palette(count)
    return colours[label]


def _picture(source, drawn, channels):
    """Draws image, label map and prediction of each image side by side."""
    decoded = decode.Decode(channels=channels)
    count, rows = len(source.classes), []
    for index, (label, called) in sorted(drawn.items()):
        image = np.asarray(decoded(source[index]["image"]))
        image = reconstruction.rgb(image.reshape(*image.shape[:2], -1))
        maps = (coloured(x, count) for x in (label, called))
        rows.append([tile(x) for x in (image, *maps)])
    return reconstruction.grid(rows, columns=("image", "truth", "prediction"))


def tile(image: np.ndarray) -> np.ndarray:
    """Fits a picture into a square: white around it."""
    picture = Image.fromarray(image)
    scale = TILE / max(picture.size)
    width, height = (max(1, round(scale * side)) for side in picture.size)
    square = Image.new("RGB", (TILE, TILE), "white")
    square.paste(picture.resize((width, height), Image.Resampling.NEAREST), (0, 0))
    return np.asarray(square)


def _padded(size: int) -> int:
    """Returns 2^k or 3 * 2^k, at least 32 and `size`: few programs are compiled."""
    power = max(32, 2 ** (size - 1).bit_length())
    return power * 3 // 4 if power > 32 and size <= power * 3 // 4 else power


@functools.partial(jax.jit, static_argnums=0)
def _count(
    crop: tuple[int, int],
    seen: tuple[views.View, ...],
    label: jax.Array,
    size: tuple[int, int],
) -> tuple[jax.Array, jax.Array]:
    """Counts pixels as `count` does, of a padded label map.

    Averaging windows, cutting and enlarging are linear on each axis: they are one
    matrix for the rows and one for the columns.
    """
    classes = seen[0].logits.shape[-1]
    rows, cols, logits = [], [], []
    for view in seen:
        down, right, height, width, _ = view.logits.shape
        maps = jnp.asarray(view.logits, jnp.float32).transpose(0, 2, 1, 3, 4)
        logits.append(maps.reshape(down * height, right * width * classes))
        for axis, matrices in enumerate((rows, cols)):
            matrices.append(
                _enlarging(
                    crop[axis],
                    view.starts[axis],
                    view.extent[axis],
                    size=size[axis],
                    padded=label.shape[axis],
                    side=view.logits.shape[2 + axis],
                    mirrored=view.mirrored if axis else False,
                )
            )
    blocks = _blocks(label.size, label.shape[0], classes)

    def some_rows(part: Any) -> tuple[jax.Array, jax.Array]:
        weights, label = part
        large: Any = [
            _enlarged(*each, classes)
            for each in zip(weights, logits, cols, strict=True)
        ]
        if len(large) == 1:  # softmax changes no order
            large = large[0]
        else:
            large = sum(jax.nn.softmax(each) for each in large)
        called = large.argmax(axis=-1)
        column = jnp.where(jnp.isnan(large).any(axis=-1), classes, called)
        cell = jnp.where(label < classes, label * (classes + 1) + column, -1)
        ones = jnp.ones(cell.size, jnp.int32)
        number = classes * (classes + 1)
        return jax.ops.segment_sum(ones, cell.ravel(), number), called

    parts = (rows, label.astype(jnp.int32))
    parts = jax.tree.map(lambda x: x.reshape(blocks, -1, x.shape[-1]), parts)
    counts, called = jax.lax.map(some_rows, parts)
    counts = counts.sum(axis=0).reshape(classes, classes + 1)
    return counts, called.reshape(label.shape).astype(jnp.uint8)


def _enlarged(rows, logits, cols, classes):
    """Computes logits of some lines of the original image, `[r, W, K]`."""
    lines = jnp.dot(rows, logits, precision="highest")
    lines = lines.reshape(len(rows), -1, classes)
    return jnp.einsum("rxk,yx->ryk", lines, cols, precision="highest")


def _enlarging(crop, starts, extent, *, size, padded, side, mirrored):
    """Builds the matrix of one axis `[padded, windows * side]`.

    It maps logits of all windows to pixels of the original image: each window is
    enlarged to `crop` pixels, the mean of all windows on a pixel taken, and the resized
    image enlarged to `size`, bilinearly both times. `mirrored`: pixels of the original
    count from its other end.
    """
    pixel = jnp.arange(padded)
    pixel = jnp.where(mirrored, size - 1 - pixel, pixel)
    centre = (pixel + 0.5) * extent / size - 0.5
    centre = jnp.clip(centre, 0, extent - 1)
    lower = jnp.floor(centre)
    total = jnp.zeros((padded, len(starts), side))
    for pixel, weight in ((lower, 1 - (centre - lower)), (lower + 1, centre - lower)):
        inside = pixel[:, None] - starts  # [padded, windows]
        covered = (inside >= 0) & (inside < crop)
        share = covered / jnp.maximum(covered.sum(axis=1, keepdims=True), 1)
        own = jnp.clip((inside + 0.5) * side / crop - 0.5, 0, side - 1)
        hat = jnp.maximum(1 - jnp.abs(own[..., None] - jnp.arange(side)), 0)
        total += (weight[:, None] * share)[..., None] * hat
    return total.reshape(padded, -1)


def _blocks(pixels: int, rows: int, classes: int) -> int:
    """Returns in how many blocks of rows the logits of an image are enlarged."""
    blocks = 1
    while pixels * classes > blocks * _MOST_LOGITS and rows % (2 * blocks) == 0:
        blocks *= 2
    return blocks
