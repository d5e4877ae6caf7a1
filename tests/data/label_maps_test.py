"""Label files are read as numbers: palettes, few bits, and what is refused."""

import io

import numpy as np
import PIL.Image
import pytest

from litevit_jax.data import decode, label_maps
from litevit_jax.data.sources.base import AnnotationError


def _file(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def _image(width, height, orientation=None):
    exif = PIL.Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    return _file(PIL.Image.new("RGB", (width, height)), "JPEG", exif=exif)


LABELS = np.array([[0, 1, 2, 255], [3, 3, 0, 1]], np.uint8)


def _read(encoded, image=None, *, classes=4, reduce=False):
    image = _image(4, 2) if image is None else image
    return label_maps.read(encoded, image, classes=classes, reduce_zero_label=reduce)


def test_grey_files_are_read_as_they_are():
    np.testing.assert_array_equal(_read(_file(PIL.Image.fromarray(LABELS))), LABELS)


def test_a_palette_is_read_by_its_indices():
    picture = PIL.Image.fromarray(LABELS).convert("P")
    picture.putdata(LABELS.reshape(-1).tolist())
    picture.putpalette([200, 10, 10, 200, 10, 10, *range(0, 249), 255, 0, 0][: 3 * 256])
    np.testing.assert_array_equal(_read(_file(picture)), LABELS)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_palettes_of_few_bits_are_read_by_their_indices(bits):
    labels = np.array([[0, 1, 1, 0], [1, 0, 0, 1]], np.uint8) * (2**bits - 1)
    picture = PIL.Image.new("P", (4, 2))
    picture.putdata(labels.reshape(-1).tolist())
    picture.putpalette([7, 7, 7] * 2**bits)
    encoded = _file(picture, bits=bits)
    np.testing.assert_array_equal(_read(encoded, classes=16), labels)


def _grey_png(rows, bits):
    """A grey PNG with few bits for each pixel, which PIL cannot write."""
    import struct
    import zlib

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body))
            + kind
            + body
            + struct.pack(">I", zlib.crc32(kind + body))
        )

    packed = b""
    for row in rows:
        text = "".join(format(value, f"0{bits}b") for value in row)
        text = text.ljust(-(-len(text) // 8) * 8, "0")
        packed += b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), bits, 0, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(packed)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_files_of_few_bits_are_not_spread_over_a_byte(bits):
    rows = [[0, 1, 2, 3], [3, 1, 0, 2]] if bits > 1 else [[0, 1, 1, 0], [1, 0, 0, 1]]
    assert _read(_grey_png(rows, bits)).tolist() == rows


def test_16_bits_are_read_if_the_labels_are_classes():
    deep = PIL.Image.fromarray(LABELS.astype(np.uint16) % 4)
    np.testing.assert_array_equal(_read(_file(deep)), LABELS % 4)
    deep = PIL.Image.fromarray(np.full((2, 4), 256, np.uint16))
    for reduce in (False, True):
        with pytest.raises(AnnotationError, match="label 256 in 8 of 8 pixels"):
            _read(_file(deep), classes=200, reduce=reduce)


def test_reduce_zero_label_ignores_0_and_counts_from_1():
    encoded = _file(PIL.Image.fromarray(LABELS))
    reduced = _read(encoded, classes=3, reduce=True)
    assert reduced.tolist() == [[255, 0, 1, 255], [2, 2, 255, 0]]
    with pytest.raises(
        AnnotationError, match="label 3 in 2 of 8 pixels; expected 1 to 2"
    ):
        _read(encoded, classes=2, reduce=True)


def test_a_label_of_no_class_is_refused_with_its_value():
    encoded = _file(PIL.Image.fromarray(LABELS))
    message = (
        r"label 3 in 2 of 8 pixels; expected 0 to 2 for 3 classes, or 255 .*"
        r"data\.options\.classes \(or options\.reduce_zero_label=True"
    )
    with pytest.raises(AnnotationError, match=message):
        _read(encoded, classes=3)


def test_a_map_of_nothing_but_255_is_read():
    encoded = _file(PIL.Image.fromarray(np.full((2, 4), 255, np.uint8)))
    assert (_read(encoded) == 255).all()
    assert (_read(encoded, reduce=True) == 255).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colours_are_refused(mode):
    encoded = _file(PIL.Image.fromarray(LABELS).convert(mode))
    with pytest.raises(
        AnnotationError, match=f"in colours .mode {mode}.*indices are read"
    ):
        _read(encoded)


def test_labels_with_loss_are_refused():
    with pytest.raises(AnnotationError, match="in a JPEG, which changes numbers"):
        _read(_file(PIL.Image.fromarray(LABELS), "JPEG"))


def test_another_size_is_refused_before_it_is_decoded():
    encoded = _file(PIL.Image.fromarray(LABELS))
    with pytest.raises(AnnotationError, match="its image has 8 x 4"):
        _read(encoded[:60], _image(8, 4))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_labels_are_turned_with_their_image(orientation):
    # The image is as the labels are, so both must show the same when they are upright.
    pixels = np.array([[0, 1, 2, 2], [3, 3, 0, 1]], np.uint8)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    image = _file(PIL.Image.fromarray(pixels * 60), "PNG", exif=exif)
    upright = np.asarray(decode.Decode(channels=1)(image)) // 60
    labels = _read(_file(PIL.Image.fromarray(pixels)), image)
    np.testing.assert_array_equal(labels, upright)


def test_upright_labels_of_a_turned_image_are_explained():
    encoded = _file(PIL.Image.fromarray(LABELS.T.copy()))
    with pytest.raises(AnnotationError, match="turned by its EXIF orientation"):
        _read(encoded, _image(4, 2, orientation=6))


def test_damage_is_told_as_damage():
    encoded = _file(PIL.Image.fromarray(np.tile(LABELS, (50, 50))))
    image = _image(200, 100)
    with pytest.raises(decode.DecodeError):
        _read(encoded[: len(encoded) // 2], image)
    with pytest.raises(decode.DecodeError, match="not an image"):
        _read(b"something else", image)


def test_a_map_is_encoded_without_loss():
    assert (_read(label_maps.encode(LABELS)) == LABELS).all()
