"""The colours of segmentation recipes, against OpenCV image by image."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax import augment
from litevit_jax.augment import color, photometric
from tests.augment.color_test import photos


def scaled(pixels, factor=1.0, shift=0.0):
    moved = pixels.astype(np.float32) * np.float32(factor) + np.float32(shift)
    return np.clip(moved, 0, 255).astype(np.uint8)


def to_rgb(hsv):
    """OpenCV's colours, rounded: in rows of many pixels some builds cut them off."""
    rows = np.ascontiguousarray(hsv.reshape(-1, 1, 3))
    return cv2.cvtColor(rows, cv2.COLOR_HSV2RGB).reshape(hsv.shape)


def reference(pixels, *, shift, contrast, saturation, turn, contrast_last):
    """The same changes, made by OpenCV."""
    pixels = scaled(pixels, shift=shift)
    if not contrast_last:
        pixels = scaled(pixels, contrast)
    if saturation != 1:
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
        hsv[..., 1] = scaled(hsv[..., 1], saturation)
        pixels = to_rgb(hsv)
    if turn:
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + turn) % 180
        pixels = to_rgb(hsv)
    return scaled(pixels, contrast) if contrast_last else pixels


OP = photometric.make()
APPLY = jax.jit(OP.apply)
NOTHING = {
    "shift": 0.0,
    "contrast": 1.0,
    "saturation": 1.0,
    "turn": 0,
    "contrast_last": False,
}


@pytest.mark.parametrize(
    "changes",
    [
        {"shift": -20.5},
        {"shift": 31.0},
        {"contrast": 1.4},
        {"contrast": 0.6, "contrast_last": True},
        {"saturation": 0.5},
        {"saturation": 1.5},
        {"turn": -18},
        {"turn": 17},
        {"shift": 12.0, "contrast": 1.2, "saturation": 0.8, "turn": 9},
    ],
    ids=str,
)
def test_each_change_is_opencvs(changes):
    values = NOTHING | changes
    off = []
    for pixels in photos(12):
        result = np.asarray(APPLY(pixels, **values))
        off.append(np.abs(result.astype(int) - reference(pixels, **values)))
    assert np.max(off) <= 3 and np.mean(off) < 0.02


def test_hue_saturation_and_value_are_opencvs():
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    planes = np.moveaxis(pixels, -1, 0)
    hsv = np.stack(jax.jit(photometric.to_hsv)(planes), axis=-1)
    expected = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV).astype(int)
    off = np.abs(hsv - expected)
    off[..., 0] = np.minimum(off[..., 0], 180 - off[..., 0])
    assert off.max() <= 1 and (off > 0).mean() < 1e-3


def test_the_draws_are_as_published():
    draw = jax.jit(jax.vmap(OP.draw))
    draws = jax.device_get(draw(jax.random.split(jax.random.key(0), 4000)))
    for name, neutral, low, high in (
        ("shift", 0, -32, 32),
        ("contrast", 1, 0.5, 1.5),
        ("saturation", 1, 0.5, 1.5),
        ("turn", 0, -18, 17),
    ):
        values = draws[name]
        changed = values[values != neutral]
        # A turn of 0 is drawn, too: one of 36.
        assert abs(len(changed) / 4000 - 0.5) < 0.04
        assert low <= changed.min() < low + 1 and high - 1 < changed.max() <= high
        assert abs(changed.mean() - (low + high) / 2) < (high - low) / 50
    assert abs(np.mean(draws["contrast_last"]) - 0.5) < 0.03


def test_an_example_has_a_draw_of_its_own():
    images = np.broadcast_to(photos(1), (8, 24, 32, 3))
    batch = {"image": images, "slot": np.arange(8)}
    ops = augment.make({"photometric": {}})
    key = jax.random.key(3)
    change = jax.jit(lambda batch: augment.apply(ops, key, batch)["image"])
    whole = np.asarray(change(batch))
    assert len({image.tobytes() for image in whole}) > 5
    half = {"image": batch["image"][4:], "slot": batch["slot"][4:]}
    np.testing.assert_array_equal(change(half), whole[4:])


def test_it_changes_the_image_alone():
    labels = jnp.full((2, 4, 4), 255, jnp.uint8)
    ops = augment.make({"photometric": {}})

    def run(image, key):
        changed = augment.apply(ops, key, {"image": image, "label_map": labels})
        assert changed["label_map"] is labels
        return changed["image"]

    image = jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.uint8)
    assert jax.eval_shape(run, image, jax.random.key(0)).dtype == jnp.uint8


def test_grey_images_are_left_out():
    blocks, left_out = color.for_channels({"photometric": {}, "normalize": {}}, 1)
    assert "photometric" not in blocks and left_out == ["photometric"]


@pytest.mark.parametrize(
    "fields", [{"hue": 91}, {"contrast": (1.5, 0.5)}, {"brightness": -1}, {"each": 1.1}]
)
def test_values_out_of_range_are_refused(fields):
    with pytest.raises(ValueError, match=r"augment\.photometric"):
        photometric.make(**fields)
