"""Suppression equals the greedy algorithm, box by box."""

import functools

import jax
import numpy as np
import pytest

from litevit_jax.models import nms
from tests import detect_golden as golden


@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_the_recorded_boxes_are_kept(threshold):
    values = golden.group("nms")
    keep = functools.partial(nms.kept, values["boxes"], values["scores"], threshold)
    for name, groups in (("keep", None), ("batched_keep", values["groups"])):
        got = np.flatnonzero(keep(groups=groups))
        got = got[np.argsort(-values["scores"][got], kind="stable")]
        np.testing.assert_array_equal(got, values[f"{name}_{threshold}"])


def greedy(boxes, scores, valid, groups, threshold):
    """The definition: by falling score, unless a box taken before overlaps."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    taken = np.zeros(len(boxes), bool)
    for i in np.argsort(-scores, kind="stable"):
        others = np.flatnonzero(taken & (groups == groups[i]))
        low = np.maximum(boxes[others, :2], boxes[i, :2])
        high = np.minimum(boxes[others, 2:], boxes[i, 2:])
        shared = np.maximum(high - low, 0).prod(axis=1)
        overlap = shared / np.maximum(areas[others] + areas[i] - shared, 1e-9)
        taken[i] = valid[i] and not (overlap > np.float32(threshold)).any()
    return taken


def test_a_thousand_random_sets_are_suppressed_as_by_the_greedy_algorithm():
    rng, sets, count = np.random.default_rng(0), 1000, 48
    # Whole numbers: boxes, overlaps and scores that are equal are common.
    corner = rng.integers(0, 8, (sets, count, 2))
    side = rng.integers(0, 16, (sets, count, 2))
    boxes = np.concatenate([corner, corner + side], axis=-1).astype(np.float32)
    boxes[::2] += rng.normal(size=boxes[::2].shape).astype(np.float32)
    boxes[..., 2:] = np.maximum(boxes[..., 2:], boxes[..., :2])
    scores = rng.integers(-4, 5, (sets, count)).astype(np.float32)
    scores[1::4] = rng.normal(size=scores[1::4].shape)
    valid = rng.random((sets, count)) < 0.9
    valid[::10] = valid[5] = False
    groups = rng.integers(0, 2, (sets, count))
    thresholds = rng.choice([0.1, 0.3, 0.5, 0.7], sets).astype(np.float32)

    @jax.jit
    @jax.vmap
    def kept(boxes, scores, valid, groups, threshold):
        return nms.kept(boxes, scores, threshold, valid=valid, groups=groups)

    sets = (boxes, scores, valid, groups, thresholds)
    want = np.stack([greedy(*one) for one in zip(*sets, strict=True)])
    assert 0.2 < want.sum() / valid.sum() < 0.8
    np.testing.assert_array_equal(kept(*sets), want)


def test_a_chain_of_boxes_needs_as_many_rounds_as_it_is_long():
    left = np.arange(40, dtype=np.float32)
    boxes = np.stack([left, 0 * left, left + 3, 0 * left + 1], axis=1)
    scores = -left
    keep = np.asarray(nms.kept(boxes, scores, 0.4))  # neighbours overlap by a half
    np.testing.assert_array_equal(keep, np.arange(40) % 2 == 0)
