"""Boxes, masks and names lie where the objects are, and can be read."""

import numpy as np
import pytest

from litevit_jax.evaluators import outlines, segmentation

IDS = (3, 7, 90)
SAME = (30, 30)  # pixels of the longer side: the image keeps its size


def test_boxes_and_masks_are_drawn_in_the_colour_of_their_class():
    image = np.zeros((20, 30, 3), np.uint8)
    square = [5, 5, 15, 5, 15, 12, 5, 12]
    one = {"category_id": 7, "bbox": [5, 5, 10, 7], "segmentation": [square]}
    got = outlines.drawn(image, [one], IDS, sides=SAME)
    colour = segmentation.palette(4)[2]
    np.testing.assert_array_equal(got[5, 5:15], np.tile(colour, (10, 1)))
    assert abs(got[8, 9].astype(int) - colour / 2).max() <= 1
    assert not got[:5].any() and not got[12:].any() and not image.any()
    inside = outlines.drawn(image, [one], IDS, overlay=0.0, sides=SAME)[8, 9]
    assert not inside.any()


def test_the_first_object_is_on_top():
    image = np.zeros((20, 30, 3), np.uint8)
    boxes = [{"category_id": k, "bbox": [0, 0, 30, 20]} for k in (90, 3)]
    got = outlines.drawn(image, boxes, IDS, sides=SAME)
    np.testing.assert_array_equal(got[0, 0], segmentation.palette(4)[3])


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (20, 30), (2000, 3000)])
def test_images_of_any_size_are_drawn_with_names_as_wide_as_can_be_read(size):
    image = np.zeros((*size, 3), np.uint8)
    one = {"category_id": 3, "bbox": [0, 0, size[1], size[0]], "score": 0.5}
    got = outlines.drawn(image, [one], IDS, ["ä" * 40, "b", "c"])
    height, width, _ = got.shape
    assert 480 <= max(height, width) <= 1600 and got.any()
    assert min(height, width) == max(round(min(size) * max(got.shape) / max(size)), 1)


def test_names_of_objects_in_one_box_hide_none_of_each_other():
    image = np.zeros((48, 48, 3), np.uint8)
    objects = [{"bbox": [10, 20, 20, 20], "category_id": i} for i in IDS]
    colours = segmentation.palette(4)[1:]

    def counts(objects, names=("cat", "dog", "horse")):
        picture = outlines.drawn(image, objects, IDS, names)
        return [int((picture == colour).all(-1).sum()) for colour in colours]

    together = counts(objects)
    for number, each in enumerate(objects):
        label = counts([each])[number] - counts([each], names=())[number]
        assert together[number] >= label > 100
