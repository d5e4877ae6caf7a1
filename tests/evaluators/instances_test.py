"""Masks and boxes in the pixels of a picture, against detectron2's."""

import numpy as np

from litevit_jax.evaluators import instances
from tests import detect_golden as golden


def test_masks_are_pasted_as_recorded():
    values = golden.group("paste")
    size = tuple(map(int, values["image_size"]))
    pairs = zip(values["soft"], values["boxes"], strict=True)
    got = np.stack([instances.paste(mask, box, size) for mask, box in pairs])
    want = np.unpackbits(values["out"], axis=-1)[..., : size[1]]
    assert want.any(axis=(1, 2)).tolist() == [True, True, False]  # the last is tiny
    np.testing.assert_array_equal(got, want)


def test_detections_are_those_recorded_at_twice_the_size():
    values = golden.group("tiny")
    for i, size in enumerate([(84, 96), (96, 72)]):
        twice = (2 * size[0], 2 * size[1])
        boxes = instances.rescale(values[f"det_boxes{i}"], size, twice)
        golden.close(boxes, values[f"final_boxes{i}"])
        pairs = zip(values[f"det_masks{i}"], boxes, strict=True)
        areas = [instances.paste(mask, box, twice).sum() for mask, box in pairs]
        np.testing.assert_array_equal(areas, values[f"final_mask_area{i}"])


def test_boxes_are_cut_to_the_picture_and_an_empty_one_has_no_mask():
    boxes = np.float32([[-2, 1, 9, 99], [8, 8, 20, 20]])
    got = instances.rescale(boxes, (10, 8), (20, 4))
    np.testing.assert_array_equal(got, [[0, 2, 4, 20], [4, 16, 4, 20]])
    assert not instances.paste(np.ones((7, 7)), got[1], (20, 4)).any()
    assert instances.paste(np.ones((7, 7)), got[0], (20, 4))[2:].all()
