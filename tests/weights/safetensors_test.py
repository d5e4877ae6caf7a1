"""Headers of safetensors files are checked before anything is loaded."""

import json
import mmap
import pathlib
import struct

import numpy as np
import pytest

from litevit_jax import weights
from litevit_jax.weights import layouts, safetensors
from litevit_jax.weights.base import WeightsError
from tests.weights import export_test


def parse(tmp_path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(
        struct.pack("<Q", len(text) if length is None else length) + text + data
    )
    with path.open("rb") as file:
        return safetensors.read(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def about(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_arrays_and_metadata_are_read_in_any_order(tmp_path):
    header = {
        "b": about([3], 8, 14, "BF16"),
        "a": about([2, 1], 0, 8),
        "__metadata__": {"num_heads": "12"},
        "none": about([0, 4], 14, 14),
    }
    bfloat = (np.array([1, -2, 0.5], np.float32).view(np.uint32) >> 16).astype("<u2")
    data = np.array([1.5, 2], "<f4").tobytes() + bfloat.tobytes()
    entries, metadata = parse(tmp_path, header, data)
    assert metadata == {"num_heads": "12"}
    np.testing.assert_array_equal(entries["a"].read(), [[1.5], [2]])
    np.testing.assert_array_equal(entries["b"].read(), [1, -2, 0.5])
    assert entries["b"].dtype == "bfloat16"
    assert entries["none"].read().shape == (0, 4)


def test_what_is_written_is_read_again_in_every_type():
    rng = np.random.default_rng(0)
    kinds = set(safetensors._CODES) - {"bfloat16"}  # which NumPy lacks
    arrays = {kind: (9 * rng.random((2, 3))).astype(kind) for kind in kinds}
    arrays |= {"none": np.zeros((0, 4), "f4"), "one": np.array(7, ">i4").reshape(())}
    arrays["turned"] = np.arange(6, dtype="f4").reshape(2, 3).T
    found, metadata = safetensors.load(safetensors.write(arrays, {"grid": "4x4"}))
    assert metadata == {"grid": "4x4"} and list(found) == sorted(arrays)
    for name, value in arrays.items():
        assert found[name].dtype == value.dtype.newbyteorder("<"), name
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_the_bytes_of_a_file_do_not_depend_on_chance():
    """Those that this package always wrote; the order of metadata is the caller's."""
    arrays = {"b": np.array([1.5, 2], "f4"), "a": np.zeros((1, 1), "f4")}
    assert safetensors.write(arrays, {"z": "1", "a": "2"}) == (
        b"\x90\x00\x00\x00\x00\x00\x00\x00"
        b'{"__metadata__":{"z":"1","a":"2"},'
        b'"a":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},'
        b'"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}} '
        b"\x00\x00\x00\x00\x00\x00\xc0\x3f\x00\x00\x00\x40"
    )


def test_the_reader_of_exports_is_as_strict():
    data = safetensors.write({"a": np.zeros(2, "f4")}, {})
    for wrong in (data[:-1], data + b"a", data[:20], b""):
        with pytest.raises(WeightsError, match=r"truncated|behind the last"):
            safetensors.load(wrong)


def test_a_header_that_begins_with_the_byte_of_a_pickle_is_read(tmp_path):
    """128 bytes long: the first byte is 0x80."""
    model = export_test.model_of("avg")
    about = {"num_heads": "4"}
    arrays = layouts.timm(model, {}).arrays
    while (data := safetensors.write(arrays, about))[0] != 0x80:
        about["more"] = about.get("more", "") + 8 * "."
    for name in ("a.safetensors", "a.bin", "a.pth"):
        path = tmp_path / name
        path.write_bytes(data)
        found = weights.read(path)
        assert found.params.keys() == model.params.keys(), name
        path.write_bytes(data[:200])
        message = "truncated" if name == "a.safetensors" else "its pickle is damaged"
        with pytest.raises(WeightsError, match=message):
            weights.read(path)


def test_a_pickle_by_the_name_of_safetensors_is_read(tmp_path):
    here = pathlib.Path(__file__).parent / "fixtures"
    for name in ("timm.pth", "timm_before_1.6.pth"):
        copy = tmp_path / f"{name}.safetensors"
        copy.write_bytes((here / name).read_bytes())
        assert weights.read(copy, num_heads=4).source == "timm"


BAD = {
    "outside": ({"a": about([4], 0, 16)}, bytes(8), r"truncated or damaged"),
    "hole": ({"a": about([1], 4, 8)}, bytes(8), r"expected to begin at 0"),
    "overlap": (
        {"a": about([2], 0, 8), "b": about([2], 4, 12)},
        bytes(12),
        "begin at 8",
    ),
    "size": (
        {"a": about([3], 0, 8)},
        bytes(8),
        r"takes 12 bytes, its data_offsets .* 8",
    ),
    "huge": ({"a": about([2**40, 2**40], 0, 8)}, bytes(8), r"takes \d+ bytes"),
    "negative": ({"a": about([-1], 0, 8)}, bytes(8), r"has shape \[-1\]"),
    "type": ({"a": about([8], 0, 8, "F8_E4M3")}, bytes(8), r"'F8_E4M3', expected one"),
    "no place": ({"a": {"dtype": "F32", "shape": [1]}}, bytes(4), "no data_offsets"),
    "more": ({"a": about([1], 0, 4)}, bytes(6), r"2 bytes behind the last array"),
    "twice": (b'{"a": 1, "a": 2}', b"", "a name twice"),
    "json": (b"{no json}", b"", "no JSON"),
    "deep": (b'{"a":' + b"[" * 100_000, b"", "no JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_header_is_refused(tmp_path, name):
    header, data, message = BAD[name]
    with pytest.raises(WeightsError, match=message):
        parse(tmp_path, header, data)


def test_a_header_longer_than_the_file_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="truncated"):
        parse(tmp_path, {"a": about([1], 0, 4)}, bytes(4), length=2**60)
