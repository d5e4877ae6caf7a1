"""Position tables, patches and drop path against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax.models import layers


def test_sincos_table_has_the_recorded_values():
    table = layers.sincos_table((14, 14), 192, "sincos")
    assert table.shape == (197, 192)
    assert not table[0].any()
    token = table[2]  # row 0, column 1
    close = lambda got, want: np.testing.assert_allclose(got, want, atol=1e-6)  # noqa: E731
    close(token[:3], [0.841471, 0.734822, 0.629797])
    close(token[48:51], [0.540302, 0.678260, 0.776760])
    close(token[96:99], 0)
    close(token[144:147], 1)


@pytest.mark.parametrize("grid", [(14, 14), (2, 5)])
def test_moco_table_exchanges_the_halves(grid):
    ours = layers.sincos_table(grid, 16, "sincos")
    moco = layers.sincos_table(grid, 16, "sincos_moco")
    np.testing.assert_array_equal(moco, np.roll(ours, 8, axis=1))


def test_sincos_table_of_a_rectangle_is_part_of_the_square():
    square = layers.sincos_table((5, 5), 8, "sincos")[1:].reshape(5, 5, 8)
    rectangle = layers.sincos_table((2, 5), 8, "sincos")[1:].reshape(2, 5, 8)
    np.testing.assert_array_equal(rectangle, square[:2])


def test_patchify_orders_row_column_channel():
    image = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    patches = layers.patchify(jnp.asarray(image), 2)
    for n in range(6):
        row, col = 2 * (n // 3), 2 * (n % 3)
        expected = image[:, row : row + 2, col : col + 2].reshape(2, -1)
        np.testing.assert_array_equal(patches[:, n], expected)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 30, 32, 3), r"height 30 and width 32 .* multiples of patch_size=16"),
        ((1, 32, 40, 3), r"height 32 and width 40 .* multiples of patch_size=16"),
        ((32, 32, 3), r"got shape \(32, 32, 3\), expected \[B, H, W, C\]"),
    ],
)
def test_patchify_names_what_does_not_fit(shape, message):
    with pytest.raises(ValueError, match=message):
        layers.patchify(jnp.zeros(shape), 16)


def test_drop_path_keeps_the_expectation_and_whole_examples():
    keys = jax.random.split(jax.random.key(0), 4000)
    out = np.asarray(layers.drop_path(jnp.ones((4000, 2, 3)), keys, 0.25))
    assert (out == out[:, :1, :1]).all()
    values = np.unique(out)
    np.testing.assert_allclose(values, [0, 1 / 0.75], rtol=1e-6)
    assert abs(out.mean() - 1) < 0.03


def test_drop_path_of_an_example_follows_its_key():
    keys = jax.random.split(jax.random.key(0), 16)
    whole = layers.drop_path(jnp.ones((16, 1, 1)), keys, 0.5)
    part = layers.drop_path(jnp.ones((5, 1, 1)), keys[3:8], 0.5)
    np.testing.assert_array_equal(part, whole[3:8])
