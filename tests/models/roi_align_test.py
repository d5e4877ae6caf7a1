"""RoIAlign against torchvision's, and masks cut to other boxes."""

import functools

import jax
import numpy as np
import pytest

from litevit_jax.models import roi_align
from tests import detect_golden as golden


def pooled(size, samples, rows=slice(None)):
    """Pools the recorded boxes, each from its image's map `[R, C, size, size]`."""
    values = golden.group("roi_align")
    rois = values["rois"][rows]
    maps = golden.maps(values["features"])[rois[:, 0].astype(int)]

    @jax.jit
    @jax.vmap
    def one(x, box):
        return roi_align.roi_align(
            [x],
            box[None],
            np.zeros(1, int),
            strides=(1 / values["scale"],),
            size=size,
            samples=samples,
        )[0]

    return np.asarray(one(maps, rois[:, 1:])).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("size", [7, 4])
def test_boxes_are_pooled_as_recorded_at_every_edge(size, samples):
    want = golden.group("roi_align")[f"out{size}_s{samples}"]
    golden.close(pooled(size, samples), want, atol=1e-5)


@pytest.mark.parametrize("size", [7, 4])
def test_with_the_references_number_of_samples_each_box_is_pooled_as_recorded(size):
    values = golden.group("roi_align")
    sides = (values["rois"][:, 3:] - values["rois"][:, 1:3]) * values["scale"]
    samples = np.ceil(sides / size).astype(int)[:, ::-1]  # of a bin: down, right
    checked = 0
    for pair in {tuple(map(int, x)) for x in samples if x.all()}:
        rows = np.flatnonzero((samples == pair).all(axis=1))
        golden.close(pooled(size, pair, rows), values[f"out{size}_s0"][rows], atol=1e-5)
        checked += len(rows)
    assert checked == 8  # the other has no area


def test_each_box_reads_its_own_level_alone_and_many_boxes_are_cut_in_chunks():
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(n, n, 3)).astype("f4") for n in (16, 8)]
    boxes = np.sort(rng.uniform(-4, 36, (70, 2, 2)), axis=1).reshape(70, 4)
    boxes, level = boxes.astype("f4"), rng.integers(0, 2, 70)
    pool = functools.partial(roi_align.roi_align, strides=(2.0, 4.0), size=3)
    got = jax.jit(pool)(maps, boxes, level)
    for i in (0, 1):
        own = np.flatnonzero(level == i)[:5]
        alone = functools.partial(pool, strides=((2.0, 4.0)[i],))
        want = jax.jit(alone)([maps[i]], boxes[own], np.zeros(5, int))
        np.testing.assert_allclose(got[own], want, atol=1e-6)


def test_targets_of_masks_are_nearly_those_of_polygons():
    values = golden.group("mask")
    masks = np.unpackbits(values["in_box"], axis=-1)
    got = roi_align.crop_masks(masks, values["tight_boxes"], values["rois"], 28)
    want = np.unpackbits(values["target_from_polygons"], axis=-1)[..., :28]
    different = (np.asarray(got) != want).sum(axis=(1, 2))
    assert 0 < different.max() <= 7  # of 784 pixels


def test_targets_of_whole_bitmaps_are_nearly_the_recorded_ones():
    """The same up to 28 pixels a side, from which detectron2 takes more samples."""
    values = golden.group("mask")
    masks, boxes = np.unpackbits(values["bitmaps"], axis=-1)[..., :96], values["rois"]
    whole = np.float32([[0, 0, 96, 64]] * len(masks))
    got = np.asarray(roi_align.crop_masks(masks, whole, boxes, 28))
    want = np.unpackbits(values["target_from_bitmaps"], axis=-1)[..., :28]
    different = (got != want).sum(axis=(1, 2))
    small = (boxes[:, 2:] - boxes[:, :2] <= 28).all(axis=1)
    assert small.any() and not different[small].any()
    assert 0 < different[~small].max() <= 2  # of 784 pixels


def test_a_mask_in_its_own_box_is_itself():
    masks = np.random.default_rng(0).integers(0, 2, (3, 12, 12))
    boxes = np.float32([[3, 4, 40, 9], [0, 0, 12, 12], [5, 5, 5, 8]])
    got = roi_align.crop_masks(masks[:2], boxes[:2], boxes[:2], 12)
    np.testing.assert_array_equal(got, masks[:2])
    empty = roi_align.crop_masks(masks[2:], boxes[2:], boxes[2:], 12)
    assert np.isfinite(empty).all()
