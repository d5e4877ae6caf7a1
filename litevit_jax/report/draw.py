"""A drawing of lines, boxes, text and pixels, as SVG and as PNG.

Both come from one list of shapes, so that a report needs no plotting library, no font
and no network: the SVG stands inside the page, the PNG beside it.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import html
import io
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, MUTED, FAINT, PAPER = "#1c2530", "#5b6775", "#dde3ea", "#ffffff"
# Okabe and Ito's colours, told apart by most colour-blind readers; yellow left out.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#444444")
# Dark to light through purple, green and yellow: rises in lightness all the way.
_RAMP = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
_SCALE = 2  # pixels of the PNG in a unit of the drawing


def color_of(place: int) -> str:
    """The colour of series number `place`; they repeat after seven."""
    return PALETTE[place % len(PALETTE)]


def ramp(values: np.ndarray) -> np.ndarray:
    """Colours uint8 `[..., 3]` of values from 0 to 1; grey where they are NaN."""
    known = np.nan_to_num(np.clip(values, 0, 1))
    places = np.linspace(0, 1, len(_RAMP))
    parts = [np.interp(known, places, channel) for channel in np.array(_RAMP).T]
    colors = np.stack(parts, axis=-1)
    colors[~np.isfinite(values)] = 200
    return np.round(colors).astype(np.uint8)


def ramp_color(value: float) -> str:
    """'#rrggbb' of a value from 0 to 1."""
    return "#" + bytes(ramp(np.array(value)).tolist()).hex()


def png_bytes(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return file.getvalue()


def data_uri(data: bytes, kind: str = "png") -> str:
    """Bytes of an image as an address that needs no file."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


@dataclasses.dataclass(frozen=True)
class _Shape:
    kind: str
    at: tuple[float, ...]
    fill: str | None = None
    stroke: str | None = None
    width: float = 1.0
    more: Any = None


class Canvas:
    """A drawing of `width` by `height` units; y grows downwards."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self._shapes: list[_Shape] = []

    def line(
        self, points: list[tuple[float, float]], color: str = INK, width: float = 1.0
    ) -> None:
        """Joins `points`; a single one is a dot."""
        if len(points) == 1:
            (x, y), r = points[0], max(width, 1.5)
            self.rect(x - r, y - r, 2 * r, 2 * r, fill=color)
        elif points:
            flat = tuple(value for point in points for value in point)
            self._add("line", flat, stroke=color, width=width)

    def rect(
        self,
        x: float,
        y: float,
        w: float,
        h: float,
        *,
        fill: str | None = None,
        stroke: str | None = None,
        width: float = 1.0,
    ) -> None:
        """A box with its upper left corner at (x, y)."""
        self._add("rect", (x, y, w, h), fill=fill, stroke=stroke, width=width)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 12,
        anchor: str = "start",
        color: str = INK,
        upwards: bool = False,
    ) -> None:
        """Text on the baseline y: x is its 'start', 'middle' or 'end'."""
        self._add("text", (x, y), fill=color, width=size, more=(text, anchor, upwards))

    def pixels(self, x: float, y: float, w: float, h: float, image: np.ndarray) -> None:
        """uint8 [H, W, 3] stretched over a box, with hard edges."""
        self._add("pixels", (x, y, w, h), more=image)

    def _add(self, kind: str, at: tuple[float, ...], **fields: Any) -> None:
        self._shapes.append(_Shape(kind, at, **fields))

    def svg(self, title: str) -> str:
        """An <svg> element that scales with the page; `title` for screen readers."""
        parts = [_SVG[shape.kind](shape) for shape in self._shapes]
        size = f"0 0 {self.width:g} {self.height:g}"
        name = html.escape(title, quote=True)
        return (
            f'<svg viewBox="{size}" role="img" aria-label="{name}" '
            f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
        )

    def image(self) -> np.ndarray:
        """uint8 [H, W, 3], two pixels a unit."""
        size = (round(self.width * _SCALE), round(self.height * _SCALE))
        picture = Image.new("RGB", size, PAPER)
        for shape in self._shapes:
            _PNG[shape.kind](picture, shape)
        return np.asarray(picture)


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _svg_line(s: _Shape) -> str:
    values = [_number(v) for v in s.at]
    points = " ".join(",".join(p) for p in zip(values[::2], values[1::2], strict=True))
    return (
        f'<polyline points="{points}" fill="none" stroke="{s.stroke}" '
        f'stroke-width="{_number(s.width)}" stroke-linejoin="round"/>'
    )


def _svg_rect(s: _Shape) -> str:
    x, y, w, h = map(_number, s.at)
    edge = f' stroke="{s.stroke}" stroke-width="{_number(s.width)}"' * bool(s.stroke)
    fill = s.fill or "none"
    return f'<rect x="{x}" y="{y}" width="{w}" height="{h}" fill="{fill}"{edge}/>'


def _svg_text(s: _Shape) -> str:
    text, anchor, upwards = s.more
    x, y = map(_number, s.at)
    turn = f' transform="rotate(-90 {x} {y})"' * upwards
    return (
        f'<text x="{x}" y="{y}" font-size="{_number(s.width)}" fill="{s.fill}" '
        f'text-anchor="{anchor}"{turn}>{html.escape(text)}</text>'
    )


def _svg_pixels(s: _Shape) -> str:
    x, y, w, h = map(_number, s.at)
    return (
        f'<image x="{x}" y="{y}" width="{w}" height="{h}" preserveAspectRatio="none" '
        f'style="image-rendering:pixelated" href="{data_uri(png_bytes(s.more))}"/>'
    )


def _png_line(picture: Image.Image, s: _Shape) -> None:
    values = [v * _SCALE for v in s.at]
    points = list(zip(values[::2], values[1::2], strict=True))
    width = max(round(s.width * _SCALE), 1)
    draw = ImageDraw.Draw(picture)
    draw.line(points, fill=s.stroke, width=width, joint="curve")


def _png_rect(picture: Image.Image, s: _Shape) -> None:
    x, y, w, h = (v * _SCALE for v in s.at)
    box = (x, y, max(x + w, x), max(y + h, y))
    width = max(round(s.width * _SCALE), 1)
    draw = ImageDraw.Draw(picture)
    draw.rectangle(box, fill=s.fill, outline=s.stroke, width=width)


def _png_text(picture: Image.Image, s: _Shape) -> None:
    text, anchor, upwards = s.more
    font = _font(round(s.width * _SCALE))
    x, y = (v * _SCALE for v in s.at)
    shift = {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor]
    if not upwards:
        where = (x - shift * font.getlength(text), y)
        ImageDraw.Draw(picture).text(where, text, s.fill, font, anchor="ls")
        return
    length, height = int(font.getlength(text)) + 4, int(s.width * _SCALE * 1.4)
    mask = Image.new("L", (length, height))
    ImageDraw.Draw(mask).text((0, height * 0.8), text, 255, font, anchor="ls")
    mask = mask.rotate(90, expand=True)
    corner = (round(x - height * 0.8), round(y - (1 - shift) * length))
    picture.paste(s.fill or INK, corner, mask)


def _png_pixels(picture: Image.Image, s: _Shape) -> None:
    x, y, w, h = (v * _SCALE for v in s.at)
    size = (max(round(w), 1), max(round(h), 1))
    tile = Image.fromarray(s.more).resize(size, Image.Resampling.NEAREST)
    picture.paste(tile, (round(x), round(y)))


@functools.cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


_SVG = {
    "line": _svg_line,
    "rect": _svg_rect,
    "text": _svg_text,
    "pixels": _svg_pixels,
}
_PNG = {
    "line": _png_line,
    "rect": _png_rect,
    "text": _png_text,
    "pixels": _png_pixels,
}
