"""One draw moves an image and its labels alike; 255 stays 255."""

import functools
import io

import numpy as np
import PIL.Image
import pytest

from litevit_jax.data import decode, joint, resample

SETTINGS = joint.Settings(
    annotations=("label_map",), short_side=32, long_side=128, ratio=(0.5, 2.0)
)


class Fixed:
    """A generator whose draws are given in advance."""

    def __init__(self, *, uniform=1.0, integers=(), random=1.0):
        self._uniform, self._integers = uniform, list(integers)
        self._random, self.limits = random, []

    def uniform(self, low, high):
        return self._uniform

    def integers(self, limit):
        self.limits.append(limit)
        return self._integers.pop(0) if self._integers else 0

    def random(self):
        return self._random


def _crop(size=(24, 24), settings=SETTINGS, flip=0.5, channels=3):
    return joint.Crop(decode.Decode(channels), size, settings, flip)


def _marked(height, width, seed=0):
    """An image whose every pixel tells its label, in blocks of 4; some are 255."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 6, (height // 4 + 1, width // 4 + 1)).astype(np.uint8)
    blocks[blocks == 5] = 255
    labels = np.kron(blocks, np.ones((4, 4), np.uint8))[:height, :width]
    image = np.repeat(labels[..., None], 3, axis=2)
    return {"image": image, "label_map": labels, "label": -1}


@pytest.mark.parametrize(
    ("size", "factor", "expected"),
    [
        ((480, 640), 1.0, (512, 683)),
        ((512, 683), 1.0, (512, 683)),
        ((300, 3000), 1.0, (205, 2048)),  # the long side decides
        ((480, 640), 0.5, (256, 341)),
        ((1, 2000), 1.0, (1, 2048)),
        ((9000, 1), 1.0, (2048, 1)),
    ],
)
def test_images_keep_their_ratio_within_both_sides(size, factor, expected):
    settings = joint.Settings(annotations=("label_map",))
    assert settings.resized(size, factor) == expected


def test_the_same_draw_moves_image_and_labels():
    # Without resizing, pixels say what their labels must be.
    settings = joint.Settings(
        annotations=("label_map",), short_side=40, long_side=200, ratio=(1.0, 1.0)
    )
    example, mirrored = _marked(40, 60), 0
    for seed in range(20):
        crop = _crop(settings=settings)
        out = crop(example, np.random.default_rng(seed))
        np.testing.assert_array_equal(out["image"][..., 0], out["label_map"])
        geometry = crop.draw(example["label_map"], np.random.default_rng(seed))
        top, left = geometry.window.top, geometry.window.left
        part = example["label_map"][top : top + 24, left : left + 24]
        mirrored += geometry.mirrored
        part = part[:, ::-1] if geometry.mirrored else part
        np.testing.assert_array_equal(out["label_map"], part)
    assert 0 < mirrored < 20


def test_labels_are_resized_by_the_nearest_and_255_survives():
    example = _marked(50, 70)
    example["label_map"][:20] = 255
    known = set(np.unique(example["label_map"]))
    for seed in range(30):
        out = _crop()(example, np.random.default_rng(seed))
        assert set(np.unique(out["label_map"])) <= known
    whole = dict(example, label_map=np.full((50, 70), 255, np.uint8))
    assert (_crop()(whole, np.random.default_rng(0))["label_map"] == 255).all()


def test_the_sizes_are_uniform_in_the_ratio():
    labels, rng = np.zeros((32, 48), np.uint8), np.random.default_rng(0)
    heights = np.array([_crop().draw(labels, rng).window.size[0] for _ in range(300)])
    assert heights.min() >= 16 and heights.max() <= 64
    assert abs(heights.mean() - 40) < 2


def test_a_crop_that_one_class_fills_is_drawn_again():
    labels = np.zeros((32, 96), np.uint8)
    labels[:, 40:] = 1
    settings = joint.Settings(
        annotations=("label_map",), short_side=32, long_side=96, ratio=(1.0, 1.0)
    )
    crop = _crop((32, 16), settings)
    rng = Fixed(integers=[0, 0, 0, 78, 0, 33, 0, 70])  # top, left of each try
    assert crop.draw(labels, rng).window.left == 33  # 7 and 9 columns of the classes
    rng = Fixed(integers=[0, 5] * 10 + [0, 6, 0, 33])
    assert crop.draw(labels, rng).window.left == 6  # after ten redraws, whatever it is
    assert rng.limits == [1, 81] * 11


@pytest.mark.parametrize(
    ("labels", "again"),
    [
        ([0] * 12 + [1] * 4, True),  # exactly three quarters are not less
        ([0] * 11 + [1] * 5, False),
        ([0] * 16, True),
        ([255] * 16, True),
        ([255] * 8 + [0] * 4 + [1] * 4, False),  # shares of what is labelled
        ([255] * 8 + [0] * 7 + [1], True),
    ],
)
def test_the_share_of_a_class_is_of_the_labelled_pixels(labels, again):
    settings = joint.Settings(
        annotations=("label_map",), short_side=4, long_side=4, ratio=(1.0, 1.0)
    )
    rng = Fixed()
    _crop((4, 4), settings).draw(np.array(labels, np.uint8).reshape(4, 4), rng)
    assert len(rng.limits) == 2 * (11 if again else 1)


def test_a_small_image_is_padded():
    example = {"image": np.full((6, 10, 3), 200, np.uint8), "label": -1}
    example["label_map"] = np.full((6, 10), 3, np.uint8)
    settings = joint.Settings(
        annotations=("label_map",), short_side=6, long_side=100, ratio=(1.0, 1.0)
    )
    dirty = np.full((8, 16, 3), 77, np.uint8)
    out = _crop((8, 16), settings)(example, Fixed(), dirty)
    assert out["image"] is dirty
    assert out["size"].tolist() == [6, 10] and out["size"].dtype == np.int32
    assert (out["image"][:6, :10] == 200).all()
    assert not out["image"][6:].any() and not out["image"][:, 10:].any()
    assert (out["label_map"][:6, :10] == 3).all()
    assert (out["label_map"][6:] == 255).all()
    assert (out["label_map"][:, 10:] == 255).all()


@pytest.mark.parametrize("size", [(1, 400), (400, 1), (1, 1), (2, 3)])
def test_extreme_pictures_fill_a_crop(size):
    example = {"image": np.zeros((*size, 3), np.uint8), "label": -1}
    example["label_map"] = np.zeros(size, np.uint8)
    out = _crop()(example, np.random.default_rng(0))
    assert out["image"].shape == (24, 24, 3) and out["label_map"].shape == (24, 24)
    assert out["size"].min() >= 1


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "I;16"])
def test_pictures_of_any_mode_are_read(mode):
    grey = PIL.Image.fromarray(np.full((40, 50), 90, np.uint8))
    image = grey.convert("I").point(lambda x: x * 257) if mode == "I;16" else grey
    file = io.BytesIO()
    image.convert(mode).save(file, "TIFF" if mode == "CMYK" else "PNG")
    example = {"image": file.getvalue(), "label_map": np.ones((40, 50), np.uint8)}
    out = _crop()(example, np.random.default_rng(0))
    inside = out["image"][: out["size"][0], : out["size"][1]]
    assert abs(int(np.median(inside)) - 90) <= 1


def test_labels_of_another_size_are_refused():
    example = _marked(40, 60) | {"label_map": np.zeros((60, 40), np.uint8)}
    with pytest.raises(ValueError, match="label map of 40 x 60 pixels, but its image"):
        _crop()(example, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("size", "crop", "expected"),
    [
        ((480, 640), (512, 512), (512, 768)),
        ((512, 512), (512, 512), (512, 512)),
        ((900, 400), (512, 512), (1536, 512)),
        ((300, 3000), (512, 512), (512, 2048)),
        ((300, 300), (640, 640), (640, 640)),
        ((1, 2000), (224, 224), (512, 2048)),
    ],
)
def test_canvases_are_few_and_hold_a_crop(size, crop, expected):
    settings = joint.Settings(annotations=("label_map",))
    assert joint.canvas(size, settings, crop) == expected
    resized = settings.resized(size)
    assert all(side <= c for side, c in zip(resized, expected, strict=True))


def test_an_evaluated_image_is_whole_at_the_top_left():
    example = _marked(40, 60)
    fit = functools.partial(joint.whole, how=SETTINGS)
    canvas = joint.Canvas(decode.Decode(), (32, 64), fit)
    out = canvas(example, np.random.default_rng(0))
    assert out.keys() == {"image", "size", "original_size"} == {"image", *canvas.extras}
    assert out["size"].tolist() == [32, 48]
    assert out["original_size"].tolist() == [40, 60]
    whole = resample.bilinear(example["image"], resample.Window.whole((32, 48)))
    np.testing.assert_array_equal(out["image"][:, :48], whole)
    assert not out["image"][:, 48:].any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"annotations": ("label_maps",)}, "did you mean label_map"),
        ({"short_side": 600, "long_side": 500}, "0 < short_side <= long_side"),
        ({"ratio": (2.0, 0.5)}, "0 < low <= high"),
        ({"most_of_one_class": 0}, "0 < share <= 1"),
    ],
)
def test_settings_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        joint.Settings(**fields)
