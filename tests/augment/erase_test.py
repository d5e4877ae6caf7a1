"""Random erasing: one box of noise, of the shares and ratios of its definition."""

import functools

import jax
import numpy as np
import pytest

from litevit_jax import sharding
from litevit_jax.augment import erase

BATCH = {
    "image": np.full((64, 20, 24, 2), 7.0, np.float32),
    "slot": np.arange(64, dtype=np.int32),
}


@functools.cache
def compiled(**kwargs):
    return jax.jit(erase.make(**kwargs))


def run(batch=BATCH, probability=1.0, seed=0, **kwargs):
    op = compiled(probability=probability, **kwargs)
    return np.asarray(op(jax.random.key(seed), batch)["image"])


@pytest.fixture(scope="module")
def boxes():
    op = erase.make(probability=1.0)
    keys = jax.random.split(jax.random.key(3), 4000)
    draw = jax.jit(jax.vmap(lambda key: op.box(key, 200, 200)))
    return np.stack([np.asarray(x) for x in draw(keys)])


def test_one_whole_box_becomes_standard_normal_noise():
    images = run()
    erased = (images != 7).all(axis=-1)
    for image in erased:
        rows, columns = image.any(axis=1), image.any(axis=0)
        np.testing.assert_array_equal(image, rows[:, None] & columns[None])
    noise = images[erased]
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05


def test_a_quarter_of_the_images_loses_a_box():
    batch = {
        "image": np.full((4096, 6, 6, 1), 7.0, np.float32),
        "slot": np.arange(4096),
    }
    hit = (run(batch, probability=0.25, area=(0.3, 0.3)) != 7).any(axis=(1, 2, 3))
    assert abs(hit.mean() - 0.25) < 0.02


def test_area_is_uniform_and_aspect_log_uniform(boxes):
    _, _, tall, wide = boxes
    area, ratio = tall * wide / 200**2, np.log(tall / wide)
    assert area.min() > 0.017 and area.max() < 0.34
    assert abs(np.median(area) - (0.02 + 1 / 3) / 2) < 0.02
    limit = np.log(1 / 0.3)
    assert np.abs(ratio).max() < limit + 0.03
    assert abs(ratio.mean()) < 0.05
    # Uniform in (-limit, limit), but for the tallest and widest, which do not fit.
    assert abs(ratio.std() - 2 * limit / 12**0.5) < 0.05


def test_boxes_lie_inside_and_reach_every_border(boxes):
    top, left, tall, wide = boxes
    for start, length in ((top, tall), (left, wide)):
        end = start + length
        assert start.min() == 0 and end.max() == 200


def test_a_box_that_never_fits_erases_nothing():
    np.testing.assert_array_equal(run(area=(1.0, 1.0), aspect=(1.0, 1.0)), 7)


def test_an_image_loses_the_same_box_anywhere_in_the_batch():
    whole = run()
    order = np.random.default_rng(0).permutation(64)
    moved = run({"image": BATCH["image"], "slot": order})
    np.testing.assert_array_equal(moved, whole[order])
    assert (run(seed=1) != whole).any()


def test_the_mesh_does_not_change_a_pixel():
    batch = sharding.global_batch(BATCH, sharding.make_mesh(8, 1))
    np.testing.assert_array_equal(run(batch), run())


def test_bytes_and_views_are_refused():
    with pytest.raises(ValueError, match=r"image is uint8, expected normalised floats"):
        run({"image": np.zeros((2, 4, 4, 1), np.uint8)})
    with pytest.raises(ValueError, match=r"augment.erase needs one image .*views=1"):
        erase.make(probability=0.5)(jax.random.key(0), {"views": 0})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"probability": 1.5}, r"probability=1.5, expected a number from 0 to 1"),
        ({"area": (0.5, 0.1)}, r"area=\(0.5, 0.1\), expected \(low, high\)"),
        ({"aspect": (0.0, 2.0)}, r"aspect=\(0.0, 2.0\), expected"),
    ],
)
def test_wrong_settings_are_explained(wrong, message):
    with pytest.raises(ValueError, match=message):
        erase.make(**({"probability": 0.5} | wrong))
