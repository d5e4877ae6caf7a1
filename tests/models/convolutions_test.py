"""Convolutions: their gradients are those of autodiff, on any platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax.models import convolutions


@pytest.mark.parametrize(
    "side, channels", [(3, (192, 200)), (1, (8, 64)), (3, (8, 64))]
)
def test_gradients_are_those_of_autodiff(side, channels):
    """Wide kernels and those of 1 x 1 have one of their own on CPUs."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4, 5, channels[0])).astype("f4")
    kernel = rng.normal(size=(side, side, *channels)).astype("f4")
    grad = rng.normal(size=(2, 4, 5, channels[1])).astype("f4")

    def plain(x, kernel):
        edge = (side // 2, side // 2)
        x = jnp.pad(x, ((0, 0), edge, edge, (0, 0)))
        return sum(
            jnp.einsum("bhwc,co->bhwo", x[:, i : i + 4, j : j + 5], kernel[i, j])
            for i in range(side)
            for j in range(side)
        )

    for function in (convolutions.convolve, plain):
        out, pull = jax.vjp(function, x, kernel)
        result = (out, *pull(grad))
        if function is convolutions.convolve:
            got = result
    for one, other in zip(got, result, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3)


def test_a_convolution_keeps_the_size_and_the_type():
    layer = convolutions.conv(
        192, 3, "bfloat16", name="one", init=convolutions.HE_NORMAL, bias=True
    )
    x = jnp.ones((1, 4, 4, 192))
    out, variables = layer.init_with_output(jax.random.key(0), x)
    assert out.shape == x.shape and out.dtype == jnp.bfloat16

    def total(params):
        return layer.apply({"params": params}, x).astype(jnp.float32).sum()

    grads = jax.grad(total)(variables["params"])
    assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
