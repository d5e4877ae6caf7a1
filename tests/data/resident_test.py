"""Sets of bytes for the devices: the images as they were, smaller ones, bad ones."""

from typing import ClassVar

import numpy as np
import PIL.Image
import pytest

from litevit_jax.configs import common
from litevit_jax.data import cache, pipeline, resident
from litevit_jax.data.sources import base


class Images(base.Source):
    """Noise of the given sizes (W, H); None cannot be read."""

    classes: ClassVar[list[str]] = ["only"]

    def __init__(self, *sizes, channels=3):
        self.sizes, self._channels = sizes, channels

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        if self.sizes[index] is None:
            raise OSError("damaged")
        width, height = self.sizes[index]
        shape = (height, width, self._channels)
        pixels = np.random.default_rng(index).integers(0, 256, shape)
        return {"image": pixels.astype(np.uint8), "label": 0}

    def name_of(self, index):
        return f"image {index}"

    def fingerprint(self):
        return "images"


def settings(**fields):
    data = common.imagenet()
    data.update(image_size=8, crop_scale=(0.25, 1.0), threads=2, **fields)
    return data


def load(source, most=1e9, **fields):
    return resident.load(source, settings(**fields), most)


def test_images_that_crops_need_whole_are_kept_as_they_are():
    source = Images((16, 16), (16, 16))
    held = load(source)
    assert held.columns.shape == (2, 16, 16, 3) and held.readable.all()
    for row in range(2):
        want = source[row]["image"].swapaxes(0, 1)
        np.testing.assert_array_equal(held.columns[row], want)
    assert held.labels.tolist() == [0, 0] and (held.scales == 1).all()
    assert held.note == "2 images as 16x16 bytes"


def test_sizes_are_what_the_smallest_crop_needs_and_that_is_said():
    source = Images((64, 32), (10, 40), (12, 9))
    held = load(source)
    # A crop of a quarter of the area is half as wide: 16 pixels for 8.
    assert held.sizes.tolist() == [[64, 32], [10, 40], [12, 9]]
    np.testing.assert_allclose(held.scales, [[0.5, 0.5], [1, 1], [1, 1]])
    assert held.columns.shape == (3, 32, 40, 3)
    small = PIL.Image.fromarray(source[0]["image"]).resize((32, 16), 3)
    np.testing.assert_array_equal(
        held.columns[0, :32, :16], np.asarray(small).swapaxes(0, 1)
    )
    assert not held.columns[0, :, 16:].any()
    assert held.note == (
        "3 images as 32x40 bytes (1 of them shrunk to what the smallest crop needs), "
        "of different sizes, each with its own at the left and top"
    )


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_any_number_of_channels_is_kept_or_shrunk(channels):
    source = Images((16, 16), (40, 48), channels=channels)
    held = load(source, channels=channels)
    assert held.columns.shape == (2, 16, 20, channels)
    np.testing.assert_allclose(held.scales[1], [16 / 40, 20 / 48])


def test_an_image_that_cannot_be_read_is_named_once_and_marked(caplog):
    held = load(Images((8, 8), None, (8, 8)), max_bad_fraction=0.5)
    assert held.readable.tolist() == [True, False, True]
    assert caplog.text.count("unreadable, skipped: image 1: OSError: damaged") == 1


@pytest.mark.parametrize("sizes", [[(8, 8), None, None], [None]])
def test_too_many_bad_images_are_refused_before_the_first_step(sizes):
    with pytest.raises(pipeline.BadDataError, match="image"):
        load(Images(*sizes), max_bad_fraction=0.5 if len(sizes) > 1 else 1.0)


def test_a_set_that_is_too_large_is_noticed_before_it_is_read(monkeypatch):
    source = Images(*[(8, 8)] * 500)
    monkeypatch.setattr(cache, "read_all", lambda *_: pytest.fail("all are read"))
    with pytest.raises(resident.TooLargeError, match="500 images of 8x8 pixels take"):
        load(source, most=90_000)


def test_a_larger_image_among_many_is_noticed_when_it_is_read():
    sizes = [(8, 8)] * 200
    sizes[1] = (16, 16)
    with pytest.raises(resident.TooLargeError, match="200 images of 16x16 pixels"):
        load(Images(*sizes), most=60_000)


def test_what_moves_pixels_on_the_host_stays_there():
    assert not resident.why_not(settings())
    assert "RandAugment" in resident.why_not(settings(randaugment={"layers": 1}))
    joint = {"annotations": ("label_map",)}
    assert "joint.annotations" in resident.why_not(settings(joint=joint))
