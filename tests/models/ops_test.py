"""Operations with gradients of their own: those of the plain formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax.models import layers, ops


def test_gelu_is_exact_with_its_gradient():
    x = np.linspace(-9, 9, 2001)
    phi = np.array([(1 + math.erf(v / math.sqrt(2))) / 2 for v in x])
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    gelu = jax.jit(jax.vmap(jax.value_and_grad(ops.gelu)))
    value, grad = gelu(x.astype(np.float32))
    np.testing.assert_allclose(value, x * phi, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(grad, phi + x * density, rtol=1e-6, atol=1e-6)


def plain_linear(x, kernel, bias):
    return jnp.einsum("btd,de->bte", x, kernel) + bias


def plain_heads(first):
    def project(x, kernel, bias):
        q, k, v = jnp.split(plain_linear(x, kernel, bias), 3, axis=-1)
        heads = [layers.split_heads(part, 2) for part in (q[:, first:], k, v)]
        return jnp.concatenate(heads, axis=2)

    return project


def heads(first):
    """`project_heads`, its results side by side."""
    return lambda *args: jnp.concatenate(ops.project_heads(*args, 2, first), axis=2)


def plain_norm(x, scale, bias):
    return jax.nn.standardize(x, epsilon=1e-6) * scale + bias


CASES = {
    "wide linear": (ops.linear, plain_linear, [(3, 5, 8), (8, 12), (12,)]),
    "tall linear": (ops.linear, plain_linear, [(3, 5, 8), (8, 4), (4,)]),
    "heads": (heads(0), plain_heads(0), [(3, 5, 8), (8, 24), (24,)]),
    "heads of few": (heads(2), plain_heads(2), [(3, 5, 8), (8, 24), (24,)]),
    "norm": (ops.normalize, plain_norm, [(3, 5, 8), (8,), (8,)]),
}


@pytest.mark.parametrize("way", ops.HEADS)
@pytest.mark.parametrize("case", ["heads", "heads of few"])
def test_every_way_to_heads_has_the_gradients_of_autodiff(case, way, monkeypatch):
    monkeypatch.setattr(ops, "HEADS", {"default": ops.HEADS[way]})
    assert not differing(case)


def test_parameters_get_float32_gradients_from_bfloat16(monkeypatch):
    args = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (
            ((64, 5, 8), jnp.bfloat16),
            ((8, 24), jnp.float32),
            ((24,), jnp.float32),
        )
    ]

    def energy(x, kernel, bias):
        return sum(y.sum() for y in ops.project_heads(x, kernel, bias, 2, 0))

    for way in ops.HEADS.values():
        monkeypatch.setattr(ops, "HEADS", {"default": way})
        grads = jax.eval_shape(jax.grad(energy, (0, 1, 2)), *args)
        assert [g.dtype for g in grads] == [x.dtype for x in args]


def test_on_gpus_gradients_in_half_precision_are_rounded_once():
    """The sum of the bias reads what the products read, and no float32 copy of it."""

    def barriers(dtype):
        x, kernel, bias = (jnp.ones(s) for s in [(2, 5, 8), (8, 4), (4,)])
        out, pull = jax.vjp(ops.linear, x.astype(dtype), kernel, bias)
        return str(jax.make_jaxpr(pull)(out)).count("optimization_barrier")

    assert barriers("bfloat16") == barriers("float32") + 1


@pytest.mark.parametrize("case", [c for c in CASES if "norm" in c or "linear" in c])
def test_own_gradients_are_those_of_autodiff(case):
    assert not differing(case)


def differing(case):
    """The results that are not those of autodiff: the value is 0, gradients follow."""
    ours, plain, shapes = CASES[case]
    rng = np.random.default_rng(0)
    args = [1 + 2 * rng.normal(size=shape).astype(np.float32) for shape in shapes]

    def energy(function, *args):
        names = tuple(range(len(args)))
        return jax.value_and_grad(lambda *a: (function(*a) ** 3).sum(), names)(*args)

    (value, grads), (expected, plain_grads) = jax.jit(
        lambda *args: (energy(ours, *args), energy(plain, *args))
    )(*args)
    close = [np.allclose(value, expected, rtol=1e-5, atol=0)]
    for got, want in zip(grads, plain_grads, strict=True):
        close.append(np.allclose(got, want, rtol=1e-4, atol=1e-3))
    return [number for number, equal in enumerate(close) if not equal]
