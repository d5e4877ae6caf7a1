"""Reads the masks of COCO's files: polygons, runs of pixels, and PNGs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import numpy as np

from litevit_jax.data import objects, polygons

_LEAST_COORDINATES = 6  # of a polygon
_INFINITE = 1e18  # from here on no coordinate is one
_EXPECTED = (
    "expected polygons [[x, y, x, y, ...]], runs {'size': [h, w], 'counts': ...} or "
    "the name of a PNG"
)


def read(
    raw: Any, size: objects.Size, read_png: Callable[[str], np.ndarray]
) -> tuple[Any, int]:
    """Returns the shape of an annotation, and how many of its polygons are none.

    Shapes are as in `objects`: None if there is none, [] if no polygon is one.

    Args:
      raw: its field `segmentation`.
      size: (h, w) of its image.
      read_png: name or data URI of a PNG -> its pixels, bool [h, w].

    Raises:
      ValueError: something else, or a mask of another size.
    """
    if raw is None or raw == [] or raw == "":
        return None, 0
    if isinstance(raw, dict):
        return _runs(raw, size), 0
    if isinstance(raw, str):
        return objects.runs(_png(raw, size, read_png)), 0
    if not isinstance(raw, list):
        raise ValueError(f"segmentation {raw!r:.60}; {_EXPECTED}")
    if is_number(raw[0]):  # a single polygon, not in a list
        raw = [raw]
    if any(map(_is_nested, raw)):
        raise ValueError(f"segmentation {raw!r:.60}; {_EXPECTED}")
    good = [[float(c) for c in x] for x in raw if _is_polygon(x)]
    return _near(good, size), len(raw) - len(good)


def _is_nested(value: Any) -> bool:
    """Whether an element of a list of polygons is runs, or a list of points."""
    points = isinstance(value, list) and any(isinstance(x, list) for x in value)
    return points or isinstance(value, dict)


def _near(flat: list[list[float]], size: objects.Size) -> list[list[float]]:
    """Cuts polygons that reach far outside their image, which pycocotools cannot draw.

    Those of which nothing is left are dropped, unless all are.
    """
    window, limit = (float(size[1]), float(size[0])), 2.0 * max(size)
    if not any(min(x) < -limit or max(x) > limit for x in flat):
        return flat
    cut = (polygons.clip(np.reshape(x, (-1, 2)), window) for x in flat)
    return [x.reshape(-1).tolist() for x in cut if len(x) > 2] or flat


def _png(
    raw: str, size: objects.Size, read_png: Callable[[str], np.ndarray]
) -> np.ndarray:
    try:
        mask = read_png(raw)
    except Exception as error:  # whatever a broken file may raise
        raise ValueError(
            f"segmentation {raw!r:.60}, which is not a readable mask PNG ({error}); "
            f"{_EXPECTED}"
        ) from None
    if mask.shape != tuple(size):
        raise _wrong_size(mask.shape, size)
    return mask


def _runs(raw: dict[str, Any], size: objects.Size) -> dict[str, Any]:
    """Returns runs with their numbers; compressed ones have a text."""
    own = raw.get("size")
    if not isinstance(own, list) or own != list(size):
        raise _wrong_size(own, size)
    counts = raw.get("counts")
    try:
        if isinstance(counts, str):
            counts = objects.counts_of(counts)
        if not isinstance(counts, list) or not all(map(is_whole, counts)):
            raise ValueError("counts are neither a text nor whole numbers")
        if min(counts, default=0) < 0 or sum(counts) != size[0] * size[1]:
            raise ValueError(
                f"{sum(counts)} pixels in {len(counts)} runs; expected "
                f"{size[0] * size[1]}, and no run below 0"
            )
    except ValueError as error:
        raise ValueError(f"a damaged RLE: {error}; export it again") from None
    return {"size": list(size), "counts": counts}


def _wrong_size(got: Any, size: objects.Size) -> ValueError:
    own = list(got) if isinstance(got, (list, tuple)) else got
    return ValueError(
        f"a mask of size {own} (height, width); expected that of its image, "
        f"{list(size)}: export masks and images together"
    )


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether JSON has a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether JSON has a finite number."""
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    return numeric and abs(value) < _INFINITE


def _is_polygon(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) >= _LEAST_COORDINATES
        and len(value) % 2 == 0
        and set(map(type, value)) <= {int, float}
        and all(abs(x) < _INFINITE for x in value)
    )


def tight_box(shape: Any, size: objects.Size) -> list[float] | None:
    """Returns the tight box of a shape inside its image; None if that is empty."""
    if isinstance(shape, dict):
        mask = objects.bitmap(shape)
        return list(objects.box_of(mask)) if mask.any() else None
    window = float(size[1]), float(size[0])
    boxes = [_polygon_box(flat, window) for flat in shape]
    seen = [box for box in boxes if box is not None]
    if not seen:
        return None
    ends = [*zip(*seen, strict=True)]
    return [*(float(min(x)) for x in ends[:2]), *(float(max(x)) for x in ends[2:])]


def _polygon_box(flat: list[float], window: polygons.Window) -> Any:
    """Returns the tight box of a polygon in a window; None if that is empty."""
    x, y = flat[::2], flat[1::2]
    box = min(x), min(y), max(x), max(y)
    inside = box[0] >= 0 and box[1] >= 0 and box[2] <= window[0] and box[3] <= window[1]
    if inside and box[0] < box[2] and box[1] < box[3]:
        return box
    return polygons.tight_box(np.reshape(flat, (-1, 2)), window)


def area(shape: Any, box: Sequence[float], size: objects.Size) -> float:
    """Returns the area of a shape in pixels of its image; of a box where there is none.

    It counts the pixels of the mask, as COCO does.
    """
    if shape is None:
        return (box[2] - box[0]) * (box[3] - box[1])
    if isinstance(shape, dict):
        return float(sum(shape["counts"][1::2]))
    masks = objects.pycocotools()
    return float(masks.area(masks.merge(masks.frPyObjects(shape, *size))))
