"""Masks as runs of pixels: the same as pycocotools', back and forth."""

import numpy as np
import pytest

from litevit_jax.data import objects

MASKS = objects.pycocotools()


@pytest.mark.parametrize("seed", range(5))
def test_runs_are_those_of_pycocotools(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((rng.integers(1, 40), rng.integers(1, 40))) < rng.random()
    runs = objects.runs(mask)
    np.testing.assert_array_equal(objects.bitmap(runs), mask)
    packed = MASKS.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert objects.counts_of(packed["counts"]) == runs["counts"]
    assert objects.counts_of(packed["counts"].decode()) == runs["counts"]
    assert MASKS.frPyObjects(runs, *runs["size"])["counts"] == packed["counts"]
    if mask.any():
        x, y, width, height = MASKS.toBbox(packed)
        np.testing.assert_array_equal(
            objects.box_of(mask), (x, y, x + width, y + height)
        )


@pytest.mark.parametrize("mask", [np.zeros((3, 4), bool), np.ones((3, 4), bool)])
def test_masks_of_one_value_have_runs(mask):
    np.testing.assert_array_equal(objects.bitmap(objects.runs(mask)), mask)


@pytest.mark.parametrize("text", ["\x7f", "P", "0 1", "P" * 9000 + "1"])
def test_damaged_text_is_no_runs(text):
    with pytest.raises(ValueError, match=r"it ends inside|character|beyond"):
        objects.counts_of(text)


def _some():
    masks = np.zeros((2, 12, 20), bool)
    masks[0, 2:6, 3:9] = masks[1, 8:10, 10:20] = True
    made = objects.of_masks(masks, [3, 1], 7)
    made.shapes[1] = [[10, 8, 20.5, 8.25, 20, 10.1]]
    return made


def test_objects_are_encoded_without_loss():
    made = _some()
    again = objects.decode(objects.encode(made))
    assert again.records([5, 6, 7, 9]) == made.records([5, 6, 7, 9])
    assert again.size == (12, 20) and again.boxes.dtype == np.float64
    none = objects.of_masks(np.zeros((0, 4, 4), bool), [], 1)
    assert objects.decode(objects.encode(none)).boxes.shape == (0, 4)


def test_records_have_the_numbers_of_the_file():
    first, second = _some().records([5, 6, 7, 9])
    assert first["category_id"] == 9 and second["category_id"] == 6
    assert first["bbox"] == [3, 2, 6, 4] and first["area"] == 24
    assert first["image_id"] == 7 and first["iscrowd"] == 0
    assert first["id"] != second["id"] and 0 not in (first["id"], second["id"])


def test_objects_are_resized_with_their_image():
    half = _some().resized((6, 10))
    np.testing.assert_array_equal(half.boxes[0], (1.5, 1, 4.5, 3))
    assert half.areas[0] == 6 and half.size == (6, 10)
    assert half.shapes[1] == [[5, 4, 10.25, 4.125, 10, 5.05]]
    assert objects.bitmap(half.shapes[0])[1:3, 2:4].all()
    assert _some().resized((12, 20)).areas[0] == 24
