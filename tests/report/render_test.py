"""SVG and PNG of a plot: the same bytes again, and nothing that leaks into a page."""

import re
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from litevit_jax.report import plots, render


def curves():
    series = {"a": ([1, 2, 3], [1.0, None, 2 / 3]), "b": ([1, 3], [0.1, 0.2])}
    return plots.curves(series, plots.Axes("update", "loss", whole_x=True))


def heatmap():
    return plots.heatmap(np.eye(3), "columns", "rows", "linear CKA")


@pytest.mark.parametrize("make", [curves, heatmap])
def test_the_same_numbers_give_the_same_bytes(make):
    one, other = (render.svg(make(), title="T", prefix="p") for _ in range(2))
    assert one == other
    assert render.png(make()) == render.png(make())


@pytest.mark.parametrize("make", [curves, heatmap])
def test_identifiers_are_the_figures_own_and_all_exist(make):
    texts = [render.svg(make(), title="T", prefix=prefix) for prefix in ("one", "two")]
    ids = [re.findall(r' id="([^"]*)"', text) for text in texts]
    assert ids[0] and not set(ids[0]) & set(ids[1])
    for text, own in zip(texts, ids, strict=True):
        used = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', text)
        assert used and {a or b for a, b in used} <= set(own)
        assert len(set(own)) == len(own)


def test_a_figure_brings_no_style_date_font_or_address_with_it():
    for make in (curves, heatmap):
        root = ElementTree.fromstring(render.svg(make(), title='A "B"', prefix="p"))
        tags = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert not tags & {"style", "metadata", "script", "font"}
        assert root.get("aria-label") == 'A "B"' and root.get("role") == "img"
        assert "width" not in root.attrib and root.get("viewBox").startswith("0 0 440 ")
        for element in root.iter():
            for key, value in element.attrib.items():
                assert "font-family" not in value
                if key.endswith("href"):
                    assert value.startswith(("#", "data:image/png;base64,"))
                assert "http" not in value


def test_points_are_drawn_where_their_numbers_are():
    series = {"a": ([0, 1, 2], [0.0, 50.0, 100.0])}
    axes = plots.Axes("update", "%", y_range=(0, 100))
    text = render.svg(plots.curves(series, axes), title="T", prefix="p")
    [line] = re.findall(r'<path d="([^"]*)" style="fill: none; stroke: #0072b2', text)
    numbers = [float(x) for x in re.findall(r"[\d.]+", line)]
    low, middle, high = zip(numbers[::2], numbers[1::2], strict=True)
    assert middle == pytest.approx(((low[0] + high[0]) / 2, (low[1] + high[1]) / 2))
    assert low[0] < high[0] and low[1] > high[1]  # y grows downwards
    assert not re.search(r"\d\.\d{3,}", line)


def test_letters_that_xml_does_not_have_are_left_out():
    figure = plots.curves(
        {"a\x01b": ([1], [1.0]), "c": ([1], [1.0])}, plots.Axes("", "")
    )
    text = render.svg(figure, title="T", prefix="p")
    assert ">ab</text>" in text
    ElementTree.fromstring(text)


def test_a_matplotlibrc_changes_nothing_and_is_left_alone():
    plain = render.svg(curves(), title="T", prefix="p")
    with matplotlib.rc_context({"lines.linewidth": 9, "svg.fonttype": "path"}):
        assert render.svg(curves(), title="T", prefix="p") == plain
        assert matplotlib.rcParams["svg.fonttype"] == "path"
