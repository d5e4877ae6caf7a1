"""Figures of an analysis hold its numbers."""

import math

import numpy as np
import pytest

from litevit_jax.report import analysis_figures

COLORS = {"a": "#0072b2", "b": "#d55e00"}


def draw(analysis):
    figures = analysis_figures.of_analysis(analysis, None, COLORS, [])
    return {figure.name: figure for figure in figures}


def test_models_share_a_range_that_their_heads_fill():
    """One to compare them by; from 0 on, distances of 12 to 16 pixels would be flat."""
    heads = {"a": [[12.0, 13.0], [12.5, 14.0]], "b": [[15.0, 16.0], [12.0, 15.0]]}
    every = {name: {"distance": v, "entropy": v} for name, v in heads.items()}
    figures = draw({"attention": every})
    assert len(figures) == 4
    for figure in figures.values():
        [axes] = figure.plot.axes
        assert axes.get_ylim() == pytest.approx((11.8, 16.2))
        points = axes.get_lines()[-1].get_ydata()
        assert points.tolist() == np.ravel(heads[figure.data["model"]]).tolist()
    unit = figures["attention-distance-a"].plot.axes[0].get_ylabel()
    assert unit == "attention distance (pixels)"


def test_similarity_of_two_models_is_the_matrix_of_their_layers():
    values = [[1.0, 0.5, None], [0.25, 0.75, 0.125]]
    pair = {"rows": "a", "columns": "b", "values": values}
    figures = draw({"cka": {"minibatches": 3, "size": 64, "pairs": [pair]}})
    figure = figures["cka-a-b"]
    cells, bar = figure.plot.axes
    drawn = cells.get_images()[0].get_array().filled(math.nan)
    np.testing.assert_array_equal(drawn, np.array(values, float))
    assert (cells.get_xlabel(), cells.get_ylabel()) == ("blocks of b", "blocks of a")
    assert bar.get_ylabel() == "linear CKA"
    assert "3 minibatches of 64 images" in figure.caption


def test_features_of_all_models_stand_in_one_figure():
    numbers = {"effective_rank": [1.0, 2.0], "token_similarity": [0.5, 0.25]}
    spectra = {"a": [[9.0], [4.0, 1.0, 1e-12]], "b": [[9.0], [2.0, 1.0, 0.5]]}
    features = {name: numbers | {"spectrum": s} for name, s in spectra.items()}
    of = {"place": "norm1", "pool": "avg"}
    figures = draw({"features": features, "features_of": of})
    [axes] = figures["features-effective_rank"].plot.axes
    for line, name in zip(axes.get_lines(), "ab", strict=True):
        assert line.get_xydata().tolist() == [[0, 1.0], [1, 2.0]]
        assert (line.get_label(), line.get_color()) == (name, COLORS[name])
    [axes] = figures["features-spectrum"].plot.axes
    first, second = (line.get_xydata() for line in axes.get_lines())
    assert axes.get_yscale() == "log"
    assert first[:2].tolist() == [[1, 1.0], [2, 0.25]] and math.isnan(first[2, 1])
    assert second.tolist() == [[1, 1.0], [2, 0.5], [3, 0.25]]
