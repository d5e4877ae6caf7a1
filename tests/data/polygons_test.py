"""Clipped polygons draw the same pixels, and their boxes are tight."""

import numpy as np
import pytest

from litevit_jax.data import objects, polygons
from tests import dense_golden

MASKS = dense_golden.group("mask")
WINDOW = (96.0, 64.0)  # of the recorded masks


def _points(shape):
    return [np.reshape(flat, (-1, 2)) for flat in shape]


def _drawn(shape, height, width):
    masks = objects.pycocotools()
    flat = [np.reshape(part, -1).tolist() for part in shape]
    runs = masks.merge(masks.frPyObjects(flat, height, width))
    counts = objects.counts_of(runs["counts"])
    return objects.bitmap({"size": (height, width), "counts": counts})


@pytest.mark.parametrize("row", range(3))
def test_masks_boxes_and_targets_are_those_of_detectron2(row):
    parts = _points(MASKS["polygons"][row])
    boxes = [polygons.tight_box(part, WINDOW) for part in parts]
    low, high = np.min(boxes, axis=0), np.max(boxes, axis=0)
    box = np.concatenate([low[:2], high[2:]])
    np.testing.assert_allclose(box, MASKS["tight_boxes"][row], atol=1e-5)
    bitmap = np.unpackbits(MASKS["bitmaps"][row], axis=-1)[:, :96]
    np.testing.assert_array_equal(_drawn(parts, 64, 96), bitmap)
    assert bitmap.sum() == MASKS["bitmap_area"][row]
    expected = MASKS["tight_boxes_of_bitmaps"][row]
    np.testing.assert_array_equal(objects.box_of(bitmap), expected)
    target = np.unpackbits(MASKS["target_from_polygons"][row], axis=-1)[:, :28]
    roi = MASKS["rois"][row].astype(float)
    np.testing.assert_array_equal(polygons.draw(parts, roi, 28), target)


def _concave(rng):
    """A star of random radii, some of whose points lie outside of 20 x 16 pixels."""
    count = rng.integers(3, 9)
    angles = np.sort(rng.uniform(0, 2 * np.pi, count))
    radii = rng.uniform(2, 18, (count, 1))
    spikes = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return rng.uniform((0, 0), (20, 16)) + radii * spikes


def test_boxes_are_tight_around_what_a_window_shows():
    rng, fine, compared = np.random.default_rng(0), 6, 0
    y, x = (np.mgrid[: 16 * fine, : 20 * fine] + 0.5) / fine
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    for _ in range(150):
        polygon = _concave(rng)
        box = polygons.tight_box(polygon, (20.0, 16.0))
        inside = polygons._contains(polygon, points)
        if not inside.any():
            continue
        seen, compared = points[inside], compared + 1
        assert (box[:2] <= seen.min(axis=0)).all() and (box[2:] >= seen.max(0)).all()
        part = polygons.clip(polygon, (20.0, 16.0))
        assert (part > -1e-9).all() and (part < (20 + 1e-9, 16 + 1e-9)).all()
        # No side can move inwards: a point of an edge or a corner lies on each.
        ends = polygons._edges_inside(polygon, np.array((20.0, 16.0)))
        corners = np.array([(0, 0), (0, 16), (20, 0), (20, 16)], float)
        corners = corners[polygons._contains(polygon, corners)]
        ends = np.concatenate([ends, corners])
        np.testing.assert_array_equal(box[:2], ends.min(axis=0))
        np.testing.assert_array_equal(box[2:], ends.max(axis=0))
    assert compared > 100


def test_what_is_clipped_is_drawn_as_the_whole_is_in_the_window():
    rng = np.random.default_rng(1)
    for _ in range(100):
        polygon = _concave(rng)
        part = polygons.clip(polygon, (20.0, 16.0))
        # The whole, drawn on a larger ground around the window.
        ground = _drawn([polygon * 4 + 160], 400, 400)[160:224, 160:240]
        mine = np.zeros_like(ground)
        if len(part) > 2:
            mine = _drawn([part * 4], 64, 80)
        assert (ground != mine).mean() < 0.01  # pixels on the very border


def test_a_box_of_a_clipped_shape_is_not_that_of_its_vertices():
    # An arm that leaves the window and comes back: clipped, it runs along the border.
    only = np.array([(-6, -6), (6, -6), (6, 4), (4, 4), (4, -4), (-6, -4)], float)
    np.testing.assert_array_equal(polygons.tight_box(only, (9.0, 9.0)), (4, 0, 6, 4))


@pytest.mark.parametrize(
    ("polygon", "box"),
    [
        ([(-9, -9), (99, -9), (99, 99), (-9, 99)], (0, 0, 8, 6)),  # all of the window
        ([(20, 20), (30, 20), (30, 30)], None),
        ([(-4, 0), (0, 0), (0, 6), (-4, 6)], None),  # touches the border
        ([(2, 3), (5, 3), (4, 3)], None),  # has no area
    ],
)
def test_windows_inside_outside_and_beside(polygon, box):
    found = polygons.tight_box(np.array(polygon, float), (8.0, 6.0))
    assert (found is None) == (box is None)
    if box:
        np.testing.assert_array_equal(found, box)
