"""The operations a transformer spends its time in, with custom gradients.

Each computes what autodiff of the plain formula would, in reverse mode only. It differs
in what is kept for the backward pass and in the order of axes. Attention is in
attention.py; benchmarks/train_step.py measures them.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

EPSILON = 1e-6  # every LayerNorm of the reference models


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Computes x * Phi(x) with the exact error function, in float32 inside.

    Its gradient keeps only x for the backward pass and needs one exponential.
    """
    x32 = x.astype(jnp.float32)
    return (x32 * (0.5 * (1 + jax.lax.erf(x32 * math.sqrt(0.5))))).astype(x.dtype)


def _gelu_forward(x):
    return gelu(x), x


def _gelu_backward(x, grad):
    x32 = x.astype(jnp.float32)
    exps = jnp.exp(-0.5 * x32 * x32)
    # Phi(-|x|) to 1.5e-7, from the exponential that the density needs anyway
    # (Abramowitz and Stegun, 7.1.26).
    t = 1 / (1 + (0.3275911 * math.sqrt(0.5)) * jnp.abs(x32))
    tail = 1.061405429 * t - 1.453152027
    for coefficient in (1.421413741, -0.284496736, 0.254829592):
        tail = tail * t + coefficient
    tail = 0.5 * t * tail * exps
    cdf = jnp.where(x32 < 0, tail, 1 - tail)
    density = exps * (1 / math.sqrt(2 * math.pi))
    return ((grad * (cdf + x32 * density)).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


@jax.custom_vjp
def normalize(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """LayerNorm of `[..., D]` with two-pass statistics in float32, as PyTorch's.

    Its gradient keeps x and one mean and deviation per row, and reads each once.
    """
    return _normalize_forward(x, scale, bias)[0]


def _normalize_forward(x, scale, bias):
    x32 = x.astype(jnp.float32)
    mean = x32.mean(axis=-1, keepdims=True)
    centred = x32 - mean
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + EPSILON)
    out = (centred * inverse * scale + bias).astype(x.dtype)
    return out, (x, mean, inverse, scale)


def _normalize_backward(saved, grad):
    x, mean, inverse, scale = saved
    normed = (x.astype(jnp.float32) - mean) * inverse
    grad = grad.astype(jnp.float32)
    scaled = grad * scale
    along = (scaled * normed).mean(axis=-1, keepdims=True)
    grad_x = inverse * (scaled - scaled.mean(axis=-1, keepdims=True) - normed * along)
    rows = tuple(range(x.ndim - 1))
    return grad_x.astype(x.dtype), (grad * normed).sum(rows), grad.sum(rows)


normalize.defvjp(_normalize_forward, _normalize_backward)


@jax.custom_vjp
def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Computes `x @ kernel + bias` for x `[..., D]`, in the type of x.

    The gradient of the kernel is written as x^T g. Autodiff writes (g^T x)^T, and for
    each transposed copy XLA for CPUs then recomputes the gradient of the residual
    stream from the last block down: half the time of a step.
    """
    return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)


def _linear_forward(x, kernel, bias):
    return linear(x, kernel, bias), (x, kernel)


def _linear_backward(saved, grad):
    x, kernel = saved
    grad = _rounded(grad)
    grad_x = jnp.tensordot(grad, kernel.astype(x.dtype), axes=((-1,), (1,)))
    # XLA for CPUs copies operands that contract more than one axis; on TPUs it is
    # the reshape to rows that copies.
    grad_kernel = jax.lax.platform_dependent(
        x, grad, cpu=_outer_of_rows, default=_outer
    )
    grad_bias = grad.astype(jnp.float32).sum(tuple(range(grad.ndim - 1)))
    return grad_x, grad_kernel, grad_bias


def _rounded(grad):
    """Writes a gradient in half precision only once on GPUs, as the products read it.

    For the bias's sum XLA would write it in float32 as well: 3.7 of the 46.2 MB that
    MAE-Tiny moved per image.
    """
    if grad.dtype == jnp.float32:
        return grad
    return jax.lax.platform_dependent(
        grad, cuda=jax.lax.optimization_barrier, default=lambda x: x
    )


def _outer(x, grad):
    """The sum over rows of x^T grad: `[..., D], [..., E] -> [D, E]`, float32."""
    rows = tuple(range(x.ndim - 1))
    return jax.lax.dot_general(
        x, grad, ((rows, rows), ((), ())), preferred_element_type=jnp.float32
    )


def _outer_of_rows(x, grad):
    x, grad = (y.reshape(-1, y.shape[-1]) for y in (x, grad))
    if x.shape[1] <= grad.shape[1]:
        return _outer(x, grad)
    # A tall product runs at two thirds of the speed of a wide one.
    return jax.lax.optimization_barrier(_outer(grad, x)).T


linear.defvjp(_linear_forward, _linear_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def project_heads(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, num_heads: int, first: int
) -> tuple[jax.Array, ...]:
    """Projects `[B, T, D]` to q `[B, A, T - first, D/A]`, k and v `[B, A, T, D/A]`.

    They lie side by side in `kernel` `[D, 3 D]` and `bias` `[3 D]`, float32. On CPUs
    one large product, split afterwards, is fastest. On TPUs that reshape copies
    everything with 16 of 128 lanes in use, so q, k and v are products that give heads
    directly.
    """
    ways = {k: functools.partial(way[0], num_heads, first) for k, way in HEADS.items()}
    return jax.lax.platform_dependent(x, kernel, bias, **ways)


def _split_heads(num_heads, first, x, kernel, bias):
    width = x.shape[-1]
    if first:
        q = linear(x[:, first:], kernel[:, :width], bias[:width])
        rest = linear(x, kernel[:, width:], bias[width:])
        parts = (q, *jnp.split(rest, 2, axis=-1))
    else:
        parts = jnp.split(linear(x, kernel, bias), 3, axis=-1)
    return tuple(
        part.reshape(*part.shape[:2], num_heads, -1).swapaxes(1, 2) for part in parts
    )


def _project_heads(num_heads, first, x, kernel, bias):
    kernel, bias = _by_heads(num_heads, x, kernel, bias)
    rows = (x[:, first:], x, x)
    return tuple(
        jnp.einsum("btd,dae->bate", rows[i], kernel[:, i]) + bias[i][:, None]
        for i in range(3)
    )


def _by_heads(num_heads, x, kernel, bias):
    """The kernel as `[D, 3, A, E]` and the bias as `[3, A, E]`, in the type of x."""
    kernel = kernel.reshape(kernel.shape[0], 3, num_heads, -1)
    bias = bias.reshape(3, num_heads, -1)
    return kernel.astype(x.dtype), bias.astype(x.dtype)


def _heads_forward(x, kernel, bias, num_heads, first):
    return project_heads(x, kernel, bias, num_heads, first), (x, kernel, bias)


def _heads_backward(num_heads, first, saved, grads):
    ways = {k: functools.partial(way[1], num_heads, first) for k, way in HEADS.items()}
    return jax.lax.platform_dependent(*saved, grads, **ways)


def _split_backward(num_heads, first, x, kernel, bias, grads):
    split = functools.partial(_split_heads, num_heads, first)
    return jax.vjp(split, x, kernel, bias)[1](grads)


def _project_backward(num_heads, first, x, kernel, bias, grads):
    halves, _ = _by_heads(num_heads, x, kernel, bias)
    rows, grad_x, kernels, biases = (x[:, first:], x, x), [], [], []
    for i, grad in enumerate(grads):
        grad_x.append(jnp.einsum("bate,dae->btd", grad, halves[:, i]))
        outer = jnp.einsum(
            "btd,bate->dae", rows[i], grad, preferred_element_type=jnp.float32
        )
        kernels.append(outer.reshape(kernel.shape[0], -1))
        biases.append(grad.astype(jnp.float32).sum((0, 2)).reshape(-1))
    asked = jnp.pad(grad_x[0], ((0, 0), (first, 0), (0, 0)))
    grad_kernel = jnp.concatenate(kernels, axis=-1)
    return asked + grad_x[1] + grad_x[2], grad_kernel, jnp.concatenate(biases)


# Platform, or 'default' for the others -> (forward, backward) of `project_heads`.
HEADS = {
    "cpu": (_split_heads, _split_backward),
    "default": (_project_heads, _project_backward),
}
project_heads.defvjp(_heads_forward, _heads_backward)
