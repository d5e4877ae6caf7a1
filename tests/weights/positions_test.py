"""Resized position embeddings are PyTorch's (recorded by `make_fixtures.py`)."""

import pathlib

import numpy as np
import pytest

from litevit_jax.models import interpolate
from litevit_jax.weights import positions
from tests import dense_golden as golden

with np.load(pathlib.Path(__file__).parent / "fixtures" / "expected.npz") as recorded:
    EXPECTED = dict(recorded)

RECORDED = sorted(name for name in EXPECTED if name.startswith("resized_"))


@pytest.mark.parametrize("name", RECORDED)
def test_resizing_agrees_with_pytorch(name):
    rows, cols = map(int, name.removeprefix("resized_").split("x"))
    table = positions.resize(EXPECTED["table"], (4, 6), (rows, cols))
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table[:, 0], EXPECTED["table"][:, 0])
    np.testing.assert_allclose(table[:, 1:], EXPECTED[name], rtol=0, atol=3e-6)


def test_there_are_rectangular_grids_among_those_recorded():
    assert {"resized_7x6", "resized_4x13", "resized_2x3"} <= set(RECORDED)


def test_rows_and_columns_are_not_exchanged():
    table = np.zeros((1, 1 + 4 * 6, 1), np.float32)
    table[0, 1:, 0] = np.repeat(np.arange(4), 6)  # the row's number
    resized = positions.resize(table, (4, 6), (4, 3))
    np.testing.assert_allclose(resized[0, 1:, 0].reshape(4, 3)[:, 0], np.arange(4))


def test_the_same_grid_changes_no_bit():
    table = EXPECTED["table"]
    np.testing.assert_array_equal(positions.resize(table, (4, 6), (4, 6)), table)


def test_weights_of_a_row_sum_to_one():
    for sizes in ((4, 9), (9, 4), (1, 5), (14, 16)):
        np.testing.assert_allclose(interpolate.cubic_matrix(*sizes).sum(axis=1), 1)


def test_a_table_of_another_grid_is_refused():
    with pytest.raises(ValueError, match=r"shape \(1, 25, 3\), expected \(1, 21, D\)"):
        positions.resize(EXPECTED["table"], (4, 5), (2, 2))
    with pytest.raises(ValueError, match="at least 1 x 1"):
        positions.resize(EXPECTED["table"], (4, 6), (0, 2))


@pytest.mark.parametrize(("side", "every"), [(40, 3), (32, 3)])
def test_positions_of_larger_images_are_the_recorded_ones(side, every):
    values = golden.group("pos")
    table = positions.resize(values["table_14"], (14, 14), (side, side))
    got = table[0, 1:].reshape(side, side, -1)[::every, ::every]
    golden.close(got, values[f"to_{side}"])


def test_a_stretched_table_is_the_recorded_one():
    values = golden.group("relpos")
    assert positions.geometric_ratio(13, 31) == pytest.approx(values["q"], abs=1e-12)
    got = positions.stretch_bias(values["table_27"], (14, 14), (32, 32))
    golden.close(got, values["to_63"])
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got[-3:], values["table_27"][-3:])


def test_a_table_of_the_same_grid_stays():
    table = np.random.default_rng(0).normal(size=(3 * 5 + 3, 2)).astype(np.float32)
    np.testing.assert_array_equal(positions.stretch_bias(table, (2, 3), (2, 3)), table)


def test_rows_and_columns_are_stretched_apart():
    rows, cols = np.linspace(-1, 1, 7) ** 3, np.linspace(0, 2, 5)
    table = np.concatenate([np.outer(rows, cols).ravel(), np.zeros(3)])[:, None]
    got = positions.stretch_bias(table, (4, 3), (6, 3))[:-3, 0].reshape(11, 5)
    np.testing.assert_allclose(got, np.outer(got[:, 2] / cols[2], cols), atol=1e-12)
    assert got[0, 2] == pytest.approx(-1) and got[5, 2] == pytest.approx(0)
    # One row says nothing about offsets: all get its values.
    flat = positions.stretch_bias(np.arange(6.0)[:, None], (1, 2), (3, 2))
    np.testing.assert_array_equal(flat[:-3, 0].reshape(5, 3), [[0, 1, 2]] * 5)


@pytest.mark.parametrize(
    ("rows", "grid", "message"),
    [(10, (3, 3), r"got shape \(10, 1\), expected \(12, heads\)"), (12, (1, 4), "not")],
)
def test_a_table_that_cannot_be_stretched_is_refused(rows, grid, message):
    with pytest.raises(ValueError, match=message):
        positions.stretch_bias(np.zeros((rows, 1)), (2, 2), grid)
