"""Resizes, crops and flips an image together with what is drawn on it.

One draw serves the image and its annotations: a map of labels here, 255 where nothing
is labelled (objects: see `jitter`). Where the image does not fill the result, labels
are 255 and `size` says how much of it is image; normalising then puts the mean colour
outside (docs/dense.md).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from litevit_jax import choices
from litevit_jax.data import resample, settings
from litevit_jax.data.decode import Decode
from litevit_jax.data.sources.base import AnnotationError

IGNORED = 255  # the label of pixels that no loss and no metric counts
# Objects have masks; boxes do without.
ANNOTATIONS = ("label_map", "objects", "boxes")
# Annotation -> the field of an example that has it.
FIELDS = {"label_map": "label_map", "objects": "objects", "boxes": "objects"}
_REDRAWS = 10  # of a crop that one class fills
_CANVAS_STEPS = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # times the short side

Size = tuple[int, int]  # height, width


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The checked block `data.joint` of a config.

    Attributes:
      annotations: what images bring along, of `ANNOTATIONS`; () for images alone.
      short_side, long_side: pixels; an image is resized, its ratio kept, to the
        largest size within both. With objects that is the image size instead.
      ratio: range of a factor of both, drawn for each training image.
      most_of_one_class: share of a crop's labelled pixels that one class may have; a
        crop with more, or with a single class, is drawn again up to 10 times.
      crop_draws: numbers that place a crop with objects: 1 serves both axes.
      max_objects: of an image; of more, the largest are kept.
      mask_size: pixels on a side of an object's mask, laid over its box.
    """

    annotations: tuple[str, ...] = ()
    short_side: int = 512
    long_side: int = 2048
    ratio: tuple[float, float] = (0.5, 2.0)
    most_of_one_class: float = 0.75
    crop_draws: int = 1
    max_objects: int = 100
    mask_size: int = 112

    def __post_init__(self):
        for name in self.annotations:
            choices.check("data.joint.annotations", name, list(ANNOTATIONS))
        if len(self.annotations) > 1:
            raise ValueError(
                f"data.joint.annotations={self.annotations}; expected one of "
                f"{', '.join(ANNOTATIONS)}: 'objects' has boxes, too"
            )
        if self.crop_draws not in (1, 2) or self.max_objects < 1:
            raise ValueError(
                f"data.joint.crop_draws={self.crop_draws}, max_objects="
                f"{self.max_objects}; expected 1 or 2 draws and at least 1 object"
            )
        if self.mask_size < 8 or self.mask_size % 8:
            raise ValueError(
                f"data.joint.mask_size={self.mask_size}; expected a multiple of 8"
            )
        if not 0 < self.short_side <= self.long_side:
            raise ValueError(
                f"data.joint.short_side={self.short_side}, long_side={self.long_side}; "
                "expected 0 < short_side <= long_side, in pixels"
            )
        if len(self.ratio) != 2 or not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ValueError(
                f"data.joint.ratio={tuple(self.ratio)}; expected (low, high) with "
                "0 < low <= high, both finite"
            )
        if not 0 < self.most_of_one_class <= 1:
            raise ValueError(
                f"data.joint.most_of_one_class={self.most_of_one_class}; expected a "
                "share, 0 < share <= 1"
            )

    def resized(self, size: Size, factor: float = 1.0) -> Size:
        """Returns the size to which an image of `size` is resized: at least 1 x 1."""
        scale = factor * min(self.long_side / max(size), self.short_side / min(size))
        height, width = (max(int(side * scale + 0.5), 1) for side in size)
        return height, width

    def scaled(self, scale: float) -> Settings:
        """Returns the settings for images that are `scale` times as large."""
        sides = {"short_side": self.short_side, "long_side": self.long_side}
        sides = {name: max(int(side * scale + 0.5), 1) for name, side in sides.items()}
        return dataclasses.replace(self, **sides)


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The part of a resized image to keep, and whether left and right are swapped."""

    window: resample.Window
    mirrored: bool = False

    @property
    def size(self) -> Size:
        """Height and width of the part."""
        return self.window.height, self.window.width

    def pixels(self, image: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Writes uint8 [h, w, C], changed, to the top left of `out`; 0 elsewhere."""
        return self._write(resample.bilinear(image, self.window), out, 0)

    def labels(self, label_map: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Writes labels [h, w], changed, to the top left of `out`; 255 elsewhere."""
        return self._write(resample.nearest(label_map, self.window), out, IGNORED)

    def _write(self, part: np.ndarray, out: np.ndarray, beyond: int) -> np.ndarray:
        height, width = self.size
        out[:height, :width] = part[:, ::-1] if self.mirrored else part
        out[height:], out[:height, width:] = beyond, beyond
        return out


@dataclasses.dataclass(frozen=True)
class Crop:
    """An example -> a random crop of image and label map, for training.

    Attributes:
      decode: what makes an image of the bytes.
      size: (H, W) of the result.
      settings: of resizing and cropping.
      flip: probability of left and right being swapped.
    """

    decode: Decode
    size: Size
    settings: Settings
    flip: float = 0.5

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of every image: (H, W, C)."""
        return (*self.size, self.decode.channels)

    @property
    def extras(self) -> dict[str, Any]:
        """Shapes and types of what comes beside the image."""
        return settings.extras_of(self.settings.annotations, self.size)

    def __call__(
        self,
        example: Mapping[str, Any],
        rng: np.random.Generator,
        out: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Transforms `image` and `label_map` of a source's example by one draw.

        Returns:
          `image` uint8 [H, W, C] (`out`, if that is given), `label_map` uint8 [H, W]
          and `size` int32 [2], the rows and columns that are image.

        Raises:
          decode.DecodeError: the image is damaged, too large, or not an image.
          AnnotationError: the labels have another size.
        """
        image = upright(self.decode, example["image"])
        label_map = example["label_map"]
        check_size(label_map.shape, image.shape[:2])
        geometry = self.draw(label_map, rng)
        out = np.empty(self.shape, np.uint8) if out is None else out
        return {
            "image": geometry.pixels(image, out),
            "label_map": geometry.labels(label_map, np.empty(self.size, np.uint8)),
            "size": np.array(geometry.size, np.int32),
        }

    def draw(self, label_map: np.ndarray, rng: np.random.Generator) -> Geometry:
        """Draws the size, the crop and the flip of an image with these labels."""
        low, high = self.settings.ratio
        height, width = label_map.shape
        factor = rng.uniform(low, high)
        size = self.settings.resized((height, width), factor)
        sides = [min(*pair) for pair in zip(size, self.size, strict=True)]
        margins = [whole - side for whole, side in zip(size, sides, strict=True)]
        most = self.settings.most_of_one_class
        for redraws in itertools.count():
            top, left = (int(rng.integers(margin + 1)) for margin in margins)
            window = resample.Window(size, top, left, *sides)
            if most == 1 or redraws == _REDRAWS:  # the last one, whatever it is
                break
            if _is_mixed(resample.nearest(label_map, window), most):
                break
        return Geometry(window, bool(rng.random() < self.flip))


@dataclasses.dataclass(frozen=True)
class Canvas:
    """An example -> its whole image, resized, at the top left of `size` (H, W).

    Label maps and objects stay as they are, at their source: predictions are enlarged
    to them.

    Attributes:
      decode: what makes an image of the bytes.
      size: (H, W) of the result.
      fit: example, (h, w) of its image -> the geometry by which the image is resized.
    """

    decode: Decode
    size: Size
    fit: Callable[[Mapping[str, Any], Size], Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of every image: (H, W, C)."""
        return (*self.size, self.decode.channels)

    @property
    def extras(self) -> dict[str, Any]:
        """Shapes and types of what comes beside the image."""
        return dict.fromkeys(("size", "original_size"), ((2,), np.int32))

    def __call__(
        self,
        example: Mapping[str, Any],
        rng: np.random.Generator,
        out: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Returns `image` uint8 [H, W, C], and its sizes; nothing is drawn.

        `size` int32 [2] is that of the image as it is now, `original_size` int32 [2]
        as it was decoded.
        """
        del rng
        image = upright(self.decode, example["image"])
        height, width = image.shape[:2]
        geometry = self.fit(example, (height, width))
        out = np.empty(self.shape, np.uint8) if out is None else out
        return {
            "image": geometry.pixels(image, out),
            "size": np.array(geometry.size, np.int32),
            "original_size": np.array((height, width), np.int32),
        }


def whole(example: Mapping[str, Any], before: Size, how: Settings) -> Geometry:
    """Returns how a whole image of (h, w) pixels is resized."""
    del example
    return Geometry(resample.Window.whole(how.resized(before)))


def has_objects(names: Sequence[str]) -> bool:
    """Whether annotations are objects, or boxes alone."""
    return bool({"objects", "boxes"} & set(names))


def extras_of_objects(how: Settings) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Returns shapes and types of the objects of an image, and of `size [2]`.

    Masks, of annotations named 'objects', are bits.
    """
    count, pixels = how.max_objects, how.mask_size
    masks = {"masks": ((count, pixels * pixels // 8), np.uint8)}
    return {
        "boxes": ((count, 4), np.float32),
        "classes": ((count,), np.int32),
        "valid": ((count,), np.bool_),
        **(masks if "objects" in how.annotations else {}),
        "left_out": ((), np.int32),
        "size": ((2,), np.int32),
    }


def canvas(size: Size, how: Settings, crop: Size) -> Size:
    """Returns the canvas (H, W) of an image of `size`: one of few, at least `crop`.

    A program is compiled for each, so sides are steps of the short side.
    """
    steps = [math.ceil(how.short_side * step) for step in _CANVAS_STEPS]
    steps = [min(step, how.long_side) for step in steps] + [how.long_side]
    sides = (
        max(least, next(step for step in steps if step >= side))
        for side, least in zip(how.resized(size), crop, strict=True)
    )
    height, width = sides
    return height, width


def check_size(
    label_map: tuple[int, ...], image: tuple[int, ...], hint: str = ""
) -> None:
    """Raises an AnnotationError unless the sizes (h, w) of both are the same."""
    if tuple(label_map) != tuple(image):
        raise AnnotationError(
            f"label map of {label_map[1]} x {label_map[0]} pixels, but its image has "
            f"{image[1]} x {image[0]}; labels are never resized to fit: give one label "
            f"for each pixel{hint}"
        )


def upright(decode: Decode, image: Any) -> np.ndarray:
    """Returns upright pixels uint8 [h, w, C]."""
    pixels = np.asarray(decode(image))
    return pixels.reshape(*pixels.shape[:2], decode.channels)


def _is_mixed(labels: np.ndarray, most: float) -> bool:
    """Whether labels are of several classes, none of them with the share `most`."""
    counts = np.bincount(labels.reshape(-1), minlength=IGNORED + 1)[:IGNORED]
    mixed = np.count_nonzero(counts) > 1 and counts.max() < most * counts.sum()
    return bool(mixed)
