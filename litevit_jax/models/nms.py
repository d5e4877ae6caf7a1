"""Non-maximum suppression with static shapes, equal to the greedy one.

The greedy algorithm takes boxes by falling score and drops those that overlap a box
taken before. Here every box is first taken; then those that a box taken before them
suppresses are dropped, from the start, until nothing changes. The k-th box in the order
is right after at most k rounds, as all before it are; in images a few rounds do.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from litevit_jax.models import boxes as box_ops


def kept(
    boxes: jax.Array,
    scores: jax.Array,
    threshold: float,
    *,
    valid: jax.Array | None = None,
    groups: jax.Array | None = None,
) -> jax.Array:
    """Returns which boxes stay, bool `[N]`.

    Of equal scores the first box goes first. `jax.vmap` does several images or levels
    of a pyramid at once.

    Args:
      boxes: `[N, 4]`.
      scores: `[N]`, finite.
      threshold: overlaps (IoU) greater than it suppress.
      valid: bool `[N]`; others neither stay nor suppress. None: all are valid.
      groups: int `[N]`; boxes of two groups do not suppress each other. None: one.
    """
    if valid is None:
        valid = jnp.ones(scores.shape, bool)
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)
    boxes, valid = boxes[order], valid[order]
    suppresses = box_ops.iou(boxes[:, None], boxes) > threshold
    suppresses &= jnp.arange(len(order))[:, None] < jnp.arange(len(order))
    if groups is not None:
        groups = groups[order]
        suppresses &= groups[:, None] == groups

    def round_of(state):
        keep, _ = state
        new = valid & ~(suppresses & keep[:, None]).any(axis=0)
        return new, (new != keep).any()

    changes = jnp.asarray(True)
    keep, _ = jax.lax.while_loop(lambda state: state[1], round_of, (valid, changes))
    return keep[jnp.argsort(order)]
