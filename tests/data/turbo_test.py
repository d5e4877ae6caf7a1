"""The quick decoder and resizer do what Pillow does, up to stated differences."""

import functools
import io
import types

import numpy as np
import PIL.Image
import pytest

from litevit_jax.data import decode, transforms, turbo

pytest.importorskip("cv2")
pytest.importorskip("simplejpeg")

KINDS = {
    "bilinear": PIL.Image.Resampling.BILINEAR,
    "bicubic": PIL.Image.Resampling.BICUBIC,
}


def _photo(width, height, seed=0):
    """Detail of all sizes, as photographs have: the spectrum falls as 1/frequency."""
    rng = np.random.default_rng(seed)
    y, x = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)
    fall = 1 / np.maximum(np.hypot(x, y), 1 / max(width, height))
    noise = np.fft.fft2(rng.normal(size=(3, height, width))) * fall
    plane = np.fft.ifft2(noise).real
    plane = 128 + 50 * plane / plane.std()
    return np.clip(np.moveaxis(plane, 0, -1), 0, 255).astype(np.uint8)


def _jpeg(pixels, **options):
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG", **({"quality": 92} | options))
    return file.getvalue()


@functools.cache
def _large():
    return _jpeg(_photo(600, 450))


def _rng(seed=0):
    return np.random.Generator(np.random.Philox(seed))


def _difference(one, two):
    return np.abs(np.asarray(one).astype(int) - np.asarray(two)).mean()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("scale", [0.4, 0.99, 1.2, 1.7, 2.6, 3.9])
def test_resizing_is_pillows_within_two_levels(name, scale):
    pixels = _photo(int(64 * scale), int(80 * scale))
    expected = PIL.Image.fromarray(pixels).resize((64, 80), KINDS[name])
    assert _difference(expected, turbo.resize(pixels, (80, 64), name)) < 2


@pytest.mark.parametrize("name", KINDS)
def test_shrinking_averages_what_it_skips(name):
    fine = np.zeros((120, 120, 3), np.uint8)
    fine[:, ::2] = 255  # a grid too fine for the result: grey
    shrunk = turbo.resize(fine, (48, 48), name)[4:-4, 4:-4].astype(int)
    assert np.abs(shrunk - 127.5).max() < 20  # not antialiased: stripes, 0 to 255


@pytest.mark.parametrize("name", KINDS)
def test_sides_are_scaled_independently_and_plain_stays_plain(name):
    pixels = _photo(200, 40)
    expected = PIL.Image.fromarray(pixels).resize((64, 64), KINDS[name])
    assert _difference(expected, turbo.resize(pixels, (64, 64), name)) < 1.5
    plain = np.full((150, 90, 1), 201, np.uint8)
    assert (turbo.resize(plain, (64, 64), name) == 201).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_number_of_channels(channels):
    pixels = _photo(50, 40)[..., [0, 1, 2, 0, 1][:channels]]
    result = turbo.resize(pixels, (16, 16), "bicubic")
    assert result.shape == (16, 16, channels)
    alone = turbo.resize(pixels[..., :1], (16, 16), "bicubic")
    assert np.array_equal(result[..., :1], alone)


def _transforms(**settings):
    settings = {"image_size": (64, 64)} | settings
    return (transforms.train_ops(**settings, decoder=d) for d in ("fast", "pillow"))


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}])
@pytest.mark.parametrize("views", [1, 2])
def test_crops_of_a_jpeg_are_pillows(options, views):
    image = _jpeg(_photo(160, 120), **options)
    quick, slow = _transforms(views=views)
    for seed in range(8):
        one, two = quick(image, _rng(seed)), slow(image, _rng(seed))
        assert one.shape == quick.shape == two.shape and one.dtype == np.uint8
        assert _difference(one, two) < 2


def test_a_large_jpeg_is_decoded_smaller_and_shows_the_same(monkeypatch):
    image, seen = _large(), []
    _watch(monkeypatch, seen)
    quick, slow = _transforms(image_size=(24, 24), crop_scale=(0.1, 1.0))
    found = []
    for seed in range(12):
        found.append(_difference(quick(image, _rng(seed)), slow(image, _rng(seed))))
    assert np.mean(found) < 3 and max(found) < 6
    assert {shrink for shrink, _ in seen} == {2, 4, 8} and len(seen) == 12
    for shrink, pixels in seen:  # decoded, not left to Pillow
        assert pixels.shape[1] == 600 // shrink


def _watch(monkeypatch, seen):
    """Notes in `seen` what each call of turbo.decode shrinks by, and returns."""
    decode_jpeg = turbo.decode

    def watched(*args, **kwargs):
        pixels = decode_jpeg(*args, **kwargs)
        seen.append((kwargs["shrink"], pixels))
        return pixels

    monkeypatch.setattr(turbo, "decode", watched)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shrink", [1, 2, 8])
def test_rows_above_the_bottom_are_those_of_the_whole(subsampling, channels, shrink):
    image = _jpeg(_photo(150, 201), subsampling=subsampling)
    header = turbo.read_header(image)
    settings = {"channels": channels, "shrink": shrink}
    whole = turbo.decode(image, header, **settings)
    assert whole.shape[0] == -(-201 // shrink)
    for bottom in (1, 40, 41, 101, 150, 201):
        top = turbo.decode(image, header, bottom=bottom, **settings)
        rows = -(-bottom // shrink)
        assert np.array_equal(top[:rows], whole[:rows])
        assert bottom > 101 or len(top) < len(whole)


@pytest.mark.parametrize("how", ["progressive", "turned", "restarts"])
def test_rows_that_are_not_in_order_are_all_decoded(how):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    options = {
        "progressive": {"progressive": True},
        "turned": {"exif": exif.tobytes()},
        "restarts": {"restart_marker_rows": 1},
    }[how]
    image = _jpeg(_photo(80, 200), **options)
    header = turbo.read_header(image)
    whole = turbo.decode(image, header, channels=3, shrink=1)
    top = turbo.decode(image, header, channels=3, shrink=1, bottom=30)
    assert np.array_equal(top[:30], whole[:30])
    assert (len(top) < len(whole)) == (how == "restarts")


def test_a_file_cut_short_is_noticed_though_only_its_top_is_needed():
    image = _jpeg(_photo(150, 400))
    header = turbo.read_header(image)
    settings = {"channels": 3, "shrink": 1, "bottom": 40}
    assert turbo.decode(image, header, **settings) is not None
    for cut in (len(image) * 9 // 10, len(image) - 2):
        assert turbo.decode(image[:cut], header, **settings) is None
    place = len(image) // 20 + 700  # within the rows that are needed
    damaged = image[:place] + b"\xff\xd9" + image[place + 2 :]
    assert turbo.decode(damaged, header, **settings) is None


def test_rows_that_the_decoder_never_wrote_are_not_taken(monkeypatch):
    def stops(*args, buffer, **kwargs):
        buffer[:-1] = 0
        raise ValueError("Corrupt JPEG data: 9 extraneous bytes before marker 0xd1")

    image = _jpeg(_photo(150, 400))
    header = turbo.read_header(image)
    broken = types.SimpleNamespace(decode_jpeg=stops)
    monkeypatch.setattr(turbo, "_load", {"simplejpeg": broken}.get)
    assert turbo.decode(image, header, channels=3, shrink=1, bottom=40) is None


def test_only_one_or_three_channels_are_asked_of_the_decoder():
    image = _jpeg(_photo(40, 30))
    header = turbo.read_header(image)
    for channels in (0, 2, 4, 12):
        with pytest.raises(ValueError, match=f"channels={channels}; a JPEG is decoded"):
            turbo.decode(image, header, channels=channels, shrink=1)
        (quick, slow) = _transforms(channels=channels or 5)
        for transform in (quick, slow):
            with pytest.raises(decode.DecodeError, match=r"expected data\.channels 1"):
                transform(image, _rng())


def test_two_crops_share_one_decoding_at_the_scale_of_the_smaller(monkeypatch):
    image, seen = _large(), []
    _watch(monkeypatch, seen)
    crop = transforms.RandomResizedCrop((32, 32))
    quick, _ = _transforms(image_size=(32, 32), views=2)
    for seed in range(20):
        quick(image, _rng(seed))
        start = _rng(seed).bit_generator
        boxes = [
            crop.box(600, 450, np.random.Generator(start.jumped(v))) for v in (0, 1)
        ]
        least = min(min(b[2] - b[0], b[3] - b[1]) for b in boxes)
        [(factor, _)] = seen
        assert least >= factor * 64 or factor == 1
        assert factor == 8 or least < factor * 128
        seen.clear()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    image = _jpeg(_photo(90, 60), exif=exif.tobytes(), subsampling=0)
    header = turbo.read_header(image)
    pixels = turbo.decode(image, header, channels=3, shrink=1)
    expected = np.asarray(decode.Decode()(image))
    assert header.upright == (expected.shape[1], expected.shape[0])
    assert pixels.shape == expected.shape and _difference(pixels, expected) < 0.5


def test_grey_and_colour_are_converted_to_the_channels_asked_for():
    colour = _photo(70, 70)
    for pixels in (colour, colour[..., 0]):
        image = _jpeg(pixels, subsampling=0)
        for channels in (1, 3):
            quick, slow = _transforms(channels=channels)
            one, two = quick(image, _rng(2)), slow(image, _rng(2))
            assert one.shape == (64, 64, channels) and _difference(one, two) < 1.5


def test_what_it_does_not_take_is_pillows():
    pixels = _photo(90, 70)
    cmyk = io.BytesIO()
    PIL.Image.fromarray(pixels).convert("CMYK").save(cmyk, "JPEG", quality=95)
    png = io.BytesIO()
    PIL.Image.fromarray(pixels).save(png, "PNG")
    for image in (cmyk.getvalue(), png.getvalue()):
        assert turbo.read_header(image) is None
        quick, slow = _transforms()
        assert _difference(quick(image, _rng(1)), slow(image, _rng(1))) < 1.5


def test_bits_of_a_crop_do_not_depend_on_where_pixels_come_from():
    pixels = _photo(90, 70)
    png = io.BytesIO()
    PIL.Image.fromarray(pixels).save(png, "PNG")
    quick, _ = _transforms()
    for seed in range(4):
        assert np.array_equal(
            quick(pixels, _rng(seed)), quick(png.getvalue(), _rng(seed))
        )


def test_randaugment_follows_the_quick_crop():
    level = {"layers": 2, "magnitude": 10.0, "std": 0.5, "probability": 1.0}
    image = _jpeg(_photo(90, 70))
    quick, plain = (
        transforms.train_ops(image_size=(32, 32), decoder="fast", randaugment=block)
        for block in (level, None)
    )
    differ = [
        not np.array_equal(quick(image, _rng(s)), plain(image, _rng(s)))
        for s in range(8)
    ]
    assert sum(differ) >= 6


def test_a_cut_or_damaged_jpeg_is_judged_by_pillow():
    image = _jpeg(_photo(200, 150))
    quick, _ = _transforms()
    for cut in (len(image) // 2, len(image) - 40, 300, 12):
        with pytest.raises(decode.DecodeError):
            quick(image[:cut], _rng())


def test_damage_that_pillow_repairs_is_repaired_by_pillow():
    image = _jpeg(_photo(200, 150))
    garbled = image[:2000] + b"\xff\xd9" + image[2002:]  # an end in the middle
    header = turbo.read_header(garbled)
    assert turbo.decode(garbled, header, channels=3, shrink=1) is None
    quick, slow = _transforms()
    assert _difference(quick(garbled, _rng()), slow(garbled, _rng())) < 2


def test_a_header_with_too_many_pixels_is_refused_before_decoding(monkeypatch):
    monkeypatch.setattr(turbo, "decode", lambda *a, **k: pytest.fail("decoded"))
    quick, _ = _transforms(max_pixels=100 * 99)
    with pytest.raises(decode.DecodeError, match=r"100 x 100 = 10000 pixels"):
        quick(_jpeg(_photo(100, 100)), _rng())


def test_the_choice_of_decoder_is_explained(monkeypatch):
    assert turbo.choose("auto") == "fast" and turbo.choose("pillow") == "pillow"
    with pytest.raises(ValueError, match="did you mean pillow"):
        turbo.choose("pilow")
    monkeypatch.setattr(turbo.importlib.util, "find_spec", lambda name: None)
    assert turbo.choose("auto") == "pillow"
    with pytest.raises(ValueError, match="pip install opencv-python-headless"):
        turbo.choose("fast")
