"""Renders figures of matplotlib in one style: SVG for a page, PNG for a file."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import matplotlib.style
from matplotlib.figure import Figure

INK, MUTED, FAINT = "#1c2530", "#5b6775", "#dde3ea"
# Points, which are the units of the SVG. Text is as large as lets it be read where a
# phone shows a figure at 0.7 of its size.
SMALL, LARGE = 14.5, 15.5
_DPI = 144  # of the PNG: two pixels a point

_STYLE: dict[str, Any] = {
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": LARGE,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib; the page uses its own
    "font.size": SMALL,
    "path.simplify": False,  # every point of a curve is one that was logged
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
    "svg.hashsalt": "litevit_jax",
    "text.color": INK,
    "text.parse_math": False,  # a run may be called 'a$b$c'
    "xtick.color": MUTED,
    "xtick.labelsize": SMALL,
    "ytick.color": MUTED,
    "ytick.labelsize": SMALL,
}
_NAMESPACE = "http://www.w3.org/2000/svg"
_HREF = "{http://www.w3.org/1999/xlink}href"
_DIGITS = re.compile(r"-?\d+\.\d{3,}")
_NOT_XML = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")  # in a name, say
_FONT = re.compile(r"font-family: [^;]*; ")  # it is the page's


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Sets this module's style, whatever a user's matplotlibrc says; then undoes it."""
    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        # Only the PNG lacks the letter: a browser has more fonts than matplotlib.
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        yield


def png(figure: Figure) -> bytes:
    """Returns the figure as a PNG file, two pixels a point."""
    file = io.BytesIO()
    with style():
        figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
    return file.getvalue()


def svg(figure: Figure, *, title: str, prefix: str) -> str:
    """Returns the figure as an <svg> element that scales with the page.

    Args:
      figure: as drawn by this module.
      title: for screen readers.
      prefix: of the identifiers in it, which have to be unique in a page.
    """
    file = io.BytesIO()
    with style():
        figure.savefig(file, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(_NOT_XML.sub(b"", file.getvalue()))
    for parent in root.iter():
        for child in [c for c in parent if c.tag.endswith(("}metadata", "}style"))]:
            parent.remove(child)  # a style would count for the whole page
    for element in root.iter():
        _rewrite(element, prefix)
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.attrib |= {"role": "img", "aria-label": title, "stroke-linejoin": "round"}
    root.set("xmlns", _NAMESPACE)
    return ElementTree.tostring(root, encoding="unicode")


def _rewrite(element: ElementTree.Element, prefix: str) -> None:
    """Makes an element small, and its identifiers those of the figure alone."""
    element.tag, element.tail = element.tag.rpartition("}")[2], None
    if not (element.text or "").strip():
        element.text = None
    identifier = element.attrib.pop("id", None)
    if identifier and element.tag != "g":
        element.set("id", f"{prefix}.{identifier}")
    for key, value in list(element.attrib.items()):
        if key == _HREF:
            del element.attrib[key]
            inside = value.startswith("#")
            value = f"#{prefix}.{value[1:]}" if inside else "".join(value.split())
            element.set("href", value)
        elif key == "clip-path":
            element.set(key, value.replace("#", f"#{prefix}."))
        elif key == "style":
            element.set(key, _FONT.sub("", value))
        elif key == "transform" and value.startswith("rotate(-0 "):
            del element.attrib[key]
        elif key in ("d", "x", "y", "transform"):
            element.set(key, _DIGITS.sub(_rounded, value))


def _rounded(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")
