"""Decodes bytes or raw arrays into images with a given number of channels.

An image is a PIL image of mode RGB (3 channels) or L (1 channel); with any other
number of channels, which arrays and the files of `data.rasters` have, it is a uint8
array [H, W, C]. Pixels of more than 8 bits become bytes as `data.levels` describes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image

from litevit_jax.data import levels, rasters
from litevit_jax.data.rasters import DecodeError as DecodeError
from litevit_jax.data.sources.base import AnnotationError

Image = PIL.Image.Image | np.ndarray

DEFAULT_MAX_PIXELS = 100_000_000

# PIL's own bound is global and only warns at first; Decode has one per data set,
# checked before any pixel is expanded.
PIL.Image.MAX_IMAGE_PIXELS = None
# Damaged metadata (common in ImageNet's EXIF) says nothing about the pixels.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# Plug-ins are found once, here, rather than by several threads at a time.
PIL.Image.init()
# Others are slow, or start programs (EPS).
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM")

_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_SAMPLES = 258, 262, 339
_WHITE_IS_ZERO = 0  # of the photometric interpretation, and what PIL takes without one
_UNSIGNED, _SIGNED = 1, 2  # of the format of samples
_ORIENTATION_TAG = 0x0112
_UNDO_ORIENTATION = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}


@dataclasses.dataclass(frozen=True)
class Decode:
    """Decodes bytes, a PIL image or an array [H, W] or [H, W, C] into an image.

    Transparency is dropped, not blended; EXIF orientation is applied; of an animation
    the first frame is taken.

    Attributes:
      channels: 3 (RGB) or 1 (grey); arrays, and the files of `rasters`, may have any
        other number.
      max_pixels: an image with more is refused from its header alone.
      range: of the pixels of more than 8 bits, see `levels.parse`.

    Raises (when called):
      DecodeError: damaged, truncated, too large, or not an image; or its pixels have
        no range, or other channels.
      ModuleNotFoundError: a package that reads such files is not installed.
    """

    channels: int = 3
    max_pixels: int = DEFAULT_MAX_PIXELS
    range: str = "full"

    def __post_init__(self):
        levels.parse(self.range)

    def __call__(self, image: bytes | Image) -> Image:
        if isinstance(image, np.ndarray):
            return self._from_numbers(levels.of_array(image))
        if isinstance(image, bytes):
            raster = rasters.read(image, self.channels, self.check_pixels)
            if raster is not None:
                return self._from_numbers(raster.deep, bands=raster.bands)
        if self.channels not in (1, 3):
            raise DecodeError(
                f"an encoded image cannot be decoded to {self.channels} channels; "
                "expected data.channels 1 or 3 (arrays, .npy files and TIFF files of "
                "several bands or pages may have any number)"
            )
        if isinstance(image, PIL.Image.Image):
            return self._from_opened(image)
        with open_image(image) as opened:
            return self._from_opened(opened)

    def _from_opened(self, image: PIL.Image.Image) -> Image:
        self.check_pixels(*image.size)
        image.load()
        upright = _UNDO_ORIENTATION.get(orientation(image.info.get("exif")))
        plain = self._to_rgb_or_grey(image)
        plain = plain.convert("RGB" if self.channels == 3 else "L")
        return plain if upright is None else plain.transpose(upright)

    def _to_rgb_or_grey(self, image: PIL.Image.Image) -> PIL.Image.Image:
        """Converts a loaded image of any mode to RGB or L, without transparency."""
        # Else PIL tries to keep the transparent colour, with a warning.
        image.info.pop("transparency", None)
        deep = deep_pixels(image)
        if deep is not None:
            return PIL.Image.fromarray(self._to_bytes(deep))
        return image if image.mode == "L" else image.convert("RGB")

    def _to_bytes(self, deep: levels.Deep) -> np.ndarray:
        try:
            return levels.to_bytes(deep, self.range)
        except ValueError as error:
            raise DecodeError(str(error)) from error

    def _from_numbers(self, deep: levels.Deep, *, bands: bool = False) -> Image:
        """Makes an image of numbers; of `bands`, three are no colours."""
        image = deep.values
        if image.dtype.kind not in "iuf" or image.ndim not in (2, 3):
            raise DecodeError(
                f"array of {image.dtype} {image.shape}; expected numbers [H, W] or "
                "[H, W, C]"
            )
        if image.size == 0:
            raise DecodeError(f"array of shape {image.shape} has no pixel")
        image = image.reshape(*image.shape[:2], -1)
        height, width, channels = image.shape
        self.check_pixels(width, height)
        if not fits(channels, self.channels, bands=bands):
            of_bands = ", bands or pages only from 1 to 3" * bands
            raise DecodeError(
                f"array {list(deep.values.shape)} with {channels} channels; expected "
                f"data.channels={self.channels} (only 1 and 3 are converted to each "
                f"other{of_bands})"
            )
        if image.dtype != np.uint8:
            image = self._to_bytes(deep._replace(values=image))
        elif deep.inverted:
            image = 255 - image
        if self.channels not in (1, 3):
            return image
        pixels = PIL.Image.fromarray(image if channels == 3 else image[:, :, 0])
        return pixels.convert("RGB" if self.channels == 3 else "L")

    def check_pixels(self, width: int, height: int) -> None:
        """Raises a DecodeError if an image of this size exceeds the limit."""
        if width * height > self.max_pixels:
            raise DecodeError(
                f"image of {width} x {height} = {width * height} pixels, more than "
                f"data.max_pixels={self.max_pixels}; raise it with "
                "--config.data.max_pixels= if the image is genuine"
            )


def fits(channels: int, wanted: int, *, bands: bool = False) -> bool:
    """Whether an image of so many channels can become one of those that are wanted.

    Grey becomes three equal channels, and colours their luminance; bands have none.
    """
    if channels == wanted or (channels, wanted) == (1, 3):
        return True
    return (channels, wanted) == (3, 1) and not bands


@contextlib.contextmanager
def open_image(encoded: bytes) -> Iterator[PIL.Image.Image]:
    """Opens the image in `encoded`; its pixels are not decoded yet.

    Raises:
      DecodeError: it is none, or what is done with it fails.
    """
    try:
        with PIL.Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            yield image
    except (AnnotationError, DecodeError):
        raise
    except PIL.UnidentifiedImageError as error:
        raise DecodeError(
            f"not an image ({len(encoded)} bytes); expected one of "
            f"{', '.join(_FORMATS)}, NumPy, DICOM"
        ) from error
    except Exception as error:  # PIL's plug-ins raise any kind
        reason = f"{type(error).__name__}: {error}"
        raise DecodeError(f"cannot decode {len(encoded)} bytes: {reason}") from error


def deep_pixels(image: PIL.Image.Image) -> levels.Deep | None:
    """Returns the pixels of a loaded grey image that `is_deep`, else None."""
    if not is_deep(image):
        return None
    values, kind = np.asarray(image), f"mode {image.mode}"
    if image.format != "TIFF":
        if image.mode == "F":
            return levels.Deep(values, kind, None)
        bits = 16 if image.mode.startswith("I;16") else 32
        return levels.of_integers(values, kind, bits=bits, signed=False)
    # PIL widens what it reads, and hands on the bits of other types and the zero that
    # is white as they are.
    tags: Any = image
    bits, signed = tags.tag_v2.get(_TIFF_BITS, (1,))[0], _is_signed(image)
    inverted = tags.tag_v2.get(_TIFF_PHOTOMETRIC, _WHITE_IS_ZERO) == _WHITE_IS_ZERO
    if image.mode == "F":
        return levels.Deep(values, kind, None, inverted)
    if image.mode == "L":
        values, kind = values.view(np.int8), "8 bits with a sign"
    if image.mode == "I" and bits == 32 and not signed:
        values = values.view(np.uint32)
    deep = levels.of_integers(values, kind, bits=bits, signed=signed)
    return deep._replace(inverted=inverted)


def is_deep(image: PIL.Image.Image) -> bool:
    """Whether an opened image is grey, of more than 8 bits or of 8 with a sign."""
    if image.mode == "L":
        return image.format == "TIFF" and _is_signed(image)
    return image.mode == "F" or image.mode.startswith("I")


def _is_signed(image: Any) -> bool:
    return image.tag_v2.get(_TIFF_SAMPLES, (_UNSIGNED,))[0] == _SIGNED


def orientation(exif: Any) -> int:
    """Returns the EXIF orientation 1..8; 1 if absent or unreadable.

    Read by hand: `PIL.ImageOps.exif_transpose` parses every entry, warns of damage in
    any, and also obeys XMP, which the decoder of `fast` does not see.
    """
    if not isinstance(exif, bytes):
        return 1
    tiff = exif.removeprefix(b"Exif\x00\x00")
    if tiff[:2] not in (b"II", b"MM"):
        return 1

    def number(start: int, size: int) -> int:
        digits = tiff[start : start + size]
        return int.from_bytes(digits, "little" if tiff[:2] == b"II" else "big")

    directory = number(4, 4)
    for entry in range(min(number(directory, 2), 512)):
        start = directory + 2 + 12 * entry
        if number(start, 2) == _ORIENTATION_TAG:
            return number(start + 8, 2)
    return 1
