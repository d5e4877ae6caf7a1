"""Overlaps, offsets, clipping and levels of boxes, against detectron2's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax.models import boxes
from tests import detect_golden as golden

WEIGHTS = {"codec_rpn": (1, 1, 1, 1), "codec_roi": (10, 10, 5, 5)}


def test_overlaps_are_the_recorded_ones():
    values = golden.group("iou")
    a, b = values["a"][:, None], values["b"]
    golden.close(boxes.iou(a, b), values["iou"], atol=1e-6)
    b = np.delete(b, 4, axis=0)  # an empty box, of which torchvision's is NaN
    golden.close(boxes.giou(a, b), values["giou"], atol=1e-6)
    pairs = boxes.giou(values["pair_p"], values["pair_t"])
    golden.close(1 - pairs, values["giou_loss"], atol=1e-6)


def test_empty_boxes_overlap_nothing_and_have_finite_gradients():
    empty = jnp.asarray([[3.0, 3, 3, 3], [5, 5, 4, 9]])
    assert not np.asarray(boxes.iou(empty[:, None], empty)).any()
    for overlap in (boxes.iou, boxes.giou):
        total = jax.jit(lambda x, f=overlap: f(x[:, None], empty).sum())
        grad = jax.grad(total)(empty)
        assert np.isfinite(grad).all()


@pytest.mark.parametrize("name", WEIGHTS)
def test_offsets_are_the_recorded_ones_and_large_growth_is_cut(name):
    values, weights = golden.group(name), WEIGHTS[name]
    offsets = boxes.encode(values["src"], values["dst"], weights)
    golden.close(offsets, values["encoded"], atol=1e-5)
    golden.close(boxes.decode(values["src"], offsets, weights), values["dst"])
    moved = boxes.decode(values["src"], values["deltas"], weights)
    golden.close(moved, values["decoded"])
    assert (values["deltas"][:, 2:] / weights[2:] > boxes._MOST_GROWTH).any()


def test_boxes_are_clipped_to_rows_and_columns_of_their_image():
    given = jnp.asarray([[-3.0, 4, 90, 70], [95, 5, 99, 8]])
    want = [[0, 4, 80, 60], [80, 5, 80, 8]]
    got = boxes.clip(given, jnp.asarray([60, 80]))
    np.testing.assert_array_equal(got, want)
    assert boxes.has_area(got).tolist() == [True, False]
    both = boxes.clip(jnp.stack([given, given]), jnp.asarray([[[60, 80]], [[9, 9]]]))
    np.testing.assert_array_equal(both[0], want)
    assert both[1].max() == 9


def test_levels_are_the_recorded_ones_at_exact_borders_too():
    values = golden.group("levels")
    got = jax.jit(boxes.level_of, static_argnums=(1, 2))(values["boxes"], 2, 5)
    np.testing.assert_array_equal(got, values["level"])
