"""Position tables, patches, GELU and drop path against their definitions."""

import math

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


def test_gelu_is_exact_with_its_gradient():
    x = np.linspace(-9, 9, 2001)
    phi = np.array([(1 + math.erf(v / math.sqrt(2))) / 2 for v in x])
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    value, grad = jax.vmap(jax.value_and_grad(layers.gelu))(x.astype(np.float32))
    np.testing.assert_allclose(value, x * phi, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(grad, phi + x * density, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("ours", "plain", "given"),
    [
        (layers.softmax, jax.nn.softmax, "logits"),
        (layers.linear, lambda x, w, b: jnp.einsum("btd,de->bte", x, w) + b, "kernel"),
        (
            layers.normalize,
            lambda x, s, b: jax.nn.standardize(x, epsilon=1e-6) * s + b,
            "vectors",
        ),
    ],
)
def test_own_gradients_are_those_of_autodiff(ours, plain, given):
    key = jax.random.key(0)
    x = 1 + 2 * jax.random.normal(key, (3, 5, 8))
    kernel = [jax.random.normal(key, (8, 8)), jnp.ones(8)]
    vectors = [jax.random.normal(key, (8,)), jnp.ones(8)]
    args = (x, *{"logits": [], "kernel": kernel, "vectors": vectors}[given])

    def energy(function):
        names = tuple(range(len(args)))
        return jax.value_and_grad(lambda *a: (function(*a) ** 3).sum(), names)(*args)

    (value, grads), (expected, plain_grads) = energy(ours), energy(plain)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for got, want in zip(grads, plain_grads, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)


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
