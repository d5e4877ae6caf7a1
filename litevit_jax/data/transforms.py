"""Crop, resize and flip on the host, as PIL does them (antialiased, 8 bits).

Ops are frozen dataclasses: `op(image) -> image`, and with `random = True`
`op(image, rng) -> image`, where all chance comes from `rng`. An image is as
`decode` describes it. Colours, mixing and erasing are done on the device.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, ClassVar

import numpy as np
import PIL.Image

from litevit_jax.data import jitter, joint, turbo
from litevit_jax.data.decode import Decode, DecodeError, Image
from litevit_jax.data.image_settings import ImageSettings
from litevit_jax.data.randaugment import RandAugment

_RESAMPLING = {
    "bilinear": PIL.Image.Resampling.BILINEAR,
    "bicubic": PIL.Image.Resampling.BICUBIC,
}

Box = tuple[int, int, int, int]  # left, top, right, bottom; as in PIL


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of the image, resized to `size`.

    Sampling of timm: the area is uniform in `scale` (shares of the image), the
    ratio width / height log-uniform in `ratio`; what does not fit is drawn again,
    and after 10 failures the largest central part of an allowed ratio is taken.

    Attributes:
      size: (H, W) of the result.
      interpolation: 'bilinear', 'bicubic', or 'random': either, for each image.
      single_draw: the variant of MAE's linear probe: one draw, sides cut to the
        image, so that ratios may leave their range.
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "random"
    single_draw: bool = False

    random: ClassVar[bool] = True
    _ATTEMPTS: ClassVar[int] = 10

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        box, name = self.draw(*_width_height(image), rng)
        return resize(_crop(image, box), self.size, _RESAMPLING[name])

    def draw(
        self, width: int, height: int, rng: np.random.Generator
    ) -> tuple[Box, str]:
        """The part of an image to keep, and the interpolation."""
        box, name = self.box(width, height, rng), self.interpolation
        if name == "random":
            name = ("bilinear", "bicubic")[rng.integers(2)]
        return box, name

    def box(self, width: int, height: int, rng: np.random.Generator) -> Box:
        """The part of an image of `width` x `height` pixels to keep."""
        for _ in range(1 if self.single_draw else self._ATTEMPTS):
            w, h = self._draw_sides(width * height, rng)
            if self.single_draw:
                w, h = min(max(w, 1), width), min(max(h, 1), height)
            if 0 < w <= width and 0 < h <= height:
                top = int(rng.integers(height - h + 1))
                left = int(rng.integers(width - w + 1))
                return left, top, left + w, top + h
        return self._central_box(width, height)

    def _draw_sides(self, area: int, rng: np.random.Generator) -> tuple[int, int]:
        target = rng.uniform(*self.scale) * area
        ratio = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
        return round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))

    def _central_box(self, width: int, height: int) -> Box:
        low, high = self.ratio
        w = min(width, max(1, round(height * high)))
        h = min(height, max(1, round(width / low)))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h


@dataclasses.dataclass(frozen=True)
class RandomFlip:
    """Left and right swapped with the given probability."""

    probability: float = 0.5

    random: ClassVar[bool] = True

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        if rng.random() >= self.probability:
            return image
        if isinstance(image, np.ndarray):
            return turbo.mirror(image)
        return image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)


@dataclasses.dataclass(frozen=True)
class ResizeCenterCrop:
    """The centre of the image: the standard view for evaluation.

    The image is resized, bicubic and keeping its ratio, until it just covers
    `size / crop_fraction` (rounded down), and the central `size` is cut out;
    224 and 0.875 give the usual 256 and 224. Rounding is torchvision's.

    Attributes:
      size: (H, W) of the result.
      crop_fraction: in (0, 1]; 1 keeps all of the shorter side.
    """

    size: tuple[int, int]
    crop_fraction: float = 0.875

    random: ClassVar[bool] = False

    def __call__(self, image: Image) -> Image:
        width, height = _width_height(image)
        size = self._covering_size(width, height)
        if size != (height, width):
            image = resize(image, size, PIL.Image.Resampling.BICUBIC)
        top = round((size[0] - self.size[0]) / 2)
        left = round((size[1] - self.size[1]) / 2)
        return _crop(image, (left, top, left + self.size[1], top + self.size[0]))

    def _covering_size(self, width: int, height: int) -> tuple[int, int]:
        """Returns (H, W) that cover the target both ways, one of them exactly."""
        target_h, target_w = (math.floor(s / self.crop_fraction) for s in self.size)
        if target_h * width > target_w * height:
            return target_h, target_h * width // height
        return target_w * height // width, target_w


@dataclasses.dataclass(frozen=True)
class ToArray:
    """Image -> uint8 [H, W, C]."""

    channels: int = 3

    random: ClassVar[bool] = False

    def __call__(self, image: Image) -> np.ndarray:
        array = np.asarray(image)
        return array.reshape(*array.shape[:2], self.channels)


@dataclasses.dataclass(frozen=True)
class Transform:
    """Raw image -> uint8 [H, W, C]: `decode`, then `ops` in order.

    With several `views` the ops run once for each, on the same decoded image and
    with chance of their own, and the result is [V, H, W, C].

    With `fast` the first op is a RandomResizedCrop. All crops are drawn from the size
    in the header, and the image is decoded once, as small as the smallest crop
    allows, by `turbo.decode` where it can.
    """

    decode: Decode
    ops: tuple[Any, ...]
    size: tuple[int, int]
    views: int = 1
    fast: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of every result: (H, W, C) or (V, H, W, C)."""
        shape = (*self.size, self.decode.channels)
        return shape if self.views == 1 else (self.views, *shape)

    def __call__(
        self,
        image: bytes | np.ndarray,
        rng: np.random.Generator,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Transforms bytes, or uint8 [H, W] or [H, W, C], into uint8 [(V,) H, W, C].

        With `out` the result is written there, and `out` returned. View v draws from
        `rng` advanced by v times 2^128 numbers: it depends neither on the other views
        nor on their number.

        Raises:
          decode.DecodeError: the image is damaged, too large, or not an image.
        """
        start: Any = rng.bit_generator
        rngs = [rng]
        if self.views > 1:
            rngs = [np.random.Generator(start.jumped(v)) for v in range(self.views)]
        result = np.empty(self.shape, np.uint8) if out is None else out
        rows = result[None] if self.views == 1 else result
        if self.fast:
            images, ops = self._crops(image, rngs, rows), self.ops[1:]
        else:
            images, ops = [self.decode(image)] * self.views, self.ops
        for row, view, chance in zip(rows, images, rngs, strict=True):
            view_image = _run(ops, view, chance)
            if not _is_at(view_image, row):
                row[:] = view_image
        return result

    def _crops(
        self,
        image: bytes | np.ndarray,
        rngs: list[np.random.Generator],
        rows: np.ndarray,
    ) -> list[Image]:
        """Applies the first op for each view to an image decoded once."""
        crop, pixels, shrink = self.ops[0], None, 1
        encoded = b"" if isinstance(image, np.ndarray) else image
        # `Decode` refuses other numbers of channels.
        header = turbo.read_header(encoded) if self.decode.channels in (1, 3) else None
        if header is None:
            pixels = self._pixels(image)
            height, width = pixels.shape[:2]
        else:
            self.decode.check_pixels(header.width, header.height)
            width, height = header.upright
        drawn = [crop.draw(width, height, rng) for rng in rngs]
        if pixels is None and header is not None:
            boxes = [box for box, _ in drawn]
            sides = [(bottom - top, right - left) for left, top, right, bottom in boxes]
            shrink = turbo.shrink(sides, self.size)
            channels = self.decode.channels
            bottom = max(box[3] for box in boxes)
            pixels = turbo.decode(
                encoded, header, channels=channels, shrink=shrink, bottom=bottom
            )
        if pixels is None:
            pixels, shrink = self._pixels(image), 1
            if pixels.shape[:2] != (height, width):
                raise DecodeError(
                    f"the header says {width} x {height} pixels, the image has "
                    f"{pixels.shape[1]} x {pixels.shape[0]}"
                )
        return [
            self._resized(turbo.cut(pixels, box, shrink), name, row)
            for (box, name), row in zip(drawn, rows, strict=True)
        ]

    def _pixels(self, image: bytes | np.ndarray) -> np.ndarray:
        """Returns uint8 [H, W, C] of an array, or of bytes that Pillow decodes."""
        pixels = np.asarray(self.decode(image))
        return pixels.reshape(*pixels.shape[:2], self.decode.channels)

    def _resized(self, part: np.ndarray, interpolation: str, out: np.ndarray) -> Image:
        """Returns a crop at its final size, as a PIL image if PIL's ops follow."""
        scale = max(s / t for s, t in zip(part.shape[:2], self.size, strict=True))
        if scale > turbo.MAX_SCALE:
            part = np.asarray(resize(part, self.size, _RESAMPLING[interpolation]))
        else:
            part = turbo.resize(part, self.size, interpolation, out)
        if part.shape[2] in (1, 3) and any(
            isinstance(o, RandAugment) for o in self.ops
        ):
            return PIL.Image.fromarray(part if part.shape[2] == 3 else part[..., 0])
        return part


def _is_at(array: Any, out: np.ndarray) -> bool:
    """Whether `array` is the memory of `out`, in the same layout."""
    return (
        array.strides == out.strides
        and array.__array_interface__["data"] == out.__array_interface__["data"]
    )


def _run(ops: tuple[Any, ...], image: Any, rng: np.random.Generator) -> Any:
    """Applies `ops` to an image, one after the other."""
    for op in ops:
        image = op(image, rng) if op.random else op(image)
    return image


def for_training(**data: Any) -> Transform | joint.Crop | jitter.Jitter:
    """Makes `train_ops`, or a crop of images together with their annotations."""
    settings = ImageSettings(**data)
    how = settings.joint_settings
    if not how.annotations:
        return train_ops(**data)
    if joint.has_objects(how.annotations):
        decode, size = _decode(settings), settings.image_size
        return jitter.Jitter(decode, size, how, settings.flip)
    return joint.Crop(_decode(settings), settings.image_size, how, settings.flip)


def train_ops(**data: Any) -> Transform:
    """Random crop, flip and RandAugment of each view, by `ImageSettings`' fields."""
    settings = ImageSettings(**data)
    crop = RandomResizedCrop(
        size=tuple(settings.image_size),
        scale=tuple(settings.crop_scale),
        ratio=tuple(settings.crop_ratio),
        interpolation=settings.interpolation,
        single_draw=settings.single_draw,
    )
    ops = [crop, RandomFlip(settings.flip)]
    randaugment = RandAugment(**(settings.randaugment or {"layers": 0}))
    ops += [randaugment] if randaugment.layers else []
    quick = turbo.choose(settings.decoder) == "fast"
    transform = _transform(settings, *ops)
    return dataclasses.replace(transform, views=settings.views, fast=quick)


def eval_ops(**data: Any) -> Transform:
    """Resize and central crop, from the fields of `ImageSettings`."""
    settings = ImageSettings(**data)
    size = tuple(settings.image_size)
    return _transform(settings, ResizeCenterCrop(size, settings.eval_crop_fraction))


def canvas_op(size: tuple[int, int], **data: Any) -> joint.Canvas:
    """Resize to a canvas of `size`, from the fields of `ImageSettings`."""
    settings = ImageSettings(**data)
    how = settings.joint_settings
    fit: Any = functools.partial(joint.whole, how=how)
    if joint.has_objects(how.annotations):
        fit = functools.partial(jitter.whole, size=size)
    return joint.Canvas(_decode(settings), size, fit)


def _decode(settings: ImageSettings) -> Decode:
    return Decode(settings.channels, settings.max_pixels, settings.range)


def _transform(settings: ImageSettings, *ops: Any) -> Transform:
    decode = _decode(settings)
    ops = (*ops, ToArray(settings.channels))
    return Transform(decode=decode, ops=ops, size=tuple(settings.image_size))


def _width_height(image: Image) -> tuple[int, int]:
    if isinstance(image, np.ndarray):
        return image.shape[1], image.shape[0]
    return image.size


def _crop(image: Image, box: Box) -> Image:
    left, top, right, bottom = box
    if isinstance(image, np.ndarray):
        return image[top:bottom, left:right]
    if box == (0, 0, *image.size):
        return image
    return image.crop(box)


def resize(image: Image, size: tuple[int, int], resampling: Any) -> Image:
    """Resizes to `size` (H, W); an array [H, W, C] channel by channel."""
    if isinstance(image, np.ndarray):
        planes = [PIL.Image.fromarray(plane) for plane in np.moveaxis(image, -1, 0)]
        resized = [np.asarray(resize(plane, size, resampling)) for plane in planes]
        return np.stack(resized, axis=-1)
    return image.resize((size[1], size[0]), resampling)
