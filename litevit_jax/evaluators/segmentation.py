"""Intersection over union of label maps, at the original size of every image."""

from __future__ import annotations

import colorsys
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from litevit_jax import distributed, paths
from litevit_jax.data import decode, windows
from litevit_jax.evaluators import base, reconstruction

IGNORED = 255  # the label of pixels that have none
_TILE = 160  # pixels of a side in a picture
_MOST_LOGITS = 2**24  # that are enlarged at once


def make(
    *,
    context: base.Context,
    split: str = "eval",
    stride: int | None = None,
    images: int = 4,
) -> Segmentation:
    """Builds the evaluator.

    Args:
      context: see base; its `size` is that of a window.
      split: 'eval' or 'train'.
      stride: pixels from one window to the next; None: two thirds of a window's side,
        rounded down, as in the reference (341 of 512).
      images: how many are drawn; 0: no picture.

    Raises:
      ValueError: a stride that leaves pixels out.
    """
    return Segmentation(context, split, strides(context, stride), images)


def strides(context: base.Context, stride: int | None) -> tuple[int, int]:
    """Returns the pixels from one window to the next, by rows and by columns.

    Raises:
      ValueError: a stride that leaves pixels out.
    """
    sides = context.size
    if stride is not None and not 1 <= stride <= min(sides):
        raise ValueError(
            f"segmentation: stride={stride}; expected 1 to {min(sides)}, the side of a "
            "window, so that windows cover the image"
        )
    rows, cols = (stride or max(side * 2 // 3, 1) for side in sides)
    return rows, cols


class Predicted(NamedTuple):
    """The logits of all windows of one image.

    Attributes:
      index: of the image in its split.
      logits: `[R, C, h, w, K]` for R x C windows.
      crop: rows and columns of a window in pixels.
      starts: where the windows start, by rows `[R]` and by columns `[C]`.
      extent: rows and columns of the resized image that the windows cover.
      size: rows and columns of the image as it was decoded.
    """

    index: int
    logits: np.ndarray
    crop: tuple[int, int]
    starts: tuple[np.ndarray, np.ndarray]
    extent: tuple[int, int]
    size: tuple[int, int] = (0, 0)


def predict(
    context: base.Context, state: Any, split: str, stride: tuple[int, int]
) -> Iterator[Predicted]:
    """Yields the logits of every image of a split once, of all hosts, in windows."""
    several, crop = distributed.process_count() > 1, context.size
    cut = windows.cutter(crop, stride, pad_count=several)
    parts: dict[int, dict[tuple[int, ...], np.ndarray]] = {}
    reads = ("segmentation_logits",)
    for batch, out in context.over(state, split, reads, change=cut):
        for row in np.flatnonzero(batch["mask"] > 0):
            index, grid = int(batch["index"][row]), batch["grid"][row]
            known = parts.setdefault(index, {})
            known[tuple(batch["window"][row])] = out["segmentation_logits"][row]
            if len(known) == grid.prod():
                del parts[index]
                ordered = np.stack([known[window] for window in sorted(known)])
                logits = ordered.reshape(*grid, *ordered.shape[1:])
                rows, cols = (int(n) for n in batch["extent"][row])
                height, width = (int(n) for n in batch["original_size"][row])
                starts = (
                    np.array(windows.starts(rows, crop[0], stride[0]), np.int32),
                    np.array(windows.starts(cols, crop[1], stride[1]), np.int32),
                )
                sizes = (rows, cols), (height, width)
                yield Predicted(index, logits, crop, starts, *sizes)


@dataclasses.dataclass(frozen=True)
class Segmentation(base.Evaluator):
    """Counts pixels by class and by what they are called.

    Images are resized as training resizes them at ratio 1, covered by windows of the
    size that the model learned from, and the logits of all windows on a pixel averaged
    and enlarged to the original size.
    """

    split: str
    stride: tuple[int, int]
    images: int

    best: ClassVar[str | None] = "miou"
    same_classes: ClassVar[bool] = True

    @property
    def reads(self) -> tuple[str, ...]:
        """The logits of the objective."""
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
          and 'acc' (None where it has no pixel) and 'pixels', the labelled ones.
        """
        source = self.context.source(self.split)
        counts = np.zeros((self.context.num_classes,) * 2, np.int64)
        counts = np.pad(counts, ((0, 0), (0, 1)))
        n, drawn = 0, {}
        for image in predict(self.context, state, self.split, self.stride):
            label = checked(source, image.index, len(counts))
            counted, called = count(image, label)
            counts += counted
            n += 1
            if image.index < self.images:
                drawn[image.index] = (label, called)
        if distributed.is_primary() and drawn:
            path = self.context.outdir / f"segmentation_{step:07d}.png"
            picture = _picture(source, drawn, len(self.context.mean))
            paths.make_folder(path.parent)
            with path.open("wb") as file:
                Image.fromarray(picture).save(file, format="png")
        return {**scores(counts), "n": n, "table": table(counts, source.classes)}


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


def count(image: Predicted, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
    given = (image.logits, image.starts, image.extent)
    counts, called = _count(image.crop, *given, wide, (rows, cols))
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
        rows.append([_tile(x) for x in (image, *maps)])
    return reconstruction.grid(rows, columns=("image", "truth", "prediction"))


def _tile(image):
    """Fits a picture into a square: white around it."""
    picture = Image.fromarray(image)
    scale = _TILE / max(picture.size)
    width, height = (max(1, round(scale * side)) for side in picture.size)
    tile = Image.new("RGB", (_TILE, _TILE), "white")
    tile.paste(picture.resize((width, height), Image.Resampling.NEAREST), (0, 0))
    return np.asarray(tile)


def _padded(size: int) -> int:
    """Returns 2^k or 3 * 2^k, at least 32 and `size`: few programs are compiled."""
    power = max(32, 2 ** (size - 1).bit_length())
    return power * 3 // 4 if power > 32 and size <= power * 3 // 4 else power


@functools.partial(jax.jit, static_argnums=0)
def _count(
    crop: tuple[int, int],
    logits: Any,
    starts: Any,
    extent: tuple[int, int],
    label: jax.Array,
    size: tuple[int, int],
) -> tuple[jax.Array, jax.Array]:
    """Counts pixels as `count` does, of a padded label map.

    Averaging windows, cutting and enlarging are linear on each axis: they are one
    matrix for the rows and one for the columns.
    """
    logits = jnp.asarray(logits, jnp.float32)
    down, right, height, width, classes = logits.shape
    rows, cols = (
        _enlarging(
            crop[axis],
            starts[axis],
            extent[axis],
            size=size[axis],
            padded=label.shape[axis],
            side=logits.shape[2 + axis],
        )
        for axis in (0, 1)
    )
    logits = logits.transpose(0, 2, 1, 3, 4).reshape(down * height, -1)
    blocks = _blocks(label.size, label.shape[0], classes)

    def some_rows(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        weights, label = part
        lines = jnp.dot(weights, logits, precision="highest")
        lines = lines.reshape(len(weights), right * width, classes)
        large = jnp.einsum("rxk,yx->ryk", lines, cols, precision="highest")
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


def _enlarging(crop, starts, extent, *, size, padded, side):
    """Builds the matrix of one axis `[padded, windows * side]`.

    It maps logits of all windows to pixels of the original image: each window is
    enlarged to `crop` pixels, the mean of all windows on a pixel taken, and the resized
    image enlarged to `size`, bilinearly both times.
    """
    centre = (jnp.arange(padded) + 0.5) * extent / size - 0.5
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
