"""Crop, resize and flip agree with their definitions and with PIL."""

import io
import math

import numpy as np
import PIL.Image
import pytest

from litevit_jax.data import transforms

BICUBIC = PIL.Image.Resampling.BICUBIC
BILINEAR = PIL.Image.Resampling.BILINEAR


def _noise(width, height, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def _image(width, height):
    return PIL.Image.fromarray(_noise(width, height))


def _rng(seed=0):
    return np.random.Generator(np.random.Philox(seed))


def _crops(crop, width, height, count=2000):
    rng = _rng()
    boxes = np.array([crop.box(width, height, rng) for _ in range(count)])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all() and (left < right).all() and (right <= width).all()
    assert (top >= 0).all() and (top < bottom).all() and (bottom <= height).all()
    return left, top, right - left, bottom - top


def test_crop_area_is_uniform_and_ratio_log_uniform():
    crop = transforms.RandomResizedCrop((8, 8), scale=(0.08, 0.5))
    _, _, w, h = _crops(crop, 1000, 1000)
    area, log_ratio = w * h / 1e6, np.log(w / h)
    assert abs(area.mean() - 0.29) < 0.01 and abs(area.std() - 0.42 / 12**0.5) < 0.01
    limit = math.log(4 / 3)
    assert np.abs(log_ratio).max() < limit + 0.01
    assert abs(log_ratio.mean()) < 0.02
    assert abs(log_ratio.std() - 2 * limit / 12**0.5) < 0.01


def test_crop_place_is_uniform():
    crop = transforms.RandomResizedCrop((8, 8), scale=(0.25, 0.25), ratio=(1, 1))
    left, top, w, h = _crops(crop, 400, 300)
    assert set(w) == set(h) == {173}
    for place, room in ((left, 400 - 173), (top, 300 - 173)):
        assert place.min() == 0 and place.max() == room
        assert abs(place.mean() - room / 2) < 0.05 * room


@pytest.mark.parametrize(
    "size, expected",
    [((1000, 10), (493, 0, 506, 10)), ((10, 1000), (0, 493, 10, 506))],
)
def test_crop_that_never_fits_takes_the_centre_at_the_nearest_ratio(size, expected):
    crop = transforms.RandomResizedCrop((8, 8), scale=(1, 1))
    assert crop.box(*size, _rng()) == expected


def test_single_draw_cuts_sides_to_the_image_instead_of_drawing_again():
    crop = transforms.RandomResizedCrop((8, 8), scale=(1, 1), single_draw=True)
    _, _, w, h = _crops(crop, 800, 300)
    assert (h == 300).all()
    side = 240_000**0.5
    assert w.min() < side * 0.88 and w.max() > side * 1.14


def test_crop_of_a_tiny_image_keeps_a_pixel():
    for single_draw in (False, True):
        crop = transforms.RandomResizedCrop((4, 4), single_draw=single_draw)
        assert crop.box(1, 1, _rng()) == (0, 0, 1, 1)
        _, _, width, height = _crops(crop, 1, 7, 50)
        assert set(width) == {1} and set(height) <= {1, 2, 3}  # of an area of 7


@pytest.mark.parametrize("name, kind", [("bilinear", BILINEAR), ("bicubic", BICUBIC)])
def test_crop_is_pil_crop_then_resize(name, kind):
    crop = transforms.RandomResizedCrop((20, 30), interpolation=name)
    image = _image(90, 70)
    box = crop.box(90, 70, _rng(3))
    expected = image.crop(box).resize((30, 20), kind)
    assert np.array_equal(crop(image, _rng(3)), expected)


def test_random_interpolation_is_either_with_equal_probability():
    crop = transforms.RandomResizedCrop((16, 16), scale=(1, 1), ratio=(1, 1))
    image, rng = _image(40, 40), _rng()
    one, two = (np.asarray(image.resize((16, 16), k)) for k in (BILINEAR, BICUBIC))
    results = [np.asarray(crop(image, rng)) for _ in range(400)]
    bilinear = sum(np.array_equal(r, one) for r in results)
    assert bilinear + sum(np.array_equal(r, two) for r in results) == 400
    assert 160 < bilinear < 240


def test_flip_swaps_left_and_right_at_its_rate():
    image, rng = _image(5, 4), _rng()
    flip = transforms.RandomFlip(0.3)
    results = [np.asarray(flip(image, rng)) for _ in range(1000)]
    flipped = sum(np.array_equal(r, np.asarray(image)[:, ::-1]) for r in results)
    kept = sum(np.array_equal(r, np.asarray(image)) for r in results)
    assert flipped + kept == 1000 and 250 < flipped < 350


@pytest.mark.parametrize(
    "width, height, resized, box",
    [
        (500, 375, (341, 256), (58, 16, 282, 240)),
        (375, 500, (256, 341), (16, 58, 240, 282)),
        (100, 100, (256, 256), (16, 16, 240, 240)),
        (256, 300, (256, 300), (16, 38, 240, 262)),
        (343, 256, (343, 256), (60, 16, 284, 240)),
        (256, 343, (256, 343), (16, 60, 240, 284)),
    ],
)
def test_eval_view_is_shorter_side_256_and_centre_224(width, height, resized, box):
    image = _image(width, height)
    expected = image if image.size == resized else image.resize(resized, BICUBIC)
    result = transforms.ResizeCenterCrop((224, 224), 0.875)(image)
    assert np.array_equal(result, expected.crop(box))


def test_eval_view_of_an_image_that_fits_is_the_image():
    image = _image(32, 48)
    assert np.array_equal(transforms.ResizeCenterCrop((48, 32), 1.0)(image), image)


@pytest.mark.parametrize("size", [(64, 128), (128, 64), (1, 9)])
@pytest.mark.parametrize("width, height", [(300, 200), (77, 333), (3, 3)])
def test_eval_view_fills_rectangular_targets(size, width, height):
    for fraction in (0.875, 1.0):
        op = transforms.ResizeCenterCrop(size, fraction)
        covering = op._covering_size(width, height)
        assert covering[0] >= size[0] and covering[1] >= size[1]
        assert np.asarray(op(_image(width, height))).shape == (*size, 3)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_arrays_of_any_channels_are_treated_channel_by_channel(channels):
    array = _noise(40, 30, channels)
    train = transforms.train_ops(image_size=(16, 16), channels=channels)
    single = transforms.train_ops(image_size=(16, 16), channels=1)
    result = train(array, _rng(5))
    assert result.shape == train.shape == (16, 16, channels)
    for c in range(channels):
        assert np.array_equal(result[..., c], single(array[..., c], _rng(5))[..., 0])
    evaluate = transforms.eval_ops(image_size=(16, 16), channels=channels)
    assert evaluate(array, _rng()).shape == (16, 16, channels)


def test_transform_depends_on_its_rng_alone():
    transform = transforms.train_ops(image_size=(16, 16))
    array = _noise(40, 30)
    one, again, other = (transform(array, _rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_views_are_crops_of_their_own_that_do_not_depend_on_their_number():
    array = _noise(40, 30)
    one, two, three = (
        transforms.train_ops(image_size=(16, 16), views=v)(array, _rng(1))
        for v in (1, 2, 3)
    )
    assert two.shape == (2, 16, 16, 3) and three.shape == (3, 16, 16, 3)
    assert np.array_equal(two[0], one)
    assert np.array_equal(three[:2], two)
    assert len({view.tobytes() for view in three}) == 3


def test_an_image_is_decoded_once_for_all_its_views(monkeypatch):
    decoded = []

    def decode(self, image):
        decoded.append(image)
        return PIL.Image.fromarray(image)

    monkeypatch.setattr(transforms.Decode, "__call__", decode)
    transforms.train_ops(image_size=(8, 8), views=4)(_noise(12, 12), _rng())
    assert len(decoded) == 1


def test_evaluation_has_one_image_whatever_the_views():
    made = transforms.eval_ops(image_size=(8, 8), views=2)
    assert made(_noise(12, 12), _rng()).shape == made.shape == (8, 8, 3)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"views": 0}, "data.views=0; expected at least 1"),
        ({"interpolation": "bicubik"}, "did you mean bicubic"),
        ({"crop_scale": (0.5, 0.1)}, r"data.crop_scale=\(0.5, 0.1\); expected"),
        ({"crop_scale": (0.5, 2.0)}, "high <= 1"),
        ({"crop_ratio": (0, 1)}, "data.crop_ratio"),
        ({"flip": 2}, "data.flip=2; expected a probability"),
        ({"eval_crop_fraction": 0}, "data.eval_crop_fraction"),
        ({"image_size": (0, 4)}, "data.image_size"),
        ({"max_pixels": 0}, "data.max_pixels"),
    ],
)
def test_wrong_settings_are_explained(wrong, message):
    with pytest.raises(ValueError, match=message):
        transforms.train_ops(**{"image_size": (8, 8), **wrong})


def test_unknown_setting_is_named():
    with pytest.raises(TypeError, match="flipp"):
        transforms.eval_ops(image_size=(8, 8), flipp=1)


def _reference_view(data):
    """What ImageNet is evaluated on: shorter side to 256, bicubic, the central 224."""
    image = PIL.Image.open(io.BytesIO(data)).convert("RGB")
    short = min(image.size)
    # The longer side is rounded down, the offset to the nearest, as in torchvision.
    size = tuple(int(256 * side / short) for side in image.size)
    image = image.resize(size, BICUBIC)
    left, top = (round((side - 224) / 2) for side in size)
    return np.asarray(image.crop((left, top, left + 224, top + 224)))


@pytest.mark.parametrize("width, height", [(1001, 667), (333, 500), (120, 97)])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_the_eval_view_of_a_file_is_that_of_pil_within_a_grey_level(
    width, height, format
):
    pixels = np.asarray(_image(width // 8, height // 8).resize((width, height)))
    grain = np.random.default_rng(0).normal(0, 12, pixels.shape)
    pixels = np.clip(pixels + grain, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, format)
    view = transforms.eval_ops(image_size=(224, 224))(file.getvalue(), _rng())
    wanted = _reference_view(file.getvalue())
    assert wanted.std() > 20
    assert np.abs(view.astype(float) - wanted).mean() < 1.0
    assert np.abs(view[1:].astype(float) - wanted[:-1]).mean() > 1.0  # a row off shows


def test_randaugment_of_other_channels_is_refused_before_any_image_is_read():
    block = {"layers": 2}
    for channels in (1, 3):
        transforms.train_ops(image_size=(8, 8), channels=channels, randaugment=block)
    with pytest.raises(ValueError, match=r"channels=12 with .*randaugment\.layers=0"):
        transforms.train_ops(image_size=(8, 8), channels=12, randaugment=block)
