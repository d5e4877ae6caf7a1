"""RandAugment: what each operation does at a level, and which levels are drawn."""

import collections
import dataclasses

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps
import pytest

from litevit_jax.data import randaugment, transforms

BICUBIC = PIL.Image.Resampling.BICUBIC
AFFINE = PIL.Image.Transform.AFFINE
FILL = (124, 116, 104)


def picture(channels=3, size=(20, 16)):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (*size[::-1], channels), dtype=np.uint8)
    return PIL.Image.fromarray(pixels if channels == 3 else pixels[..., 0])


def rng_of(seed=0):
    return np.random.Generator(np.random.Philox(seed))


class Sign:
    """Stands for a generator that always draws the same sign."""

    def __init__(self, positive):
        self.positive = positive

    def random(self):
        return 0.9 if self.positive else 0.1


def result(name, level, positive=True, image=None):
    image = image or picture()
    return np.asarray(randaugment.OPERATIONS[name](image, level, Sign(positive)))


def test_there_are_the_15_operations_of_the_recipe():
    assert len(randaugment.OPERATIONS) == 15


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("auto_contrast", PIL.ImageOps.autocontrast),
        ("equalize", PIL.ImageOps.equalize),
        ("invert", PIL.ImageOps.invert),
    ],
)
def test_three_operations_have_no_level(name, function):
    for level in (0.0, 10.0):
        np.testing.assert_array_equal(result(name, level), function(picture()))


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("level", [10.0, 5.0])
def test_geometric_operations_are_bicubic_and_fill_with_the_mean_colour(
    level, positive
):
    image, share = picture(), (1 if positive else -1) * level / 10

    def affine(matrix):
        return image.transform(image.size, AFFINE, matrix, BICUBIC, fillcolor=FILL)

    wanted = {
        "rotate": image.rotate(30 * share, BICUBIC, fillcolor=FILL),
        "shear_x": affine((1, 0.3 * share, 0, 0, 1, 0)),
        "shear_y": affine((1, 0, 0, 0.3 * share, 1, 0)),
        "translate_x": affine((1, 0, 0.45 * share * 20, 0, 1, 0)),
        "translate_y": affine((1, 0, 0, 0, 1, 0.45 * share * 16)),
    }
    for name, expected in wanted.items():
        got = result(name, level, positive)
        np.testing.assert_array_equal(got, expected, err_msg=name)
        assert (got == FILL).all(axis=-1).any()


@pytest.mark.parametrize("positive", [True, False])
def test_enhancements_move_away_from_1_by_up_to_nine_tenths(positive):
    factor = 1.9 if positive else 0.1
    for name in ("color", "contrast", "brightness", "sharpness"):
        kind = getattr(PIL.ImageEnhance, name.capitalize())
        expected = kind(picture()).enhance(factor)
        np.testing.assert_array_equal(result(name, 10.0, positive), expected)
        np.testing.assert_array_equal(result(name, 0.0, positive), picture())


@pytest.mark.parametrize(
    ("level", "bits"), [(0, 4), (2.4, 4), (2.5, 3), (7.4, 2), (7.5, 1), (9.99, 1)]
)
def test_posterize_keeps_fewer_bits_at_higher_levels(level, bits):
    expected = PIL.ImageOps.posterize(picture(), bits)
    np.testing.assert_array_equal(result("posterize", level), expected)


def test_posterize_at_level_10_keeps_no_bit_which_is_a_black_image():
    assert not result("posterize", 10.0).any()


def test_solarize_inverts_all_at_level_10_and_the_upper_half_at_5():
    pixels = np.asarray(picture())
    np.testing.assert_array_equal(result("solarize", 10.0), 255 - pixels)
    half = np.where(pixels >= 128, 255 - pixels, pixels)
    np.testing.assert_array_equal(result("solarize", 5.0), half)
    np.testing.assert_array_equal(result("solarize", 0.0), pixels)


def test_solarize_add_brightens_the_dark_pixels():
    pixels = np.asarray(picture()).astype(int)
    for level, added in ((10.0, 110), (9.99, 109)):
        expected = np.where(pixels < 128, pixels + added, pixels)
        np.testing.assert_array_equal(result("solarize_add", level), expected)


def test_every_operation_takes_grey_images():
    grey = picture(channels=1)
    for name in randaugment.OPERATIONS:
        got = result(name, 7.0, image=grey)
        assert got.shape == (16, 20) and got.dtype == np.uint8


def test_half_of_the_levels_are_10_and_none_is_above():
    op, rng = randaugment.RandAugment(), rng_of()
    levels = np.array([op.draw_level(rng) for _ in range(4000)])
    assert levels.max() == 10 and abs((levels == 10).mean() - 0.5) < 0.03
    assert abs(levels[levels < 10].mean() - (10 - 0.5 * (2 / np.pi) ** 0.5)) < 0.02
    milder = dataclasses.replace(op, magnitude=9.0)
    levels = np.array([milder.draw_level(rng) for _ in range(4000)])
    assert abs((levels == 10).mean() - 0.0228) < 0.01


def test_two_operations_are_drawn_with_replacement_and_half_are_applied(monkeypatch):
    seen = collections.Counter()

    def recorder(number):
        def operation(image, level, rng):
            seen[number] += 1
            return image

        return operation

    counted = tuple(recorder(number) for number in range(15))
    monkeypatch.setattr(randaugment, "_OPERATIONS_IN_ORDER", counted)
    rng, applied = rng_of(), []
    for _ in range(3000):
        before = seen.total()
        randaugment.RandAugment()(picture(), rng)
        applied.append(seen.total() - before)
    assert set(applied) == {0, 1, 2}
    np.testing.assert_allclose(
        np.bincount(applied) / 3000, [0.25, 0.5, 0.25], atol=0.03
    )
    assert len(seen) == 15
    assert max(seen.values()) < 2 * min(seen.values())


def test_an_operation_may_be_drawn_twice(monkeypatch):
    pairs = []

    def recorder(number):
        def operation(image, level, rng):
            pairs[-1].append(number)
            return image

        return operation

    counted = tuple(recorder(number) for number in range(15))
    monkeypatch.setattr(randaugment, "_OPERATIONS_IN_ORDER", counted)
    op, rng = randaugment.RandAugment(probability=1.0), rng_of(3)
    for _ in range(3000):
        pairs.append([])
        op(picture(), rng)
    twice = np.mean([one == other for one, other in pairs])
    assert abs(twice - 1 / 15) < 0.015


@pytest.mark.parametrize("name", sorted(randaugment.OPERATIONS))
def test_both_directions_are_drawn_alike_where_there_are_two(name):
    rng, image = rng_of(5), picture()
    seen = collections.Counter(
        np.asarray(randaugment.OPERATIONS[name](image, 6.0, rng)).tobytes()
        for _ in range(200)
    )
    one_way = ("auto_contrast", "equalize", "invert", "posterize")
    assert len(seen) == 1 + (not name.startswith(("solarize", *one_way)))
    assert min(seen.values()) > 70


def test_training_crops_and_flips_before_randaugment():
    image = np.asarray(picture(size=(40, 30)))
    settings = {"image_size": (16, 16), "randaugment": {"layers": 2}}
    transform, plain = (
        transforms.train_ops(**settings),
        transforms.train_ops(image_size=(16, 16)),
    )
    names = [type(op).__name__ for op in transform.ops]
    assert names == ["RandomResizedCrop", "RandomFlip", "RandAugment", "ToArray"]
    for seed in range(8):  # what comes before it draws the same numbers
        rng = rng_of(seed)
        before = PIL.Image.fromarray(plain(image, rng))
        expected = randaugment.RandAugment(layers=2)(before, rng)
        got = transform(image, rng_of(seed))
        np.testing.assert_array_equal(got, expected)


def test_no_layers_leave_the_transform_as_it_was():
    off = transforms.train_ops(image_size=(16, 16), randaugment={"layers": 0})
    assert off == transforms.train_ops(image_size=(16, 16))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layers": -1}, r"data.randaugment.layers=-1; expected 0 \(off\) or more"),
        ({"magnitude": 11.0}, r"magnitude=11.0; expected a level from 0 to 10"),
        ({"std": -0.5}, r"std=-0.5; expected 0 or more"),
        ({"probability": 2.0}, r"probability=2.0; expected a probability"),
    ],
)
def test_wrong_settings_are_explained(wrong, message):
    with pytest.raises(ValueError, match=message):
        transforms.train_ops(image_size=(8, 8), randaugment=wrong)


def test_images_of_other_channels_are_refused():
    with pytest.raises(ValueError, match=r"1 or 3 channels, got 5; .*layers=0"):
        randaugment.RandAugment()(np.zeros((8, 8, 5), np.uint8), rng_of())
