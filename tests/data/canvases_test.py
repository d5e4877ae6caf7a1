"""Evaluated images keep their size on canvases of few sizes, each image once."""

import dataclasses
import io

import numpy as np
import PIL.Image
import pytest

from litevit_jax import sharding
from litevit_jax.data import canvases, decode, splits
from litevit_jax.data.sources import base
from tests import jobs


@dataclasses.dataclass(frozen=True)
class Sizes(base.Source):
    """Images of given sizes (h, w), the pixels of each its number."""

    sizes: tuple
    encoded: bool = False
    bad: int = -1
    classes = ("a", "b")
    annotations = ("label_map",)

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        size = self.sizes[index]
        image = np.full((*size, 3), index, np.uint8)
        if self.encoded:
            file = io.BytesIO()
            PIL.Image.fromarray(image).save(file, "PNG")
            image = file.getvalue() if index != self.bad else b"nothing"
        return {"image": image, "label": -1, "label_map": np.zeros(size, np.uint8)}

    def name_of(self, index):
        return f"size {index}"

    def fingerprint(self):
        return "sizes"


MANY = ((16, 16), (20, 10), (16, 30), (9, 16), (40, 40), (10, 20), (16, 17), (3, 64))


def _data(**fields):
    data = jobs.config("mae_tiny", "smoke").data
    with data.unlocked():
        data.update(image_size=16, channels=3, **fields)
        data.joint.update(annotations=("label_map",), short_side=16, long_side=64)
    return data


@pytest.mark.parametrize("encoded", [False, True])
def test_each_image_is_evaluated_once_and_whole(encoded):
    source = Sizes(MANY, encoded)
    batches = splits.evaluation_batches(_data(), 8, sharding.make_mesh())(source)
    seen = {}
    for batch in batches:
        height, width = batch["image"].shape[1:3]
        assert batch["size"].dtype == np.int32
        for image, size, index, mask in zip(
            *(batch[k] for k in ("image", "size", "index", "mask")), strict=True
        ):
            if not mask:
                assert index == -1
                continue
            assert index not in seen
            seen[int(index)] = (height, width), tuple(size)
            assert (image[: size[0], : size[1]] == index).all()
            assert not image[size[0] :].any() and not image[:, size[1] :].any()
    assert seen == {
        0: ((16, 16), (16, 16)),
        1: ((32, 16), (32, 16)),
        2: ((16, 32), (16, 30)),
        3: ((16, 32), (16, 28)),
        4: ((16, 16), (16, 16)),
        5: ((16, 32), (16, 32)),
        6: ((16, 24), (16, 17)),
        7: ((16, 64), (3, 64)),
    }


def test_images_of_several_sizes_follow_each_other():
    made = splits.evaluation_batches(_data(), 8, sharding.make_mesh())
    seen = {}
    for batch in made(Sizes(MANY, True), scales=(1.0, 0.5, 1.32)):
        rows = np.flatnonzero(batch["mask"])
        for index, view, size, original in zip(
            *(batch[k][rows] for k in ("index", "view", "size", "original_size")),
            strict=True,
        ):
            assert tuple(original) == MANY[index]
            seen.setdefault(int(index), []).append((int(view), tuple(size)))
    # Short sides of 16, 8 and 21 pixels, long ones of at most 64, 32 and 84.
    assert seen == {
        0: [(0, (16, 16)), (1, (8, 8)), (2, (21, 21))],
        1: [(0, (32, 16)), (1, (16, 8)), (2, (42, 21))],
        2: [(0, (16, 30)), (1, (8, 15)), (2, (21, 39))],
        3: [(0, (16, 28)), (1, (8, 14)), (2, (21, 37))],
        4: [(0, (16, 16)), (1, (8, 8)), (2, (21, 21))],
        5: [(0, (16, 32)), (1, (8, 16)), (2, (21, 42))],
        6: [(0, (16, 17)), (1, (8, 9)), (2, (21, 22))],
        7: [(0, (3, 64)), (1, (2, 32)), (2, (4, 84))],
    }


def test_a_pass_can_be_repeated_and_closed():
    made = splits.evaluation_batches(_data(), 8, sharding.make_mesh())
    source = Sizes(MANY)
    once, again = ([b["index"] for b in made(source)] for _ in range(2))
    np.testing.assert_array_equal(np.stack(once), np.stack(again))
    opened = made(source)
    next(opened)
    opened.close()
    assert list(opened) == []


def test_an_unreadable_image_counts_among_all():
    source = Sizes(MANY, encoded=True, bad=2)
    mesh = sharding.make_mesh()
    batches = splits.evaluation_batches(_data(max_bad_fraction=0.2), 8, mesh)(source)
    seen = {int(i) for b in batches for i in b["index"][b["mask"] == 1]}
    assert seen == set(range(8)) - {2}
    batches = splits.evaluation_batches(_data(max_bad_fraction=0.0), 8, mesh)(source)
    with pytest.raises(ValueError, match="size 2"):
        list(batches)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 6, 8, 3, 99])
def test_headers_tell_the_upright_size(kind, orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    PIL.Image.new("RGB", (12, 8)).save(file, kind, exif=exif)
    upright = decode.Decode()(file.getvalue())
    assert canvases.size_of(file.getvalue()) == upright.size[::-1]
