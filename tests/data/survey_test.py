"""A few images are looked at first: what they cannot be, and what they would lose."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from litevit_jax.data import levels, survey
from litevit_jax.data.sources import base


class Images(base.Source):
    """Raw images, given one by one."""

    def __init__(self, images):
        self.images = images

    classes = ()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"image": self.images[index], "label": -1}

    def name_of(self, index):
        return f"image {index}"

    def fingerprint(self):
        return "0"


def _encoded(pixels, kind="PNG", **options):
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def _grey(high, low=0, kind=np.uint16, seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(low, high, (12, 16)).astype(kind)
    pixels[0, :2] = low, high
    return pixels


JPEG = _encoded(np.zeros((8, 8, 3), np.uint8), "JPEG")


def _check(*images, channels=1, range="full"):
    return survey.check(Images(images), channels=channels, range=range)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "array"])
def test_images_that_use_a_sixteenth_of_their_range_are_named(kind):
    def image(high):
        return _grey(high) if kind == "array" else _encoded(_grey(high), kind)

    [line] = _check(image(50000), image(3000), image(4000))
    assert line.startswith("2 of 3 images looked at use less than a sixteenth")
    assert "image 1" in line and "0 to 3000 of 0 to 65535, 12 levels" in line
    assert "--config.data.range=LOW,HIGH" in line
    assert _check(image(50000), image(4200)) == []
    assert _check(image(3000), range="0,4095") == []
    assert _check(image(3000), range="auto_each") == []
    [line] = _check(image(100), range="0,4095")
    assert "0 to 100 of 0 to 4095, 7 levels" in line


def test_a_blank_image_is_no_reason_to_warn():
    assert _check(_grey(50000), np.full((8, 8), 7, np.uint16)) == []


def test_bytes_from_0_to_1_are_noticed_in_arrays():
    [line] = _check(_grey(1, kind=np.uint8))
    assert "0 to 1 of 0 to 255, 2 levels" in line and "scale them to 0 to 255" in line
    assert _check(_grey(17, kind=np.uint8)) == []


def test_files_of_eight_bits_are_as_any_viewer_shows_them():
    dark = _grey(10, 3, np.uint8)
    [line] = _check(dark)
    assert "(type uint8) has 3 to 10 of 0 to 255, 8 levels" in line
    assert _check(_encoded(dark), _encoded(dark, "TIFF")) == []


@pytest.mark.parametrize(
    ("kind", "colour", "alpha"),
    [("colour", 2, False), ("colour", 6, True), ("grey with alpha", 4, True)],
)
def test_colour_and_alpha_of_sixteen_bits_are_said_to_be_read_with_eight(
    kind, colour, alpha
):
    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    def png(high):
        bands = [_grey(high)] * (1 if kind.startswith("grey") else 3)
        bands += [np.full((12, 16), 65535)] * alpha  # opaque
        rows = np.stack(bands, -1).astype(">u2")
        raw = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
        header = struct.pack(">IIBBBBB", 16, 12, 16, colour, 0, 0, 0)
        body = chunk(b"IHDR", header) + chunk(b"IDAT", raw)
        return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")

    [line] = _check(png(3000), channels=3)
    assert f"({kind} of 16 bits, which is read with 8) has 0 to 11 of 0 to 255" in line
    assert _check(png(60000), channels=3) == []


def test_a_sign_makes_eight_bits_a_matter_of_the_range():
    image = _encoded(_grey(5, kind=np.uint8), "TIFF", tiffinfo={339: 2})
    [line] = _check(image)
    assert "(8 bits with a sign) has 0 to 5 of -128 to 127, 6 levels" in line
    assert _check(image, range="0,5") == []
    low, high = survey.percentiles(Images([image]))
    assert low == 0 and 4 < high <= 5


def test_a_range_of_images_of_eight_bits_changes_nothing_and_says_so():
    eight = _encoded(_grey(200, kind=np.uint8))
    [line] = _check(JPEG, eight, range="0,4095")
    assert "data.range=0,4095 changes nothing here" in line and "the 2 images" in line
    assert _check(JPEG, eight) == [] and _check(JPEG, _grey(9000), range="0,9") == []


@pytest.mark.parametrize("image", [_grey(1.0, -1.0, float), _grey(9, -9, np.int32)])
def test_images_without_a_range_are_refused(image):
    with pytest.raises(ValueError, match=r"image 0: pixels of type .*data\.range=LOW"):
        _check(image)
    _check(image, range="auto_each")


@pytest.mark.parametrize("channels", [2, 4, 12])
def test_encoded_images_have_one_or_three_channels(channels):
    message = rf"data\.channels={channels}, but image 0 is an encoded image"
    with pytest.raises(ValueError, match=message):
        _check(JPEG, channels=channels)
    assert _check(JPEG, channels=1) == _check(JPEG, channels=None) == []


def test_arrays_of_other_channels_are_refused():
    twelve = np.zeros((4, 4, 12), np.uint8)
    assert _check(twelve, channels=12) == []
    with pytest.raises(
        ValueError, match=r"of 12 channels.*--config\.data\.channels=12"
    ):
        _check(twelve, channels=3)
    with pytest.raises(ValueError, match=r"of 1 channels, but data\.channels=2"):
        _check(twelve[..., 0], channels=2)
    assert _check(twelve[..., :3], channels=1) == _check(twelve[..., 0], channels=3)


def test_what_cannot_be_read_is_left_to_the_run():
    class Broken(Images):
        def __getitem__(self, index):
            if index == 1:
                raise OSError("gone")
            return super().__getitem__(index)

    source = Broken([b"no image", JPEG, _encoded(_grey(100))[:60], _encoded(_grey(9))])
    [line] = survey.check(source, channels=1, range="full")
    assert line.startswith("1 of 3 images looked at") and "image 3" in line


def test_auto_is_percentiles_over_images_spread_over_the_set():
    images = [_grey(1000 + 10 * number, seed=number) for number in range(300)]
    pair = survey.percentiles(Images(images))
    rows = np.unique(np.linspace(0, 299, survey.IMAGES).round().astype(int))
    pooled = np.concatenate([images[row].ravel() for row in rows])
    np.testing.assert_allclose(pair, np.percentile(pooled, [0.5, 99.5]))
    assert survey.percentiles(Images([_encoded(i, "TIFF") for i in images])) == pair
    assert levels.parse(levels.spell(pair)) == pair


def test_auto_of_eight_bits_is_nothing_and_of_one_value_an_error():
    assert survey.percentiles(Images([JPEG, _grey(9, kind=np.uint8)])) is None
    with pytest.raises(ValueError, match=r"all pixels of the 1 images .* are 7"):
        survey.percentiles(Images([np.full((4, 4), 7, np.uint16)]))
    with pytest.raises(ValueError, match=r"image 0: some pixels .* no numbers"):
        survey.percentiles(Images([np.full((4, 4), np.nan)]))
