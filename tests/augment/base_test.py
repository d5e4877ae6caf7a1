"""Chance of a batch: one draw for each image and view, whatever the device."""

import dataclasses

import jax
import numpy as np
import pytest

from litevit_jax import augment, sharding
from litevit_jax.augment import base
from tests.augment import color_test

KEY = jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Brand(base.ImageOp):
    """Writes a random byte over the image."""

    def change(self, key, image):
        return image * 0 + jax.random.bits(key, (), "uint8")


def brands(batch, probability=(1.0,), key=KEY):
    changed = jax.jit(Brand(probability))(key, batch)
    return np.asarray(changed.get("views", changed.get("image")))[..., 0, 0, 0]


VIEWS = {"views": np.zeros((2, 64, 1, 1, 1), np.uint8)}


def test_every_image_and_view_has_a_draw_of_its_own():
    first, second = brands(VIEWS)
    assert len(set(first)) > 40 and len(set(second)) > 40
    assert (first == second).mean() < 0.1
    assert (brands(VIEWS, key=jax.random.key(1))[0] == first).mean() < 0.1


def test_the_place_in_the_global_batch_decides():
    whole = brands(VIEWS)
    slot = np.array([5, 63, 0])
    part = brands({"views": VIEWS["views"][:, :3], "slot": slot})
    np.testing.assert_array_equal(part, whole[:, slot])


def test_one_image_is_the_first_of_several_views():
    one = brands({"image": VIEWS["views"][0]})
    np.testing.assert_array_equal(one, brands(VIEWS)[0])


def test_each_view_has_its_probability():
    batch = {"views": np.zeros((3, 4096, 1, 1, 1), np.uint8)}
    shares = (brands(batch, (0.0, 0.3, 1.0)) > 0).mean(axis=1)
    np.testing.assert_allclose(shares, [0, 0.3, 1], atol=0.02)


def test_the_mesh_does_not_change_a_pixel():
    """The whole chain of MoCo v3, on one device and on eight."""
    blocks = {
        "color_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2,
                         "hue": 0.1, "probability": (0.8, 0.8)},
        "gaussian_blur": {"probability": (1.0, 0.1)},
        "grayscale": {"probability": 0.2},
        "flip": {"probability": 0.5},
        "solarize": {"probability": (0.0, 0.2)},
    }  # fmt: skip
    ops = augment.make(blocks)
    views = color_test.photos(32).reshape(2, 16, 24, 32, 3)
    run = jax.jit(lambda x: augment.apply(ops, KEY, {"views": x})["views"])
    want = run(views)
    assert (np.asarray(want) != views).mean() > 0.5
    mesh = sharding.make_mesh(4, 2)
    got = run(jax.device_put(views, sharding.slice_sharding(mesh)))
    error = np.abs(np.asarray(got).astype(int) - np.asarray(want).astype(int))
    assert error.max() <= 1 and (error > 0).mean() < 1e-3


def test_bytes_and_a_probability_for_each_view_are_needed():
    with pytest.raises(ValueError, match=r"Brand.* 3 probabilities for 2 view"):
        brands(VIEWS, (0.1, 0.2, 0.3))
    with pytest.raises(ValueError, match=r"float32 pixels, expected uint8.*before"):
        brands({"image": np.zeros((2, 4, 4, 3), np.float32)})
