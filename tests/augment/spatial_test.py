"""Blur against PIL itself, and flips."""

import jax
import numpy as np
import PIL.Image
import PIL.ImageFilter
import pytest

from litevit_jax import augment
from litevit_jax.augment import spatial
from tests.augment import color_test

KEY = jax.random.key(0)


@pytest.mark.parametrize("high", [2.0, 5.0])
def test_blur_is_that_of_pil(high):
    """Rounded after each pass, so the grey levels agree but for rounding."""
    op = spatial.gaussian_blur(sigma=(0.1, high))
    images, keys = color_test.photos(), jax.random.split(KEY, 48)
    got = np.asarray(jax.jit(jax.vmap(op.change))(keys, images)).astype(int)
    sigmas = np.asarray(jax.jit(jax.vmap(op.draw))(keys))
    assert sigmas.min() < 0.2 * high and sigmas.max() > 0.9 * high
    want = np.stack([pil_blur(x, s) for x, s in zip(images, sigmas, strict=True)])
    error = np.abs(got - want)
    assert error.mean() < 0.01 and error.max() <= 1
    assert np.abs(images.astype(int) - want).mean() > 10


def pil_blur(pixels, sigma):
    image = PIL.Image.fromarray(pixels)
    return np.asarray(image.filter(PIL.ImageFilter.GaussianBlur(float(sigma))))


@pytest.mark.parametrize("sigma", [0.1, 0.7, 1.4142, 2.0, 5.0])
def test_box_weights_have_a_third_of_the_variance(sigma):
    weights = np.asarray(spatial.box_weights(np.float32(sigma), 8), np.float64)
    distance = np.arange(-8, 9)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)
    variance = (weights * distance**2).sum()
    np.testing.assert_allclose(3 * variance, sigma**2, rtol=1e-4)
    np.testing.assert_array_equal(weights, weights[::-1])


def test_blur_works_on_images_smaller_than_its_box():
    images = color_test.photos(2)[:, :3, :2, :1]
    op = spatial.gaussian_blur(sigma=(5.0, 5.0))
    got = np.asarray(jax.jit(op)(KEY, {"image": images})["image"]).astype(int)
    want = np.stack([pil_blur(x[..., 0], 5.0) for x in images])[..., None]
    assert np.abs(got - want).max() <= 1


def test_flip_swaps_left_and_right():
    images = color_test.photos(4)
    [op] = augment.make({"flip": {"probability": 1.0}})
    got = jax.jit(op)(KEY, {"image": images})["image"]
    np.testing.assert_array_equal(got, images[:, :, ::-1])


@pytest.mark.parametrize("sigma", [(0.0, 1.0), (2.0, 1.0), (1.0,)])
def test_a_sigma_that_cannot_blur_is_refused(sigma):
    with pytest.raises(ValueError, match=r"0 < low <= high"):
        augment.make({"gaussian_blur": {"sigma": sigma}})
