"""Straightforward training steps, with which compiled_step.py compares ours.

They do what the papers' code does, in JAX, regardless of cost: float32 images; all
patches embedded before most are thrown away; q, k and v from one product reshaped to
`[B, N, 3, A, D/A]`; decoder tokens put back into image order, every patch predicted, a
mask multiplied into the loss. Parameters are float32, matrix products bfloat16, and the
optimizer is always AdamW. The steps are compiled by shapes and never run.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from litevit_jax.models import layers

Tree = Any
HALF = jnp.bfloat16
TINY, BASE, DECODER = (192, 12, 12), (768, 12, 12), (96, 1, 3)  # width, depth, heads
SIDE, PATCH, KEPT, CLASSES = 224, 16, 49, 1000
GRID = (SIDE // PATCH,) * 2
PATCHES, PIXELS = GRID[0] * GRID[1], 3 * PATCH**2


def dense(inputs: int, outputs: int) -> Tree:
    """Shapes of a linear layer."""
    return {"w": (inputs, outputs), "b": (outputs,)}


def norm(width: int) -> Tree:
    """Shapes of a LayerNorm."""
    return {"scale": (width,), "bias": (width,)}


def block(width: int) -> Tree:
    """Shapes of a transformer block."""
    return {
        "norm1": norm(width),
        "qkv": dense(width, 3 * width),
        "proj": dense(width, width),
        "norm2": norm(width),
        "fc1": dense(width, 4 * width),
        "fc2": dense(4 * width, width),
    }


def encoder(size: tuple[int, int, int]) -> Tree:
    """Shapes of an encoder."""
    width, depth, _ = size
    return {
        "embed": dense(PIXELS, width),
        "cls": (1, 1, width),
        "blocks": [block(width) for _ in range(depth)],
        "norm": norm(width),
    }


def model(job: str) -> Tree:
    """Shapes of the parameters that a step trains."""
    width = TINY[0]
    if job == "finetune":
        return encoder(TINY) | {"head": dense(width, CLASSES)}
    decoder = {
        "embed": dense(width, DECODER[0]),
        "mask": (1, 1, DECODER[0]),
        "blocks": [block(DECODER[0])],
        "norm": norm(DECODER[0]),
        "pred": dense(DECODER[0], PIXELS),
    }
    adapter = {"adapter": (TINY[2], BASE[2])} if job == "distill" else {}
    return {"encoder": encoder(TINY), "decoder": decoder} | adapter


def linear(p: Tree, x: jax.Array) -> jax.Array:
    """A linear layer on `[..., D]`."""
    return x @ p["w"].astype(HALF) + p["b"].astype(HALF)


def layer_norm(p: Tree, x: jax.Array) -> jax.Array:
    """LayerNorm with float32 statistics."""
    x = x.astype(jnp.float32)
    mean, square = x.mean(-1, keepdims=True), jnp.square(x).mean(-1, keepdims=True)
    x = (x - mean) * jax.lax.rsqrt(square - mean**2 + 1e-6)
    return (x * p["scale"] + p["bias"]).astype(HALF)


def run_block(p: Tree, x: jax.Array, heads: int) -> tuple[jax.Array, jax.Array]:
    """Tokens `[B, T, D]` -> tokens, attention logits `[B, A, T, T]`."""
    batch, tokens, width = x.shape
    qkv = linear(p["qkv"], layer_norm(p["norm1"], x))
    qkv = qkv.reshape(batch, tokens, 3, heads, width // heads)
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)
    logits = jnp.einsum("bhnd,bhmd->bhnm", q, k).astype(jnp.float32)
    logits = logits * (width // heads) ** -0.5
    probs = jax.nn.softmax(logits).astype(HALF)
    out = jnp.einsum("bhnm,bhmd->bhnd", probs, v)
    x = x + linear(p["proj"], out.transpose(0, 2, 1, 3).reshape(x.shape))
    hidden = jax.nn.gelu(linear(p["fc1"], layer_norm(p["norm2"], x)), approximate=False)
    return x + linear(p["fc2"], hidden), logits


def encode(
    p: Tree, size: tuple[int, int, int], image: jax.Array, ids: Any
) -> tuple[jax.Array, jax.Array]:
    """Normalised tokens of the kept patches (all for None), and the last logits."""
    width, _, heads = size
    table = jnp.asarray(layers.sincos_table(GRID, width, "sincos"), HALF)
    x = linear(p["embed"], layers.patchify(image, PATCH).astype(HALF)) + table[1:]
    if ids is not None:
        x = jnp.take_along_axis(x, ids[..., None], axis=1)
    cls = jnp.broadcast_to(p["cls"].astype(HALF), (len(x), 1, width))
    x, logits = jnp.concatenate([cls, x], axis=1), jnp.zeros(())
    for inner in p["blocks"]:
        x, logits = run_block(inner, x, heads)
    return layer_norm(p["norm"], x), logits


def reconstruction_loss(
    p: Tree, image: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """MAE's loss, the encoder's last logits, and which patches were kept."""
    batch, width = len(image), DECODER[0]
    shuffle = jnp.argsort(jax.random.uniform(key, (batch, PATCHES)), axis=1)
    restore, kept = jnp.argsort(shuffle, axis=1), shuffle[:, :KEPT]
    latent, logits = encode(p["encoder"], TINY, image, kept)
    p = p["decoder"]
    x = linear(p["embed"], latent)
    masked = jnp.broadcast_to(p["mask"].astype(HALF), (batch, PATCHES - KEPT, width))
    patches = jnp.concatenate([x[:, 1:], masked], axis=1)
    patches = jnp.take_along_axis(patches, restore[..., None], axis=1)
    table = jnp.asarray(layers.sincos_table(GRID, width, "sincos"), HALF)
    x = jnp.concatenate([x[:, :1], patches], axis=1) + table
    x, _ = run_block(p["blocks"][0], x, DECODER[2])
    pred = linear(p["pred"], layer_norm(p["norm"], x))[:, 1:].astype(jnp.float32)
    target = layers.patchify(image, PATCH)
    mean, var = target.mean(-1, keepdims=True), target.var(-1, keepdims=True)
    target = (target - mean) / jnp.sqrt(var + 1e-6)
    mask = (restore >= KEPT).astype(jnp.float32)
    error = jnp.square(pred - target).mean(-1)
    return (error * mask).sum() / mask.sum(), logits, kept


def loss_of(job: str, p: Tree, teacher: Tree, batch: Tree, key: jax.Array) -> jax.Array:
    """The loss of 'mae', 'distill' or 'finetune'."""
    image = batch["image"]
    if job == "finetune":
        share = jax.random.beta(key, 0.2, 0.2)
        image = share * image + (1 - share) * image[::-1]
        label = jax.nn.one_hot(batch["label"], CLASSES)
        label = share * label + (1 - share) * label[::-1]
        tokens, _ = encode(p, TINY, image, None)
        logits = linear(p["head"], tokens[:, 1:].mean(axis=1)).astype(jnp.float32)
        return -(label * jax.nn.log_softmax(logits)).sum(-1).mean()
    loss, mapped, kept = reconstruction_loss(p, image, key)
    if job == "mae":
        return loss
    _, teacher_logits = encode(teacher, BASE, image, kept)
    mapped = jnp.einsum("bhnm,hg->bgnm", mapped, p["adapter"])
    return loss + jnp.square(mapped - jax.lax.stop_gradient(teacher_logits)).mean()


def step(job: str, state: Tree, batch: Tree) -> tuple[Tree, jax.Array]:
    """Forward, backward and AdamW."""
    key = jax.random.fold_in(jax.random.key(0), state["step"])
    loss = functools.partial(loss_of, job, teacher=state["teacher"])
    value, grads = jax.value_and_grad(lambda p: loss(p, batch=batch, key=key))(
        state["params"]
    )
    count = state["step"] + 1
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state["m"], grads)
    second = jax.tree.map(lambda v, g: 0.95 * v + 0.05 * g * g, state["v"], grads)

    def update(p: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
        m, v = m / (1 - 0.9**count), v / (1 - 0.95**count)
        return p - 1e-4 * (m / (jnp.sqrt(v) + 1e-8) + 0.05 * p)

    params = jax.tree.map(update, state["params"], first, second)
    new = {"step": count, "params": params, "m": first, "v": second}
    return new | {"teacher": state["teacher"]}, value


def shapes(job: str, images: int, sharding: Any) -> tuple[Tree, Tree]:
    """(state, batch) by shape, for `step`."""

    def floats(tree: Tree) -> Tree:
        return jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s, jnp.float32, sharding=sharding),
            tree,
            is_leaf=lambda x: isinstance(x, tuple),
        )

    def integers(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)

    params = floats(model(job))
    state = {"step": integers(), "params": params, "m": params, "v": params}
    state["teacher"] = floats(encoder(BASE)) if job == "distill" else {}
    image = floats((images, SIDE, SIDE, 3))
    return state, {"image": image, "label": integers(images)}
