"""Quick decoding and resizing of training images: libjpeg-turbo and OpenCV.

Both release the interpreter's lock, so threads use all cores. Only JPEGs of the usual
kind go this way: 8 bits, grey or three colours, baseline, extended or progressive with
Huffman codes. All else (other formats, CMYK, arithmetic or lossless JPEG, damage) is
Pillow's, with the meaning it has there; evaluation is Pillow's alone.

Shrinking is antialiased: as Pillow does, the kernel of the interpolation is stretched
by the scale. It is made of two parts, a filter on the pixel grid and OpenCV's
interpolation, fitted together to Pillow's kernel by least squares. Over random crops
of photographs the result differs from Pillow's by 0.6 of 255 levels in the mean; by 2
where the decoder has shrunk the image, whose crops then begin at its coarser pixels.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import re
from typing import Any, NamedTuple

import numpy as np

from litevit_jax import choices
from litevit_jax.data.decode import orientation as orientation_of

DECODERS = ("auto", "fast", "pillow")
_LIBRARIES = {"cv2": "opencv-python-headless", "simplejpeg": "simplejpeg"}

# A decoder that halves (by computing fewer frequencies of each block) leaves this
# many pixels of a crop for each pixel of the result, so that resizing still averages.
_SPARE = 2.0
_SHRINKS = (8, 4, 2)
_STEPS = 32  # of a scale of 1: kernels are kept, so scales are rounded
# Beyond it kernels are long: Pillow is as quick. JPEGs rarely get there.
MAX_SCALE = 4.0


class Header(NamedTuple):
    """The facts in a JPEG's header."""

    width: int
    height: int
    orientation: int = 1  # EXIF, 1 to 8
    height_at: int | None = None  # byte of the height, where rows are in order

    @property
    def upright(self) -> tuple[int, int]:
        """Returns width and height after the orientation is undone."""
        turned = 4 < self.orientation <= 8
        return (self.height, self.width) if turned else (self.width, self.height)


def choose(decoder: str) -> str:
    """Returns 'fast' or 'pillow' for data.decoder; 'auto' is what is installed.

    Raises:
      ValueError: unknown, or 'fast' without the libraries it needs.
    """
    choices.check("data.decoder", decoder, list(DECODERS))
    missing = [
        package
        for module, package in _LIBRARIES.items()
        if importlib.util.find_spec(module) is None
    ]
    if decoder == "fast" and missing:
        raise ValueError(
            f"data.decoder=fast needs {' and '.join(missing)}: pip install "
            f"{' '.join(missing)}, or use --config.data.decoder=pillow"
        )
    if decoder == "auto":
        return "pillow" if missing else "fast"
    return decoder


@functools.cache
def _load(module: str) -> Any:
    loaded: Any = importlib.import_module(module)
    if module == "cv2":
        loaded.setNumThreads(0)  # images are spread over our threads already
    return loaded


# Of the markers before a frame: those that have a length and may be skipped. A parser
# that disagrees with libjpeg's about what comes next could be shown another frame than
# the one that is decoded, into a buffer of the wrong size.
_SKIPPED = {0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)}
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2


def read_header(encoded: bytes) -> Header | None:
    """Returns size and orientation of a JPEG that `decode` supports, else None.

    `simplejpeg.decode_jpeg_header` tells neither orientation nor where the height is,
    and passes markers that this refuses.
    """
    if encoded[:3] != b"\xff\xd8\xff":
        return None
    offset, exif = 2, b""
    while offset + 4 <= len(encoded) and encoded[offset] == 0xFF:
        marker = encoded[offset + 1]
        if marker == 0xFF:  # a filler
            offset += 1
            continue
        size = int.from_bytes(encoded[offset + 2 : offset + 4], "big")
        body = encoded[offset + 4 : offset + 2 + size]
        if size < 2 or len(body) != size - 2:
            return None
        if marker in (_BASELINE, _EXTENDED, _PROGRESSIVE):
            # Progressive files go over the rows several times.
            return _frame(body, exif, None if marker == _PROGRESSIVE else offset + 5)
        if marker not in _SKIPPED:
            return None
        if marker == 0xE1 and body[:6] == b"Exif\0\0":
            exif = exif + body[6:] if exif else body
        offset += 2 + size
    return None


def _frame(body: bytes, exif: bytes, height_at: int | None) -> Header | None:
    height, width = (int.from_bytes(body[i : i + 2], "big") for i in (1, 3))
    if len(body) < 6 or body[0] != 8 or body[5] not in (1, 3) or not width * height:
        return None
    if len(body) != 6 + 3 * body[5]:
        return None
    orientation = orientation_of(exif)
    if not 1 <= orientation <= 8:
        orientation = 1
    return Header(width, height, orientation, height_at)


def shrink(sides: list[tuple[int, int]], size: tuple[int, int]) -> int:
    """Returns the factor by which a decoder may shrink an image for all its crops.

    Args:
      sides: (height, width) of each crop, in pixels of the whole image.
      size: (H, W) that each is resized to.

    Returns:
      8, 4, 2, or 1: not at all.
    """
    least = min(s / t for side in sides for s, t in zip(side, size, strict=True))
    return next((f for f in _SHRINKS if least >= f * _SPARE), 1)


def decode(
    encoded: bytes,
    header: Header,
    *,
    channels: int,
    shrink: int,
    bottom: int | None = None,
) -> np.ndarray | None:
    """Decodes to upright pixels uint8 [H, W, C]; None if Pillow has to decide.

    Each side is divided by `shrink`, rounded up. Rows from `bottom` on (of the whole
    image) may be left out. `channels` is 3 or 1.

    Raises:
      ValueError: another number of channels.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels={channels}; a JPEG is decoded to 1 or 3")
    rows = header.height if bottom is None else _rows(header, bottom, shrink)
    if rows < header.height and header.height_at is not None:
        # Most of the time goes into bits, which have to be read from the top on: a
        # header that claims fewer rows lets the decoder stop early.
        offset = header.height_at
        encoded = encoded[:offset] + rows.to_bytes(2, "big") + encoded[offset + 2 :]
    height, width = math.ceil(rows / shrink), math.ceil(header.width / shrink)
    pixels = np.empty((height, width, channels), np.uint8)
    unwritten = np.resize(_PATTERN, pixels[-1].shape)
    pixels[-1] = unwritten  # rows are written from the top on
    try:
        decoded = _load("simplejpeg").decode_jpeg(
            encoded,
            "RGB" if channels == 3 else "GRAY",
            min_height=height,
            min_width=width,
            buffer=pixels,
            strict=True,
        )
    except (ValueError, MemoryError) as error:  # damaged, or not what it seems
        if rows == header.height or not _LEFT_OVER.search(str(error)):
            return None
        if np.array_equal(pixels[-1], unwritten):
            return None
    else:
        if decoded.shape != pixels.shape:
            return None
    return turn(pixels, header.orientation)


# Of a prime number of bytes: no row of pixels repeats it by chance.
_PATTERN = np.arange(251, dtype=np.uint8)[::-1]

# What the decoder says, and says first, of the bits of rows that it was not asked for.
# Of a file that is cut short it says that before, and of damage above them.
_LEFT_OVER = re.compile(r"extraneous bytes before marker 0xd\d")


def _rows(header: Header, bottom: int, shrink: int) -> int:
    """Returns how many rows to decode so that those above `bottom` are exact."""
    if header.height_at is None or header.orientation > 1:
        return header.height
    # Colours are interpolated from the rows below.
    rows = bottom + 8 * shrink
    # Within a twentieth of the whole the copy would cost what it saves.
    return rows if rows < 0.95 * header.height else header.height


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Returns a view of pixels [H, W, ...], turned by an EXIF orientation.

    Any other number than 1 to 8 turns nothing.
    """
    if 4 < orientation <= 8:
        pixels = pixels.swapaxes(0, 1)
    down, left = {2: (0, 1), 3: (1, 1), 4: (1, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}.get(
        orientation, (0, 0)
    )
    return pixels[:: -1 if down else 1, :: -1 if left else 1]


def cut(pixels: np.ndarray, box: tuple[int, int, int, int], shrink: int) -> np.ndarray:
    """Returns the part `box` (left, top, right, bottom of the whole image).

    In an image shrunk on decoding the sides fall on its own pixels: the nearest.
    """
    if shrink == 1:
        left, top, right, bottom = box
    else:
        left, top, right, bottom = (round(side / shrink) for side in box)
    return pixels[top:bottom, left:right]


def resize(
    pixels: np.ndarray,
    size: tuple[int, int],
    interpolation: str,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Resizes uint8 [h, w, C] to uint8 [H, W, C], shrunk at most `MAX_SCALE` times.

    Args:
      pixels: a crop, of any number of channels.
      size: (H, W).
      interpolation: 'bilinear' or 'bicubic'.
      out: uint8 [H, W, C] to write to, and to return.
    """
    cv2, cubic = _load("cv2"), interpolation == "bicubic"
    channels = pixels.shape[2]
    pixels = np.ascontiguousarray(pixels)
    # A larger image is interpolated as it is, like one of the same size.
    rows, columns = (
        max(_STEPS, round(_STEPS * side / target))
        for side, target in zip(pixels.shape[:2], size, strict=True)
    )
    if cubic or rows > _STEPS or columns > _STEPS:
        pixels = cv2.sepFilter2D(
            pixels,
            -1,
            _prefilter(columns, cubic),
            _prefilter(rows, cubic),
            borderType=cv2.BORDER_REPLICATE,
        )
    kind = cv2.INTER_CUBIC if cubic else cv2.INTER_LINEAR
    resized = cv2.resize(pixels, (size[1], size[0]), out, interpolation=kind)
    return resized.reshape(*size, channels)


@functools.cache
def _installed() -> bool:
    return choose("auto") == "fast"


def mirror(pixels: np.ndarray) -> np.ndarray:
    """Swaps left and right of [H, W, C], in memory of its own."""
    if not _installed():
        return np.ascontiguousarray(pixels[:, ::-1])
    flipped = _load("cv2").flip(np.ascontiguousarray(pixels), 1)
    return flipped.reshape(pixels.shape)


@functools.lru_cache(maxsize=1024)
def _prefilter(steps: int, cubic: bool) -> np.ndarray:
    """Returns the filter of odd length that turns OpenCV's kernel into Pillow's.

    Args:
      steps: scale times `_STEPS`, at least `_STEPS`.
      cubic: bicubic; else bilinear.
    """
    scale = steps / _STEPS
    x = np.linspace(-16, 16, 32 * 32 + 1)
    if cubic:
        # OpenCV's cubic is sharper (-0.75) than Pillow's (-0.5).
        wanted, reach = _keys(x / scale, -0.5) / scale, math.ceil(2 * scale) - 1
        shifted = [_keys(x - k, -0.75) for k in range(-reach, reach + 1)]
    else:
        wanted, reach = _triangle(x / scale) / scale, math.ceil(scale)
        shifted = [_triangle(x - k) for k in range(-reach, reach + 1)]
    half = np.stack(shifted[reach:], axis=1)
    half[:, 1:] += np.stack(shifted[:reach][::-1], axis=1)  # symmetric
    # Normal equations by einsum: a BLAS would wake its threads, which then compete
    # with those that decode.
    square = np.einsum("xi,xj->ij", half, half)
    taps = np.linalg.solve(square, np.einsum("xi,x->i", half, wanted))
    taps = np.concatenate([taps[:0:-1], taps])
    return (taps / taps.sum()).astype(np.float32)


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _keys(x: np.ndarray, a: float) -> np.ndarray:
    """Returns the cubic kernel of Keys (1981) with slope `a` at 1."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0))
