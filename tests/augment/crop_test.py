"""Crops of the device are Pillow's, and so distributed."""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from litevit_jax.augment import crop

KERNELS = (PIL.Image.Resampling.BILINEAR, PIL.Image.Resampling.BICUBIC)
resized_crops = jax.jit(crop.resized_crops, static_argnums=2)


def images(count, width, height, channels=3, seed=0):
    """Half noise, half smooth: what resampling changes most and least."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (count, height, width, channels))
    waves = np.sin(np.arange(width) / 3) * np.cos(np.arange(height) / 5)[:, None]
    mix = np.where(
        rng.random((count, 1, 1, 1)) < 0.5, noise, 127 + 128 * waves[..., None]
    )
    return np.clip(mix, 0, 255).astype(np.uint8)


def boxes(count, width, height, seed=1):
    """Boxes [count, 5] of any size within an image."""
    rng = np.random.default_rng(seed)
    across = np.sort([rng.choice(width + 1, 2, replace=False) for _ in range(count)])
    down = np.sort([rng.choice(height + 1, 2, replace=False) for _ in range(count)])
    cubic = rng.integers(2, size=count)
    pairs = (across[:, 0], down[:, 0], across[:, 1], down[:, 1], cubic)
    return np.stack(pairs, axis=-1)


def by_pillow(pixels, box, size):
    left, top, right, bottom, cubic = (int(side) for side in box)
    planes = [
        PIL.Image.fromarray(plane)
        .crop((left, top, right, bottom))
        .resize((size[1], size[0]), KERNELS[cubic])
        for plane in np.moveaxis(pixels, -1, 0)
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def cropped(pixels, drawn, size):
    columns = jnp.asarray(pixels.swapaxes(1, 2))
    return np.asarray(resized_crops(columns, jnp.asarray(drawn, jnp.float32), size))


@pytest.mark.parametrize(
    ("width", "height", "channels", "size", "most", "mean"),
    [
        (8, 8, 1, (8, 8), 1, 0.002),
        (32, 32, 3, (32, 32), 1, 0.002),
        # Where the height shrinks more, Pillow may begin with it: what a bicubic kernel
        # overshoots is then cut at another pass.
        (90, 70, 3, (20, 30), 20, 0.2),
        (9, 40, 5, (16, 8), 20, 0.3),
    ],
)
def test_a_crop_is_pillows(width, height, channels, size, most, mean):
    pixels, drawn = images(60, width, height, channels), boxes(60, width, height)
    drawn[0], drawn[1] = (0, 0, width, height, 1), (2, 3, 3, 4, 1)
    want = [by_pillow(x, box, size) for x, box in zip(pixels, drawn, strict=True)]
    got = cropped(pixels, drawn, size)
    assert got.dtype == np.uint8
    difference = np.abs(got.astype(int) - np.stack(want))
    # Pillow's weights have 22 bits: a sum at a half may round to the other side.
    assert difference.max() <= most and difference.mean() < mean


def test_pixels_outside_of_a_box_do_not_matter():
    pixels, drawn = images(20, 32, 24), boxes(20, 32, 24)
    got = cropped(pixels, drawn, (8, 8))
    for image, (left, top, right, bottom, _) in zip(pixels, drawn, strict=True):
        kept = image[top:bottom, left:right].copy()
        image[:] = 255 - image
        image[top:bottom, left:right] = kept
    np.testing.assert_array_equal(cropped(pixels, drawn, (8, 8)), got)


def test_a_whole_image_of_the_same_size_keeps_its_bytes():
    pixels = images(2, 12, 10)
    drawn = np.array([(0, 0, 12, 10, 0), (0, 0, 12, 10, 1)])
    np.testing.assert_array_equal(cropped(pixels, drawn, (10, 12)), pixels)


def test_sides_between_pixels_are_those_of_the_smaller_image():
    """A crop of an image stored at half its size looks like that of the whole."""
    smooth = np.sin(np.linspace(0, 3, 64))[:, None] * np.sin(np.linspace(1, 4, 64))
    large = (127 + 120 * smooth).astype(np.uint8)[None, ..., None]
    small = by_pillow(large[0], (0, 0, 64, 64, 1), (32, 32))[None]
    box = np.array([(7, 13, 50, 60, 1)])
    whole = by_pillow(large[0], box[0], (16, 16))
    half = cropped(small, box * (0.5, 0.5, 0.5, 0.5, 1), (16, 16))[0]
    assert np.abs(half.astype(int) - whole).mean() < 1
