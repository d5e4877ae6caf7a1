"""FLOPs of matrix products, counted from the trace."""

import jax
import jax.numpy as jnp
import pytest

from litevit_jax.plan import flops


def shape(*sides):
    return jax.ShapeDtypeStruct(sides, jnp.float32)


def matmul(x, y):
    return x @ y


def in_a_loop(x, y):
    return jax.lax.scan(lambda c, _: (c @ y, None), x, None, length=7)[0]


def in_branches(x, y):
    return jax.lax.cond(x[0, 0] > 0, lambda: x @ y, lambda: x @ y + (x @ y) @ y)


def with_gradient(x, y):
    return jax.jit(jax.grad(lambda x, y: (x @ y).sum() ** 2, argnums=(0, 1)))(x, y)


@pytest.mark.parametrize(
    ("function", "times"),
    [(matmul, 1), (in_a_loop, 7), (in_branches, 3), (with_gradient, 3)],
)
def test_products_are_counted_wherever_they_are(function, times):
    one = 2 * 8 * 16 * 16
    expected = times * one
    assert flops.count(function, shape(8, 16), shape(16, 16)) == expected


def test_a_convolution_costs_its_kernel_at_every_output():
    def patches(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    counted = flops.count(patches, shape(2, 16, 16, 3), shape(4, 4, 3, 24))
    assert counted == 2 * (2 * 4 * 4 * 24) * (4 * 4 * 3)


def test_batched_products_are_counted_as_often():
    def attend(q, k):
        return jnp.einsum("bqhd,bkhd->bhqk", q, k)

    counted = flops.count(attend, shape(2, 5, 3, 8), shape(2, 7, 3, 8))
    assert counted == 2 * 2 * 3 * 5 * 7 * 8
