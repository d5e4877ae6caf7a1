"""Cuts polygons to a window, and draws them inside a box.

A polygon is float64 [n, 2] of x and y. Where edges cross, a point is inside if a ray
from it crosses an odd number of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from litevit_jax.data import objects

_LEAST_SIDE = 0.1  # of a box in which polygons are drawn, as in detectron2

Window = tuple[float, float]  # width, height; from (0, 0)


def clip(polygon: np.ndarray, window: Window) -> np.ndarray:
    """Cuts a polygon to a window by its four sides; [0, 2] if nothing is left.

    Parts of a concave polygon stay connected along the border: as a drawing it is
    right, its vertices are no tight box.
    """
    for axis, length in enumerate(window):
        for sign, limit in ((1, 0.0), (-1, -float(length))):
            polygon = _clip_side(polygon, sign * polygon[:, axis] - limit)
            if not len(polygon):
                return polygon
    return polygon


def _clip_side(polygon: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Keeps what lies at a `depth` [n] of at least 0."""
    inside = depth >= 0
    if inside.all():
        return polygon
    if not inside.any():
        return polygon[:0]
    after, depth_after = np.roll(polygon, -1, axis=0), np.roll(depth, -1)
    crosses = inside != (depth_after >= 0)
    share = depth / np.where(crosses, depth - depth_after, 1)
    crossing = polygon + share[:, None] * (after - polygon)
    # Of each edge: where it starts, if that is inside, then where it crosses.
    points = np.stack([polygon, crossing], axis=1).reshape(-1, 2)
    return points[np.stack([inside, crosses], axis=1).reshape(-1)]


def tight_box(polygon: np.ndarray, window: Window) -> np.ndarray | None:
    """Returns the box [4] of what a window shows of a polygon; None: nothing.

    It holds the parts of the edges inside the window, and the window's corners that lie
    inside the polygon.
    """
    size = np.asarray(window, np.float64)
    points = _edges_inside(polygon, size)
    corners = size * [[0, 0], [0, 1], [1, 0], [1, 1]]
    if (points <= 0).any() or (points >= size).any() or not len(points):
        points = np.concatenate([points, corners[_contains(polygon, corners)]])
    if not len(points):
        return None
    box = np.concatenate([points.min(axis=0), points.max(axis=0)])
    return box if (box[2:] > box[:2]).all() else None


def _edges_inside(polygon: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Returns both ends of the part of each edge that lies inside [0, size]."""
    if ((polygon >= 0) & (polygon <= size)).all():
        return polygon
    start, along = polygon, np.roll(polygon, -1, axis=0) - polygon
    moves = along != 0
    divisor = np.where(moves, along, 1)
    at_low, at_high = -start / divisor, (size - start) / divisor
    enters = np.where(moves, np.minimum(at_low, at_high), -np.inf).max(axis=1)
    leaves = np.where(moves, np.maximum(at_low, at_high), np.inf).min(axis=1)
    beside = (~moves & ((start < 0) | (start > size))).any(axis=1)
    enters, leaves = np.maximum(enters, 0), np.minimum(leaves, 1)
    seen = (enters <= leaves) & ~beside
    ends = [start + share[:, None] * along for share in (enters, leaves)]
    return np.concatenate([np.clip(each[seen], 0, size) for each in ends])


def _contains(polygon: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Whether each point [p, 2] lies inside a polygon: bool [p]."""
    x, y = polygon.T
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    px, py = points[:, :1], points[:, 1:]
    spans = (y > py) != (next_y > py)
    height = np.where(next_y == y, 1, next_y - y)
    crossed = spans & (px < x + (py - y) / height * (next_x - x))
    return crossed.sum(axis=1) % 2 == 1


def draw(polygons: Sequence[np.ndarray], box: np.ndarray, size: int) -> np.ndarray:
    """Draws polygons inside a box, by COCO's rule: bool [size, size]."""
    sides = np.maximum(box[2:] - box[:2], _LEAST_SIDE)
    moved = [((x - box[:2]) * (size / sides)).reshape(-1).tolist() for x in polygons]
    masks = objects.pycocotools()
    drawn = masks.merge(masks.frPyObjects(moved, size, size))
    # Its own decoder warns of NumPy 2.
    counts = objects.counts_of(drawn["counts"])
    return objects.bitmap({"size": (size, size), "counts": counts})
