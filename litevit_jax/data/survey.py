"""Checks a few images of a source before anything is compiled."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from litevit_jax.data import decode, joint, levels, rasters, turbo
from litevit_jax.data.sources import base

IMAGES = 64  # spread evenly over the source
_PIXELS = 2**16  # of each image, for percentiles
_NARROW = 1 / 16  # of the range; what uses less is left with 16 grey levels or fewer
_COLOUR = "colour of 16 bits, which is read with 8"
_ALPHA = "grey with alpha of 16 bits, which is read with 8"


def check(
    source: base.Source,
    *,
    channels: int | None,
    range: str,
    max_pixels: int = decode.DEFAULT_MAX_PIXELS,
) -> list[str]:
    """Describes how the images become bytes.

    Args:
      source: the examples.
      channels: that a run asks for; None: not known yet.
      range: as in `levels.parse`, and no longer 'auto'.
      max_pixels: larger images are passed over.

    Raises:
      ValueError: half of the images or more have other channels, or all files of
        numbers are damaged; or some have no range.
      ModuleNotFoundError: a package that reads such files is not installed.
    """
    findings, deep, narrow = _Findings(), 0, []
    for name, pixels in _usable(source, channels, max_pixels, findings):
        pair = pixels.full
        if _is_deep(pixels):
            deep += 1
            try:
                pair = levels.pair(pixels, range)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        narrow += _narrow(name, pixels, pair)
    looked_at = findings.looked_at
    lines = _labels(findings.labels, looked_at, source.classes)
    lines += _unfit(findings)
    if narrow:
        lines.append(
            f"{len(narrow)} of {looked_at} images looked at use less than a sixteenth "
            f"of their range, so few grey levels are left of them: {narrow[0]}. "
            + _advice(deep)
        )
    if looked_at and not deep and range != "full":
        lines.append(
            f"data.range={range} changes nothing here: it is for grey images and "
            f"arrays of more than 8 bits, and the {looked_at} images looked at are not"
        )
    return lines


@dataclasses.dataclass
class _Findings:
    """The findings of a look at some images.

    Attributes:
      looked_at: how many they are.
      labels: in their label maps.
      others, damaged: why images cannot have the channels, or be read.
      alpha: names of those of which a sample is left out, as alpha.
    """

    looked_at: int = 0
    labels: set[int] = dataclasses.field(default_factory=set)
    others: list[str] = dataclasses.field(default_factory=list)
    damaged: list[str] = dataclasses.field(default_factory=list)
    alpha: list[str] = dataclasses.field(default_factory=list)


def _usable(
    source: base.Source, channels: int | None, max_pixels: int, findings: _Findings
) -> Iterator[tuple[str, levels.Deep]]:
    """Yields names and pixels of images whose range matters; notes what else there is.

    Raises:
      ModuleNotFoundError: a package that reads such files is not installed.
    """
    for name, image, label_map in _examples(source):
        findings.looked_at += 1
        findings.labels |= set(np.unique(label_map).tolist())
        try:
            raster = raster_of(image, channels, max_pixels)
        except decode.DecodeError as error:
            findings.damaged.append(f"{name}: {error}")
            continue
        other = channels and _other_channels(name, image, raster, channels)
        if other:
            findings.others.append(other)
            continue
        if _leaves_alpha_out(image, raster):
            findings.alpha.append(name)
        pixels = raster.deep if raster else _pixels(image, max_pixels)
        if pixels is not None:
            yield name, pixels


def percentiles(
    source: base.Source,
    *,
    channels: int | None = None,
    max_pixels: int = decode.DEFAULT_MAX_PIXELS,
) -> levels.Pair | None:
    """Returns the range of data.range=auto; None: no image has more than 8 bits.

    `channels` and `max_pixels` are as in `check`.

    Raises:
      ValueError: pixels that are no numbers, or all the same.
    """
    values = []
    for name, image, _ in _examples(source):
        try:
            raster = raster_of(image, channels, max_pixels)
        except decode.DecodeError:  # named when it is read
            continue
        if raster and channels and _other_channels(name, image, raster, channels):
            continue
        pixels = raster.deep if raster else _pixels(image, max_pixels)
        if pixels is not None and _is_deep(pixels):
            flat = pixels.values.reshape(-1)
            flat = flat[:: math.ceil(flat.size / _PIXELS)].astype(np.float64)
            if not np.isfinite(flat).all():
                raise ValueError(
                    f"{name}: some pixels of {pixels.kind} are infinite or no numbers; "
                    "replace them by a value that means 'nothing here'"
                )
            values.append(flat)
    if not values:
        return None
    low, high = levels.percentiles(np.concatenate(values))
    if low == high:
        raise ValueError(
            f"data.range=auto: all pixels of the {len(values)} images looked at are "
            f"{low:g}; give --config.data.range=LOW,HIGH"
        )
    return low, high


def _labels(labels: set[int], looked_at: int, classes: list[str]) -> list[str]:
    """Says if the label maps looked at tell nothing apart."""
    kinds = sorted(labels - {joint.IGNORED})
    if not labels or len(kinds) > 1 or len(classes) < 2:
        return []
    what = "no label at all" if not kinds else f"no label but {kinds[0]}"
    hint = f"; is {joint.IGNORED} a class in yours? Here it means that there is none"
    return [
        f"the {looked_at} label maps looked at have {what}"
        + (hint if joint.IGNORED in labels else f" ({classes[kinds[0]]!r})")
    ]


def _examples(source: base.Source) -> Iterator[tuple[str, Any, np.ndarray]]:
    """Yields name, raw image and label map (empty if there is none) of a few examples.

    Unreadable ones are left out.
    """
    rows = np.linspace(0, len(source) - 1, min(len(source), IMAGES)).round().astype(int)
    for row in np.unique(rows):
        try:
            example = source[int(row)]
        except base.AnnotationError:  # it would end the run, later
            raise
        except Exception:  # whatever a file system or a format may raise
            continue
        name = base.printable(source.name_of(int(row)))
        label_map = example.get("label_map", np.empty(0, np.uint8))
        yield name, example["image"], label_map


def raster_of(
    image: Any, channels: int | None, max_pixels: int
) -> rasters.Raster | None:
    """Returns the pixels of an array or of a file of numbers; None of other files.

    Raises:
      DecodeError: the file is damaged, or too large.
      ModuleNotFoundError: a package that reads such files is not installed.
    """
    if not isinstance(image, np.ndarray):
        decoded = decode.Decode(channels or 3, max_pixels)
        return rasters.read(image, channels, decoded.check_pixels)
    if image.dtype.kind not in "iuf" or image.ndim not in (2, 3) or not image.size:
        raise decode.DecodeError(f"array of {image.dtype} {image.shape}")
    return rasters.Raster("array", levels.of_array(image))


def _other_channels(
    name: str, image: Any, raster: rasters.Raster | None, channels: int
) -> str:
    """Describes an image that cannot have `channels`; '' if it can."""
    if raster is None:
        if channels in (1, 3):
            return ""
        return (
            f"data.channels={channels}, but {name} is an encoded image, which is "
            "decoded to grey (1) or RGB (3): set --config.data.channels=3 or 1; "
            "images of more channels are .npy files, TIFF files of several bands or "
            "pages, or arrays (data.source=arrays)"
        )
    own = raster.channels
    if decode.fits(own, channels, bands=raster.bands):
        return ""
    what = f"{name} is an array" if raster.kind == "array" else f"{name}: {raster.kind}"
    shape, order = raster.deep.values.shape, "[H, W, C]"
    if raster.kind == "NumPy" and len(shape) == 3 and rasters.channels_first(shape):
        own, order = shape[0], "which looks like [C, H, W]"
    return (
        f"{what} {list(shape)}, {order}, of {own} channels, "
        f"but data.channels={channels}; set --config.data.channels={own} with as "
        "many means and deviations in augment.normalize, which litevit stats DIR "
        "computes (only 1 and 3 are converted to each other)"
    )


def _unfit(findings: _Findings) -> list[str]:
    """Tells of a few images that cannot be used, which a run names, and of alpha.

    Raises:
      ValueError: they are the rule.
    """
    looked_at, others = findings.looked_at, findings.others
    damaged, alpha = findings.damaged, findings.alpha
    if 2 * len(others) >= looked_at - len(damaged) > 0:
        several = f" ({len(others)} of {looked_at} images looked at)"
        raise ValueError(others[0] + several)
    if damaged and len(damaged) == looked_at:
        raise ValueError(
            f"none of {looked_at} images looked at can be read; {damaged[0]}"
        )
    lines = []
    if others:
        lines.append(
            f"{len(others)} of {looked_at} images looked at have other channels, and "
            f"count as unreadable: {others[0].partition('; set')[0]}"
        )
    if alpha:
        lines.append(
            f"{len(alpha)} of {looked_at} images looked at are TIFF files with a last "
            f"sample marked as alpha, which is left out: {alpha[0]}. If it is a band, "
            "count it: --config.data.channels=4 for red, green, blue and this one"
        )
    return lines


def _leaves_alpha_out(image: Any, raster: rasters.Raster | None) -> bool:
    """Whether a sample of a TIFF is left out, as alpha."""
    if raster is not None:
        return raster.alpha_left_out
    if not rasters.is_tiff(image):
        return False
    try:
        with decode.open_image(image) as opened:
            return opened.mode in ("RGBA", "LA")
    except decode.DecodeError:
        return False


def _pixels(image: Any, max_pixels: int) -> levels.Deep | None:
    """Returns the pixels of an encoded image of more than 8 bits.

    Others are left out: they look in any viewer as they do to a model.
    """
    if turbo.read_header(image) is not None:
        return None
    try:
        with decode.open_image(image) as opened:
            size, colour = opened.size[0] * opened.size[1], _deep_colour(opened)
            if size > max_pixels or not (colour or decode.is_deep(opened)):
                return None
            opened.load()
            if colour:
                # What is transparent is no grey level: alpha would hide the others.
                values = np.asarray(opened.convert(opened.mode.removesuffix("A")))
                return levels.Deep(values, colour, (0.0, 255.0))
            return decode.deep_pixels(opened)
    except decode.DecodeError:
        return None


def _deep_colour(opened: Any) -> str:
    """Describes what PIL will cut from 16 bits to 8; '' if nothing."""
    kinds = [str(tile[3]) for tile in getattr(opened, "tile", [])]
    if opened.mode not in ("RGB", "RGBA", "LA") or not any(";16" in x for x in kinds):
        return ""
    return _ALPHA if kinds[0].startswith("LA") else _COLOUR


def _is_deep(pixels: levels.Deep) -> bool:
    """Whether data.range decides how the pixels become bytes."""
    return pixels.values.dtype != np.uint8


def _narrow(name: str, pixels: levels.Deep, pair: levels.Pair | None) -> list[str]:
    """Describes the levels of an image that uses little of `pair`."""
    values = pixels.values
    least, most = float(values.min()), float(values.max())
    if pair is None or pair[0] == pair[1] or least == most:
        return []
    used = min(most, pair[1]) - max(least, pair[0])
    if used >= _NARROW * (pair[1] - pair[0]):
        return []
    count = math.floor(max(used, 0) / (pair[1] - pair[0]) * 255) + 1
    levels_left = f"{count} level{'s' * (count > 1)}"
    return [
        f"{name} ({pixels.kind}) has {least:g} to {most:g} of {pair[0]:g} to "
        f"{pair[1]:g}, {levels_left}"
    ]


def _advice(deep: int) -> str:
    if not deep:
        return "If they should be brighter, scale them to 0 to 255 before training"
    return (
        "Say which values become black and white: --config.data.range=LOW,HIGH, or "
        "percentiles of the training images (auto) or of each image (auto_each)"
    )
