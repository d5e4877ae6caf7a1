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
    scale = np.divide(size[::-1], (width, height))
    for each, number in marks:
        left, top, wide, high = np.asarray(each["bbox"]) * np.tile(scale, 2)
        right, bottom = max(left + wide - 1, left), max(top + high - 1, top)
        line = 1 + max(size) // _PER_LINE
        colour = _rgb(colours[number])
        draw.rectangle((left, top, right, bottom), outline=colour, width=line)
        if names:
            share = f" {100 * each['score']:.0f} %" if "score" in each else ""
            _label(draw, (left, top), _short(names[number]) + share, colour)
    return np.asarray(picture)


def _label(
    draw: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, colour: Any
) -> None:
    """Writes a text on its colour above a corner, moved to where it can be seen."""
    width, height = draw.im.size
    letters = max(max(width, height) // _LETTERS, _LEAST_LETTER)
    font = ImageFont.load_default(letters)
    _, _, wide, high = draw.textbbox((0, 0), text, font=font)
    left = max(min(corner[0], width - wide - 4), 0)
    top = max(min(corner[1] - high - 3, height - high - 3), 0)
    draw.rectangle((left, top, left + wide + 3, top + high + 3), fill=colour)
    light = np.dot(colour, (0.299, 0.587, 0.114)) > 140
    draw.text((left + 2, top + 1), text, fill="black" if light else "white", font=font)


def _rgb(colour: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = map(int, colour)
    return red, green, blue


def _short(name: str) -> str:
    """Returns a name on one line, cut if it is long."""
    name = " ".join(name.split())
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
