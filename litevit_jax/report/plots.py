"""Curves, box plots and heat maps from numbers, as matplotlib figures.

Figures are `matplotlib.figure.Figure` objects: pyplot and its global state are never
used. Importing this module imports matplotlib, which takes a second, so import it where
something is drawn, not where a run starts.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager, textpath, ticker
from matplotlib.figure import Figure

from litevit_jax.report import render

Series = dict[str, tuple[Sequence[float], Sequence[float | None]]]

# Okabe and Ito's colours, told apart by most colour-blind readers; yellow left out.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#444444")
_DASHES = ("-", "--", ":", "-.")  # of the first, second, ... series in one colour
_RAMP = "viridis"  # rises in lightness all the way, so that it reads in grey too

# Points, which are the units of the SVG.
WIDTH, HEIGHT = 440, 280
_LEFT, _RIGHT, _BOTTOM, _TOP = 84, 14, 48, 12
LEGEND_ROW, _LEGEND_HANDLE = 19, 37
_LETTER = 0.65  # width of a usual letter, of its size
_NAMES = 92  # points beside and below a matrix, for names of its classes
_MOST_MARKED = 16  # points of a curve that each get a marker
_MOST_WRITTEN = 9  # rows and columns of a heat map whose cells have their number


@dataclasses.dataclass(frozen=True)
class Axes:
    """Names, units and range of the axes, and how they are divided.

    Attributes:
      x, y: their names, with units.
      log_y: whether y is drawn by its logarithm.
      y_range: of y; None: what the numbers need.
      whole_x: whether x counts something, so that only whole numbers are marked.
      ticks: what stands at x = 0, 1, 2, ... in place of numbers.
    """

    x: str
    y: str
    log_y: bool = False
    y_range: tuple[float, float] | None = None
    whole_x: bool = False
    ticks: tuple[str, ...] = ()


def color_of(number: int) -> str:
    """Returns the colour of series `number`; colours repeat after seven."""
    return PALETTE[number % len(PALETTE)]


def ramp_color(value: float) -> str:
    """Returns '#rrggbb' of a value from 0 (dark) to 1 (light)."""
    return matplotlib.colors.to_hex(matplotlib.colormaps[_RAMP](value))


def curves(
    series: Series,
    axes: Axes,
    *,
    colors: Sequence[str] | None = None,
    errors: dict[str, Sequence[float]] | None = None,
) -> Figure:
    """Draws a line for each series (x, y); a y that is None or not finite is a gap.

    Series of the same colour differ by their dashes. `errors` are half the lengths of
    bars around the points.
    """
    colors = colors or [color_of(i) for i in range(len(series))]
    values = {name: _drawable(y, axes.log_y) for name, (_, y) in series.items()}
    known = [np.isfinite(y) for y in values.values()]
    steps = [np.asarray(x) for x, _ in series.values()]
    xs = [v for x, k in zip(steps, known, strict=True) for v in x[k]]
    ys = [v for y, k in zip(values.values(), known, strict=True) for v in y[k]]
    for name, bars in (errors or {}).items():
        ys += [*(values[name] - bars), *(values[name] + bars)]
    used: collections.Counter[str] = collections.Counter()
    with render.style():
        columns = legend_columns(list(series))
        rows = math.ceil(len(series) / columns) if len(series) > 1 else 0
        figure, plot = _frame(axes, xs, ys, legend_rows=rows)
        for (name, (x, _)), color in zip(series.items(), colors, strict=True):
            marked = _marked(values[name])
            plot.plot(
                x,
                values[name],
                color=color,
                linestyle=_DASHES[used[color] % len(_DASHES)],
                linewidth=1.7,
                marker="o" if marked else "",
                markersize=4,
                markevery=marked,
                clip_on=False,
                label=name,
            )
            used[color] += 1
            if errors:
                bars = {"yerr": errors[name], "ecolor": color, "capsize": 3}
                plot.errorbar(x, values[name], fmt="none", elinewidth=1, **bars)
        if rows:
            legend(plot, columns)
    return figure


def boxes(
    groups: Sequence[Sequence[float]], axes: Axes, *, color: str, first: int = 1
) -> Figure:
    """Draws a box for each group: quartiles, median, extremes, and every point.

    Args:
      groups: numbers of each, as those of the heads of a layer.
      axes: names and range.
      color: of the boxes.
      first: number of the first group.
    """
    numbers = range(first, first + len(groups))
    points = [(x, y) for x, group in zip(numbers, groups, strict=True) for y in group]
    ends = [numbers[0] - 0.6, numbers[-1] + 0.6]
    line = {"color": color, "linewidth": 1.2}
    with render.style():
        wanted = dataclasses.replace(axes, whole_x=True)
        figure, plot = _frame(wanted, ends, [y for _, y in points])
        plot.boxplot(
            groups,
            positions=numbers,
            widths=min(0.6, 0.08 * len(groups)),
            whis=(0, 100),
            manage_ticks=False,
            patch_artist=True,
            showcaps=False,
            boxprops={"facecolor": "#e8eef4", "edgecolor": color},
            medianprops=line | {"linewidth": 2.2},
            whiskerprops=line,
        )
        plot.plot(*zip(*points, strict=True), "o", color=render.INK, markersize=3)
    return figure


def heatmap(
    values: np.ndarray, x: str, y: str, unit: str, *, span: tuple[float, float] = (0, 1)
) -> Figure:
    """Draws cells `[R, C]`, the first row at the bottom, and what the colours mean.

    The cells of a small matrix have their numbers written in them.

    Args:
      values: NaN is drawn grey.
      x, y: what columns and rows are; both are counted from 0.
      unit: what the numbers are.
      span: values of the darkest and lightest colour.
    """
    values = np.asarray(values, float)
    rows, columns = values.shape
    side = min(44.0, 260 / max(rows, columns))
    width, height = columns * side, rows * side
    with render.style():
        figure = Figure(figsize=(WIDTH / 72, (height + _TOP + _BOTTOM) / 72))
        plot = add_axes(figure, _LEFT, _BOTTOM, width, height)
        colors = matplotlib.colormaps[_RAMP].with_extremes(bad="#c8c8c8")
        picture = plot.imshow(
            values,
            cmap=colors,
            vmin=span[0],
            vmax=span[1],
            origin="lower",
            aspect="auto",
            interpolation="none",
        )
        room = 2 * min(_LEFT + width / 2, WIDTH - _LEFT - width / 2)
        plot.set_xlabel(x, fontsize=_fitting(x, room))
        plot.set_ylabel(y, fontsize=_fitting(y, height + 2 * _TOP))
        plot.spines[:].set_visible(True)
        plot.tick_params(length=0)
        every = math.ceil(max(rows, columns) / 13)
        plot.set_xticks(range(0, columns, every))
        plot.set_yticks(range(0, rows, every))
        beside = add_axes(figure, _LEFT + width + 14, _BOTTOM, 12, height)
        bar = figure.colorbar(picture, cax=beside)
        bar.set_label(unit)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
        marks = [span[0], sum(span) / 2, span[1]]
        bar.set_ticks(marks, labels=[f"{mark:.3g}" for mark in marks])
        if max(rows, columns) <= _MOST_WRITTEN:
            _write_cells(plot, values, span, min(render.SMALL, side / 3))
    return figure


def matrix(
    values: np.ndarray, rows: Sequence[str], columns: Sequence[str], unit: str
) -> Figure:
    """Draws percentages `[R, C]` with a name for each row, from the top, and column.

    The cells of a small matrix have their numbers written in them; NaN is drawn grey.
    """
    side = min(40.0, 280 / max(values.shape))
    height, width = (side * count for count in values.shape)
    size = min(render.SMALL, 0.9 * side)
    with render.style():
        figure = Figure(figsize=(WIDTH / 72, (height + _TOP + _NAMES) / 72))
        plot = add_axes(figure, _NAMES, _NAMES, width, height)
        colors = matplotlib.colormaps[_RAMP].with_extremes(bad="#c8c8c8")
        picture = plot.imshow(
            values, cmap=colors, vmin=0, vmax=100, aspect="auto", interpolation="none"
        )
        for axis, names in ((plot.xaxis, columns), (plot.yaxis, rows)):
            short = [x if len(x) <= 16 else f"{x[:15]}…" for x in names]
            axis.set_ticks(range(len(names)), labels=short, fontsize=size)
        plot.tick_params(length=0)
        plot.tick_params(axis="x", rotation=90)
        plot.spines[:].set_visible(True)
        beside = add_axes(figure, _NAMES + width + 14, _NAMES, 12, height)
        bar = figure.colorbar(picture, cax=beside)
        bar.set_label(unit, fontsize=_fitting(unit, height + 2 * _TOP))
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
        bar.set_ticks([0, 50, 100])
        if max(values.shape) <= _MOST_WRITTEN:
            _write_cells(plot, values, (0, 100), min(render.SMALL, side / 3), "{:.0f}")
    return figure


def widened(low: float, high: float, share: float) -> tuple[float, float]:
    """Returns a range that has a `share` of itself around `low` and `high`."""
    if high > low:
        more = share * (high - low)
        return low - more, high + more
    more = abs(low) * 0.1 or 0.5
    return low - more, high + more


def add_axes(
    figure: Figure, left: float, bottom: float, wide: float, high: float
) -> Any:
    """Adds axes in a box that is given in points from the lower left corner."""
    width, height = figure.get_size_inches() * 72
    return figure.add_axes((left / width, bottom / height, wide / width, high / height))


def _frame(
    axes: Axes, xs: Sequence[float], ys: Sequence[float], *, legend_rows: int = 0
) -> tuple[Figure, Any]:
    """Returns a figure with empty axes for these numbers; a legend makes it higher."""
    above = _TOP if legend_rows < 2 else _TOP + LEGEND_ROW * (legend_rows - 1)
    above += 12 * bool(legend_rows)
    high, wide = HEIGHT - _TOP - _BOTTOM, WIDTH - _LEFT - _RIGHT
    figure = Figure(figsize=(WIDTH / 72, (high + above + _BOTTOM) / 72))
    plot = add_axes(figure, _LEFT, _BOTTOM, wide, high)
    plot.set_xlabel(axes.x)
    plot.set_ylabel(axes.y)
    plot.yaxis.set_label_coords(-63 / wide, 0.5)
    plot.grid(axis="y", color=render.FAINT)
    plot.set_axisbelow(True)
    plot.tick_params(axis="y", length=0)
    plot.set_xlim(*widened(min(xs, default=0), max(xs, default=1), 0))
    if axes.ticks:
        plot.set_xlim(-0.3, len(axes.ticks) - 0.7)
        plot.set_xticks(range(len(axes.ticks)), labels=axes.ticks)
    else:
        _scale_x(plot, axes.whole_x)
    _scale_y(plot, axes, ys)
    if not ys:
        plot.text(0.5, 0.5, "no numbers", ha="center", transform=plot.transAxes)
    return figure, plot


def _scale_x(plot: Any, whole: bool) -> None:
    low, high = plot.get_xlim()
    if whole and high - low < 17:
        marks: ticker.Locator = ticker.MultipleLocator(1)
    else:
        marks = ticker.MaxNLocator(6, integer=whole, steps=[1, 2, 2.5, 5, 10])
    plot.xaxis.set_major_locator(marks)
    plot.xaxis.set_major_formatter(lambda value, _: _thousands(value))


def _scale_y(plot: Any, axes: Axes, ys: Sequence[float]) -> None:
    low, high = (min(ys), max(ys)) if ys else (0.1, 1)
    if axes.log_y:
        plot.set_yscale("log")
        ends = widened(math.log10(low), math.log10(high), 0.05)
        plot.set_ylim(*(10**end for end in ends))
        plot.yaxis.set_minor_locator(ticker.NullLocator())
    else:
        plot.set_ylim(*(axes.y_range or widened(low, high, 0.05)))
    if axes.log_y and math.log10(high / low) >= 1:
        plot.yaxis.set_major_locator(ticker.LogLocator(numticks=6))
        plot.yaxis.set_major_formatter(lambda value, _: _power(value))
    else:
        marks = ticker.MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])
        plot.yaxis.set_major_locator(marks)
        plot.yaxis.set_major_formatter(lambda value, _: _short(value))


def _thousands(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:.6g}"


def _short(value: float) -> str:
    """Returns as many digits as stand beside an axis: 0.0015, 2.5e-5, 1.2e6."""
    text = f"{value:.6g}"
    if len(text) > 6 or "e" in text:
        text = re.sub(r"e([+-])0*", r"e\1", f"{value:.3e}").replace("e+", "e")
        text = re.sub(r"\.?0+e", "e", text)
    return text


def _power(value: float) -> str:
    """Returns 10 to a whole power, written with raised digits."""
    raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    return "10" + str(round(math.log10(value))).translate(raised)


def _drawable(values: Sequence[float | None], log: bool) -> np.ndarray:
    """Returns float64 with NaN for what cannot be drawn."""
    numbers = [v if isinstance(v, int | float) else math.nan for v in values]
    array = np.array(numbers, float)
    array[~np.isfinite(array) | (log & (array <= 0))] = math.nan
    return array


def _marked(values: np.ndarray) -> list[int]:
    """Returns the points that get a marker: all of few, else those without neighbours.

    A line through a single point, between two gaps, would show nothing.
    """
    known = np.isfinite(values)
    if known.sum() > _MOST_MARKED:
        padded = np.pad(known, 1)
        known &= ~padded[:-2] & ~padded[2:]
    return np.flatnonzero(known).tolist()


def _shown(name: str) -> str:
    return name if len(name) <= 34 else name[:33] + "…"


def legend_columns(names: list[str]) -> int:
    """Returns the number of columns by which names need the fewest rows.

    Within `render.style`.
    """
    letters = font_manager.FontProperties(size=render.SMALL)
    measure = textpath.text_to_path.get_text_width_height_descent
    widths = [measure(_shown(name), letters, ismath=False)[0] for name in names]
    fitting = int((WIDTH - _LEFT) // (_LEGEND_HANDLE + max(widths, default=0)))
    rows = math.ceil(len(names) / max(fitting, 1))
    return math.ceil(len(names) / max(rows, 1))


def legend(plot: Any, columns: int) -> None:
    lines = [line for line in plot.get_lines() if line.get_label() != "_nolegend_"]
    plot.legend(
        lines,
        [_shown(line.get_label()) for line in lines],
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=columns,
        frameon=False,
        borderpad=0,
        borderaxespad=0.3,
        columnspacing=0.8,
        handlelength=1.3,
        handletextpad=0.4,
        labelspacing=0.2,
    )


def _fitting(name: str, room: float) -> float:
    """Returns the size of letters by which a name is no longer than `room`."""
    return min(render.LARGE, room / (_LETTER * max(len(name), 1)))


def _write_cells(
    plot: Any,
    values: np.ndarray,
    span: tuple[float, float],
    size: float,
    form: str = "{:.2f}",
) -> None:
    middle = sum(span) / 2
    for (row, column), value in np.ndenumerate(values):
        if math.isfinite(value):
            color = render.INK if value > middle else "#ffffff"
            text, at = form.format(value), {"ha": "center", "va": "center"}
            plot.text(column, row, text, color=color, fontsize=size, **at)
