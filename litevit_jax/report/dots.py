"""Numbers of named things, a line of dots for each: a long list stays readable."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from litevit_jax.report import plots, render

_MANY = 20  # names that are written smaller
_SIZES = ((render.SMALL, 24), (10.5, 14))  # points of letters and of a line, few, many
_LETTER = 0.6  # width of a usual letter, of its size
_LONGEST = 24  # letters of a name
_RIGHT, _BELOW, _ABOVE = 18, 48, 8


def lines(
    names: Sequence[str], series: dict[str, Sequence[float | None]], x: str
) -> Figure:
    """Draws percentages from the left to the right, a line for each name.

    Args:
      names: from the top; long ones are cut.
      series: name -> percentages, one for each of `names`; None is left out.
      x: what they are.
    """
    letters, high = _SIZES[len(names) > _MANY]
    shown = [n if len(n) <= _LONGEST else f"{n[: _LONGEST - 1]}…" for n in names]
    left = max(_LETTER * letters * max(map(len, shown), default=0) + 14, 40)
    height = high * len(names)
    with render.style():
        columns = plots.legend_columns(list(series))
        rows = math.ceil(len(series) / columns) if len(series) > 1 else 0
        above = _ABOVE + plots.LEGEND_ROW * rows
        size = plots.WIDTH, height + above + _BELOW
        figure = Figure(figsize=(size[0] / 72, size[1] / 72))
        wide = plots.WIDTH - left - _RIGHT
        plot = plots.add_axes(figure, left, _BELOW, wide, height)
        plot.set_xlim(0, 100)
        plot.set_ylim(len(names) - 0.5, -0.5)
        plot.set_yticks(range(len(names)), labels=shown, fontsize=letters)
        plot.set_xlabel(x)
        plot.grid(axis="x", color=render.FAINT)
        plot.hlines(range(len(names)), 0, 100, color=render.FAINT, linewidth=0.6)
        plot.set_axisbelow(True)
        plot.tick_params(axis="y", length=0)
        for number, (name, values) in enumerate(series.items()):
            pairs = [(v, y) for y, v in enumerate(values) if v is not None]
            plot.plot(
                [v for v, _ in pairs],
                [y for _, y in pairs],
                color=plots.color_of(number),
                linestyle="",
                marker="os^D"[number % 4],
                markersize=6 if len(names) <= _MANY else 4.5,
                # Equal numbers stay visible.
                markerfacecolor=None if number == 0 else "none",
                markeredgewidth=1.6,
                clip_on=False,
                label=name,
            )
        if rows:
            plots.legend(plot, columns)
    return figure
