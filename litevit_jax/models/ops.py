"""The operations a transformer spends its time in, with gradients of their own.

Each computes what autodiff of the plain formula would; what differs is what is kept
for the backward pass and in which order axes lie. Reverse mode only. Measured by
benchmarks/train_step.py.
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

    Its own gradient keeps x alone for the backward pass and needs one exponential.
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

    Its own gradient keeps x and one mean and deviation a row, and reads each once.
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

    The gradient of the kernel is written as x^T g. Autodiff asks for (g^T x)^T,
    and XLA for CPUs then computes the gradient of the residual stream anew, from
    the last block down, for each transposed copy: half the time of a step.
    """
    return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)


def _linear_forward(x, kernel, bias):
    return linear(x, kernel, bias), (x, kernel)


def _linear_backward(saved, grad):
    x, kernel = saved
    grad_x = jnp.tensordot(grad, kernel.astype(x.dtype), axes=((-1,), (1,)))
    # XLA for CPUs copies operands that contract more than one axis; on TPUs it is
    # the reshape to rows that copies.
    grad_kernel = jax.lax.platform_dependent(
        x, grad, cpu=_outer_of_rows, default=_outer
    )
    grad_bias = grad.astype(jnp.float32).sum(tuple(range(grad.ndim - 1)))
    return grad_x, grad_kernel, grad_bias


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

    They lie side by side in `kernel` `[D, 3 D]` and `bias` `[3 D]`, float32. CPUs like
    one large product, which is then taken apart. On a TPU that reshape is a copy of
    everything with 16 of 128 lanes used: there each is a product that gives heads.
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
    """The kernel as `[D, 3, A, E]` and the bias as `[3, A, E]`, of the type of x."""
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    scale: float,
    bias: jax.Array | None = None,
) -> jax.Array:
    """Computes softmax(scale q k^T + bias) v: `[B, A, S, E]`.

    q is `[B, A, S, E]`, k and v are `[B, A, T, E]`; the softmax is taken in float32.
    `bias` `[A, S, T]`, float32, is the same for every example and has a gradient; None
    adds nothing and costs nothing. How it is computed depends on the platform, see
    `KERNELS`.
    """
    return _attend_forward(q, k, v, scale, bias)[0]


def _attend_forward(q, k, v, scale, bias):
    out, saved = jax.lax.platform_dependent(q, k, v, bias, **_ways(0, scale))
    return out, (saved, bias)


def _attend_backward(scale, saved, grad):
    return jax.lax.platform_dependent(*saved, grad, **_ways(1, scale))


def _ways(which, scale):
    """The forward (0) or backward (1) functions of `KERNELS`.

    Each is traced, so cuDNN's is left out where there is none.
    """
    return {
        name: functools.partial(kernel[which], scale)
        for name, kernel in KERNELS.items()
        if name != "cuda" or _cudnn_is_here()
    }


def _cpu_forward(scale, q, k, v, bias):
    """Computes attention on CPUs: contiguous operands, few divisions."""
    q, k, v = _materialize(q * scale, k, v)
    logits = _logits(q, k, bias)
    exps = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    inverse = 1 / exps.sum(axis=-1, keepdims=True)
    exps = exps.astype(v.dtype)
    # Normalised after the product: [S, E] has fewer elements than [S, T].
    out = jnp.einsum("bast,batd->basd", exps, v, preferred_element_type=jnp.float32)
    out = (out * inverse).astype(v.dtype)
    return out, (q, k, v, exps, inverse, out)


def _cpu_backward(scale, saved, bias, grad):
    q, k, v, exps, inverse, out = saved
    # d softmax = p * (dp - sum(p * dp)), and that sum is out . grad.
    along = (out * grad).astype(jnp.float32).sum(axis=-1, keepdims=True) * inverse
    grad = (grad * inverse).astype(v.dtype)
    grad, grad_t, q_t = _materialize(grad, grad.swapaxes(2, 3), q.swapaxes(2, 3))
    grad_p = jnp.einsum("basd,batd->bast", grad, v, preferred_element_type=jnp.float32)
    grad_logits = exps * (grad_p - along)
    grad_bias = None if bias is None else grad_logits.sum(axis=0)
    grad_logits = grad_logits.astype(v.dtype)
    grad_q = jnp.einsum("bast,batd->basd", grad_logits, k) * scale
    grad_k = jnp.einsum("bads,bast->badt", q_t, grad_logits).swapaxes(2, 3)
    grad_v = jnp.einsum("bads,bast->badt", grad_t, exps).swapaxes(2, 3)
    return grad_q, grad_k, grad_v, grad_bias


def _plain(q, k, v, scale, bias):
    """Computes attention by its formula, which a TPU's compiler fuses best."""
    probs = jax.nn.softmax(_logits(q * scale, k, bias))
    return jnp.einsum("bast,batd->basd", probs.astype(v.dtype), v)


def _plain_forward(scale, q, k, v, bias):
    logits = (*q.shape[:3], k.shape[2])
    unused = jnp.zeros(logits, v.dtype), jnp.zeros((*q.shape[:3], 1), jnp.float32)
    out = _plain(q, k, v, scale, bias)
    return out, (q, k, v, *unused, out)


def _plain_backward(scale, saved, bias, grad):
    # Within one program XLA finds the forward pass here again, and keeps what it needs.
    q, k, v, *_ = saved
    _, pull = jax.vjp(lambda q, k, v, bias: _plain(q, k, v, scale, bias), q, k, v, bias)
    return pull(grad)


# Keys from which on cuDNN's fused attention is taken. On an H200 it is as fast as the
# formula with 50 tokens, in less memory, and 2.4 times as fast with 197 tokens
# (docs/performance.md).
_FUSED_FROM = 48


def _cuda_forward(scale, q, k, v, bias):
    if not _fuses(q, k, bias):
        return _plain_forward(scale, q, k, v, bias)
    logits = (*q.shape[:3], k.shape[2])
    unused = jnp.zeros(logits, v.dtype), jnp.zeros((*q.shape[:3], 1), jnp.float32)
    # As a backward pass asks for it, so that XLA finds it there again.
    out, _ = jax.vjp(functools.partial(_fused, scale), q, k, v)
    return out, (q, k, v, *unused, out)


def _cuda_backward(scale, saved, bias, grad):
    q, k, v, *_ = saved
    if not _fuses(q, k, bias):
        return _plain_backward(scale, saved, bias, grad)
    return *jax.vjp(functools.partial(_fused, scale), q, k, v)[1](grad), None


def _fuses(q, k, bias):
    """Whether cuDNN's attention applies: half precision, no bias, enough keys."""
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    sizes = k.shape[2] >= _FUSED_FROM and q.shape[3] % 8 == 0 and q.shape[3] <= 128
    return bias is None and half and sizes and _cudnn_is_here()


@functools.cache
def _cudnn_is_here():
    try:
        x = jax.ShapeDtypeStruct((1, 8, 1, 8), jnp.bfloat16)
        fused = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
        jax.eval_shape(fused, x, x, x)
    except RuntimeError:  # no cuDNN, or one that is too old
        return False
    # It fuses attention on Ampere (8.0) and later; a T4 has 7.5.
    cards = [device for device in jax.devices() if device.platform == "gpu"]
    return all(int(card.compute_capability.partition(".")[0]) >= 8 for card in cards)


def _fused(scale, q, k, v):
    """Computes attention by cuDNN; odd lengths get one more token, which is masked."""
    lengths = [x.shape[2] for x in (q, k)]
    masks = [None, None]
    if any(length % 2 for length in lengths):
        masks = [jnp.full(len(q), length, jnp.int32) for length in lengths]
    # [B, A, T, E] -> [B, T, A, E] with an even T
    q, k, v = (
        jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, x.shape[2] % 2), (0, 0), (0, 0)))
        for x in (q, k, v)
    )
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=scale,
        query_seq_lengths=masks[0],
        key_value_seq_lengths=masks[1],
        implementation="cudnn",
    )
    return out[:, : lengths[0]].swapaxes(1, 2)


def _logits(q, k, bias):
    logits = jnp.einsum("basd,batd->bast", q, k, preferred_element_type=jnp.float32)
    return logits if bias is None else logits + bias


# Platform of JAX ('cpu', 'tpu', 'cuda'), or 'default' for the others -> (forward,
# backward) of `attend`. The one place to plug a kernel in, such as a Pallas kernel for
# 'tpu'; it has to pass the tests of every entry (tests/models/ops_test.py).
#   forward(scale, q, k, v, bias) -> (out, saved)
#   backward(scale, saved, bias, grad) -> gradients of q, k, v and bias
# `saved` has six arrays of the shapes and types of (q, k, v, [B, A, S, T] like v,
# float32 [B, A, S, 1], out); a kernel gives zeros for what it does not read, and XLA
# removes them. A bias is None or [A, S, T], and None has no gradient.
KERNELS = {
    "cpu": (_cpu_forward, _cpu_backward),
    "cuda": (_cuda_forward, _cuda_backward),
    "default": (_plain_forward, _plain_backward),
}


def _materialize(*arrays):
    """Makes arrays contiguous on CPUs: products of permuted ones are 3x slower."""
    return jax.lax.platform_dependent(
        *arrays,
        cpu=lambda *x: jax.lax.optimization_barrier(x),
        default=lambda *x: x,
    )


attend.defvjp(_attend_forward, _attend_backward)
