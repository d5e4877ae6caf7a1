"""Crops drawn for many positions at once are those that are drawn one by one."""

import dataclasses
from typing import ClassVar

import numpy as np
import pytest

from litevit_jax.data import decode, draws, order, transforms
from litevit_jax.data.sources import base

SIZES = np.array([(8, 8), (90, 70), (3, 200), (1, 1), (255, 254), (31, 32), (40, 40)])


class Images(base.Source):
    """An image of each of `SIZES`; those in `bad` cannot be read."""

    classes: ClassVar[list[str]] = []

    def __init__(self, bad=()):
        self.bad = bad

    def __len__(self):
        return len(SIZES)

    def __getitem__(self, index):
        if index in self.bad:
            raise OSError("bad")
        width, height = SIZES[index]
        return {"image": np.zeros((height, width), np.uint8), "label": -1}

    def name_of(self, index):
        return str(index)

    def fingerprint(self):
        return "sizes"


@dataclasses.dataclass(frozen=True)
class Record:
    """A crop as five bytes in place of its pixels."""

    crop: transforms.RandomResizedCrop
    random: ClassVar[bool] = True

    def __call__(self, image, rng):
        box, name = self.crop.draw(*image.size, rng)
        return np.array([*box, name == "bicubic"], np.uint8).reshape(1, 5, 1)


def one_by_one(crop, positions, seed, views, bad, sampling=None):
    """Index and boxes as the host's path draws them."""
    how = transforms.Transform(decode.Decode(1), (Record(crop),), (1, 5), views)
    shard = order.HostShard(1, 0, 1)
    examples = order.TrainExamples(Images(bad), how, shard, seed, sampling)
    read = [examples.read(int(position), None) for position in positions]
    boxes = np.stack([r["image"].reshape(views, 5) for r in read])
    return np.array([r["index"] for r in read]), boxes


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"scale": (0.6, 1.0), "interpolation": "bicubic"},
        {"scale": (1.0, 1.0), "ratio": (1.2, 1.3), "interpolation": "bilinear"},
        {"single_draw": True},
    ],
    ids=str,
)
def test_crops_are_those_that_are_drawn_one_by_one(how, views):
    crop = transforms.RandomResizedCrop((8, 8), **how)
    positions = np.concatenate([np.arange(100), [2**33 + 5, 2**40]])
    bad, seed = (2, 5), 2**32 - 7
    readable = ~np.isin(np.arange(len(SIZES)), bad)
    drawn = draws.Draws(crop, SIZES, readable, seed, views)
    index, boxes = drawn.at(positions)
    want_index, want_boxes = one_by_one(crop, positions, seed, views, bad)
    np.testing.assert_array_equal(index, want_index)
    np.testing.assert_array_equal(boxes, want_boxes)


def test_images_that_come_up_again_are_those_of_the_host():
    crop, positions = transforms.RandomResizedCrop((8, 8)), np.arange(100)
    sampling = np.array([0, 1, 1, 1, 3, 3, 4], np.int64)
    readable = np.arange(len(SIZES)) != 3
    drawn = draws.Draws(crop, SIZES, readable, 5, 1, sampling)
    index, boxes = drawn.at(positions)
    want_index, want_boxes = one_by_one(crop, positions, 5, 1, (3,), sampling)
    np.testing.assert_array_equal(index, want_index)
    np.testing.assert_array_equal(boxes, want_boxes)
    assert 30 < (index == 1).sum() < 60


def test_an_integer_that_numpy_draws_again_is_marked():
    # Of 3, the lowest product is rejected: 2^32 mod 3 = 1.
    integers = draws._Integers(np.array([[0, 0], [2**31, 0]], np.uint64))
    assert integers.below(np.array([3, 3])).tolist() == [0, 1]
    assert integers.rejected.tolist() == [True, False]


def test_a_crop_with_such_an_integer_is_left_to_the_generator():
    crop = transforms.RandomResizedCrop((2, 2), scale=(0.25, 0.25), ratio=(1, 1))
    words = np.full((2, 8), 2**31 | 2**63, np.uint64)
    words[0, 2] = 0  # of the place from top to bottom, one of 3
    boxes, drawn = draws._boxes(crop, np.full(2, 4), np.full(2, 4), words)
    assert drawn.tolist() == [False, True]
    assert boxes[1, :4].tolist() == [1, 1, 3, 3]


def test_a_set_without_an_image_is_an_error():
    nothing = np.zeros(len(SIZES), bool)
    crop = transforms.RandomResizedCrop((8, 8))
    with pytest.raises(ValueError, match="in a row cannot be read"):
        draws.Draws(crop, SIZES, nothing, 0).at(np.arange(2))
