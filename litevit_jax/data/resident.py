"""Small sets that the devices hold as bytes: what they take, and their arrays."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any

import numpy as np
import PIL.Image

from litevit_jax.data import cache, pipeline, settings, transforms
from litevit_jax.data.sources import base

_log = logging.getLogger(__name__)

_LOOKED_AT = 64  # images by which the size of a set is judged
_BICUBIC = PIL.Image.Resampling.BICUBIC


@dataclasses.dataclass(frozen=True)
class Resident:
    """The decoded images of a set, all on canvases of one size.

    Attributes:
      columns: uint8 [N, w, h, C], by columns as `augment.crop` reads them; a smaller
        image is at the left and top.
      labels: int32 [N], -1 for none.
      sizes: [N, 2], width and height of each image as it was read.
      scales: float32 [N, 2], of each axis: pixels that are stored for one that was
        read.
      readable: [N], whether there is an image.
    """

    columns: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray
    scales: np.ndarray
    readable: np.ndarray

    @property
    def note(self) -> str:
        """Describes how the images are stored."""
        count, width, height, _ = self.columns.shape
        text = f"{count:,} images as {width}x{height} bytes"
        smaller = int((self.scales.min(axis=1) < 1).sum())
        if smaller:
            text += f" ({smaller:,} of them shrunk to what the smallest crop needs)"
        if len(np.unique(self.sizes[self.readable], axis=0)) > 1:
            text += ", of different sizes, each with its own at the left and top"
        return text


class TooLargeError(ValueError):
    """An error of a set that takes more memory than it may."""


def why_not(data: Any) -> str:
    """Says why the images of a `data` block cannot be cropped on devices, or ''."""
    if settings.annotations_of(data):
        return "what data.joint.annotations names is cropped with them"
    if data["randaugment"]["layers"]:
        return "RandAugment (data.randaugment.layers) needs Pillow, on the host"
    return ""


def crop_of(data: Any) -> transforms.RandomResizedCrop:
    """Returns how crops are drawn, by a config's `data` block."""
    return transforms.train_ops(**settings.image_settings(data)).ops[0]


def load(source: base.Source, data: Any, most: float) -> Resident:
    """Decodes all images of `source`, shrunk to the size that crops need.

    The smallest crop then still has the pixels of the result.

    Args:
      source: the examples.
      data: the config's block.
      most: bytes that the set may take.

    Raises:
      TooLargeError: it takes more; that is judged by a few images first.
      pipeline.BadDataError: too many images cannot be read.
    """
    reader, count = _Reader(source, data), len(source)
    rows = np.linspace(0, count - 1, min(count, _LOOKED_AT)).astype(int)
    few = [reader(int(row)) for row in np.unique(rows)]
    _check_size(_canvas(few), count, data["channels"], most)
    stored: list[_Stored] = []
    for examples in cache.read_all(reader, count, cache.threads_of(data)):
        stored += examples
    canvas = _canvas(stored)
    _check_size(canvas, count, data["channels"], most)
    _report_bad(source, stored, data["max_bad_fraction"])
    columns = np.zeros((count, *canvas, data["channels"]), np.uint8)
    for row, one in enumerate(stored):
        if one.pixels is not None:
            height, width = one.pixels.shape[:2]
            columns[row, :width, :height] = one.pixels.swapaxes(0, 1)
            one.pixels = None  # a copy of all would be held otherwise
    return Resident(
        columns=columns,
        labels=np.array([one.label for one in stored], np.int32),
        sizes=np.array([one.size for one in stored], np.int64),
        scales=np.array([one.scale for one in stored], np.float32),
        readable=np.array([not one.reason for one in stored]),
    )


@dataclasses.dataclass
class _Stored:
    """One image as it is stored, or why there is none."""

    label: int = -1
    pixels: np.ndarray | None = None
    size: tuple[int, int] = (1, 1)
    scale: tuple[float, float] = (1.0, 1.0)
    reason: str = ""

    @property
    def width_height(self) -> tuple[int, int]:
        return (0, 0) if self.pixels is None else self.pixels.shape[1::-1]


class _Reader:
    """Reads an example and shrinks its image."""

    def __init__(self, source: base.Source, data: Any):
        self._source, self._decode = source, cache.decoder(data)
        share = math.sqrt(data["crop_scale"][0])
        sides = settings.image_size(data)
        self._needed = [math.ceil(side / share) for side in sides]

    def __call__(self, index: int) -> _Stored:
        pixels, rest = cache.read_pixels(self._source, self._decode, index)
        if isinstance(pixels, Exception):
            return _Stored(reason=f"{type(pixels).__name__}: {pixels}")
        height, width = pixels.shape[:2]
        factor = max(self._needed[0] / height, self._needed[1] / width)
        if factor < 1:
            size = (math.ceil(height * factor), math.ceil(width * factor))
            pixels = _shrunk(pixels, size)
        scale = pixels.shape[1] / width, pixels.shape[0] / height
        return _Stored(int(rest["label"]), pixels, (width, height), scale)


def _shrunk(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    channels = pixels.shape[2]
    image: Any = pixels
    if channels in (1, 3):
        image = PIL.Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    return np.asarray(transforms.resize(image, size, _BICUBIC)).reshape(*size, channels)


def _canvas(stored: list[_Stored]) -> tuple[int, int]:
    """Returns (width, height) into which all of the images fit."""
    sides = np.array([one.width_height for one in stored])
    width, height = np.maximum(sides.max(axis=0), 1).tolist()
    return width, height


def _check_size(
    canvas: tuple[int, int], count: int, channels: int, most: float
) -> None:
    width, height = canvas
    size = count * width * height * channels
    if size > most:
        raise TooLargeError(
            f"{count:,} images of {width}x{height} pixels take {size / cache.GIB:.3g} "
            f"GiB, more than {most / cache.GIB:.3g}"
        )


def _report_bad(source: base.Source, stored: list[_Stored], fraction: float) -> None:
    """Warns about unreadable images, and refuses too many, as reading them does."""
    bad = {
        base.printable(source.name_of(row)): one.reason
        for row, one in enumerate(stored)
        if one.reason
    }
    for name, reason in bad.items():
        _log.warning("unreadable, skipped: %s: %s", name, reason)
    limit = pipeline.BadLimit(fraction, len(stored))
    if limit.exceeded(bad) or len(bad) == len(stored):
        raise pipeline.BadDataError(limit.describe(bad))
