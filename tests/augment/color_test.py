"""Colours on the device against PIL itself, image by image."""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps
import pytest

from litevit_jax import augment
from litevit_jax.augment import color

KEY = jax.random.key(0)


def photos(count=48, height=24, width=32, seed=0):
    """Random images with areas of one colour, saturated and grey ones among them."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, height // 4, width // 4, 3))
    coarse[::3] = np.where(rng.random(coarse[::3].shape) < 0.5, 0, 255)
    coarse[1::6] = coarse[1::6, ..., :1]
    fine = rng.integers(-20, 21, (count, height, width, 3))
    fine[::4] = 0
    large = coarse.repeat(4, axis=1).repeat(4, axis=2)
    return np.clip(large + fine, 0, 255).astype(np.uint8)


def turned(image, turn):
    """PIL's image with its hue turned, in bytes of HSV."""
    hue, saturation, value = image.convert("HSV").split()
    moved = (np.asarray(hue).astype(int) + int(turn * 255)) % 256
    hue = PIL.Image.fromarray(moved.astype(np.uint8))
    return PIL.Image.merge("HSV", (hue, saturation, value)).convert("RGB")


ENHANCERS = (
    PIL.ImageEnhance.Brightness,
    PIL.ImageEnhance.Contrast,
    PIL.ImageEnhance.Color,
)


def jittered(pixels, factors, turn, order, hue_at):
    """What PIL makes of the same factors in the same order."""
    image = PIL.Image.fromarray(pixels)
    for place in range(4):
        if place == hue_at:
            image = turned(image, float(turn))
        if place < 3:
            kind = order[place]
            image = ENHANCERS[kind](image).enhance(float(factors[kind]))
    return np.asarray(image)


def test_jitter_is_that_of_pil():
    """All but a few pixels agree to the grey level."""
    op = color.color_jitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
    images, keys = photos(), jax.random.split(KEY, 48)
    got = np.asarray(jax.jit(jax.vmap(op.change))(keys, images))
    drawn = jax.device_get(jax.jit(jax.vmap(op.draw))(keys))
    rows = [{k: v[i] for k, v in drawn.items()} for i in range(len(images))]
    want = np.stack([jittered(x, **row) for x, row in zip(images, rows, strict=True)])
    error = np.abs(got.astype(int) - want)
    assert error.mean() < 0.05 and (error > 1).mean() < 0.01
    assert np.abs(images.astype(int) - want).mean() > 10


def test_jitter_draws_from_its_ranges_and_every_order():
    op = color.color_jitter(brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1)
    keys = jax.random.split(KEY, 2000)
    drawn = jax.device_get(jax.jit(jax.vmap(op.draw))(keys))
    spread = np.stack([drawn["factors"].min(0), drawn["factors"].max(0)])
    np.testing.assert_allclose(spread, [[0.6, 0.7, 0.8], [1.4, 1.3, 1.2]], atol=0.01)
    np.testing.assert_allclose(np.ptp(drawn["turn"]), 0.2, atol=0.005)
    orders = {(*order, at) for order, at in zip(*map(np.ndarray.tolist, (
        drawn["order"], drawn["hue_at"])), strict=True)}  # fmt: skip
    assert len(orders) == 24


def test_no_strength_no_change():
    images = photos(4)
    op = color.color_jitter()
    got = jax.jit(op)(KEY, {"image": images})["image"]
    np.testing.assert_array_equal(got, images)


@pytest.mark.parametrize("channels", [1, 2])
def test_contrast_of_other_channels_moves_away_from_their_mean(channels):
    images = photos(8)[..., :channels]
    op = color.color_jitter(contrast=0.5)
    keys = jax.random.split(KEY, 8)
    got = jax.jit(jax.vmap(op.change))(keys, images)
    factor = jax.jit(jax.vmap(op.draw))(keys)["factors"][:, 1]
    grey = np.floor(images.mean(axis=-1) + 0.5)
    mean = np.floor(grey.mean(axis=(1, 2)) + 0.5)[:, None, None, None]
    want = mean + np.asarray(factor)[:, None, None, None] * (images - mean)
    assert np.abs(got - np.clip(want, 0, 255)).max() < 1.01


def test_hue_of_every_colour_turns_as_in_pil():
    levels = np.array([0, 1, 60, 127, 128, 200, 254, 255], np.uint8)
    image = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(64, 8, 3)
    turn = jax.jit(lambda x, t: color.turn_hue(jnp.moveaxis(x, -1, 0), t))
    for turns in (-0.5, -0.1, 0.0, 0.03, 0.1, 0.5):
        got = np.moveaxis(np.asarray(turn(image, turns)), 0, -1).astype(int)
        want = np.asarray(turned(PIL.Image.fromarray(image), turns))
        error = np.abs(got - want)
        assert error.mean() < 0.02 and error.max() <= 6, turns


def test_grayscale_is_that_of_pil():
    images = photos(8)
    got = jax.jit(color.grayscale(probability=1.0))(KEY, {"image": images})["image"]
    want = [np.asarray(PIL.Image.fromarray(x).convert("L")) for x in images]
    for channel in range(3):
        np.testing.assert_array_equal(got[..., channel], want)


@pytest.mark.parametrize("threshold", [0, 100, 128, 256])
def test_solarize_is_that_of_pil(threshold):
    images = photos(4)
    op = color.solarize(probability=1.0, threshold=threshold)
    got = jax.jit(op)(KEY, {"image": images})["image"]
    want = [PIL.ImageOps.solarize(PIL.Image.fromarray(x), threshold) for x in images]
    np.testing.assert_array_equal(got, np.stack([np.asarray(x) for x in want]))


GREY = {"image": np.zeros((2, 8, 8, 1), np.uint8)}


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("grayscale", {"probability": 0.2}),
        ("color_jitter", {"saturation": 0.2}),
        ("color_jitter", {"hue": 0.1}),
    ],
)
def test_one_channel_has_no_colours_to_change(name, block):
    [op] = augment.make({name: block})
    with pytest.raises(ValueError, match=rf"{name}.*have 1 channel.*leaves it out"):
        jax.eval_shape(op, KEY, GREY)


@pytest.mark.parametrize(
    ("name", "block", "message"),
    [
        ("color_jitter", {"brightness": -0.1}, r"'brightness': -0.1.* 0 or more"),
        ("color_jitter", {"hue": 0.6}, r"'hue': 0.6.* 0 <= hue <= 0.5"),
        ("solarize", {"probability": 0.2, "threshold": 300}, r"threshold=300"),
        ("grayscale", {"probability": 1.5}, r"probability=1.5; expected values from"),
        ("grayscale", {"probability": ()}, r"one per view"),
    ],
)
def test_errors_say_what_to_do(name, block, message):
    with pytest.raises(ValueError, match=message):
        augment.make({name: block})


def test_what_is_padded_has_the_mean_colour():
    op = color.normalize(mean=(0.485, 0.456), std=(0.2, 0.3))
    op = jax.jit(op)
    image = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 2), np.uint8)
    size = np.array([[4, 5], [2, 5], [3, 1]])
    whole = np.asarray(op(KEY, {"image": image})["image"])
    padded = np.asarray(op(KEY, {"image": image, "size": size})["image"])
    np.testing.assert_array_equal(padded[0], whole[0])
    for row, (height, width) in enumerate(size):
        np.testing.assert_array_equal(
            padded[row, :height, :width], whole[row, :height, :width]
        )
        assert not padded[row, height:].any() and not padded[row, :, width:].any()
