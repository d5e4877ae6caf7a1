"""One HTML page that needs nothing beside it: no script, font, style or image."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

STYLE = """
:root{color-scheme:light;--ink:#1c2530;--muted:#5b6775;--line:#dde3ea;--soft:#f5f7fa;
--accent:#0072b2}
*{box-sizing:border-box}
body{margin:0;font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
color:var(--ink);background:#fff}
main,header,nav ul{max-width:1180px;margin:0 auto;padding:0 20px}
header{padding-top:28px}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:40px 0 10px;padding-top:8px;
border-top:1px solid var(--line)}
h3{font-size:1rem;margin:22px 0 6px}
p{margin:6px 0 12px;max-width:75ch}
.muted,figcaption{color:var(--muted);font-size:.86rem}
nav{position:sticky;top:0;background:#fffffff2;border-bottom:1px solid var(--line);
z-index:1;margin-top:14px}
nav ul{display:flex;gap:4px 18px;overflow-x:auto;list-style:none;white-space:nowrap;
padding-top:9px;padding-bottom:9px;font-size:.9rem}
nav a{color:var(--accent);text-decoration:none}
nav a:hover{text-decoration:underline}
section{scroll-margin-top:48px}
.grid{display:grid;gap:18px;grid-template-columns:repeat(auto-fill,minmax(min(330px,100%),1fr))}
figure{margin:0;padding:12px;border:1px solid var(--line);border-radius:8px;min-width:0}
figure.wide{grid-column:1/-1;overflow-x:auto}
figure h3{margin:0 0 6px;overflow-wrap:anywhere}
figure svg{display:block;width:100%;height:auto;max-width:560px;margin:0 auto;
font-family:inherit}
figure img{display:block;max-width:100%;height:auto;margin:0 auto}
figcaption{margin-top:6px}
.cards{display:grid;gap:14px;
grid-template-columns:repeat(auto-fit,minmax(min(200px,100%),1fr))}
.card{background:var(--soft);border-radius:8px;padding:12px 14px;min-width:0}
.card b{display:block;font-size:1.35rem;line-height:1.25;
font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.card span{color:var(--muted);font-size:.85rem}
.scroll{overflow-x:auto;margin:8px 0 14px;max-width:100%}
table{border-collapse:collapse;font-size:.9rem;min-width:100%}
th,td{padding:6px 12px 6px 0;text-align:left;border-bottom:1px solid var(--line);
vertical-align:top}
th{color:var(--muted);font-weight:600;white-space:nowrap}
td{overflow-wrap:anywhere;min-width:4.5em}
td:first-child{white-space:nowrap}
td.n{font-variant-numeric:tabular-nums;white-space:nowrap}
.note{border-left:3px solid #e69f00;background:#fff8e8;padding:8px 12px;margin:8px 0;
max-width:80ch}
.key{display:inline-block;width:14px;height:4px;border-radius:2px;margin-right:7px;
vertical-align:middle}
code,pre{font:0.85rem/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
code{overflow-wrap:anywhere}
pre{background:var(--soft);padding:12px;border-radius:8px;overflow-x:auto}
details{margin:10px 0}summary{cursor:pointer;color:var(--accent)}
footer{max-width:1180px;margin:40px auto 24px;padding:0 20px}
@media(max-width:600px){body{font-size:15px}main,header,nav ul,footer{padding-left:14px;
padding-right:14px}figure{padding:8px}h1{font-size:1.4rem}
figure.wide img{max-width:max(100%,calc(var(--native)*.55))}
.cards{grid-template-columns:1fr 1fr;gap:8px}
.tall table,.tall tbody,.tall tr,.tall td{display:block}.tall thead{display:none}
.tall tr{padding:6px 0;border-bottom:1px solid var(--line)}
.tall td{border:0;padding:1px 0 1px 42%;position:relative;min-height:1.5em}
.tall td:first-child{white-space:normal}.tall td:empty{display:none}
.tall td::before{content:attr(data-head);position:absolute;left:0;width:40%;
color:var(--muted)}.flat td,.flat th,.flat td:first-child{white-space:normal}
.flat td:first-child{width:42%;min-width:6.2em}}
@media(min-width:700px){nav ul{flex-wrap:wrap}}
@media print{nav{display:none}body{font-size:10pt}main,header{max-width:none;padding:0}
h2,h3,section>p{break-after:avoid}h2{margin-top:18pt}
figure,.card,.note,tr,p{break-inside:avoid}table{font-size:8.5pt}
.grid{grid-template-columns:1fr 1fr;gap:4mm}figure{padding:2mm}
figure.wide,.scroll{overflow:visible}td:first-child,td.n,th{white-space:normal}
figure img{max-height:88mm;width:auto}figure svg{max-height:46mm}
details:not([open]){display:none}pre{white-space:pre-wrap}a{color:inherit}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}@page{margin:14mm}}
"""

_COLUMNS = 3  # that fit beside each other on a phone


class Number(NamedTuple):
    """A number that is shown rounded; the page keeps it whole beside it.

    `source` says where it was recorded, as 'result.json RUN/TITLE last.top1'.
    """

    value: float | int | None
    source: str


def text(value: Any) -> str:
    """Escaped for HTML."""
    return html.escape(str(value), quote=True)


def rounded(value: float | int | None) -> str:
    """As it is shown: whole numbers whole, others to four digits."""
    if value is None or not math.isfinite(value):
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def shown(value: Any) -> str:
    """A cell's content: a Number with all its digits in an attribute, or text."""
    if not isinstance(value, Number):
        return value.html if isinstance(value, Raw) else text(value)
    exact = "" if value.value is None else repr(value.value)
    return (
        f'<data value="{exact}" title="{exact}" data-source="{text(value.source)}">'
        f"{rounded(value.value)}</data>"
    )


class Raw(NamedTuple):
    """Markup that goes in as it is."""

    html: str


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Rows of cells under a heading.

    On a phone those of more than three columns stand one cell under the other.
    """
    top = "".join(f"<th>{text(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(map(_cell, row, head))}</tr>" for row in rows)
    kind = "tall" if len(head) > _COLUMNS else "flat"
    return (
        f'<div class="scroll {kind}"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(value: Any, head: str) -> str:
    kind = ' class="n"' if isinstance(value, Number) else ""
    return f'<td{kind} data-head="{text(head)}">{shown(value)}</td>'


def cards(values: Sequence[tuple[str, Any]]) -> str:
    """Large numbers with a name under each."""
    parts = (
        f'<div class="card"><b>{shown(value)}</b><span>{text(name)}</span></div>'
        for name, value in values
    )
    return f'<div class="cards">{"".join(parts)}</div>'


def field(name: str) -> Raw:
    """The name of a config's field, which may be broken after its dots and dashes."""
    return Raw(text(name).replace(".", ".<wbr>").replace("_", "_<wbr>"))


def notes(said: Sequence[str]) -> str:
    """What a reader must know, one box each."""
    return "".join(f'<div class="note">{text(note)}</div>' for note in said)


def figure(
    name: str, title: str, body: str, caption: str, *, wide: bool = False
) -> str:
    """A picture (SVG or <img>) with what it shows."""
    kind = ' class="wide"' * wide
    return (
        f'<figure{kind} id="{text(name)}"><h3>{text(title)}</h3>{body}'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


def grid(figures: Sequence[str]) -> str:
    """Figures beside each other, as many as fit."""
    return f'<div class="grid">{"".join(figures)}</div>'


def swatch(color: str, name: str) -> Raw:
    """A name with the colour of its curves."""
    return Raw(f'<span class="key" style="background:{color}"></span>{text(name)}')


def details(title: str, body: str) -> str:
    """Folded up until it is asked for."""
    return f"<details><summary>{text(title)}</summary>{body}</details>"


def page(
    title: str, under: str, sections: Sequence[tuple[str, str, str]], foot: str
) -> str:
    """The page: sections are (id, title, markup); empty ones are left out."""
    filled = [s for s in sections if s[2]]
    links = "".join(f'<li><a href="#{i}">{text(t)}</a></li>' for i, t, _ in filled)
    body = "".join(
        f'<section id="{i}"><h2>{text(t)}</h2>{content}</section>'
        for i, t, content in filled
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head><body>"
        f'<header><h1>{text(title)}</h1><p class="muted">{text(under)}</p></header>'
        f"<nav><ul>{links}</ul></nav><main>{body}</main>"
        f'<footer class="muted">{text(foot)}</footer></body></html>\n'
    )
