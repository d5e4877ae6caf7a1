"""Boxes, masks and names of objects, drawn on an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from litevit_jax.evaluators import instances, segmentation

SIDES = (480, 1600)  # pixels of the longer side, least and most, of a drawn image
_PER_LINE = 320  # pixels of the longer side for each pixel of a line
_LETTERS = 40  # letters as high as the longer side's part
_LEAST_LETTER = 11
_LONGEST = 24  # letters of a name


def drawn(
    image: np.ndarray,
    objects: Sequence[dict[str, Any]],
    categories: Sequence[int],
    names: Sequence[str] = (),
    *,
    overlay: float = 0.5,
    sides: tuple[int, int] = SIDES,
) -> np.ndarray:
    """Draws objects on an image uint8 `[H, W, 3]`, in a colour of each class.

    The image is enlarged or shrunk, its ratio kept, until its longer side is within
    `sides`, so that lines and letters can be read.

    Args:
      image: it stays as it is.
      objects: as COCO has them, in the pixels of `image`; the first ones are on top. A
        'score' stands beside the name.
      categories: the id of each class.
      names: of the classes; (): no text.
      overlay: share of the colour in what a mask covers.
      sides: least and most pixels of the result's longer side.
    """
    height, width = image.shape[:2]
    factor = min(max(sides[0] / max(height, width), 1), sides[1] / max(height, width))
    size = max(round(factor * height), 1), max(round(factor * width), 1)
    way = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.BOX
    picture = Image.fromarray(image).resize(size[::-1], way)
    numbers = {category: number for number, category in enumerate(categories)}
    colours = segmentation.palette(1 + len(numbers))[1:]
    marks = [(x, numbers[x["category_id"]]) for x in reversed(objects)]
    for each, number in marks:
        if "segmentation" in each and overlay:
            mask = instances.decode(each["segmentation"], (height, width))
            share = Image.fromarray(np.uint8(255 * overlay * mask))
            share = share.resize(picture.size, Image.Resampling.NEAREST)
            picture.paste(_rgb(colours[number]), (0, 0), share)
    draw = ImageDraw.Draw(picture)
    scale = np.tile(np.divide(size[::-1], (width, height)), 2)
    line = 1 + max(size) // _PER_LINE
    boxes = []
    for each, number in marks:
        left, top, wide, high = np.asarray(each["bbox"]) * scale
        box = left, top, max(left + wide - 1, left), max(top + high - 1, top)
        draw.rectangle(box, outline=_rgb(colours[number]), width=line)
        boxes.append(box)
    if names:
        texts = [_short(names[number]) + _percent(each) for each, number in marks]
        _write(draw, boxes, texts, [_rgb(colours[number]) for _, number in marks])
    return np.asarray(picture)


def _percent(each: dict[str, Any]) -> str:
    return f" {100 * each['score']:.0f} %" if "score" in each else ""


def _write(
    draw: ImageDraw.ImageDraw,
    boxes: Sequence[tuple[float, float, float, float]],
    texts: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
) -> None:
    """Writes a text on its colour at each box; the last ones choose where first.

    A text stands above its box, or at another edge where it hides less of the texts
    that are written already.
    """
    letters = max(max(draw.im.size) // _LETTERS, _LEAST_LETTER)
    font = ImageFont.load_default(letters)
    written: list[tuple[float, float, float, float]] = []
    for box, text, colour in reversed([*zip(boxes, texts, colours, strict=True)]):
        _, _, wide, high = draw.textbbox((0, 0), text, font=font)
        label = min(
            _spots(draw.im.size, box, (wide + 3, high + 3)),
            key=lambda spot: sum(_overlap(spot, other) for other in written),
        )
        written.append(label)
        draw.rectangle(label, fill=colour)
        light = np.dot(colour, (0.299, 0.587, 0.114)) > 140
        corner = label[0] + 2, label[1] + 1
        draw.text(corner, text, fill="black" if light else "white", font=font)


def _spots(
    size: tuple[int, int],
    box: tuple[float, float, float, float],
    label: tuple[float, float],
) -> list[tuple[float, float, float, float]]:
    """Where a label may stand at a box, the best spot first, all inside an image."""
    (left, top, right, bottom), (wide, high) = box, label
    spots = [
        (max(min(x, size[0] - wide - 1), 0), max(min(y, size[1] - high), 0))
        for x in (left, right - wide)
        for y in (top - high, bottom, top, bottom - high)
    ]
    return [(x, y, x + wide, y + high) for x, y in spots]


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """The area that two rectangles share."""
    wide, high = (min(a[2 + i], b[2 + i]) - max(a[i], b[i]) for i in range(2))
    return max(wide, 0) * max(high, 0)


def _rgb(colour: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = map(int, colour)
    return red, green, blue


def _short(name: str) -> str:
    """Returns a name on one line, cut if it is long."""
    name = " ".join(name.split())
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
