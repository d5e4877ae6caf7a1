"""Boxes: overlaps, offsets between them, clipping, and levels of a pyramid.

A box is (left, top, right, bottom) in pixels; (0, 0) is the outer corner of the first
pixel. Everything is float32, with the definitions of detectron2 and torchvision.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

# Largest logarithm of a box's growth that is decoded: 16 pixels become at most 1000.
_MOST_GROWTH = math.log(1000 / 16)
_USUAL_LEVEL = 4  # that a box of the usual side is pooled from
_EPSILON = 1e-8  # added to the ratio of sides, as the reference does


def area(boxes: jax.Array) -> jax.Array:
    """Areas `[...]` of boxes `[..., 4]`; negative where one side is."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union of boxes `[..., 4]`, whose leading axes broadcast.

    All pairs are `iou(a[:, None], b)`. Boxes that do not touch, and empty ones, give 0.
    """
    shared = _intersection(a, b)
    union = area(a) + area(b) - shared
    return jnp.where(shared > 0, shared / jnp.where(shared > 0, union, 1), 0)


def giou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Generalised intersection over union, -1 to 1 (arXiv 1902.09630); see `iou`.

    It falls with the share of the smallest box around both that is neither of them.
    """
    shared = _intersection(a, b)
    union = area(a) + area(b) - shared
    low = jnp.minimum(a[..., :2], b[..., :2])
    around = area(jnp.concatenate([low, jnp.maximum(a[..., 2:], b[..., 2:])], axis=-1))
    union, around = jnp.maximum(union, 1e-7), jnp.maximum(around, 1e-7)
    return shared / union - (around - union) / around


def _intersection(a, b):
    low = jnp.maximum(a[..., :2], b[..., :2])
    high = jnp.minimum(a[..., 2:], b[..., 2:])
    return jnp.maximum(high - low, 0).prod(axis=-1)


def encode(
    boxes: jax.Array, targets: jax.Array, weights: tuple[float, ...] = (1, 1, 1, 1)
) -> jax.Array:
    """Offsets `[..., 4]` that turn boxes into targets: dx, dy, dw, dh.

    dx and dy are distances of the centres over the box's side, dw and dh logarithms of
    growth, each times its weight. An empty box or target gives inf or NaN.
    """
    x, y, width, height = _centred(boxes)
    to_x, to_y, to_width, to_height = _centred(targets)
    offsets = [
        (to_x - x) / width,
        (to_y - y) / height,
        jnp.log(to_width / width),
        jnp.log(to_height / height),
    ]
    return jnp.stack(offsets, axis=-1) * jnp.asarray(weights, jnp.float32)


def decode(
    boxes: jax.Array, offsets: jax.Array, weights: tuple[float, ...] = (1, 1, 1, 1)
) -> jax.Array:
    """Boxes `[..., 4]` moved by offsets; undoes `encode` up to growth by 62.5."""
    x, y, width, height = _centred(boxes)
    offsets = offsets.astype(jnp.float32) / jnp.asarray(weights, jnp.float32)
    growth = jnp.exp(jnp.minimum(offsets[..., 2:], _MOST_GROWTH))
    x, y = offsets[..., 0] * width + x, offsets[..., 1] * height + y
    halves = 0.5 * growth * jnp.stack([width, height], axis=-1)
    centre = jnp.stack([x, y], axis=-1)
    return jnp.concatenate([centre - halves, centre + halves], axis=-1)


def _centred(boxes):
    """Centres and sides: x, y, width, height, each `[...]`."""
    boxes = boxes.astype(jnp.float32)
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return boxes[..., 0] + 0.5 * width, boxes[..., 1] + 0.5 * height, width, height


def clip(boxes: jax.Array, size: jax.Array) -> jax.Array:
    """Boxes `[..., 4]` cut to an image of `size [..., 2]`, rows and columns."""
    size = jnp.asarray(size, jnp.float32)
    most = jnp.concatenate([size[..., ::-1], size[..., ::-1]], axis=-1)
    return jnp.clip(boxes, 0, most)


def has_area(boxes: jax.Array) -> jax.Array:
    """Whether both sides of boxes `[..., 4]` are positive, `[...]`."""
    return (boxes[..., 2:] > boxes[..., :2]).all(axis=-1)


def level_of(
    boxes: jax.Array, first: int, last: int, usual_side: float = 224
) -> jax.Array:
    """The level of the pyramid `[...]`, int32, that boxes `[..., 4]` are pooled from.

    floor(4 + log2(side / usual_side)) between `first` and `last`, where the side is the
    root of the area (arXiv 1612.03144); 224 is usual where level 4 has a pixel for 16 x
    16 of the image. Comparisons give it exactly, on any platform.
    """
    ratio = jnp.sqrt(jnp.maximum(area(boxes), 0)) / usual_side + _EPSILON
    limits = [2.0 ** (level - _USUAL_LEVEL) for level in range(first + 1, last + 1)]
    reached = ratio[..., None] >= jnp.asarray(limits, jnp.float32)
    return first + reached.sum(axis=-1, dtype=jnp.int32)
