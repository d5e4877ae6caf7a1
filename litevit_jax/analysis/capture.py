"""One pass of a model over a batch of images, which gives the numbers for figures."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from litevit_jax import augment, sharding
from litevit_jax.analysis import attention, cka, features, models
from litevit_jax.models import layers, vit

PLACES = ("norm1", "stream")
_CHUNK = 16  # images whose attention is held in memory at once


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The numbers that a pass computes.

    Attributes:
      cka, attention, features: whether to compute each kind.
      point: where tokens are read: 'norm1', after the first LayerNorm of every block
        and after the last norm, as in the paper; or 'stream', between the blocks.
      compat: 'exact' or 'paper', see `attention`.
      pool: 'avg' or 'cls', for the features whose spectrum is computed.
    """

    cka: bool = True
    attention: bool = True
    features: bool = True
    point: str = "norm1"
    compat: str = "exact"
    pool: str = "avg"


def tokens_of(
    model: models.Model, params: Any, image: jax.Array, point: str
) -> tuple[list[jax.Array], dict[str, jax.Array]]:
    """Tokens `[B, T, D]` after 0, 1, ... L blocks, and all intermediates.

    Args:
      model: the encoder to run.
      params: the encoder's parameters.
      image: normalised, `[B, H, W, C]`.
      point: 'norm1' or 'stream'.
    """
    encoded: Any = model.encoder.apply({"params": params}, image)
    last, inside = encoded
    name = "norm1" if point == "norm1" else "in"
    taken = [inside[f"block_{i:02d}/{name}"] for i in range(model.encoder.depth)]
    return [*taken, last if point == "stream" else _normed(model, last)], inside


def _normed(model: models.Model, tokens: jax.Array) -> jax.Array:
    width = model.encoder.width
    norm = model.norm or {"scale": jnp.ones(width), "bias": jnp.zeros(width)}
    normed: Any = layers.LayerNorm("float32").apply({"params": norm}, tokens)
    return normed


def pixels_to_input(model: models.Model, image: jax.Array) -> jax.Array:
    """Normalises uint8 images `[B, H, W, C]` as in the model's training."""
    normalize = {"mean": model.view.mean, "std": model.view.std}
    ops = augment.make({"normalize": normalize})
    return augment.apply(ops, jax.random.key(0), {"image": image})["image"]


def passes(model: models.Model, wanted: Wanted, mesh: Mesh) -> Callable[[Any], Any]:
    """Returns a function of uint8 images `[B, H, W, C]`, compiled for the mesh.

    The function returns host arrays: 'grams' `[S, B, B]`, S = L + 1, of concatenated
    patch tokens; 'pooled' `[B, S, D]`; 'similarity' `[B, S]` of tokens; 'entropy' and
    'distance' `[B, L, A]`. B must be a multiple of the mesh's size.
    """
    taken = functools.partial(_take, model, wanted, mesh)
    jitted = jax.jit(taken, out_shardings=sharding.replicated(mesh))
    params = jax.device_put(model.params, sharding.replicated(mesh))
    return lambda image: jax.device_get(jitted(params, image))


def check(model: models.Model, wanted: Wanted, batch_size: int, mesh: Mesh) -> None:
    """Traces the pass by shapes, so that a model that does not fit fails early."""
    image = (batch_size, *model.view.size, model.view.channels)
    taken = functools.partial(_take, model, wanted, mesh)
    jax.eval_shape(taken, model.params, jax.ShapeDtypeStruct(image, jnp.uint8))


def _take(
    model: models.Model, wanted: Wanted, mesh: Mesh, params: Any, image: jax.Array
) -> dict[str, jax.Array]:
    """Computes the arrays that `passes` describes."""
    factor = attention.factor_of(wanted.compat, model.encoder.patch_size)
    apart = attention.distances(model.grid, factor)

    def take_chunk(image: jax.Array) -> dict[str, jax.Array]:
        pixels = pixels_to_input(model, image)
        states, inside = tokens_of(model, params, pixels, wanted.point)
        out = {}
        if wanted.cka:
            out["states"] = jnp.stack([x[:, 1:] for x in states], axis=1)
        if wanted.features:
            pooled = [vit.pool_tokens(x, wanted.pool) for x in states]
            similar = [features.token_similarity(x[:, 1:]) for x in states]
            out |= {"pooled": jnp.stack(pooled, 1), "similarity": jnp.stack(similar, 1)}
        if wanted.attention:
            out |= _attention(model.encoder.depth, inside, apart, wanted.compat)
        return out

    out = _in_chunks(take_chunk, image, mesh)
    if wanted.cka:
        out["grams"] = jax.lax.map(cka.gram, jnp.swapaxes(out.pop("states"), 0, 1))
    return out


def _attention(depth: int, inside: Any, apart: np.ndarray, compat: str) -> Any:
    """Entropy and distance of attention `[B, L, A]`."""
    by_layer = {"entropy": [], "distance": []}
    for i in range(depth):
        probs = attention.over_patches(inside[f"block_{i:02d}/attn_logits"])
        by_layer["entropy"].append(attention.entropy(probs, compat))
        by_layer["distance"].append(attention.distance(probs, apart))
    return {name: jnp.stack(rows, axis=1) for name, rows in by_layer.items()}


def _in_chunks(function: Callable[[jax.Array], Any], image: jax.Array, mesh: Mesh):
    """Maps `function` over a batch, a few images at a time, which saves memory."""
    size = len(image)
    per_device = max(_CHUNK // mesh.size, 1)
    while size // mesh.size % per_device:
        per_device -= 1
    chunk = per_device * mesh.size
    if chunk == size:
        return function(image)
    chunks = image.reshape(size // chunk, chunk, *image.shape[1:])
    chunks = jax.lax.with_sharding_constraint(chunks, sharding.slice_sharding(mesh))
    out = jax.lax.map(function, chunks)
    return jax.tree.map(lambda x: x.reshape(size, *x.shape[2:]), out)


def look(
    model: models.Model, images: np.ndarray, queries: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Computes what pictures of a few images show.

    Args:
      model: the encoder to run.
      images: uint8 `[B, H, W, C]`.
      queries: Q tokens; 0 is the class token, 1 the first patch.

    Returns:
      Attention from these tokens to the patches, in every block: `[L, B, A, Q, N]`;
      and the patches' tokens after the last norm `[B, N, D]`.
    """

    def rows(params: Any, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        pixels = pixels_to_input(model, image)
        states, inside = tokens_of(model, params, pixels, "norm1")
        names = [f"block_{i:02d}/attn_probs" for i in range(model.encoder.depth)]
        asked = jnp.asarray(queries, int)
        attended = jnp.stack([inside[name][:, :, asked, 1:] for name in names])
        return attended, states[-1][:, 1:]

    return jax.device_get(jax.jit(rows)(model.params, images))


def reconstructions(model: models.Model, images: np.ndarray, index: np.ndarray) -> Any:
    """Masked and reconstructed images, normalised `[B, H, W, C]`, and 'mae_loss' `[B]`.

    Args:
      model: one with a painter.
      images: uint8 `[B, H, W, C]`.
      index: numbers of the examples `[B]`, from which masks are drawn.
    """
    painter: Any = model.painter

    def paint(params: Any, image: jax.Array, index: jax.Array) -> Any:
        batch = {"image": pixels_to_input(model, image), "index": index}
        out = painter.predict(params, {}, batch)
        return {k: out[k] for k in ("masked", "reconstruction", "mae_loss")}

    return jax.device_get(jax.jit(paint)(model.paint, images, index))
