"""Operations with gradients of their own: those of the plain formulas."""

import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax.models import layers, ops


def test_gelu_is_exact_with_its_gradient():
    x = np.linspace(-9, 9, 2001)
    phi = np.array([(1 + math.erf(v / math.sqrt(2))) / 2 for v in x])
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    value, grad = jax.vmap(jax.value_and_grad(ops.gelu))(x.astype(np.float32))
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


def plain_attention(q, k, v):
    return jnp.einsum("bast,batd->basd", jax.nn.softmax(q @ k.swapaxes(2, 3) / 3), v)


def attend(q, k, v):
    return ops.attend(q, k, v, 1 / 3)


def plain_biased_attention(q, k, v, bias):
    probs = jax.nn.softmax(q @ k.swapaxes(2, 3) / 3 + bias)
    return jnp.einsum("bast,batd->basd", probs, v)


def attend_with(q, k, v, bias):
    return ops.attend(q, k, v, 1 / 3, bias)


CASES = {
    "wide linear": (ops.linear, plain_linear, [(3, 5, 8), (8, 12), (12,)]),
    "tall linear": (ops.linear, plain_linear, [(3, 5, 8), (8, 4), (4,)]),
    "heads": (heads(0), plain_heads(0), [(3, 5, 8), (8, 24), (24,)]),
    "heads of few": (heads(2), plain_heads(2), [(3, 5, 8), (8, 24), (24,)]),
    "norm": (ops.normalize, plain_norm, [(3, 5, 8), (8,), (8,)]),
    "attention": (attend, plain_attention, [(2, 3, 5, 4)] * 3),
    "few queries": (attend, plain_attention, [(2, 3, 2, 4)] + [(2, 3, 5, 4)] * 2),
    "biased attention": (
        attend_with,
        plain_biased_attention,
        [*[(2, 3, 5, 4)] * 3, (3, 5, 5)],
    ),
    "few biased queries": (
        attend_with,
        plain_biased_attention,
        [(2, 3, 2, 4), *[(2, 3, 5, 4)] * 2, (3, 2, 5)],
    ),
}


@pytest.fixture(params=ops.KERNELS)
def kernel(request, monkeypatch):
    """Each way to compute attention, as if it were this platform's."""
    monkeypatch.setattr(ops, "KERNELS", {"default": ops.KERNELS[request.param]})


@pytest.mark.parametrize("way", ops.HEADS)
@pytest.mark.parametrize("case", ["heads", "heads of few"])
def test_every_way_to_heads_has_the_gradients_of_autodiff(case, way, monkeypatch):
    monkeypatch.setattr(ops, "HEADS", {"default": ops.HEADS[way]})
    same_as_autodiff(case)


def test_parameters_get_float32_gradients_from_bfloat16(monkeypatch):
    x, kernel, bias = (jnp.ones(s) for s in [(64, 5, 8), (8, 24), (24,)])

    def energy(x, kernel, bias):
        return sum(y.sum() for y in ops.project_heads(x, kernel, bias, 2, 0))

    for way in ops.HEADS.values():
        monkeypatch.setattr(ops, "HEADS", {"default": way})
        grads = jax.grad(energy, (0, 1, 2))(x.astype(jnp.bfloat16), kernel, bias)
        assert [g.dtype for g in grads] == [jnp.bfloat16, jnp.float32, jnp.float32]


@pytest.mark.parametrize("case", [c for c in CASES if "norm" in c or "linear" in c])
def test_own_gradients_are_those_of_autodiff(case):
    same_as_autodiff(case)


@pytest.mark.parametrize("case", [c for c in CASES if "attention" in c])
def test_every_kernel_has_the_gradients_of_autodiff(case, kernel):
    same_as_autodiff(case)


def test_every_kernel_keeps_the_precision_of_bfloat16(kernel):
    """Sizes of ViT-Tiny: 12 heads of 16, 49 patches and the class token."""
    keys = jax.random.split(jax.random.key(4), 4)
    *args, weight = (jax.random.normal(key, (2, 12, 50, 16)) for key in keys)

    def outcome(function, *args):
        def energy(*args):
            out = function(*args)
            return (out.astype(jnp.float32) * weight).sum(), out

        of_all = jax.jit(jax.value_and_grad(energy, (0, 1, 2), has_aux=True))
        (_, out), grads = of_all(*args)
        return out, *grads

    half = [x.astype(jnp.bfloat16) for x in args]
    found = outcome(attend, *half)
    want = outcome(plain_attention, *(x.astype(jnp.float32) for x in half))
    for got, value in zip(found, want, strict=True):
        assert got.dtype == jnp.bfloat16
        gap = jnp.abs(got.astype(jnp.float32) - value).max() / jnp.abs(value).max()
        assert gap < 0.015


def same_as_autodiff(case):
    ours, plain, shapes = CASES[case]
    keys = jax.random.split(jax.random.key(0), len(shapes))
    args = [1 + 2 * jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]

    def energy(function):
        names = tuple(range(len(args)))
        value_and_grad = jax.value_and_grad(lambda *a: (function(*a) ** 3).sum(), names)
        return jax.jit(value_and_grad)(*args)

    (value, grads), (expected, plain_grads) = energy(ours), energy(plain)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for got, want in zip(grads, plain_grads, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)


def test_attention_of_large_logits_stays_finite(kernel):
    q = jnp.full((1, 1, 2, 4), 100.0)
    k = jnp.stack([jnp.full((1, 1, 4), 100.0), jnp.zeros((1, 1, 4))], axis=2)
    v = jnp.arange(8.0).reshape(1, 1, 2, 4)
    out, grads = jax.vjp(lambda *x: ops.attend(*x, 1.0), q, k, v)
    np.testing.assert_allclose(out[0, 0, 0], v[0, 0, 0])
    assert all(np.isfinite(x).all() for x in grads(jnp.ones_like(out)))


def test_the_gradient_of_the_bias_is_summed_in_float32(kernel):
    keys = jax.random.split(jax.random.key(2), 3)
    q, k, v = (jax.random.normal(key, (64, 1, 3, 4)) for key in keys)
    bias = jnp.zeros((1, 3, 3))

    def grad(*args):
        return jax.grad(lambda b: attend_with(*args, b).sum(dtype=jnp.float32))(bias)

    half = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    found, want = grad(*half), grad(*(x.astype(jnp.float32) for x in half))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, want, atol=0.01 * abs(want).max())


def test_tokens_that_ask_nothing_change_no_answer(kernel):
    block = layers.Block(3, 48, "mae", "float32")
    x = jax.random.normal(jax.random.key(1), (2, 6, 12))
    variables = block.init(jax.random.key(0), x)

    def tail(variables, x, first):
        out, _ = block.apply(variables, x, first_query=first)
        return out[:, -2:]

    def grads(first):
        return jax.grad(lambda *a: (tail(*a, first) ** 2).sum(), (0, 1))(variables, x)

    np.testing.assert_allclose(tail(variables, x, 4), tail(variables, x, 0), atol=1e-5)
    for got, want in zip(*map(jax.tree.leaves, (grads(4), grads(0))), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("capability", "expected"), [("7.5", False), ("8.0", True), ("9.0", True)]
)
def test_fused_attention_is_left_out_where_the_card_is_too_old(
    capability, expected, monkeypatch
):
    """A T4 has 7.5, and cuDNN, which JAX alone asks for."""
    card = mock.Mock(platform="gpu", compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda: [card])
    monkeypatch.setattr(jax, "eval_shape", lambda *_: None)
    assert ops._cudnn_is_here.__wrapped__() is expected
