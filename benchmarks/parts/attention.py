"""Times every way to compute attention: from tokens to the heads' results, and back.

A way takes tokens `[B, T, D]` and the stored kernel `[D, 3 D]` of queries, keys and
values, and gives `[B, T, D]` before the last projection, so that copies between the
layouts of products and kernels are timed too. All in bfloat16.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.parts import common
from litevit_jax.models import attention, ops

# Tokens, heads, size of a head; images.
SHAPES = {
    "50 x 12 x 16": (50, 12, 16, 1024),
    "197 x 12 x 16": (197, 12, 16, 512),
    "50 x 12 x 64": (50, 12, 64, 512),
    "197 x 12 x 64": (197, 12, 64, 128),
    "197 x 3 x 32": (197, 3, 32, 1024),
}
_LOST = 0.03  # relative error in norm: what bfloat16 may lose


def run(part: common.Part) -> None:
    here = jax.default_backend()
    ways = [way for way in WAYS if here == "gpu" or "cudnn" not in way]
    for shape in SHAPES:
        jobs = {}
        for way in ways:
            if f"{way}, {shape}" not in part.rows:
                jobs[way] = functools.partial(_compiled, part.small, shape, way)
        if part.left <= 0:
            return part.skip()
        if not jobs:
            continue
        programs = common.in_parallel(
            {
                **jobs,
                "float32": functools.partial(_compiled, part.small, shape, "float32"),
            }
        )
        expected = programs.pop("float32")
        for way in jobs:
            measure = functools.partial(_measure, part, shape, programs[way], expected)
            part.row(f"{way}, {shape}", measure)


def _sizes(small: bool, shape: str) -> tuple[int, int, int, int]:
    tokens, heads, size, images = SHAPES[shape]
    return (tokens, 2, 8, 2) if small else (tokens, heads, size, images)


def _arguments(small: bool, shape: str) -> list[jax.Array]:
    tokens, heads, size, images = _sizes(small, shape)
    width = heads * size
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (images, tokens, width), jnp.bfloat16)
    kernel = jax.random.normal(keys[1], (width, 3 * width)) / width**0.5
    weight = jax.random.normal(keys[2], x.shape, jnp.bfloat16)
    return [x, kernel, weight]


def _compiled(small: bool, shape: str, way: str) -> tuple[Any, list[jax.Array]]:
    """Compiles the gradient of one way; returns it and its arguments."""
    _, heads, _, _ = _sizes(small, shape)
    function = _float32 if way == "float32" else WAYS[way]
    args = _arguments(small, shape)
    if way == "float32":
        args = [x.astype(jnp.float32) for x in args]

    def energy(x: jax.Array, kernel: jax.Array, weight: jax.Array) -> Any:
        out = function(x, kernel, heads)
        return (out.astype(jnp.float32) * weight).sum(), out

    graded = jax.jit(jax.value_and_grad(energy, (0, 1), has_aux=True))
    return graded.lower(*args).compile(), args


def _measure(part: common.Part, shape: str, compiled: Any, expected: Any) -> Any:
    for outcome in (compiled, expected):
        if isinstance(outcome, Exception):
            raise outcome
    program, args = compiled
    (_, out), grads = program(*args)
    (_, want), true_grads = expected[0](*expected[1])
    pairs = list(zip((out, *grads), (want, *true_grads), strict=True))
    lost = [
        float(jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b))
        for a, b in pairs
    ]
    quick: dict[str, Any] = (
        {"repetitions": 2, "at_least_s": 0.0} if part.small else {"at_least_s": 0.1}
    )
    seconds = common.timed(lambda: program(*args), **quick)
    images = _sizes(part.small, shape)[3]
    temporary = program.memory_analysis().temp_size_in_bytes
    return {
        "us an image": {k: 1e6 * v / images for k, v in seconds.items()},
        "temporary MB an image": temporary / images / 1e6,
        "error": max(lost),
        "ok": max(lost) < _LOST,
    }


def _float32(x: jax.Array, kernel: jax.Array, heads: int) -> jax.Array:
    """The formula in the highest precision."""
    with jax.default_matmul_precision("highest"):
        return _formula(x, kernel, heads)


def _formula(x: jax.Array, kernel: jax.Array, heads: int) -> jax.Array:
    q, k, v = _one_product(x, kernel, heads)
    logits = jnp.einsum("bsad,btad->bast", q, k, preferred_element_type=jnp.float32)
    probs = jax.nn.softmax(logits / q.shape[-1] ** 0.5)
    return jnp.einsum("bast,btad->bsad", probs.astype(v.dtype), v).reshape(x.shape)


def _one_product(x: jax.Array, kernel: jax.Array, heads: int) -> list[jax.Array]:
    """Queries, keys, values `[B, T, A, E]`, cut out of one product."""
    parts = jnp.split(x @ kernel.astype(x.dtype), 3, axis=-1)
    return [part.reshape(*part.shape[:2], heads, -1) for part in parts]


def _three_products(x: jax.Array, kernel: jax.Array, heads: int) -> list[jax.Array]:
    """Queries, keys, values `[B, T, A, E]`, each from a separate product."""
    kernel = kernel.astype(x.dtype).reshape(x.shape[-1], 3, heads, -1)
    return [jnp.einsum("btd,dae->btae", x, kernel[:, i]) for i in range(3)]


def _of_table(entry: str, x: jax.Array, kernel: jax.Array, heads: int) -> jax.Array:
    """This package's way: heads by `ops`, attention by one entry of its table."""
    projected = ops.HEADS["cpu" if entry == "deferred" else "default"]
    bias = jnp.zeros(kernel.shape[-1])
    q, k, v = projected[0](heads, 0, x, kernel, bias)
    out = attention.attend(q, k, v, q.shape[-1] ** -0.5, kernel=entry)
    return out.swapaxes(1, 2).reshape(x.shape)


def _library(
    name: str, products: Callable[..., Any], x: jax.Array, kernel: jax.Array, heads: int
) -> jax.Array:
    """`jax.nn.dot_product_attention`; cuDNN wants an even length, so one is added."""
    q, k, v = products(x, kernel, heads)
    length, lengths = x.shape[1], None
    if name == "cudnn" and length % 2:
        q, k, v = (jnp.pad(y, ((0, 0), (0, 1), (0, 0), (0, 0))) for y in (q, k, v))
        lengths = jnp.full(len(x), length, jnp.int32)
    library: Any = name  # of the names that the function takes
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        implementation=library,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
    )
    return out[:, :length].reshape(x.shape)


WAYS: dict[str, Callable[[jax.Array, jax.Array, int], jax.Array]] = {
    "formula": _formula,
    **{f"ours {e!r}": functools.partial(_of_table, e) for e in attention.KERNELS},
    "xla": functools.partial(_library, "xla", _one_product),
    "cudnn": functools.partial(_library, "cudnn", _one_product),
    "cudnn, three products": functools.partial(_library, "cudnn", _three_products),
}
