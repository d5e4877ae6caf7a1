"""Which object a box stands for, and which boxes a loss reads.

Objects are padded to a fixed number: those that are not valid match nothing. Samples
have a fixed number too, with a mask where an image has fewer.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from litevit_jax.models import ranking

POSITIVE, NEGATIVE, NEITHER = 1, 0, -1


def match(
    overlaps: jax.Array,
    valid: jax.Array,
    *,
    low: float,
    high: float,
    best_of_each: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Matches N boxes with M objects by their overlaps.

    Args:
      overlaps: IoU `[M, N]` of each object and each box.
      valid: bool `[M]`, which objects there are.
      low: a box whose best overlap is below it is NEGATIVE.
      high: from it on it is POSITIVE; between the two NEITHER.
      best_of_each: whether the boxes that overlap an object most, all of them, are
        positive whatever their overlap, unless no box touches the object.

    Returns:
      The object of each box, int32 `[N]`: the first of those that it overlaps most, 0
      without objects; and its label, int32 `[N]`. A box that is the best of one object
      may overlap another more, which then stays its object.
    """
    overlaps = jnp.where(valid[:, None], overlaps, -1)
    # Computed twice, in two fused loops, an overlap may differ in its last bit.
    overlaps = jax.lax.optimization_barrier(overlaps)
    most = overlaps.max(axis=0)
    label = jnp.where(most >= high, POSITIVE, jnp.where(most < low, NEGATIVE, NEITHER))
    if best_of_each:
        best = overlaps.max(axis=1, keepdims=True)
        label = jnp.where(
            ((overlaps == best) & (best > 0)).any(axis=0), POSITIVE, label
        )
    return overlaps.argmax(axis=0).astype(jnp.int32), label.astype(jnp.int32)


class Sample(NamedTuple):
    """Boxes that a loss reads, the positive ones first.

    Attributes:
      index: int32 `[S]` of the box; any number where it is not valid.
      positive: bool `[S]`, which are positive.
      valid: bool `[S]`, which are positive or negative; the others are padding.
    """

    index: jax.Array
    positive: jax.Array
    valid: jax.Array


def sample(
    label: jax.Array, priority: jax.Array, *, count: int, most_positive: int
) -> Sample:
    """Draws `count` of N labelled boxes, or all if there are fewer.

    At most `most_positive` are positive; negative ones fill up.

    Args:
      label: `[N]` from `match`.
      priority: float32 `[N]`; the largest go first. Uniform random numbers draw
        without preference, -index takes the first ones.
      count: S.
      most_positive: at most S.
    """
    positive, num_positive = _largest(label == POSITIVE, priority, most_positive)
    negative, num_negative = _largest(label == NEGATIVE, priority, count)
    slot = jnp.arange(count)
    index = jnp.where(
        slot < num_positive,
        positive[jnp.minimum(slot, most_positive - 1)],
        negative[jnp.maximum(slot - num_positive, 0)],
    )
    return Sample(index, slot < num_positive, slot < num_positive + num_negative)


def _largest(mask, priority, count):
    """Indices `[count]` of the masked ones by falling priority, and their number."""
    _, index = ranking.largest(jnp.where(mask, priority, -jnp.inf), count)
    return index, jnp.minimum(mask.sum(), count)


def mask_of(sample: Sample, length: int) -> tuple[jax.Array, ...]:
    """A sample as two masks of N boxes, bool `[N]`: the positive ones, and all."""
    empty = jnp.zeros(length, bool)
    return tuple(
        empty.at[jnp.where(mask, sample.index, length)].set(True, mode="drop")
        for mask in (sample.positive, sample.valid)
    )
