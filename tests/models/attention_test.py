"""Every way to compute attention gives the values and gradients of the formula."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax.models import attention, layers, vit
from tests import params as parameters

library = jax.nn.dot_product_attention


def plain_attention(q, k, v, bias=0.0):
    probs = jax.nn.softmax(q @ k.swapaxes(2, 3) / 3 + bias)
    return jnp.einsum("bast,batd->basd", probs, v)


def by(kernel):
    """`attend` with that entry of the table."""
    return lambda q, k, v, bias=None: attention.attend(q, k, v, 1 / 3, bias, kernel)


def normal(seed, *shapes):
    """An array of float32 for each shape, of a standard normal distribution."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


SIX, FIVE = (2, 3, 6, 4), (2, 3, 5, 4)
CASES = {
    "all queries": [FIVE] * 3,
    "an even length": [SIX] * 3,
    "few queries": [(2, 3, 2, 4), FIVE, FIVE],
    "few queries, odd": [(2, 3, 3, 4), SIX, SIX],
    "biased": [*[FIVE] * 3, (3, 5, 5)],
    "few biased queries": [(2, 3, 2, 4), FIVE, FIVE, (3, 2, 5)],
}


@pytest.fixture
def no_card(monkeypatch):
    """In place of cuDNN, which takes a GPU, JAX's own formula with the same call."""
    monkeypatch.setattr(attention, "_why_no_cudnn", lambda: "")

    def stand_in(*args, implementation, **kwargs):
        assert implementation == "cudnn"
        lengths = {x.shape[1] % 2 for x in args}
        assert lengths == {0}, "cuDNN takes even lengths alone"
        return library(*args, implementation="xla", **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)


@pytest.fixture(params=attention.KERNELS)
def kernel(request, no_card, monkeypatch):
    """The name of each entry; the stand-in of cuDNN takes any type and size."""
    refuse = attention._why_not_cudnn
    half = jax.ShapeDtypeStruct((1, 1, 1, 8), jnp.bfloat16)
    monkeypatch.setattr(attention, "_why_not_cudnn", lambda q, bias: refuse(half, bias))
    return request.param


def energy(function, *args):
    """A number that depends on every value of the result, and all its gradients."""
    names = tuple(range(len(args)))
    return jax.value_and_grad(lambda *a: (function(*a) ** 3).sum(), names)(*args)


@pytest.mark.parametrize("case", CASES)
def test_every_kernel_has_the_gradients_of_autodiff(case, kernel):
    args = [1 + 2 * x for x in normal(0, *CASES[case])]
    if kernel == "cudnn" and "biased" in case:
        with pytest.raises(ValueError, match="position bias"):
            by(kernel)(*args)
        return

    (value, grads), (want, plain_grads) = jax.jit(
        lambda *args: (energy(by(kernel), *args), energy(plain_attention, *args))
    )(*args)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    for got, expected in zip(grads, plain_grads, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-3)


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
        return jax.device_get((out, *grads))

    half = [x.astype(jnp.bfloat16) for x in args]
    got = outcome(by(kernel), *half)
    want = outcome(plain_attention, *(x.astype(jnp.float32) for x in half))
    for value, expected in zip(got, want, strict=True):
        assert value.dtype == jnp.bfloat16
        gap = np.abs(value.astype(np.float32) - expected).max()
        assert gap / np.abs(expected).max() < 0.015


def test_attention_of_large_logits_stays_finite(kernel):
    q = np.full((1, 1, 2, 4), 100, np.float32)
    k = q * np.float32([[1], [0]])
    v = np.arange(8, dtype=np.float32).reshape(1, 1, 2, 4)
    attend = functools.partial(attention.attend, scale=1.0, kernel=kernel)

    @jax.jit
    def run(*args):
        out, grads = jax.vjp(attend, *args)
        return out, grads(jnp.ones_like(out))

    out, grads = run(q, k, v)
    np.testing.assert_allclose(out[0, 0, 0], v[0, 0, 0])
    assert all(np.isfinite(x).all() for x in grads)


@pytest.mark.parametrize("kernel", ["plain", "deferred"])
def test_the_gradient_of_the_bias_is_summed_in_float32(kernel):
    attend = by(kernel)

    @jax.jit
    def grad(bias, *args):
        return jax.grad(lambda b: attend(*args, b).sum(dtype=jnp.float32))(bias)

    half = [x.astype(jnp.bfloat16) for x in normal(2, *[(64, 1, 3, 4)] * 3)]
    bias, whole = np.zeros((1, 3, 3), np.float32), [x.astype(np.float32) for x in half]
    got, want = grad(bias, *half), grad(bias, *whole)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=0.01 * abs(want).max())


def test_tokens_that_ask_nothing_change_no_answer(kernel):
    block = layers.Block(3, 48, "mae", "float32", attention=kernel)
    [x] = normal(1, (2, 6, 12))

    def tail(variables, x, first):
        out = block.apply(variables, x, first_query=first)[0][:, -2:]
        return (out**2).sum(), out

    @jax.jit
    def both(*args):
        grad = jax.grad(tail, (0, 1), has_aux=True)
        return [grad(*args, first) for first in (4, 0)]

    (grads, out), (all_grads, all_out) = both(parameters.start(block, x), x)
    np.testing.assert_allclose(out, all_out, atol=1e-5)
    for got, want in zip(*map(jax.tree.leaves, (grads, all_grads)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("capability", "expected"),
    [("7.5", "capability 7.5, below 8.0"), ("8.0", ""), ("9.0", "")],
)
def test_cudnn_is_left_out_where_the_card_is_too_old(capability, expected, monkeypatch):
    """A T4 has 7.5, and cuDNN, which JAX alone asks for."""
    card = mock.Mock(platform="gpu", compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda: [card])
    monkeypatch.setattr(jax, "eval_shape", lambda *_: None)
    reason = attention._why_no_cudnn.__wrapped__()
    assert expected in reason
    assert bool(reason) == bool(expected)


def half(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16)


def by_platform(q, k=None, kernel="auto"):
    """Platform -> name of the entry that is taken there."""
    ways = attention._ways(0, kernel, 1.0, q, q if k is None else k, None)
    names = {entry[0]: name for name, entry in attention.KERNELS.items()}
    return {platform: names[way.func] for platform, way in ways.items()}


@pytest.mark.parametrize(
    ("shape", "taken"),
    [
        ((2, 12, 197, 16), "cudnn"),
        ((2, 12, 50, 64), "cudnn"),
        ((2, 12, 47, 16), "plain"),  # too few keys to be faster
        ((2, 12, 197, 20), "plain"),  # not a multiple of 8
        ((2, 1, 197, 192), "plain"),  # too large
    ],
)
def test_on_gpus_the_shape_chooses_and_elsewhere_the_platform(shape, taken, no_card):
    found = by_platform(half(*shape))
    assert found["cpu"] == "deferred"
    assert found["default"] == "plain"
    assert found.get("cuda", "plain") == taken


def test_an_entry_that_is_named_is_taken_on_every_platform(no_card):
    for name in attention.KERNELS:
        assert by_platform(half(2, 12, 16, 16), kernel=name) == {"default": name}


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((2, 12, 50, 16), "float32", "expected bfloat16"),
        ((2, 12, 50, 20), "bfloat16", "a size of 20, expected a multiple of 8"),
        ((2, 1, 50, 192), "bfloat16", "a size of 192"),
    ],
)
def test_cudnn_by_name_is_refused_where_it_does_not_apply(
    shape, dtype, reason, no_card
):
    x = jnp.zeros(shape, dtype)
    with pytest.raises(ValueError, match=f"attention=cudnn.*{reason}"):
        attention.attend(x, x, x, 1.0, kernel="cudnn")


def test_cudnn_is_not_taken_where_values_have_other_channels(no_card):
    q, v = jnp.zeros((2, 2, 64, 24), jnp.bfloat16), jnp.zeros((2, 2, 64, 8), "bfloat16")
    with pytest.raises(ValueError, match="values have 8 channels and queries 24"):
        attention.attend(q, q, v, 1.0, kernel="cudnn")
    assert "cuda" in attention._ways(0, "auto", 1.0, q, q, None)
    assert "cuda" not in attention._ways(0, "auto", 1.0, q, q, None, v)


def test_features_are_computed_by_the_platforms_own_attention():
    encoder = vit.make_encoder(variant="tiny", dtype="bfloat16", attention="cudnn")
    assert encoder.in_float32() == vit.make_encoder(variant="tiny")
