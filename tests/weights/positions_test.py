"""Resized position embeddings are PyTorch's (recorded by `make_fixtures.py`)."""

import pathlib

import numpy as np
import pytest

from litevit_jax.weights import positions

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
        np.testing.assert_allclose(positions.cubic_matrix(*sizes).sum(axis=1), 1)


def test_a_table_of_another_grid_is_refused():
    with pytest.raises(ValueError, match=r"shape \(1, 25, 3\), expected \(1, 21, D\)"):
        positions.resize(EXPECTED["table"], (4, 5), (2, 2))
    with pytest.raises(ValueError, match="at least 1 x 1"):
        positions.resize(EXPECTED["table"], (4, 6), (0, 2))
