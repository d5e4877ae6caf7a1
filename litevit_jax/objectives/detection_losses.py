"""The five losses of Mask R-CNN, as in detectron2, over a global batch.

Normalisers are those of the whole batch; detectron2 has one for each GPU and averages.
Objects that are padding match nothing, and a batch without objects has finite losses
and no gradient into offsets and masks.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from litevit_jax.models import boxes as box_ops
from litevit_jax.models import detector as detectors
from litevit_jax.models import matching, roi_align, roi_heads
from litevit_jax.objectives import base

Priorities = tuple[jax.Array, ...]


def smooth_l1(error: jax.Array, beta: float = 0.0) -> jax.Array:
    """Returns |error|, but error^2 / (2 beta) below beta, less beta / 2 above it."""
    size = jnp.abs(error)
    if beta == 0:
        return size
    return jnp.where(size < beta, 0.5 * size**2 / beta, size - 0.5 * beta)


def binary_cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Cross-entropy of each sigmoid with its target, 0 to 1; the shape stays."""
    return jax.nn.softplus(logits) - logits * target


def draw(
    detector: detectors.Detector, keys: jax.Array, batch: base.Batch
) -> Priorities:
    """Draws the order in which anchors `[B, N]` and boxes `[B, P + M]` are sampled.

    Args:
      detector: decides how many.
      keys: one typed key per example `[B]`.
      batch: with 'image' and 'boxes'.
    """
    anchors = detector.anchors(batch["image"].shape[1:3])
    candidates = detector.rules.proposals + batch["boxes"].shape[1]
    counts = (sum(map(len, anchors)), candidates)

    def one(key):
        keys = jax.random.split(key)
        pairs = zip(keys, counts, strict=True)
        return tuple(jax.random.uniform(key, (count,)) for key, count in pairs)

    return jax.vmap(one)(keys)


def losses(
    detector: detectors.Detector,
    params: Any,
    batch: base.Batch,
    priorities: Priorities,
    drop_keys: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Returns the losses, whose sum is minimised; float32 scalars.

    Args:
      detector: the modules.
      params: see `Detector.init`.
      batch: 'image' `[B, H, W, C]`, 'size' `[B, 2]` (rows and columns that are image),
        'boxes' `[B, M, 4]`, 'classes' int `[B, M]`, 'valid' bool `[B, M]`, and for a
        mask head 'masks' `[B, M, m, m]`, zeros and ones, each laid over its box.
      priorities: from `draw`.
      drop_keys: one typed key per example `[B]`, for drop path.

    Returns:
      'objectness' and 'anchors' (cross-entropy and offsets of anchors), 'classes' and
      'boxes' (those of proposals), and with a mask head 'masks'.
    """
    maps = detector.maps(params, batch["image"], drop_keys)
    anchors = detector.anchors(batch["image"].shape[1:3])
    logits, offsets = detector.score(params, maps)
    proposed = detector.propose(anchors, logits, offsets, batch["size"], train=True)
    whole = {
        "anchors": jnp.concatenate([jnp.asarray(x) for x in anchors]),
        "logits": jnp.concatenate(logits, axis=1),
        "offsets": jnp.concatenate(offsets, axis=1),
    }
    total = _of_anchors(detector.rules, batch, priorities[0], **whole)
    sampled = sample_boxes(detector, proposed, batch, priorities[1])
    classified = detector.classify(params, maps, sampled["boxes"])
    total |= _of_boxes(*classified, sampled)
    if detector.mask_head is not None:
        first = {k: x[:, : detector.rules.box_positive] for k, x in sampled.items()}
        args = (params, maps, first["boxes"], first["classes"])
        total["masks"] = _of_masks(detector.mask_logits(*args), first, batch)
    return total


def label_anchors(
    rules: detectors.Rules, anchors: jax.Array, batch: base.Batch, priority: jax.Array
) -> tuple[jax.Array, ...]:
    """Matches and samples anchors `[N, 4]`.

    Returns:
      The object of each anchor, int32 `[B, N]`; which sampled ones are positive, and
      which are sampled at all, both bool `[B, N]`.
    """

    def of_image(boxes, valid, priority):
        index, label = matching.match(
            box_ops.iou(boxes[:, None], anchors),
            valid,
            low=rules.anchor_low,
            high=rules.anchor_high,
            best_of_each=True,
        )
        sample = matching.sample(
            label,
            priority,
            count=rules.anchor_samples,
            most_positive=rules.anchor_positive,
        )
        return index, *matching.mask_of(sample, len(anchors))

    return jax.vmap(of_image)(batch["boxes"], batch["valid"], priority)


def _of_anchors(rules, batch, priority, *, anchors, logits, offsets):
    index, positive, sampled = label_anchors(rules, anchors, batch, priority)
    count = rules.anchor_samples * len(index)  # also where fewer are sampled
    entropy = binary_cross_entropy(logits, positive.astype(jnp.float32))
    targets = jnp.take_along_axis(batch["boxes"], index[..., None], axis=1)
    error = smooth_l1(offsets - _offsets(anchors, targets, positive)).sum(axis=-1)
    return {
        "objectness": jnp.where(sampled, entropy, 0).sum() / count,
        "anchors": jnp.where(positive, error, 0).sum() / count,
    }


def _offsets(boxes, targets, positive, weights=(1, 1, 1, 1)):
    """Offsets to the targets of positive boxes, else 0: no gradient is NaN."""
    offsets = box_ops.encode(boxes, targets, weights)
    return jax.lax.stop_gradient(jnp.where(positive[..., None], offsets, 0))


def sample_boxes(
    detector: detectors.Detector,
    proposed: Any,
    batch: base.Batch,
    priority: jax.Array,
) -> dict[str, jax.Array]:
    """Samples proposals and the objects' own boxes, those with an object first.

    Returns:
      'boxes' `[B, S, 4]`; 'object' int `[B, S]`, the one that each holds, and its box
      in 'targets' `[B, S, 4]`; 'classes' int `[B, S]`, K for background; 'positive' and
      'valid' bool `[B, S]`.
    """
    rules, background = detector.rules, detector.box_head.num_classes

    def of_image(boxes, usable, objects, classes, valid, priority):
        boxes = jnp.concatenate([boxes, objects])
        usable = jnp.concatenate([usable, valid])
        overlaps = box_ops.iou(objects[:, None], boxes)
        limits = {"low": rules.box_overlap, "high": rules.box_overlap}
        index, label = matching.match(overlaps, valid, **limits)
        sample = matching.sample(
            jnp.where(usable, label, matching.NEITHER),
            priority,
            count=rules.box_samples,
            most_positive=rules.box_positive,
        )
        own = index[sample.index]
        return {
            "boxes": jnp.where(sample.valid[:, None], boxes[sample.index], 0),
            "object": own,
            "targets": objects[own],
            "classes": jnp.where(sample.positive, classes[own], background),
            "positive": sample.positive,
            "valid": sample.valid,
        }

    objects = (batch["boxes"], batch["classes"], batch["valid"])
    args = (proposed.boxes, proposed.valid, *objects, priority)
    return jax.lax.stop_gradient(jax.vmap(of_image)(*args))


def _of_boxes(logits, offsets, sampled):
    """Cross-entropy and offsets, both over the number of all sampled boxes."""
    classes, positive = sampled["classes"], sampled["positive"]
    count = jnp.maximum(sampled["valid"].sum(), 1)
    own = jax.nn.one_hot(classes, logits.shape[-1])  # a lookup's gradient: no order
    entropy = jax.nn.logsumexp(logits, axis=-1) - (own * logits).sum(axis=-1)
    offsets = jnp.einsum("brk,brkn->brn", own[..., :-1], offsets, precision="highest")
    wanted = _offsets(
        sampled["boxes"], sampled["targets"], positive, roi_heads.BOX_WEIGHTS
    )
    error = smooth_l1(offsets - wanted).sum(axis=-1)
    return {
        "classes": jnp.where(sampled["valid"], entropy, 0).sum() / count,
        "boxes": jnp.where(positive, error, 0).sum() / count,
    }


def _of_masks(logits, sampled, batch):
    """Mean cross-entropy over all pixels of the boxes that hold an object."""

    def targets(masks, boxes, index, wanted):
        return roi_align.crop_masks(
            masks[index], boxes[index], wanted, logits.shape[-1]
        )

    args = (batch["masks"], batch["boxes"], sampled["object"], sampled["boxes"])
    target = jax.vmap(targets)(*args).astype(jnp.float32)
    entropy = binary_cross_entropy(logits, target).mean(axis=(2, 3))
    positive = sampled["positive"]
    count = jnp.maximum(positive.sum(), 1)
    return jnp.where(positive, entropy, 0).sum() / count
