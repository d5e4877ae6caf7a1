"""Plots hold the numbers that they are given, with names and units at their axes."""

import math
import subprocess
import sys

import numpy as np
import pytest

from litevit_jax.report import plots, render

AXES = plots.Axes("update", "loss", whole_x=True)


def axes_of(figure):
    [axes] = figure.axes
    return axes


def lay_out(figure):
    with render.style():
        figure.draw_without_rendering()


def tick_labels(axis):
    low, high = sorted(axis.get_view_interval())
    marks = [mark for mark in axis.get_majorticklocs() if low <= mark <= high]
    return [axis.get_major_formatter()(mark, None) for mark in marks]


def test_every_point_of_a_series_is_on_its_line():
    series = {"a": ([1, 2, 3], [0.5, 0.25, 1.0]), "b": ([2, 4], [3.0, 2.0])}
    axes = axes_of(plots.curves(series, AXES, colors=["#111111", "#222222"]))
    first, second = axes.get_lines()
    assert first.get_xydata().tolist() == [[1, 0.5], [2, 0.25], [3, 1.0]]
    assert second.get_xydata().tolist() == [[2, 3.0], [4, 2.0]]
    assert [line.get_color() for line in (first, second)] == ["#111111", "#222222"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("update", "loss")
    assert axes.get_xlim() == (1, 4)
    low, high = axes.get_ylim()
    assert low < 0.25 and high > 3.0
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]


def test_bars_of_errors_are_inside_the_plot_and_x_has_names():
    series = {"a": ([0, 1], [10.0, 20.0]), "b": ([1], [30.0])}
    axes = plots.Axes("share", "%", ticks=("1 %", "all"))
    drawn = plots.curves(series, axes, errors={"a": [2.0, 25.0], "b": [1.0]})
    (plot,) = drawn.axes
    low, high = plot.get_ylim()
    assert low < -5 and high > 45
    assert [text.get_text() for text in plot.get_xticklabels()] == ["1 %", "all"]
    names = [text.get_text() for text in plot.get_legend().get_texts()]
    assert names == ["a", "b"]
    ends = [bar.get_segments() for bar in plot.collections]
    assert ends[0][1][:, 1].tolist() == [-5.0, 45.0]


def test_a_single_series_needs_no_legend():
    assert axes_of(plots.curves({"a": ([1], [2.0])}, AXES)).get_legend() is None


def test_what_is_not_known_is_a_gap():
    values = [1.0, None, math.inf, 4.0]
    axes = axes_of(plots.curves({"a": ([1, 2, 3, 4], values)}, AXES))
    drawn = axes.get_lines()[0].get_ydata()
    np.testing.assert_array_equal(drawn, [1.0, math.nan, math.nan, 4.0])
    assert axes.get_ylim() == pytest.approx((0.85, 4.15))


def test_points_without_neighbours_are_marked():
    """A line through one point alone would show nothing."""
    values = [*range(20), None, 5.0, None, *range(20)]
    line = axes_of(plots.curves({"a": (range(43), values)}, AXES)).get_lines()[0]
    assert line.get_markevery() == [21] and line.get_marker() == "o"
    line = axes_of(plots.curves({"a": (range(3), [1, 2, 3])}, AXES)).get_lines()[0]
    assert line.get_markevery() == [0, 1, 2]
    line = axes_of(plots.curves({"a": (range(20), range(20))}, AXES)).get_lines()[0]
    assert line.get_marker() == ""


def test_series_of_one_colour_differ_by_their_dashes():
    series = {str(i): ([0, 1], [0, i]) for i in range(15)}
    lines = axes_of(plots.curves(series, AXES)).get_lines()
    looks = {(line.get_color(), line.get_linestyle()) for line in lines}
    assert len(looks) == 15
    assert len({line.get_color() for line in lines}) == 7


@pytest.mark.parametrize("log", [False, True])
def test_a_plot_without_numbers_says_so(log):
    axes = axes_of(plots.curves({"a": ([], [])}, plots.Axes("x", "y", log_y=log)))
    assert [text.get_text() for text in axes.texts] == ["no numbers"]


def test_a_logarithmic_axis_has_powers_of_ten_and_gaps_below_zero():
    axes = plots.Axes("dimension", "share", log_y=True)
    drawn = axes_of(plots.curves({"a": ([1, 2, 3], [1.0, 0.0, 1e-5])}, axes))
    assert math.isnan(drawn.get_lines()[0].get_ydata()[1])
    assert drawn.get_yscale() == "log"
    labels = tick_labels(drawn.yaxis)
    assert {"10⁰", "10⁻²", "10⁻⁴"} <= set(labels)
    narrow = axes_of(plots.curves({"a": ([1, 2], [2.0, 5.0])}, axes))
    assert len(tick_labels(narrow.yaxis)) >= 3


def test_counts_are_marked_at_whole_numbers_and_large_ones_in_thousands():
    axes = axes_of(plots.curves({"a": ([0, 1, 2], [0, 1, 2])}, AXES))
    assert tick_labels(axes.xaxis) == ["0", "1", "2"]
    axes = axes_of(plots.curves({"a": ([0, 40_000], [0, 2.5e-4])}, AXES))
    assert tick_labels(axes.xaxis) == ["0", "10k", "20k", "30k", "40k"]
    assert max(map(len, tick_labels(axes.yaxis))) <= 6


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0.0015, "0.0015"), (2.5e-5, "2.5e-5"), (0.00025, "2.5e-4"), (0.0, "0")),
        *((1_200_000, "1.2e6"), (-3.5, "-3.5"), (100.0, "100")),
    ],
)
def test_numbers_beside_an_axis_are_short(value, text):
    assert plots._short(value) == text


def test_a_box_shows_quartiles_extremes_and_every_point():
    groups = [[1.0, 2.0, 3.0, 4.0, 10.0], [5.0, 5.0, 6.0]]
    axes = plots.Axes("block", "nats", y_range=(0, 12))
    drawn = axes_of(plots.boxes(groups, axes, color="#0072b2"))
    assert drawn.get_ylim() == (0, 12)
    *lines, points = drawn.get_lines()
    assert points.get_xydata().tolist() == [
        *([1, y] for y in groups[0]),
        *([2, y] for y in groups[1]),
    ]
    spans = {tuple(line.get_ydata().tolist()) for line in lines}
    assert {(2.0, 1.0), (4.0, 10.0), (3.0, 3.0)} <= spans  # whiskers, median
    assert tick_labels(drawn.xaxis) == ["1", "2"]


def test_a_heat_map_has_its_first_row_below_and_writes_its_numbers():
    values = np.array([[1.0, 0.25], [math.nan, 0.5]])
    cells, bar = plots.heatmap(values, "b", "a", "linear CKA").axes
    [picture] = cells.get_images()
    np.testing.assert_array_equal(picture.get_array().filled(math.nan), values)
    assert picture.origin == "lower" and picture.get_clim() == (0, 1)
    assert picture.get_cmap().name == "viridis"
    written = {text.get_position(): text.get_text() for text in cells.texts}
    assert written == {(0, 0): "1.00", (1, 0): "0.25", (1, 1): "0.50"}
    assert bar.get_ylabel() == "linear CKA"
    large, _ = plots.heatmap(np.ones((13, 13)), "b", "a", "linear CKA").axes
    assert not large.texts and large.get_xticks().tolist() == [*range(13)]


@pytest.mark.parametrize("name", ["_a", "a$b$c", r"$\frac{1}$", "<b>&", "模型", "a%b"])
def test_names_are_shown_as_they_are(name):
    """No mathematics, nothing hidden, and no warning of a letter without a shape."""
    figure = plots.curves({name: ([1], [1.0]), "b": ([1], [2.0])}, AXES)
    [axes] = figure.axes
    assert axes.get_legend().get_texts()[0].get_text() == name
    escaped = name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert f">{escaped}</text>" in render.svg(figure, title="t", prefix="p")
    assert render.png(figure).startswith(b"\x89PNG")


def test_long_names_stay_inside_their_figure():
    names = [f"{i}{'x' * 60}" for i in range(9)]
    figure = plots.curves({name: ([1, 2], [1.0, 2.0]) for name in names}, AXES)
    lay_out(figure)
    box = figure.axes[0].get_legend().get_window_extent()
    width, height = figure.bbox.size
    assert box.x1 <= width and box.y1 <= height and box.y0 > 0.4 * height
    figure = plots.heatmap(np.ones((3, 3)), "b" * 50, "a" * 50, "linear CKA")
    lay_out(figure)
    cells = figure.axes[0]
    for axis in (cells.xaxis, cells.yaxis):
        box = axis.label.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0
        assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


def test_matplotlib_waits_until_something_is_drawn():
    modules = [
        *("litevit_jax.cli", "litevit_jax.train.loop", "litevit_jax.jobs.analyse"),
        *("litevit_jax.report.run_record", "litevit_jax.report.page"),
    ]
    code = (
        f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\n"
        "print([n for n in ('matplotlib', 'jinja2') if n in sys.modules])\n"
        "from litevit_jax.report import build\n"
        "print('matplotlib' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines() == ["[]", "True False"], done.stderr
