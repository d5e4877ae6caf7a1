"""Makes examples small for packing: the image a JPEG, a label map a PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image

from litevit_jax.data import (
    canvases,
    jitter,
    label_maps,
    objects,
    rasters,
    transforms,
    turbo,
)
from litevit_jax.data import decode as decoding
from litevit_jax.data.sources import packed


def shrink(
    image: bytes | Any,
    *,
    short_side: int,
    quality: int,
    value_range: str = "full",
    kind: str = "JPEG",
) -> bytes:
    """Encodes an image as an upright JPEG, its shorter side at most `short_side`.

    `value_range` is of pixels of more than 8 bits, as in `levels.parse`. The `kind` of
    file may be another one. Bands, and images of other than 1 or 3 channels, are an
    array of bytes [H, W, C], as np.save writes it: JPEG would mix them.

    Raises:
      decode.DecodeError: damaged, too large, or no image.
    """
    header = None if not isinstance(image, bytes) else turbo.read_header(image)
    channels, bands = _channels(image)
    decode = decoding.Decode(channels=channels, range=value_range)
    decoded: Any = decode(image)
    if bands and channels == 3:
        decoded = np.asarray(decoded)
    channels_last = isinstance(decoded, np.ndarray)
    width, height = decoded.shape[1::-1] if channels_last else decoded.size
    short = min(width, height)
    if header is not None and header.orientation == 1 and short <= short_side:
        return image
    if short > short_side:
        width, height = (
            max(round(side * short_side / short), short_side)
            for side in (width, height)
        )
        bicubic = PIL.Image.Resampling.BICUBIC
        decoded = transforms.resize(decoded, (height, width), bicubic)
    file = io.BytesIO()
    if channels_last:
        np.save(file, decoded, allow_pickle=False)
    else:
        decoded.save(file, kind, quality=quality)
    return file.getvalue()


def _channels(image: bytes | Any) -> tuple[int, bool]:
    """1 for grey, else 3, or those of numbers; and whether they are bands."""
    if not isinstance(image, bytes):
        return rasters.channels_of(image), False
    raster = rasters.read(image, None, decoding.Decode().check_pixels)
    if raster is not None:
        return raster.channels, raster.bands
    try:
        with PIL.Image.open(io.BytesIO(image)) as opened:
            grey = opened.mode in ("1", "L", "LA") or opened.mode[0] in "FI"
            return (1 if grey else 3), False
    except Exception:  # Decode says what is wrong
        return 3, False


def content(
    example: dict[str, Any], annotations: Sequence[str], how: dict[str, Any]
) -> bytes:
    """Encodes the annotations and the image of an example, of the same size.

    An array with annotations becomes a PNG: labels are of its very pixels.
    """
    image = example["image"]
    exact = annotations and not isinstance(image, bytes)
    packed_image = shrink(image, kind="PNG" if exact else "JPEG", **how)
    if not annotations:
        return packed_image
    size = canvases.size_of(packed_image)
    fields = packed.fields_of(annotations)
    return packed.join([_encoded(name, example, size) for name in fields], packed_image)


def _encoded(name: str, example: dict[str, Any], size: tuple[int, int]) -> bytes:
    """Encodes an annotation of an example for its image of `size` (H, W)."""
    if name == "label_map":
        return label_maps.encode(label_maps.resized(example[name], size))
    jitter.check_size(example[name].size, canvases.size_of(example["image"]))
    return objects.encode(example[name].resized(size))
