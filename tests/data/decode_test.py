"""Every kind of file gives the right colours, or a reason why not."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from litevit_jax.data import decode

RED, GREEN, GREY = (200, 30, 40), (20, 180, 60), (120, 120, 120)
LOSSLESS = ("PNG", "BMP", "TIFF", "GIF", "WEBP")


def _halves(left=RED, right=GREEN, size=(32, 16)):
    """[H, W, 3]: one colour on the left, one on the right."""
    array = np.empty((size[1], size[0], 3), np.uint8)
    array[:, : size[0] // 2], array[:, size[0] // 2 :] = left, right
    return array


def _encode(image, kind="PNG", **options):
    if isinstance(image, np.ndarray):
        image = PIL.Image.fromarray(image)
    if kind == "WEBP":
        options["lossless"] = True
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _decoded(encoded, **options):
    return np.asarray(decode.Decode(**options)(encoded)).astype(int)


def _assert_halves(encoded, left=RED, right=GREEN, tolerance=3):
    array = _decoded(encoded)
    assert array.shape == (16, 32, 3)
    assert np.abs(array[:, 2:14] - left).max() <= tolerance
    assert np.abs(array[:, 18:30] - right).max() <= tolerance


@pytest.mark.parametrize("kind", [*LOSSLESS, "JPEG"])
def test_colour_survives_every_format(kind):
    _assert_halves(_encode(_halves(), kind), tolerance=6 if kind == "JPEG" else 0)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "JPEG"])
def test_grey_becomes_equal_channels(kind):
    grey = PIL.Image.fromarray(_halves((90,) * 3, GREY)).convert("L")
    _assert_halves(_encode(grey, kind), (90,) * 3, GREY)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_converted_and_not_inverted(kind):
    encoded = _encode(PIL.Image.fromarray(_halves()).convert("CMYK"), kind)
    _assert_halves(encoded, tolerance=8)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_dropped_not_blended(mode, kind):
    colours = [(90,) * 3, GREY] if mode == "LA" else [RED, GREEN]
    image = PIL.Image.fromarray(_halves(*colours)).convert(mode)
    image.putalpha(10)
    _assert_halves(_encode(image, kind), *colours, tolerance=0)


@pytest.mark.parametrize("transparency", [0, b"\x00\x80"])
def test_palette_with_transparency_keeps_its_colours(transparency):
    image = PIL.Image.fromarray(_halves()).quantize(2)
    _assert_halves(_encode(image, transparency=transparency))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_transparent_colour_of_a_plain_image_is_ignored(mode):
    image = PIL.Image.fromarray(_halves(GREY, GREY)).convert(mode)
    transparency = 120 if mode == "L" else GREY
    _assert_halves(_encode(image, transparency=transparency), GREY, GREY)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_one_bit_is_black_and_white(kind):
    image = PIL.Image.fromarray(_halves((0,) * 3, (255,) * 3)).convert("1")
    _assert_halves(_encode(image, kind), (0,) * 3, (255,) * 3, tolerance=0)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind):
    values = np.linspace(0, 65535, 512).reshape(16, 32).astype(np.uint16)
    array = _decoded(_encode(PIL.Image.fromarray(values), kind), channels=1)
    assert np.abs(array - values / 257).max() <= 0.5
    colour = _decoded(_encode(PIL.Image.fromarray(values), kind))
    assert np.array_equal(colour, np.stack([array] * 3, -1))


def test_big_endian_sixteen_bit_tiff_is_read():
    values = np.full((16, 32), 120 * 257, np.uint16)
    image = PIL.Image.frombytes("I;16B", (32, 16), values.byteswap().tobytes())
    _assert_halves(_encode(image, "TIFF"), GREY, GREY, tolerance=0)


def test_sixteen_bit_colour_is_scaled():
    _assert_halves(_sixteen_bit_png(_halves()), tolerance=1)


def _sixteen_bit_png(array):
    """PIL cannot write 16-bit colour, so its chunks are put together here."""

    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    height, width, _ = array.shape
    wide = (array.astype(">u2") * 257).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_without_a_range_of_their_own_need_one(kind):
    values = np.linspace(-1000, 3000, 512).reshape(16, 32).astype(kind)
    encoded = _encode(PIL.Image.fromarray(values), "TIFF")
    with pytest.raises(decode.DecodeError, match=r"mode .* from -1000 to 3000 have no"):
        decode.Decode()(encoded)
    got = _decoded(encoded, channels=1, range="-1000,3000")
    assert np.abs(got - (values + 1000) / 4000 * 255).max() <= 0.5
    each = _decoded(encoded, channels=1, range="auto_each")
    assert each.min() == 0 and each.max() == 255
    assert np.array_equal(_decoded(encoded, range="-1000,3000")[..., 0], got)


def test_signed_sixteen_bit_tiff_keeps_its_sign():
    values = np.array([[-32768, -1, 0, 32767]], np.int16)
    signed = {339: 2}  # the tag of the format of samples
    encoded = _encode(
        PIL.Image.fromarray(values.view(np.uint16)), "TIFF", tiffinfo=signed
    )
    assert _decoded(encoded, channels=1).tolist() == [[0, 127, 128, 255]]
    assert _decoded(encoded, channels=1, range="-1,0").tolist() == [[0, 0, 255, 255]]


def _tiff(values, *, zero_is_white=False):
    """PIL writes few types of samples, so the tags are put together here."""
    height, width = values.shape
    bits, sample = 8 * values.itemsize, "uif".index(values.dtype.kind) + 1
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: int(not zero_is_white)}
    tags |= {273: 8, 277: 1, 278: height, 279: values.nbytes, 339: sample}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in tags)
    head = b"II" + struct.pack("<HI", 42, 8 + values.nbytes) + values.tobytes()
    return head + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_unsigned_tiff_of_32_bits_has_no_sign():
    values = np.array([[0, 1, 2**31, 2**32 - 1]], np.uint32)
    whole = _decoded(_tiff(values), channels=1, range="0,4294967295")
    assert whole.tolist() == [[0, 0, 128, 255]]
    assert _decoded(_tiff(values), channels=1, range="auto_each")[0, 2] in (128, 129)
    with pytest.raises(decode.DecodeError, match=r"from 0 to 4\.29497e\+09 have no"):
        decode.Decode()(_tiff(values))
    signed = np.array([[-2, 0, 2]], np.int32)
    got = _decoded(_tiff(signed), channels=1, range="-2,2")
    assert got.tolist() == [[0, 128, 255]]


@pytest.mark.parametrize("range", ["full", "auto_each", "-4,3"])
def test_signed_tiff_of_eight_bits_is_read_as_the_same_array(range):
    values = np.array([[-128, -3, -1, 0, 1, 127]], np.int8)
    got = _decoded(_tiff(values), channels=1, range=range)
    assert np.array_equal(got, _decoded(values, channels=1, range=range))
    assert (np.diff(got[0]) >= 0).all() and got[0, -1] == 255


def test_zero_is_white_in_tiffs_of_any_bits():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for values, range in (
        (grey, "full"),
        (grey.astype(np.uint16) * 257, "full"),
        (grey.astype(np.uint16), "0,255"),
        (grey.astype(np.float32), "0,255"),
    ):
        black, white = (
            _decoded(_tiff(values, zero_is_white=white), channels=1, range=range)
            for white in (False, True)
        )
        assert np.array_equal(black, grey)
        assert np.array_equal(white, 255 - black)


def test_a_range_leaves_images_of_eight_bits_as_they_are():
    encoded = _encode(_halves())
    assert np.array_equal(_decoded(encoded, range="0,9"), _decoded(encoded))
    assert np.array_equal(_decoded(encoded, range="auto_each"), _decoded(encoded))


@pytest.mark.parametrize("channels", [1, 3, 12])
def test_arrays_of_any_numbers_become_bytes_by_the_range(channels):
    values = np.linspace(0, 4095, 4 * 5 * channels).reshape(4, 5, channels)
    expected = values / 4095 * 255
    for kind in (np.uint16, np.int32, np.float32):
        op = decode.Decode(channels=channels, range="0,4095")
        got = np.asarray(op(values.astype(kind))).reshape(values.shape)
        assert got.dtype == np.uint8 and np.abs(got - expected).max() <= 0.6


def test_a_range_is_checked_before_any_image():
    with pytest.raises(ValueError, match=r"data\.range='wide'; expected full"):
        decode.Decode(range="wide")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(kind, orientation):
    image = PIL.Image.fromarray(_halves(size=(48, 32)))
    exif = image.getexif()
    exif[0x0112] = orientation
    encoded = _encode(image, kind, exif=exif)
    with PIL.Image.open(io.BytesIO(encoded)) as opened:
        expected = np.asarray(PIL.ImageOps.exif_transpose(opened).convert("RGB"))
    assert np.array_equal(_decoded(encoded), expected)


@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0II*\0", b"Exif\0\0MM\0*\xff\xff\xff\xff"]
)
def test_damaged_exif_means_upright(exif):
    assert decode.orientation(exif) == 1


def test_first_frame_of_an_animation_is_taken():
    first, second = (PIL.Image.fromarray(_halves(c, c)) for c in (RED, GREEN))
    for kind in ("GIF", "WEBP", "PNG"):
        encoded = _encode(first, kind, save_all=True, append_images=[second])
        _assert_halves(encoded, RED, RED)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour_arrays_are_converted(channels):
    op = decode.Decode(channels=channels)
    grey = _halves(GREY, GREY)
    for array in (grey, grey[..., 0], grey[..., :1]):
        expected = grey if channels == 3 else grey[..., 0]
        assert np.array_equal(op(array), expected)


def test_colour_to_one_channel_is_its_luminance():
    encoded = _encode(_halves(RED, RED))
    expected = 0.299 * RED[0] + 0.587 * RED[1] + 0.114 * RED[2]
    assert np.abs(_decoded(encoded, channels=1) - expected).max() <= 1


def test_too_many_pixels_are_refused_before_they_are_expanded(monkeypatch):
    encoded = _encode(PIL.Image.new("1", (4000, 3000)))

    def load(self):
        raise AssertionError("expanded")

    monkeypatch.setattr(PIL.Image.Image, "load", load)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(decode.DecodeError, match=r"4000 x 3000.*data.max_pixels=1000"):
        decode.Decode(max_pixels=1000)(encoded)


def test_the_bound_is_ours_alone_and_not_pils_warning():
    encoded = _encode(PIL.Image.new("1", (10000, 9500)))
    with pytest.raises(decode.DecodeError, match=r"data\.max_pixels=94999999"):
        decode.Decode(max_pixels=94_999_999)(encoded)


@pytest.mark.parametrize("kind", [*LOSSLESS, "JPEG"])
@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.9])
def test_a_truncated_file_is_an_error(kind, kept):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    encoded = _encode(noise, kind)
    length = int(kept * len(encoded)) if isinstance(kept, float) else kept
    with pytest.raises(decode.DecodeError, match=rf"{length} bytes"):
        decode.Decode()(encoded[:length])


@pytest.mark.parametrize("encoded", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image_is_an_error(encoded):
    with pytest.raises(decode.DecodeError, match="not an image"):
        decode.Decode()(encoded)


@pytest.mark.parametrize(
    "array, channels, message",
    [
        (np.zeros((4, 4), np.float32), 3, "type float32 .* have no range"),
        (np.zeros((4, 4), bool), 3, "bool"),
        (np.zeros((4, 4, 2), np.uint8), 3, "2 channels; expected data.channels=3"),
        (np.zeros((0, 4, 3), np.uint8), 3, "no pixel"),
        (np.zeros((4,), np.uint8), 1, r"\[H, W\]"),
    ],
)
def test_arrays_that_are_no_images_are_explained(array, channels, message):
    with pytest.raises(decode.DecodeError, match=message):
        decode.Decode(channels=channels)(array)


def test_files_have_one_or_three_channels():
    with pytest.raises(decode.DecodeError, match="4 channels"):
        decode.Decode(channels=4)(_encode(_halves()))
