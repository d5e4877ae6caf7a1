"""Checks a few images of a source before anything is compiled."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from litevit_jax.data import decode, joint, levels, turbo
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
      ValueError: the images have other channels, or no range.
    """
    looked_at, deep, narrow, labels = 0, 0, [], set()
    for name, image, label_map in _examples(source):
        looked_at += 1
        labels |= set(np.unique(label_map).tolist())
        if channels is not None:
            _check_channels(name, image, channels)
        pixels = _pixels(image, max_pixels)
        if pixels is None:
            continue
        pair = pixels.full
        if _is_deep(pixels):
            deep += 1
            try:
                pair = levels.pair(pixels, range)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        narrow += _narrow(name, pixels, pair)
    lines = _labels(labels, looked_at, source.classes)
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


def percentiles(
    source: base.Source, *, max_pixels: int = decode.DEFAULT_MAX_PIXELS
) -> levels.Pair | None:
    """Returns the range of data.range=auto; None: no image has more than 8 bits.

    Raises:
      ValueError: pixels that are no numbers, or all the same.
    """
    values = []
    for name, image, _ in _examples(source):
        pixels = _pixels(image, max_pixels)
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


def _check_channels(name: str, image: Any, channels: int) -> None:
    if not isinstance(image, np.ndarray):
        if channels not in (1, 3):
            raise ValueError(
                f"data.channels={channels}, but {name} is an encoded image, which is "
                "decoded to grey (1) or RGB (3): set --config.data.channels=3 or 1; "
                "images of more channels are given as arrays (data.source=arrays)"
            )
        return
    own = image.shape[2] if image.ndim == 3 else 1
    if own != channels and {own, channels} != {1, 3}:
        raise ValueError(
            f"{name} is an array {list(image.shape)}, [H, W, C], of {own} channels, "
            f"but data.channels={channels}; set --config.data.channels={own} with as "
            "many means and deviations in augment.normalize (only 1 and 3 are "
            "converted to each other)"
        )


def _pixels(image: Any, max_pixels: int) -> levels.Deep | None:
    """Returns the pixels whose range matters: of arrays, and of more than 8 bits.

    Files of 8 bits are left out: they look in any viewer as they do to a model.
    """
    if isinstance(image, np.ndarray):
        return levels.of_array(image) if image.dtype.kind in "iuf" else None
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
