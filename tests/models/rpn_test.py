"""Anchors and the selection of proposals, against detectron2's."""

import functools

import jax
import numpy as np

from litevit_jax.models import rpn
from tests import detect_golden as golden


def test_anchors_are_the_recorded_ones():
    values = golden.group("anchors")
    rows, columns = values["image_size"]
    counts = []
    for level, size in zip(range(2, 7), (32, 64, 128, 256, 512), strict=True):
        stride = 2**level
        grid = (-(-rows // stride), -(-columns // stride))
        got = rpn.anchors(grid, stride, size)
        want = values[f"level{level}"]
        golden.close(got[: len(want)], want)
        counts.append(len(got))
    np.testing.assert_array_equal(counts, values["counts"])


@functools.cache
def selected(size=None):
    values = golden.group("proposals")
    boxes = [values[f"boxes{i}"] for i in range(5)]
    logits = [values[f"logits{i}"] for i in range(5)]
    given = {"per_level": int(values["pre_nms"]), "threshold": 0.7}
    given["count"] = int(values["post_nms"])
    select = jax.jit(jax.vmap(functools.partial(rpn.select, **given)))
    return select(boxes, logits, values["image_sizes"] if size is None else size)


def test_proposals_are_the_recorded_ones():
    values, got = golden.group("proposals"), selected()
    assert got.valid.all()
    for i in range(2):
        golden.close(got.boxes[i], values[f"out_boxes{i}"])
        np.testing.assert_array_equal(got.logits[i], values[f"out_logits{i}"])


def test_an_image_without_a_box_inside_has_no_proposal():
    values = golden.group("proposals")
    none = [np.full_like(values[f"boxes{i}"], 500) for i in range(5)]
    logits = [values[f"logits{i}"] for i in range(5)]
    got = rpn.select(
        [x[0] for x in none],
        [x[0] for x in logits],
        np.int32([64, 96]),
        per_level=4,
        count=90,  # more than there are
        threshold=0.7,
    )
    assert got.boxes.shape == (90, 4) and not got.valid.any()
    assert not got.boxes.any() and not got.logits.any()
