"""The detections of an image: which classes of which boxes remain."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from litevit_jax.models import boxes as box_ops
from litevit_jax.models import nms, ranking


class Detections(NamedTuple):
    """The detections of an image by falling score, padded to a fixed number.

    Attributes:
      boxes: `[D, 4]`, within the image.
      scores: `[D]`.
      classes: int32 `[D]`.
      rows: int32 `[D]`, the proposal of each.
      valid: bool `[D]`; the others are padding.
      left_out: int32, how many scores above the least one were too many to look at.
    """

    boxes: jax.Array
    scores: jax.Array
    classes: jax.Array
    rows: jax.Array
    valid: jax.Array
    left_out: jax.Array


def select(
    boxes: jax.Array,
    scores: jax.Array,
    valid: jax.Array,
    size: jax.Array,
    *,
    min_score: float,
    threshold: float,
    count: int,
    candidates: int,
) -> Detections:
    """Selects the detections of one image; `jax.vmap` does a batch.

    Pairs of a proposal and a class with a score above `min_score` suppress each other
    within a class, and the best remain. A box that is not finite is dropped.

    Args:
      boxes: `[R, K, 4]`, of each proposal as each class.
      scores: `[R, K]`, probabilities without background's.
      valid: bool `[R]`, which proposals there are.
      size: rows and columns `[2]` that are image.
      min_score: scores up to it are dropped.
      threshold: overlaps greater than it suppress.
      count: D.
      candidates: how many pairs are looked at, the best ones.
    """
    num_classes = scores.shape[1]
    passing = (scores > min_score) & valid[:, None] & jnp.isfinite(boxes).all(axis=-1)
    ranked = jnp.where(passing, scores, -jnp.inf).reshape(-1)
    taken = min(candidates, len(ranked))
    ranked, pair = ranking.largest(ranked, taken)
    classes, rows = pair % num_classes, pair // num_classes
    boxes = box_ops.clip(boxes, size).reshape(-1, 4)[pair]
    keep = nms.kept(
        boxes,
        jnp.where(ranked > -jnp.inf, ranked, 0),
        threshold,
        valid=ranked > -jnp.inf,
        groups=classes,
    )
    best, index = ranking.largest(jnp.where(keep, ranked, -jnp.inf), count)
    valid = best > -jnp.inf
    return Detections(
        boxes=jnp.where(valid[:, None], boxes[index], 0),
        scores=jnp.where(valid, best, 0),
        classes=jnp.where(valid, classes[index], 0).astype(jnp.int32),
        rows=jnp.where(valid, rows[index], 0).astype(jnp.int32),
        valid=valid,
        left_out=jnp.maximum(passing.sum() - taken, 0).astype(jnp.int32),
    )
