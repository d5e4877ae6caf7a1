"""Resizing is OpenCV's, and a window is a part of the whole."""

import cv2
import numpy as np
import pytest

from litevit_jax.data import resample

SIZES = [
    ((37, 53), (80, 91)),
    ((64, 48), (21, 30)),
    ((5, 1), (9, 3)),
    ((40, 40), (40, 7)),
]


def _pixels(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_bilinear_is_that_of_opencv(old, new):
    pixels = _pixels(old)
    resized = resample.bilinear(pixels, resample.Window.whole(new))
    expected = cv2.resize(pixels, new[::-1], interpolation=cv2.INTER_LINEAR)
    off = np.abs(resized.astype(int) - expected)
    assert resized.dtype == np.uint8 and resized.shape == (*new, 3)
    assert off.max() <= 1 and off.mean() < 0.2


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_nearest_is_that_of_opencv(old, new):
    labels = _pixels(old)[..., 0]
    resized = resample.nearest(labels, resample.Window.whole(new))
    expected = cv2.resize(labels, new[::-1], interpolation=cv2.INTER_NEAREST)
    np.testing.assert_array_equal(resized, expected)


@pytest.mark.parametrize(("old", "new"), [*SIZES, ((30, 30), (30, 30))])
def test_a_window_is_cut_from_the_whole(old, new):
    pixels, whole = _pixels(old), resample.Window.whole(new)
    window = resample.Window(new, new[0] // 3, new[1] // 4, new[0] // 2, new[1] // 2)
    rows = slice(window.top, window.top + window.height)
    columns = slice(window.left, window.left + window.width)
    np.testing.assert_array_equal(
        resample.bilinear(pixels, window),
        resample.bilinear(pixels, whole)[rows, columns],
    )
    labels = pixels[..., 1]
    np.testing.assert_array_equal(
        resample.nearest(labels, window), resample.nearest(labels, whole)[rows, columns]
    )


def test_values_are_weighted_by_distance():
    pixels = np.array([[[0], [100]]], np.uint8)
    resized = resample.bilinear(pixels, resample.Window.whole((1, 4)))
    assert resized[0, :, 0].tolist() == [0, 25, 75, 100]
    labels = np.array([[7, 255]], np.uint8)
    window = resample.Window.whole((2, 5))
    assert resample.nearest(labels, window)[1].tolist() == [7, 7, 7, 255, 255]
