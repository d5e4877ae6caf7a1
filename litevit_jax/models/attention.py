"""Attention: `attend`, and the table of the ways to compute it.

Each entry of `KERNELS` computes what autodiff of the plain formula would, in reverse
mode only. docs/performance.md and benchmarks/parts/attention.py compare their costs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from litevit_jax import choices


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 5))
def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    scale: float,
    bias: jax.Array | None = None,
    kernel: str = "auto",
) -> jax.Array:
    """Computes softmax(scale q k^T + bias) v: `[B, A, S, E]`.

    q is `[B, A, S, E]`, k and v are `[B, A, T, E]`; the softmax is taken in float32.
    Values may have another number of channels than queries and keys.
    `bias` `[A, S, T]`, float32, is the same for every example and has a gradient; None
    adds nothing and costs nothing. `kernel` names an entry of `KERNELS`; 'auto' takes
    the fastest for the platform and these shapes.

    Raises:
      ValueError: the named entry cannot compute this.
    """
    return _attend_forward(q, k, v, scale, bias, kernel)[0]


def _attend_forward(q, k, v, scale, bias, kernel):
    ways = _ways(0, kernel, scale, q, k, bias, v)
    out, saved = jax.lax.platform_dependent(q, k, v, bias, **ways)
    return out, (saved, bias)


def _attend_backward(scale, kernel, saved, grad):
    (q, k, v, *_), bias = saved
    ways = _ways(1, kernel, scale, q, k, bias, v)
    return jax.lax.platform_dependent(*saved, grad, **ways)


def _ways(which, kernel, scale, q, k, bias, v=None):
    """Maps each platform to its forward (0) or backward (1) function."""
    why_not = "" if v is None else _why_not_for(q, v)
    if kernel == "auto":
        names = {"cpu": "deferred", "default": "plain"}
        # JAX traces every entry, so cuDNN's is named only where it can be traced.
        if k.shape[2] >= _FUSED_FROM and not (why_not or _why_not_cudnn(q, bias)):
            names["cuda"] = "cudnn"
    else:
        if kernel == "cudnn" and (reason := why_not or _why_not_cudnn(q, bias)):
            raise ValueError(
                f"attention=cudnn cannot compute queries {q.dtype.name}{list(q.shape)}:"
                f" {reason}; --config.attention=auto takes it where it can be used"
            )
        names = {"default": kernel}
    return {
        platform: functools.partial(KERNELS[name][which], scale)
        for platform, name in names.items()
    }


def check(kernel: str, platform: str) -> None:
    """Checks that `kernel` can run on devices of `platform`, as JAX names it.

    Shapes and types are not known yet: `attend` checks those.

    Raises:
      ValueError: an unknown name, or a kernel for another platform.
    """
    choices.check("attention", kernel, CHOICES)
    if kernel == "cudnn" and platform not in ("cuda", "gpu"):
        raise ValueError(
            f"attention=cudnn is NVIDIA's library for GPUs, but the devices are of "
            f"platform {platform!r}; set --config.attention=auto, or plain"
        )


def _deferred_forward(scale, q, k, v, bias):
    """Computes attention in a form fast on CPUs: contiguous operands, few divisions."""
    q, k, v = _materialize(q * scale, k, v)
    logits = _logits(q, k, bias)
    exps = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    inverse = 1 / exps.sum(axis=-1, keepdims=True)
    exps = exps.astype(v.dtype)
    # Normalised after the product: [S, E] has fewer elements than [S, T].
    out = jnp.einsum("bast,batd->basd", exps, v, preferred_element_type=jnp.float32)
    out = (out * inverse).astype(v.dtype)
    return out, (q, k, v, exps, inverse, out)


def _deferred_backward(scale, saved, bias, grad):
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
    return _with_inputs(_plain(q, k, v, scale, bias), q, k, v)


def _plain_backward(scale, saved, bias, grad):
    # Within one program XLA merges this forward pass with the first one.
    q, k, v, *_ = saved
    _, pull = jax.vjp(lambda q, k, v, bias: _plain(q, k, v, scale, bias), q, k, v, bias)
    return pull(grad)


# Keys from which on 'auto' takes cuDNN's fused attention. On an H200 it is as fast as
# the formula with 50 tokens, in less memory, and 2.4 times as fast with 197 tokens
# (docs/performance.md).
_FUSED_FROM = 48


def _cudnn_forward(scale, q, k, v, bias):
    # In the form that the backward pass computes, so that XLA merges the two.
    out, _ = jax.vjp(functools.partial(_fused, scale), q, k, v)
    return _with_inputs(out, q, k, v)


def _cudnn_backward(scale, saved, bias, grad):
    q, k, v, *_ = saved
    return *jax.vjp(functools.partial(_fused, scale), q, k, v)[1](grad), None


def _why_not_for(q, v):
    """Says why cuDNN cannot take these values; '' if it can."""
    if q.shape[3] == v.shape[3]:
        return ""
    return f"values have {v.shape[3]} channels and queries {q.shape[3]}"


def _why_not_cudnn(q, bias):
    """Says why cuDNN cannot attend with such queries; '' if it can."""
    if bias is not None:
        return "the logits have a position bias (rpe_style), which it does not add here"
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return "expected bfloat16 (objective.dtype=auto on a GPU) or float16"
    if q.shape[3] % 8 or q.shape[3] > 128:
        return f"heads have a size of {q.shape[3]}, expected a multiple of 8 up to 128"
    return _why_no_cudnn()


@functools.cache
def _why_no_cudnn():
    """Says why cuDNN cannot be used on this machine; '' if it can."""
    try:
        x = jax.ShapeDtypeStruct((1, 8, 1, 8), jnp.bfloat16)
        fused = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
        jax.eval_shape(fused, x, x, x)
    except RuntimeError as error:  # no cuDNN, or one that is too old
        return f"JAX cannot use the library ({error})"
    # It fuses attention on Ampere (8.0) and later; a T4 has 7.5.
    cards = [device for device in jax.devices() if device.platform == "gpu"]
    old = [c for c in cards if int(c.compute_capability.partition(".")[0]) < 8]
    if old:
        return f"the card has compute capability {old[0].compute_capability}, below 8.0"
    return ""


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


def _with_inputs(out, q, k, v):
    """Returns `out` and what is saved for a backward pass that reads inputs alone."""
    logits = jnp.zeros((*q.shape[:3], k.shape[2]), v.dtype)
    return out, (q, k, v, logits, jnp.zeros((*q.shape[:3], 1), jnp.float32), out)


def _logits(q, k, bias):
    logits = jnp.einsum("basd,batd->bast", q, k, preferred_element_type=jnp.float32)
    return logits if bias is None else logits + bias


def _materialize(*arrays):
    """Makes arrays contiguous on CPUs: products of permuted ones are 3x slower."""
    return jax.lax.platform_dependent(
        *arrays,
        cpu=lambda *x: jax.lax.optimization_barrier(x),
        default=lambda *x: x,
    )


# Name -> (forward, backward) of `attend`. Plug a new kernel in here, such as a Pallas
# kernel; it has to pass the tests of every entry (tests/models/attention_test).
#   forward(scale, q, k, v, bias) -> (out, saved)
#   backward(scale, saved, bias, grad) -> gradients of q, k, v and bias
# `saved` has six arrays of the shapes and types of (q, k, v, [B, A, S, T] like v,
# float32 [B, A, S, 1], out); a kernel gives zeros for what it does not read, and XLA
# removes them. A bias is None or [A, S, T], and None has no gradient.
#   plain      the formula under autodiff; 'auto' on TPUs, and wherever no other applies
#   deferred   the softmax is divided after the product with v; 'auto' on CPUs
#   cudnn      fused by NVIDIA's library; 'auto' on GPUs where it applies
KERNELS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "plain": (_plain_forward, _plain_backward),
    "deferred": (_deferred_forward, _deferred_backward),
    "cudnn": (_cudnn_forward, _cudnn_backward),
}
CHOICES = ("auto", *KERNELS)

attend.defvjp(_attend_forward, _attend_backward)
