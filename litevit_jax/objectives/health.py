"""Statistics that tell, during training, whether an encoder learns or collapses.

They serve `Objective.health`: computed at logged steps from a few examples, and never
part of a loss.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from litevit_jax.models import vit
from litevit_jax.objectives import base

# `Objective.health` looks at so many examples at most: enough to see a rank of up to
# 256.
HEALTH_EXAMPLES = 256


def feature_std(features: jax.Array) -> jax.Array:
    """Spread of the directions of features `[B, E]`: 0 collapsed, 1 isotropic.

    The deviation over the batch of each dimension of the L2-normalised features,
    averaged over dimensions, times sqrt(E): uniform on the sphere, each is
    1 / sqrt(E) (Chen & He, arXiv 2011.10566, section 4.1).
    """
    x = features.astype(jnp.float32)
    norm = jnp.linalg.norm(x, axis=1, keepdims=True)
    x = x / jnp.maximum(norm, 1e-12)
    return x.std(axis=0).mean() * math.sqrt(x.shape[1])


def effective_rank(features: jax.Array) -> jax.Array:
    """Counts the dimensions that features `[B, E]` use: from 1 to min(B, E).

    RankMe (Garrido et al., arXiv 2210.02885): the exponential of the entropy of the
    singular values, scaled to sum to 1. As in the paper, features are not centred.
    """
    x = features.astype(jnp.float32)
    x = x / jnp.maximum(jnp.abs(x).max(), 1e-30)  # their squares stay in range
    wide = x.shape[0] < x.shape[1]
    gram = jnp.dot(*((x, x.T) if wide else (x.T, x)), precision="highest")
    squares = jnp.linalg.eigvalsh(gram)
    # Below this an eigenvalue is rounding; its root would count as a dimension.
    noise = squares.max() * max(x.shape) * jnp.finfo(jnp.float32).eps
    values = jnp.sqrt(jnp.where(squares > noise, squares, 0.0))
    share = values / jnp.maximum(values.sum(), 1e-30)
    return jnp.exp(jax.scipy.special.entr(share).sum())


def attention_entropy(attn_probs: jax.Array) -> jax.Array:
    """Mean entropy `[A]` of each head's rows of attention `[B, A, T, T]`, in nats.

    log T where a head attends to all tokens alike, 0 where it picks one.
    """
    rows = jax.scipy.special.entr(attn_probs.astype(jnp.float32)).sum(axis=-1)
    return rows.mean(axis=(0, 2))


def some_examples(batch: base.Batch, most: int = HEALTH_EXAMPLES) -> base.Batch:
    """Selects evenly spaced examples of a batch, at most `most`, of all its arrays.

    Every n-th row is taken, so that each device reads its own.
    """
    every = math.ceil(base.batch_size(batch) / most)

    def take(x: jax.Array) -> jax.Array:
        count = x.shape[0] // every
        return x[: count * every].reshape(count, every, *x.shape[1:])[:, 0]

    def take_views(x: jax.Array) -> jax.Array:
        return jnp.swapaxes(take(jnp.swapaxes(x, 0, 1)), 0, 1)

    return {
        k: jax.tree.map(take_views if k == "views" else take, x)
        for k, x in batch.items()
    }


def of_encoder(
    encoder: vit.Encoder, params: base.Tree, batch: base.Batch, *, pool: str = "cls"
) -> base.Metrics:
    """Computes `describe` for pooled tokens and the last block, on whole images."""
    image = some_examples(batch)["image"]
    encoded: Any = encoder.apply({"params": params}, image)
    tokens, intermediates = encoded
    last = f"block_{encoder.depth - 1:02d}/attn_probs"
    return describe(vit.pool_tokens(tokens, pool), jnp.asarray(intermediates[last]))


def of_maps(encoder: Any, params: base.Tree, batch: base.Batch) -> base.Metrics:
    """Computes `of_features` of the mean token of an encoder without a class token."""
    encoded: Any = encoder.apply({"params": params}, some_examples(batch)["image"])
    return of_features(encoded[0].mean(axis=(1, 2)))


def describe(features: jax.Array, attn_probs: jax.Array) -> base.Metrics:
    """Computes all statistics of features `[B, E]` and attention `[B, A, T, T]`.

    Heads are counted from 01.
    """
    entropy = attention_entropy(attn_probs)
    heads = {f"attn_entropy/head_{a:02d}": x for a, x in enumerate(entropy, 1)}
    return of_features(features) | heads


def of_features(features: jax.Array) -> base.Metrics:
    """Computes the statistics of features `[B, E]` alone."""
    return {
        "feature_std": feature_std(features),
        "effective_rank": effective_rank(features),
    }
