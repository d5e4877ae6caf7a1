"""Reads TIFF files of several bands or pages, through tifffile.

A file that Pillow reads as a whole (one page of grey, or of colours of 8 bits) is left
to Pillow. Nothing is left out but what a file marks as no band: reduced copies, masks,
and alpha, if the other samples are as many as the channels that are asked for.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image

from litevit_jax.data import levels, rasters

# What matters is raised, or tested here.
for _name in ("tifffile", "PIL.TiffImagePlugin"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

# Tags.
_KIND, _BITS, _PHOTOMETRIC, _DESCRIPTION = 254, 258, 262, 270
_SAMPLES, _EXTRA, _FORMAT = 277, 338, 339
_NO_BAND = 0b101  # bits of the kind of a page: a reduced copy, a mask
_ALPHA = (1, 2)  # kinds of an extra sample
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_BASE = {0: 1, 1: 1, 2: 3, 5: 4, 6: 3, 8: 3}  # samples of a colour, by photometric
_STACKS = ('{"shape"', "ImageJ=")  # descriptions of stacks that may have one page


def is_for_pillow(encoded: bytes, channels: int | None) -> bool:
    """Whether Pillow reads all of a TIFF: one page of grey or of colours of 8 bits."""
    try:
        with PIL.Image.open(io.BytesIO(encoded), formats=("TIFF",)) as image:
            opened: Any = image
            tags = dict(opened.tag_v2)
            pages = 0
            for number in range(opened.n_frames):
                opened.seek(number)
                pages += not opened.tag_v2.get(_KIND, 0) & _NO_BAND
    except Exception:  # tifffile may know it, or tells what is wrong
        return False
    if pages != 1 or tags.get(_KIND, 0) & _NO_BAND or _is_stack(tags):
        return False
    samples, extra = tags.get(_SAMPLES, 1), tags.get(_EXTRA, ())
    if samples == 1:
        return True
    eight = set(tags.get(_BITS, ())) == {8} and set(tags.get(_FORMAT, (1,))) == {1}
    base = _BASE.get(tags.get(_PHOTOMETRIC, -1))
    alpha = all(kind in _ALPHA for kind in extra)
    if not (eight and alpha and base is not None and samples == base + len(extra)):
        return False
    return channels in (1, 3, None) or channels != samples


def _is_stack(tags: dict[int, Any]) -> bool:
    """Whether the description of a page tells of more images than the page has."""
    text = str(tags.get(_DESCRIPTION, ""))
    if text.startswith(_STACKS[0]):
        return '"truncated": true' in text
    return text.startswith(_STACKS[1]) and "images=" in text


def read(encoded: bytes, channels: int | None, check: rasters.Check) -> rasters.Raster:
    """Reads the bands of one page, or pages of one band each."""
    tifffile = rasters.package(
        "tifffile", "TIFF files of several bands or pages", "channels"
    )
    with tifffile.TiffFile(io.BytesIO(encoded), _multifile=False) as file:
        pages = [x for x in list(file.pages) if not (x.is_reduced or x.is_mask)]
        _check_pages(pages)
        first = pages[0]
        by_rows = file.is_shaped and _are_rows(pages, channels)
        if by_rows:
            check(first.imagelength, len(pages))
        else:
            check(first.imagewidth, first.imagelength)
        if len(pages) > 1 and channels not in (None, len(pages)) and not by_rows:
            # Told before many pages are read; of one page, `decode` compares.
            raise rasters.DecodeError(
                f"a TIFF of {len(pages)} pages, a channel each; expected data.channels="
                f"{channels}: set --config.data.channels={len(pages)}, with as many "
                "means and deviations, if these are its channels"
            )
        try:
            layers = [_page(page, len(encoded)) for page in pages]
            layers = _stack(file, layers)
        except (ValueError, KeyError, TypeError) as error:
            if "imagecodecs" in str(error):
                raise rasters.missing(
                    "imagecodecs",
                    f"TIFF files of compression {first.compression.name}",
                    "imagecodecs",
                ) from error
            raise
    values = layers[0]
    if len(layers) > 1:
        values = np.stack(layers, 0 if by_rows else -1)
    alpha = sum(int(kind) in _ALPHA for kind in first.extrasamples)
    left_out = alpha > 0 and values.shape[2] != channels
    if left_out:
        values = values[:, :, : values.shape[2] - alpha]
    kind = f"type {values.dtype}"
    if values.dtype.kind == "f":
        deep = levels.Deep(values, kind, None)
    else:
        bits, signed = first.bitspersample, values.dtype.kind == "i"
        values = values.astype(np.uint16) if bits < 8 else values
        deep = levels.of_integers(values, kind, bits=bits, signed=signed)
    deep = deep._replace(inverted=first.photometric == _WHITE_IS_ZERO)
    bands = first.photometric != _RGB
    return rasters.Raster("TIFF", deep, bands=bands, alpha_left_out=left_out)


def _check_pages(pages: Sequence[Any]) -> None:
    """Raises a DecodeError unless pages are of one shape, and have bands."""
    if not pages:
        raise rasters.DecodeError(
            "a TIFF without a page at full size: reduced copies and masks are no image"
        )
    kinds = {(tuple(page.shape), str(page.dtype), page.photometric) for page in pages}
    if len(kinds) > 1:
        each = [f"{list(page.shape)} of {page.dtype}" for page in pages]
        raise rasters.DecodeError(
            f"a TIFF of {len(pages)} pages that differ: {', '.join(each[:4])}"
            + ", ..." * (len(each) > 4)
            + "; expected pages of one size, type and colour, a channel each"
        )
    first = pages[0]
    if first.dtype is None or first.dtype.kind not in "iuf":
        raise rasters.DecodeError(
            f"a TIFF of {first.dtype or f'{first.bitspersample} bits'}; expected "
            "integers or floats"
        )
    if first.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB):
        name = getattr(first.photometric, "name", first.photometric)
        raise rasters.DecodeError(
            f"a TIFF of {len(pages)} pages of {first.samplesperpixel} samples with the "
            f"colours {name}; expected grey, bands or RGB: convert it"
        )
    if first.imagedepth != 1 or (len(pages) > 1 and first.samplesperpixel > 1):
        raise rasters.DecodeError(
            f"a TIFF of {len(pages)} pages {list(first.shape)}, {first.axes}: pages "
            "and samples cannot both be channels; expected one page of bands, or pages "
            "of one band each"
        )


def _are_rows(pages: Sequence[Any], channels: int | None) -> bool:
    """Whether each page is a row [W, C] of an image, as tifffile saves [H, W, C].

    Raises:
      DecodeError: the number of channels is unknown, and they may be.
    """
    count, (height, width) = len(pages), pages[0].shape[:2]
    if count <= width or width >= height:
        return False
    if channels is None:
        raise rasters.DecodeError(
            f"a TIFF of {count} pages of {width} x {height}: are pages channels, or "
            f"rows of an image of {width} channels? Say how many channels there are (a "
            f"run: --config.data.channels={width}, a command: --channels={width})"
        )
    return channels == width


def _page(page: Any, size: int) -> np.ndarray:
    """Returns a page [H, W], or [H, W, C] of several samples, of a file of `size`.

    Raises:
      DecodeError: strips or tiles are missing, for which tifffile would put zeros.
    """
    parts = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    wanted = 1 if page.is_contiguous else math.prod(page.chunked)
    if len(parts) < wanted or any(sum(part) > size for part in parts):
        raise rasters.DecodeError(
            f"a TIFF of {size} bytes whose page {list(page.shape)} has {len(parts)} of "
            f"{wanted} strips or tiles, or some beyond its end: it was cut short"
        )
    values = page.asarray(maxworkers=1)  # files are spread over threads already
    return np.moveaxis(values, 0, -1) if page.axes.startswith("S") else values


def _stack(file: Any, layers: list[np.ndarray]) -> list[np.ndarray]:
    """Returns the channels of a stack, some of which have one page for all.

    Raises:
      DecodeError: it has several axes beside height and width.
    """
    series = list(file.series)
    cut = [one for one in series if one.is_truncated]
    if len(layers) == 1 and not cut:
        return layers
    first = cut[0] if cut else series[0]
    extra = [
        (axis, size)
        for axis, size in zip(first.axes, first.shape, strict=True)
        if axis not in "YX" and size > 1
    ]
    if len(extra) > 1 or len(cut) > 1 or (cut and len(series) > 1):
        sizes = ", ".join(f"{axis} {size}" for axis, size in extra)
        raise rasters.DecodeError(
            f"a TIFF of {len(series)} stacks, the first with the axes {sizes}; "
            "expected one axis beside height and width, the channels"
        )
    if not cut:
        return layers
    values = first.asarray().squeeze()
    if values.ndim != 3 or first.axes.endswith("S"):
        raise rasters.DecodeError(
            f"a TIFF stack {list(values.shape)} of axes {first.axes}"
        )
    return list(values)
