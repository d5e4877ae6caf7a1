"""Reads maps of labels: a picture in which each pixel is the number of a class.

Files are PNGs of one number for each pixel: grey, or with a palette, whose indices
count and not its colours. 255 stands for pixels that nobody labelled.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import PIL.Image

from litevit_jax.data import decode as decoding
from litevit_jax.data import resample, turbo
from litevit_jax.data.joint import IGNORED, check_size
from litevit_jax.data.sources.base import AnnotationError

_COLOURS = (
    "expected a number for each pixel: a grey PNG, or one with a palette, whose "
    "indices are read; convert each colour to the number of its class"
)
_TURNED = (
    ". The image is turned by its EXIF orientation: labels are of its pixels as they "
    "are stored"
)
# PIL spreads the levels of grey PNGs with few bits over 0 to 255.
_FEW_BITS = {"L;2": 85, "L;4": 17}


def read(
    encoded: bytes, image: bytes, *, classes: int, reduce_zero_label: bool
) -> np.ndarray:
    """Decodes the label map uint8 [h, w] of an image, upright as the image will be.

    Args:
      encoded: the file of labels.
      image: the file of the image, for its size and orientation. Labels are of the
        pixels as they are stored, and are turned with them.
      classes: number of classes.
      reduce_zero_label: 0 becomes 255, and every other label one less.

    Raises:
      decode.DecodeError: either file is damaged.
      AnnotationError: colours, a label of no class, or another size than the image's.
    """
    with decoding.open_image(image) as opened:
        size, orientation = opened.size, decoding.orientation(opened.info.get("exif"))
    with decoding.open_image(encoded) as opened:
        turned = 4 < orientation <= 8 and opened.size == size[::-1]
        check_size(opened.size[::-1], size[::-1], _TURNED * turned)
        labels = _numbers(opened)
    check_labels(labels, classes, reduced=reduce_zero_label)
    if reduce_zero_label:
        ignored = (labels == 0) | (labels == IGNORED)
        labels = np.where(ignored, IGNORED, labels.astype(np.int32) - 1)
    upright = turbo.turn(labels.astype(np.uint8), orientation)
    return np.ascontiguousarray(upright)


def _numbers(opened: Any) -> np.ndarray:
    """Returns the numbers [h, w] of an opened picture.

    Raises:
      AnnotationError: it has colours, or was compressed with loss.
    """
    tiles = [str(tile[3]) for tile in getattr(opened, "tile", [])]
    if opened.format == "JPEG":
        raise AnnotationError(f"label map in a JPEG, which changes numbers; {_COLOURS}")
    if opened.mode not in ("1", "L", "P", "I") and opened.mode[:2] != "I;":
        raise AnnotationError(f"label map in colours (mode {opened.mode}); {_COLOURS}")
    opened.load()
    numbers = np.asarray(opened)
    if numbers.dtype == bool:
        return numbers.astype(np.uint8)
    return numbers // _FEW_BITS.get(tiles[0] if tiles else "", 1)


def check_labels(labels: np.ndarray, classes: int, *, reduced: bool = False) -> None:
    """Raises an AnnotationError for a label that is neither a class nor 255.

    With `reduced`, 0 stands for no class and the classes count from 1.
    """
    most = classes - 1 + reduced
    wrong = labels[(labels != IGNORED) & ((labels < 0) | (labels > most))]
    if not wrong.size:
        return
    hint = "" if reduced else " (or options.reduce_zero_label=True, if 0 is no class)"
    raise AnnotationError(
        f"label {int(wrong.max())} in {wrong.size} of {labels.size} pixels; expected "
        f"{int(reduced)} to {most} for {classes} classes, or {IGNORED} for pixels "
        f"without a label: give all classes in data.options.classes{hint}"
    )


def decode(encoded: bytes) -> np.ndarray:
    """Decodes what `encode` made: uint8 [h, w]."""
    with decoding.open_image(encoded) as opened:
        return np.asarray(opened)


def encode(label_map: np.ndarray) -> bytes:
    """Encodes uint8 [h, w] as a PNG, without loss."""
    file = io.BytesIO()
    PIL.Image.fromarray(label_map).save(file, "PNG")
    return file.getvalue()


def resized(label_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns labels [h, w] at `size` (H, W), each that of the nearest pixel."""
    return resample.nearest(label_map, resample.Window.whole(size))
