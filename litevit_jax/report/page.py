"""Parts of a page, and the page: one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from PIL import Image

if TYPE_CHECKING:
    import jinja2

_FOLDER = pathlib.Path(__file__).parent
_WIDEST = 1200  # pixels of a photograph inside the page
_TILE = 144  # pixels of a small image's longer side
_FOOTER = (
    "Rounded numbers show all their digits under the pointer; report.json has them, "
    "and a PNG of every figure lies beside this page."
)


class Number(NamedTuple):
    """A number that is shown rounded; the page keeps it whole beside it.

    `source` says where it was recorded, as 'result.json RUN/TITLE last.top1'.
    """

    value: float | int | None
    source: str

    @property
    def exact(self) -> str:
        """The number with all its digits."""
        return "" if self.value is None else repr(self.value)


class Field(str):
    """The name of a config's field, which may be broken after its dots and dashes."""


@dataclasses.dataclass(frozen=True)
class Heading:
    """A heading inside a section, with the colour of a run's curves."""

    kind: ClassVar = "heading"
    text: str
    color: str | None = None


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar = "text"
    text: str


class Note(Text):
    """Something that a reader must know, in a box."""

    kind: ClassVar = "note"


class Source(Text):
    """Text whose lines and spaces stay, as a config."""

    kind: ClassVar = "source"


@dataclasses.dataclass(frozen=True)
class Cards:
    """Large numbers with a name under each: (name, Number or text)."""

    kind: ClassVar = "cards"
    values: Sequence[tuple[str, Any]]


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of Number, Field or text under a heading.

    On a phone the cells of more than three columns stand one under the other.
    """

    kind: ClassVar = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure: an <svg> element, a photograph as an address, or a file beside."""

    name: str
    title: str
    caption: str
    file: str
    wide: bool = False
    svg: str | None = None
    photo: str | None = None
    width: int | None = None


@dataclasses.dataclass(frozen=True)
class Figures:
    """Figures beside each other, as many as fit."""

    kind: ClassVar = "figures"
    figures: Sequence[Picture]


@dataclasses.dataclass(frozen=True)
class Tile:
    """A small image with its name, and lines of text under it.

    A line is (text, share from 0 to 1 that a bar shows, or None for no bar). Without a
    `photo`, an address as `thumbnail` returns it, `note` says why.
    """

    name: str
    photo: str | None
    lines: Sequence[tuple[str, float | None]] = ()
    note: str = ""
    first: bool = False  # it is set apart from those behind it


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Small images beside each other, as many as fit."""

    kind: ClassVar = "tiles"
    tiles: Sequence[Tile]


@dataclasses.dataclass(frozen=True)
class Folded:
    """Another part, folded up until it is asked for."""

    kind: ClassVar = "folded"
    title: str
    part: Table | Source


class Section(NamedTuple):
    """A part of the page that the navigation names; without parts it is left out."""

    name: str
    title: str
    parts: Sequence[Any]


def render(
    title: str, subtitle: str, sections: Sequence[Section], footer: str = _FOOTER
) -> str:
    """Returns the page; whatever it is given is escaped, but for figures' SVG."""
    template = _environment().get_template("report.html.j2")
    return template.render(
        title=title, subtitle=subtitle, sections=sections, footer=footer
    )


def rounded(value: float | int | None) -> str:
    """Returns whole numbers whole, others to four digits, '–' for none."""
    if value is None or not math.isfinite(value):
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def photograph(pixels: Any) -> tuple[str, int]:
    """Returns a JPEG of uint8 `[H, W, 3]` as a data address, and its width."""
    picture = Image.fromarray(pixels)
    if picture.width > _WIDEST:
        height = round(picture.height * _WIDEST / picture.width)
        picture = picture.resize((_WIDEST, height), Image.Resampling.LANCZOS)
    return _address(picture, 88), picture.width


def thumbnail(picture: Image.Image) -> str:
    """Returns a small copy of a picture as a data address; tiny ones are enlarged."""
    ratio = _TILE / max(picture.size)
    way = Image.Resampling.LANCZOS if ratio < 1 else Image.Resampling.NEAREST
    width, height = (max(round(ratio * side), 1) for side in picture.size)
    return _address(picture.convert("RGB").resize((width, height), way), 80)


def _address(picture: Image.Image, quality: int) -> str:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    data = base64.b64encode(file.getvalue()).decode()
    return f"data:image/jpeg;base64,{data}"


def _environment() -> jinja2.Environment:
    import jinja2  # late: only what draws a page needs it

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"rounded": rounded, "breakable": _breakable}
    environment.tests |= {
        "recorded": lambda value: isinstance(value, Number),
        "field": lambda value: isinstance(value, Field),
    }
    return environment


def _breakable(name: str) -> Any:
    import markupsafe

    escaped = str(markupsafe.escape(name))
    return markupsafe.Markup(escaped.replace(".", ".<wbr>").replace("_", "_<wbr>"))
