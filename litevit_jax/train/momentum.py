"""SGD and LARS: the gradient transformations of probes and of some fine-tuning.

As in `optimizer`, the learning rate is left out.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from litevit_jax.trees import PyTree


def sgd(
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    decay: PyTree = None,
) -> optax.GradientTransformation:
    """Builds SGD in PyTorch's form: decay joins the gradient, mu <- m mu + g."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=decay),
        optax.trace(decay=momentum, nesterov=nesterov),
    )


def lars(
    *,
    momentum: float = 0.9,
    trust: float = 0.001,
    weight_decay: float = 0.0,
    decay: PyTree = None,
) -> optax.GradientTransformation:
    """Builds LARS as in the MAE and MoCo-v3 probes (recipes 7).

    Leaves with more than one dimension: g + wd p, scaled by trust |p| / |g| (1 if
    either is zero). Others: the raw gradient. Then momentum.
    """

    def scale(updates: PyTree, params: PyTree) -> PyTree:
        def scale_leaf(g: jax.Array, p: jax.Array) -> jax.Array:
            if p.ndim <= 1:
                return g
            p_norm, g_norm = jnp.linalg.norm(p.ravel()), jnp.linalg.norm(g.ravel())
            safe = jnp.where(g_norm > 0, g_norm, 1.0)
            usable = (p_norm > 0) & (g_norm > 0)
            return g * jnp.where(usable, trust * p_norm / safe, 1.0)

        return jax.tree.map(scale_leaf, updates, params)

    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=decay),
        optax.stateless(scale),
        optax.trace(decay=momentum),
    )
