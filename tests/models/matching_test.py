"""Matching with padded objects, and sampling, against detectron2's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax.models import boxes, matching
from tests import detect_golden as golden

RPN = {"low": 0.3, "high": 0.7, "best_of_each": True}
ROI = {"low": 0.5, "high": 0.5}


@pytest.mark.parametrize(("name", "rule"), [("rpn", RPN), ("roi", ROI)])
def test_the_recorded_boxes_match_and_padding_changes_nothing(name, rule):
    values = golden.group("match")
    overlaps = boxes.iou(values["gt"][:, None], values["pred"])
    golden.close(overlaps, values["iou"], atol=1e-6)
    # Padding of every kind: no box, the whole image, a copy of an object.
    extra = [[0, 0, 0, 0], [0, 0, 999, 999], values["gt"][1]]
    objects = np.concatenate([np.float32(extra), values["gt"]])
    padded = boxes.iou(objects[:, None], values["pred"])
    valid = np.arange(len(objects)) >= 3
    index, label = matching.match(values["iou"], np.ones(5, bool), **rule)
    np.testing.assert_array_equal(index, values[f"{name}_index"])
    np.testing.assert_array_equal(label, values[f"{name}_label"])
    index, label = matching.match(padded, valid, **rule)
    np.testing.assert_array_equal(index - 3, values[f"{name}_index"])
    np.testing.assert_array_equal(label, values[f"{name}_label"])


@pytest.mark.parametrize(("name", "rule"), [("rpn", RPN), ("roi", ROI)])
def test_without_objects_every_box_is_negative(name, rule):
    values = golden.group("match")
    overlaps = np.ones((4, 7), np.float32)  # of padding, whatever it is
    index, label = matching.match(overlaps, np.zeros(4, bool), **rule)
    np.testing.assert_array_equal(index, values[f"{name}_empty_index"])
    np.testing.assert_array_equal(label, values[f"{name}_empty_label"])


def test_an_object_that_no_box_touches_has_no_best_box():
    overlaps = np.float32([[0, 0, 0], [0.1, 0.2, 0.2]])
    index, label = matching.match(overlaps, np.ones(2, bool), **RPN)
    assert label.tolist() == [0, 1, 1]  # both best ones of the second
    assert index.tolist() == [1, 1, 1]


LABEL = np.int32([0, 1, -1, 1, 0, 1, -1, 0, 0, 1])


@pytest.mark.parametrize(
    ("count", "most", "positive", "negative"),
    [
        (6, 3, [1, 3, 5], [0, 4, 7]),  # enough of both
        (6, 5, [1, 3, 5, 9], [0, 4]),  # few positive ones: more negative ones
        (12, 6, [1, 3, 5, 9], [0, 4, 7, 8]),  # fewer than wanted
        (4, 1, [1], [0, 4, 7]),
    ],
)
def test_samples_are_the_first_by_priority_positive_ones_first(
    count, most, positive, negative
):
    priority = -np.arange(10, dtype=np.float32)
    sample = matching.sample(LABEL, priority, count=count, most_positive=most)
    index, want = np.asarray(sample.index), [*positive, *negative]
    np.testing.assert_array_equal(index[: len(want)], want)
    assert sample.positive.sum() == len(positive)
    assert sample.valid.tolist() == [i < len(want) for i in range(count)]
    masks = matching.mask_of(sample, 10)
    assert [np.flatnonzero(x).tolist() for x in masks] == [positive, sorted(want)]


def test_random_priorities_draw_each_box_as_often():
    label = jnp.asarray(LABEL)

    def drawn(key):
        priority = jax.random.uniform(key, (10,))
        sample = matching.sample(label, priority, count=4, most_positive=2)
        return matching.mask_of(sample, 10)[1]

    keys = jax.random.split(jax.random.key(0), 2000)
    shares = np.mean(jax.jit(jax.vmap(drawn))(keys), axis=0)
    np.testing.assert_allclose(shares, np.where(LABEL < 0, 0, 0.5), atol=0.05)


def test_nothing_to_draw_is_no_special_case():
    sample = matching.sample(
        np.full(5, -1), np.zeros(5, np.float32), count=8, most_positive=4
    )
    assert not sample.valid.any() and not sample.positive.any()
    assert not any(x.any() for x in matching.mask_of(sample, 5))
