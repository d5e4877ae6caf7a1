"""Files of numbers are read as their arrays, or refused with the reason."""

import io
import sys

import numpy as np
import PIL.Image
import pydicom
import pytest
import tifffile

from litevit_jax.data import decode, survey
from tests.data.survey_test import Images

H, W = 6, 9
BANDS = {"photometric": "minisblack", "planarconfig": "contig"}


def numbers(channels, kind=np.uint16, seed=0):
    """[H, W, C]; [H, W] of no channels."""
    shape = (H, W, channels) if channels else (H, W)
    values = np.random.default_rng(seed).integers(0, 3000, shape)
    return values.astype(kind)


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def tiff(array, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def pages(*arrays, **options):
    """A TIFF of a page for each array."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for array in arrays:
            writer.write(array, **{"photometric": "minisblack"} | options)
    return file.getvalue()


def dicom(values, photometric="MONOCHROME2", *, bits=None, **fields):
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    data.SOPClassUID, data.SOPInstanceUID = pydicom.uid.CTImageStorage, "1.2.3"
    data.Rows, data.Columns = (
        values.shape[-2:] if values.ndim == 2 else values.shape[:2]
    )
    data.SamplesPerPixel = values.shape[2] if values.ndim == 3 else 1
    data.PlanarConfiguration = 0
    data.PhotometricInterpretation = photometric
    data.BitsAllocated = 8 * values.itemsize
    data.BitsStored = bits or data.BitsAllocated
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(values.dtype.kind == "i")
    data.PixelData = values.tobytes()
    for name, value in fields.items():
        setattr(data, name, value)
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def decoded(encoded, channels, range="0,3000", **options):
    return np.asarray(decode.Decode(channels, range=range, **options)(encoded))


def expected(values, high=3000):
    return np.floor(np.clip(values, 0, high) * (255 / high) + 0.5).astype(np.uint8)


@pytest.mark.parametrize("kind", ["u1", "<u2", ">u2", "i2", ">i2", "f4", ">f8", "i4"])
@pytest.mark.parametrize("channels", [0, 1, 2, 5])
def test_npy_files_are_read_as_their_arrays(kind, channels):
    values = numbers(channels, kind)
    want = values if kind == "u1" else expected(values)
    for array in (values, np.asfortranarray(values)):
        got = decoded(npy(array), channels or 1)
        assert np.array_equal(got.reshape(want.shape), want)
        same = decoded(array, channels or 1)  # an array of the source `arrays`
        assert np.array_equal(got, same)


def test_grey_numbers_have_three_equal_channels_where_three_are_asked_for():
    values = numbers(0)
    got = decoded(npy(values), 3)
    assert np.array_equal(got, np.stack([expected(values)] * 3, -1))


def test_channels_first_is_read_where_the_number_of_channels_says_so():
    values = numbers(4)
    first = np.moveaxis(values, -1, 0)
    assert np.array_equal(decoded(npy(first), 4), expected(values))
    with pytest.raises(decode.DecodeError, match=r"9 channels; .*data\.channels=5"):
        decoded(npy(first), 5)
    tall = numbers(0)[:, :6, None] + np.zeros((1, 1, 5), np.uint16)  # 6 x 6 x 5
    with pytest.raises(decode.DecodeError, match="5 channels"):
        decoded(npy(tall), 6)  # its first axis is 6, and no axis of channels
    message = r"\[4, 6, 9\] looks like \[C, H, W\].*data\.channels=4"
    with pytest.raises(decode.DecodeError, match=message):
        survey.raster_of(npy(first), None, 100)


class Evil:
    def __reduce__(self):
        return sys.exit, ("unpickled",)


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (npy(np.array([[Evil()]], object), allow_pickle=True), "never loaded"),
        (npy(np.zeros((H, W), bool)), r"array of bool \[6, 9\]; expected numbers"),
        (npy(np.zeros((H, W), complex)), "complex128"),
        (npy(np.zeros((H, W), "U3")), "<U3"),
        (npy(np.zeros((H, W), [("a", "u1")])), "'a'"),
        (npy(np.zeros((2, H, W, 3), np.uint8)), r"\[2, 6, 9, 3\].*data=arrays"),
        (npy(np.zeros(9, np.uint8)), r"\[9\]; expected numbers \[H, W\]"),
        (npy(np.zeros((0, W, 3), np.uint8)), "no pixel"),
        (npy(numbers(3))[:-1], "takes 324 bytes, the file has 323"),
        (npy(numbers(3)) + b"\0", "takes 324 bytes, the file has 325"),
        (npy(numbers(3))[:20], "cannot decode 20 bytes"),
        (b"\x93NUMPY", "cannot decode 6 bytes"),
        (b"\x93NUMPY\x09\x00" + b"\0" * 90, r"version 9\.0"),
        (npy(numbers(3)).replace(b"(6, 9, 3)", b"(6, 9, x)"), "cannot decode"),
        (
            npy(numbers(3)).replace(b"(6, 9, 3), }      ", b"(999999999,9999,9), }")[
                :99
            ],
            "cannot decode|takes",
        ),
    ],
)
def test_npy_files_that_are_no_images_are_refused(encoded, message):
    with pytest.raises(decode.DecodeError, match=message):
        decoded(encoded, 3)


def test_pixels_are_counted_before_they_are_read():
    for encoded in (npy(numbers(2)), tiff(numbers(2), **BANDS), dicom(numbers(0))):
        with pytest.raises(decode.DecodeError, match=r"9 x 6 .*data\.max_pixels=53"):
            decoded(encoded, 2, max_pixels=53)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused(bad):
    values = numbers(2, np.float32)
    values[1, 2, 1] = bad
    for encoded in (npy(values), tiff(values, **BANDS)):
        with pytest.raises(decode.DecodeError, match=r"1 of 108 pixels .* infinite or"):
            decoded(encoded, 2)


@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "f4", "f8"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("how", [{}, {"bigtiff": True}, {"tile": (16, 16)}])
def test_bands_of_a_tiff_are_channels(kind, planar, how):
    for count in (2, 3, 4, 5):
        values = numbers(count, kind)
        array = values if planar == "contig" else np.moveaxis(values, -1, 0)
        how = {"photometric": "minisblack", "compression": "zlib", **how}
        encoded = tiff(
            array, planarconfig=planar, extrasamples=[0] * (count - 1), **how
        )
        want = values if kind == "u1" else expected(values)
        assert np.array_equal(decoded(encoded, count), want)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "f4"])
def test_pages_of_a_tiff_are_channels(kind, byteorder):
    values = numbers(5, kind)
    planes = np.moveaxis(values, -1, 0)
    want = values if kind == "u1" else expected(values)
    stacks = [
        pages(*planes),
        tiff(planes, photometric="minisblack", byteorder=byteorder),
        tiff(planes, photometric="minisblack", metadata={"axes": "CYX"}),
        tiff(planes, photometric="minisblack", metadata={"axes": "CYX"}, ome=True),
    ]
    if kind != "i2":
        stacks.append(tiff(planes, imagej=True, metadata={"axes": "CYX"}))
    if kind != "u1":  # one page, and a description that tells of all
        stacks.append(tiff(planes, photometric="minisblack", truncate=True))
    for encoded in stacks:
        assert np.array_equal(decoded(encoded, 5), want)
        with pytest.raises(decode.DecodeError, match=r"5 (pages|channels)"):
            decoded(encoded, 3)


def test_colours_of_sixteen_bits_have_the_range():
    values = numbers(3)
    encoded = tiff(values, photometric="rgb")
    assert np.array_equal(decoded(encoded, 3), expected(values))
    grey = PIL.Image.fromarray(expected(values)).convert("L")
    assert np.array_equal(decoded(encoded, 1), grey)


def test_bands_have_no_luminance():
    for encoded in (
        pages(*np.moveaxis(numbers(3), -1, 0)),
        tiff(numbers(3), planarconfig="contig", photometric="minisblack"),
    ):
        with pytest.raises(decode.DecodeError, match=r"data\.channels=1"):
            decoded(encoded, 1)


@pytest.mark.parametrize("kind", ["u1", "u2"])
def test_alpha_is_a_channel_where_it_is_counted(kind):
    values = numbers(4, kind)
    want = values if kind == "u1" else expected(values)
    encoded = tiff(values, photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(decoded(encoded, 4), want)
    assert np.array_equal(decoded(encoded, 3), want[..., :3])
    line = survey.check(Images([encoded]), channels=3, range="full")[0]
    assert "1 of 1 images" in line and "marked as alpha, which is left out" in line
    band = tiff(values, photometric="rgb", extrasamples=["unspecified"])
    assert np.array_equal(decoded(band, 4), want)
    with pytest.raises(decode.DecodeError, match=r"4 channels; .*data\.channels=3"):
        decoded(band, 3)


def test_reduced_copies_and_masks_are_no_bands():
    full, small = numbers(0), numbers(0)[::2, ::2]
    for kind in (1, 4):
        with io.BytesIO() as file:
            with tifffile.TiffWriter(file) as writer:
                writer.write(full, photometric="minisblack")
                writer.write(small, photometric="minisblack", subfiletype=1)
            tag = b"\xfe\0\x04\0\x01\0\0\0%c"  # the kind of a page
            encoded = file.getvalue().replace(tag % 1, tag % kind)
        assert np.array_equal(decoded(encoded, 1), expected(full))
    with pytest.raises(decode.DecodeError, match="without a page at full size"):
        decoded(pages(small, subfiletype=1), 1)


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (
            pages(numbers(0), numbers(0)[:, :5]),
            r"2 pages that differ: \[6, 9\] of uint16",
        ),
        (pages(numbers(0), numbers(0, np.uint8)), "2 pages that differ"),
        (pages(numbers(3), numbers(3), photometric="rgb"), "pages and samples cannot"),
        (tiff(numbers(2, np.complex64), photometric="minisblack"), "complex64"),
        (
            pages(
                *[numbers(0, np.uint8)] * 2,
                photometric="palette",
                colormap=np.zeros((3, 256), np.uint16),
            ),
            "PALETTE",
        ),
        (pages(*[numbers(0)] * 2)[:-40], "it was cut short"),
        (b"II*\0" + b"\xff" * 40, "without a page"),
    ],
)
def test_tiffs_whose_channels_are_unclear_are_refused(encoded, message):
    with pytest.raises(decode.DecodeError, match=message):
        decoded(encoded, 2)


def test_stacks_have_one_axis_beside_height_and_width():
    stack = numbers(6).reshape(2, 3, H, W)
    encoded = tiff(stack, imagej=True, metadata={"axes": "TCYX"})
    with pytest.raises(decode.DecodeError, match="axes T 2, C 3; expected one"):
        decoded(encoded, 6)


def test_images_that_tifffile_saved_by_rows_have_their_channels_last():
    values = numbers(5)
    encoded = tiff(values)  # 6 pages of 9 x 5
    assert np.array_equal(decoded(encoded, 5), expected(values))
    with pytest.raises(decode.DecodeError, match="6 pages, a channel each"):
        decoded(encoded, 3)
    with pytest.raises(decode.DecodeError, match=r"rows of .* --channels=5"):
        survey.raster_of(encoded, None, 100)


def test_white_pages_of_zero_are_inverted():
    values = numbers(0)
    encoded = pages(values, values, photometric="miniswhite")
    assert np.array_equal(decoded(encoded, 2)[..., 0], 255 - expected(values))


def test_a_file_is_what_it_holds_whatever_its_name():
    file = io.BytesIO()
    PIL.Image.fromarray(numbers(3, np.uint8)).save(file, "JPEG")
    assert decoded(file.getvalue(), 3).shape == (H, W, 3)
    with pytest.raises(decode.DecodeError, match=r"encoded image .* to 4 channels"):
        decoded(file.getvalue(), 4)


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    lzw = tiff(numbers(2), compression="zlib", **BANDS)
    lzw = lzw.replace(
        b"\x03\x01\x03\0\x01\0\0\0\x08\0", b"\x03\x01\x03\0\x01\0\0\0\x05\0"
    )
    with pytest.raises(ModuleNotFoundError, match=r"LZW .*pip install imagecodecs"):
        decoded(lzw, 2)
    for name, extra, encoded in (
        ("tifffile", "channels", tiff(numbers(2), **BANDS)),
        ("pydicom", "dicom", dicom(numbers(0))),
    ):
        monkeypatch.setitem(sys.modules, name, None)
        message = rf"'{name}'.*pip install \"litevit_jax\[{extra}\]\""
        with pytest.raises(ModuleNotFoundError, match=message):
            decoded(encoded, 2)
        with pytest.raises(ModuleNotFoundError, match=message):
            survey.check(Images([encoded]), channels=2, range="full")
    plain = io.BytesIO()
    PIL.Image.fromarray(numbers(0)).save(plain, "TIFF")
    assert decoded(plain.getvalue(), 1).shape == (H, W)  # Pillow reads it


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom_files_are_rescaled_and_white_is_high(photometric):
    stored = numbers(0, np.int16)
    encoded = dicom(stored, photometric, RescaleSlope="2", RescaleIntercept="-1024")
    want = expected(stored * 2.0 - 1024)
    want = 255 - want if photometric == "MONOCHROME1" else want
    assert np.array_equal(decoded(encoded, 1), want)


def test_the_full_range_of_a_dicom_file_is_that_of_its_bits():
    stored = np.array([[0, 4095, 1000]], np.uint16)
    plain, moved = (
        decoded(dicom(stored, bits=12, **fields), 1, "full")
        for fields in ({}, {"RescaleSlope": "1", "RescaleIntercept": "-1024"})
    )
    assert np.array_equal(plain, expected(stored, 4095)) and np.array_equal(
        plain, moved
    )
    assert np.array_equal(decoded(dicom(numbers(0, np.uint8)), 1), numbers(0, np.uint8))
    colour = numbers(3, np.uint8)
    assert np.array_equal(decoded(dicom(colour, "RGB"), 3), colour)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"NumberOfFrames": "3", "PixelData": bytes(3 * 2 * H * W)}, "3 frames"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR"),
        ({"RescaleSlope": "0"}, "slope 0"),
        ({"PixelData": b"\0\0"}, "cannot decode"),
        ({"Rows": 3000}, "cannot decode|no pixel"),
    ],
)
def test_dicom_files_that_are_no_single_image_are_refused(fields, message):
    with pytest.raises(decode.DecodeError, match=message):
        decoded(dicom(numbers(0), **fields), 1)


def test_one_file_of_other_channels_is_told_and_most_are_refused():
    twelve, three = npy(numbers(12, np.uint8)), npy(numbers(3, np.uint8))
    source = Images([twelve, three, twelve, twelve])
    [line] = survey.check(source, channels=12, range="full")
    assert line.startswith("1 of 4 images looked at have other channels, and count as")
    assert "image 1: NumPy [6, 9, 3], [H, W, C], of 3 channels" in line
    message = r"image 0: NumPy .* of 12 channels, but data\.channels=3; set --config\."
    with pytest.raises(ValueError, match=message + r".*3 of 4 images"):
        survey.check(source, channels=3, range="full")
    with pytest.raises(ValueError, match=r"none of 2 images .*; image 0: .*3 frames"):
        frames = dicom(numbers(0), NumberOfFrames="3", PixelData=bytes(6 * H * W))
        survey.check(Images([frames, frames]), channels=1, range="full")


@pytest.mark.parametrize("how", [{}, {"tile": (16, 16)}, {"rowsperstrip": 1}])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_tiff_that_was_cut_short_is_refused_wherever_it_ends(how, compression):
    values = np.random.default_rng(0).integers(0, 3000, (40, 40, 5)).astype(np.uint16)
    encoded = tiff(values, compression=compression, **BANDS, **how)
    assert np.array_equal(decoded(encoded, 5), expected(values))
    for kept in (0.99, 0.7, 0.3, 0.1):
        with pytest.raises(decode.DecodeError):
            decoded(encoded[: int(kept * len(encoded))], 5)
