"""Curves, box plots and heat maps from numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from litevit_jax.report import draw

Series = dict[str, tuple[Sequence[float], Sequence[float | None]]]

# Text is as large as lets it be read where a phone shows a chart at 0.7 of its size.
WIDTH, HEIGHT = 440, 280
_LEFT, _RIGHT, _BOTTOM = 78, 14, 48
_SMALL, _NAME = 14.5, 15.5


@dataclasses.dataclass(frozen=True)
class Axes:
    """What stands at the axes, and how they are divided.

    Attributes:
      x, y: their names, with units.
      log_y: whether y is drawn by its logarithm.
      y_range: of y; None: what the numbers need.
      whole_x: whether x counts something, so that only whole numbers are marked.
    """

    x: str
    y: str
    log_y: bool = False
    y_range: tuple[float, float] | None = None
    whole_x: bool = False


def curves(
    series: Series, axes: Axes, *, colors: Sequence[str] | None = None
) -> draw.Canvas:
    """A line for each series (x, y); a y that is None or not finite is a gap."""
    canvas = draw.Canvas(WIDTH, HEIGHT)
    colors = colors or [draw.color_of(i) for i in range(len(series))]
    top = _legend(canvas, list(series), colors) if len(series) > 1 else 12
    points = {name: _points(x, y, axes.log_y) for name, (x, y) in series.items()}
    flat = [p for runs in points.values() for run in runs for p in run]
    frame = _Frame(canvas, axes, top, flat)
    for color, runs in zip(colors, points.values(), strict=True):
        for run in runs:
            placed = [(frame.x(x), frame.y(y)) for x, y in run]
            canvas.line(placed, color, 1.7)
            if len(run) <= 16:
                for x, y in placed:
                    canvas.line([(x, y)], color, 2)
    return canvas


def boxes(
    groups: Sequence[Sequence[float]], axes: Axes, *, color: str, first: int = 1
) -> draw.Canvas:
    """A box for each group: quartiles, median, whiskers to the extremes, and points.

    Args:
      groups: numbers of each, as those of the heads of a layer.
      axes: names and range.
      color: of the boxes.
      first: number of the first group.
    """
    canvas = draw.Canvas(WIDTH, HEIGHT)
    flat = [(i + first, v) for i, group in enumerate(groups) for v in group]
    edge = [(first - 0.6, flat[0][1]), (first + len(groups) - 0.4, flat[0][1])]
    frame = _Frame(canvas, dataclasses.replace(axes, whole_x=True), 12, flat + edge)
    half = min(0.3 * (frame.x(1) - frame.x(0)), 14)
    for number, group in enumerate(groups, start=first):
        x = frame.x(number)
        low, q1, q2, q3, high = (
            frame.y(v) for v in np.percentile(group, (0, 25, 50, 75, 100))
        )
        canvas.line([(x, low), (x, high)], color)
        canvas.rect(x - half, q3, 2 * half, q1 - q3, fill="#e8eef4", stroke=color)
        canvas.line([(x - half, q2), (x + half, q2)], color, 2)
        for value in group:
            canvas.rect(x - 1, frame.y(value) - 1, 2, 2, fill=draw.INK)
    return canvas


def heatmap(
    values: np.ndarray, x: str, y: str, *, span: tuple[float, float] = (0, 1)
) -> draw.Canvas:
    """Cells `[R, C]`, the first row at the bottom, with a bar of what colours mean.

    Args:
      values: NaN is drawn grey.
      x, y: what columns and rows are; both are counted from 0.
      span: values of the darkest and lightest colour.
    """
    values = np.asarray(values, float)
    rows, columns = values.shape
    side = min(26.0, 300 / max(rows, columns))
    width, height, left, top = columns * side, rows * side, 54.0, 12.0
    canvas = draw.Canvas(max(left + width + 72, 240), top + height + 50)
    share = (values - span[0]) / (span[1] - span[0])
    canvas.pixels(left, top, width, height, draw.ramp(share[::-1]))
    canvas.rect(left, top, width, height, stroke=draw.MUTED)
    every = math.ceil(max(rows, columns) / 13)
    for i in range(0, columns, every):
        at = left + (i + 0.5) * side
        canvas.text(at, top + height + 17, str(i), size=_SMALL, anchor="middle")
    for i in range(0, rows, every):
        at = top + height - (i + 0.5) * side + 5
        canvas.text(left - 5, at, str(i), size=_SMALL, anchor="end")
    canvas.text(left + width / 2, top + height + 40, x, size=_NAME, anchor="middle")
    middle = top + height / 2
    canvas.text(17, middle, y, size=_NAME, anchor="middle", upwards=True)
    bar = left + width + 14
    canvas.pixels(bar, top, 12, height, draw.ramp(np.linspace(1, 0, 64)[:, None]))
    for part in (0, 0.5, 1):
        value = span[0] + part * (span[1] - span[0])
        at = top + height * (1 - part) + (5 if 0 < part < 1 else 11 * part)
        canvas.text(bar + 16, at, f"{value:.3g}", size=_SMALL)
    return canvas


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


class _Frame:
    """The axes of a chart: draws them, and places numbers between them."""

    def __init__(
        self, canvas: draw.Canvas, axes: Axes, top: float, points: list
    ) -> None:
        xs, ys = [x for x, _ in points] or [0, 1], [y for _, y in points] or [0, 1]
        self._x = widened(min(xs), max(xs), 0)
        self._log = axes.log_y
        self._y = widened(min(ys), max(ys), 0.05)
        if axes.y_range is not None:
            self._y = axes.y_range
        self._box = (_LEFT, top, WIDTH - _RIGHT, HEIGHT - _BOTTOM)
        self._draw(canvas, axes)
        if not points:
            canvas.text(WIDTH / 2, HEIGHT / 2, "no numbers", anchor="middle")

    def x(self, value: float) -> float:
        low, high = self._x
        left, _, right, _ = self._box
        return left + (value - low) / (high - low) * (right - left)

    def y(self, value: float) -> float:
        low, high = self._y
        _, top, _, bottom = self._box
        return bottom - (value - low) / (high - low) * (bottom - top)

    def _draw(self, canvas: draw.Canvas, axes: Axes) -> None:
        left, top, right, bottom = self._box
        for value in self._y_ticks():
            at = self.y(value)
            canvas.line([(left, at), (right, at)], draw.FAINT)
            text = f"1e{value:g}" if self._log else f"{value:.6g}"
            canvas.text(
                left - 7, at + 5, text, size=_SMALL, anchor="end", color=draw.MUTED
            )
        for value in self._x_ticks(axes.whole_x):
            at = self.x(value)
            canvas.line([(at, bottom), (at, bottom + 4)], draw.MUTED)
            text = _thousands(value)
            anchor = "end" if at > right - 10 and len(text) > 3 else "middle"
            canvas.text(
                at, bottom + 19, text, size=_SMALL, anchor=anchor, color=draw.MUTED
            )
        canvas.line([(left, top), (left, bottom), (right, bottom)], draw.MUTED)
        name = {"size": _NAME, "anchor": "middle"}
        canvas.text((left + right) / 2, HEIGHT - 6, axes.x, **name)
        canvas.text(17, (top + bottom) / 2, axes.y, upwards=True, **name)

    def _x_ticks(self, whole: bool) -> list[float]:
        low, high = self._x
        if whole and high - low < 17:
            return [*range(math.ceil(low), math.floor(high) + 1)]
        return [v for v in ticks(low, high, 6) if not whole or v == round(v)]

    def _y_ticks(self) -> list[float]:
        if not self._log:
            return ticks(*self._y)
        whole = [v for v in ticks(*self._y) if v == round(v)]
        return whole or [math.floor(self._y[0]), math.ceil(self._y[1])]


def widened(low: float, high: float, share: float) -> tuple[float, float]:
    """A range that has a `share` of itself around `low` and `high`."""
    if high > low:
        more = share * (high - low)
        return low - more, high + more
    more = abs(low) * 0.1 or 0.5
    return low - more, high + more


def _thousands(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.6g}"


def _points(x: Sequence[float], y: Sequence, log: bool) -> list[list]:
    """Runs of (x, y) between gaps; y by its logarithm to base 10 if asked."""
    runs: list[list] = [[]]
    for one, other in zip(x, y, strict=True):
        known = isinstance(other, int | float) and math.isfinite(other)
        if known and not (log and other <= 0):
            runs[-1].append((one, math.log10(other) if log else other))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _legend(canvas: draw.Canvas, names: list[str], colors: Sequence[str]) -> float:
    """Names with their colours above the chart; returns where the chart begins."""
    x, y = _LEFT, 16.0
    for name, color in zip(names, colors, strict=True):
        shown = name if len(name) <= 34 else name[:33] + "…"
        wide = 22 + 8 * len(shown)
        if x > _LEFT and x + wide > WIDTH - 4:
            x, y = _LEFT, y + 19
        canvas.line([(x, y - 5), (x + 14, y - 5)], color, 3)
        canvas.text(x + 18, y, shown, size=_SMALL)
        x += wide + 8
    return y + 12
