"""Files of torch.save are read without running them; hostile ones are refused."""

import collections
import io
import mmap
import os
import pathlib
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest

from litevit_jax import weights
from litevit_jax.weights import torch_file, unpickle

HERE = pathlib.Path(__file__).parent / "fixtures"


def refused(path, message):
    with pytest.raises(weights.WeightsError, match=message) as caught:
        weights.read(path, num_heads=4)
    assert str(caught.value).startswith(str(path))


def archive(path, program, records=None, **kwargs):
    """An archive as torch.save writes it, of any pickle."""
    with zipfile.ZipFile(path, "w", **kwargs) as file:
        file.writestr("archive/data.pkl", program)
        for name, raw in (records or {}).items():
            file.writestr(f"archive/data/{name}", raw)
    return path


class Named:
    """Pickled as the call of a name with arguments."""

    def __init__(self, name, *args):
        self.name, self.args = name, args


class Pickler(pickle._Pickler):
    """Writes `Named` calls of functions that need not exist here."""

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Named):
            self.write(f"c{obj.name}\n".replace("/", "\n", 1).encode())
            if obj.args != (None,):
                super().save(obj.args)
                self.write(b"R")
        elif isinstance(obj, Persistent):
            super().save(tuple(obj.parts))
            self.write(b"Q")
        else:
            super().save(obj, save_persistent_id)


class Persistent:
    """Pickled as a reference to a storage."""

    def __init__(self, *parts):
        self.parts = parts


def program(tree):
    stream = io.BytesIO()
    Pickler(stream, 2).dump(tree)
    return stream.getvalue()


def tensor(shape, stride, offset=0, numel=8, key="0", kind="FloatStorage"):
    storage = Persistent("storage", Named(f"torch/{kind}", None), key, "cpu", numel)
    rebuild = "torch._utils/_rebuild_tensor_v2"
    return Named(
        rebuild, storage, offset, shape, stride, False, collections.OrderedDict()
    )


RAW = np.arange(8, dtype=np.float32).tobytes()


def read(path):
    """The arrays of a file."""
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    tree, storage_bytes = torch_file.read(str(path), data)
    found = torch_file.entries(tree, storage_bytes, len(data))
    return {name: entry.read() for name, entry in found.items()}


def test_views_are_read_by_their_offset_and_strides(tmp_path):
    tree = {"t": tensor((2, 3), (1, 2), offset=1), "e": tensor((0, 3), (3, 1))}
    arrays = read(archive(tmp_path / "a.pth", program(tree), {"0": RAW}))
    np.testing.assert_array_equal(arrays["t"], [[1, 3, 5], [2, 4, 6]])
    assert arrays["e"].shape == (0, 3)


HOSTILE = {
    "a call": (Named("posix/system", "touch ran"), r"it names posix\.system, which"),
    "an import": (Named("os/environ", None), r"it names os\.environ, which is no part"),
    "eval": (Named("builtins/eval", "1"), r"it names builtins\.eval"),
    "beyond": (tensor((3, 3), (3, 1)), r"reaches outside its storage '0' of 8"),
    "stride": (tensor((2, 2), (8, 1)), r"reaches outside"),
    "offset": (tensor((4,), (1,), offset=5), r"reaches outside"),
    "negative": (tensor((4,), (-1,), offset=4), r"a tensor with sizes"),
    "repeated": (tensor((10**6, 10**6), (0, 0)), r"reaches outside"),
    "huge": (tensor((2**62, 4), (4, 1)), r"a tensor with sizes"),
    "ranks": (tensor((2, 2), (1,)), r"stride"),
    "absent": (tensor((4,), (1,), key="1"), r"storage '1' takes 32 bytes.* has None"),
    "promised": (tensor((9,), (1,), numel=9), r"takes 36 bytes, the file has 32"),
    "kind": (tensor((4,), (1,), kind="QInt8Storage"), r"names torch\.QInt8Storage"),
    "no tensor": ([1, 2], r"'patch_embed.proj.weight' is a list, expected a tensor"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value, message = HOSTILE[name]
    tree = {"patch_embed.proj.weight": value}
    if name in ("absent", "promised"):
        with pytest.raises(weights.WeightsError, match=message):
            read(archive(tmp_path / "a.pth", program(tree), {"0": RAW}))
    else:
        refused(archive(tmp_path / "a.pth", program(tree), {"0": RAW}), message)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_nothing_of_a_pickle_is_run(tmp_path, protocol):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    path = archive(tmp_path / "a.pth", pickle.dumps({"model": Evil()}, protocol))
    refused(path, r"it names posix\.mkdir|it names nt\.mkdir|the pickle instruction")
    assert not (tmp_path / "ran").exists()


def test_many_views_of_the_same_numbers_are_refused(tmp_path):
    tree = {f"t{i}": tensor((8,), (1,)) for i in range(2000)}
    small = archive(tmp_path / "a.pth", program(tree), {"0": RAW})
    storage = unpickle.Storage("0", "float32", 8)
    views = {f"t{i}": unpickle.Tensor(storage, 0, (8,), (1,)) for i in range(2000)}
    with pytest.raises(weights.WeightsError, match="again and again"):
        torch_file.entries(views, lambda _: RAW, 1000)
    assert small.stat().st_size > 1000


def nested(levels):
    """Instructions that push a tuple of 2 ** levels empty ones, each written once."""
    code = b")q\x00"
    for level in range(levels):
        code += b"0" + b"h%c" % level * 2 + b"\x86q%c" % (level + 1)
    return code


LEVELS = 22  # four million tuples
TEXT = b"X\x07\x00\x00\x00storage"
STORAGE = b"(" + TEXT + b"ctorch\nFloatStorage\nU\x010U\x03cpuK\x08tQ"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n("
NESTED = {
    "offset": (REBUILD + STORAGE + nested(LEVELS) + b"))tR", "with offset"),
    "shape": (REBUILD + STORAGE + b"K\x00" + nested(LEVELS) + b")tR", "with sizes"),
    "kind": (b"(" + TEXT + nested(LEVELS) + b"U\x010U\x03cpuK\x08tQ", "a storage of"),
    "name": (nested(LEVELS) + b"U\x01a\x93", "STACK_GLOBAL requires str"),
    "size": (b"ctorch\nSize\n" + nested(LEVELS) + b"\x85R", "expected a tensor"),
    "value": (nested(LEVELS), "is a tuple, expected a tensor"),
    "key": (b"}" + nested(LEVELS) + b"K\x01s", "a dict key of type tuple"),
}


@pytest.mark.parametrize("name", NESTED)
def test_messages_are_written_from_shortened_text_alone(tmp_path, name):
    code, message = NESTED[name]
    program = b"\x80\x02}U\x01a" + code + b"s."
    assert len(program) < 500
    path = archive(tmp_path / "a.pth", program)
    tracemalloc.start()
    refused(path, message)
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


@pytest.mark.parametrize("call", [b"ccollections\nOrderedDict\n", b"ctorch\nSize\n"])
def test_a_list_that_is_copied_again_and_again_is_refused(tmp_path, call):
    pairs = b"".join(b"K%cK\x00\x86" % (i % 256) for i in range(2000))
    program = b"\x80\x02](" + pairs + b"eq\x000" + call + b"q\x010"
    program += b"](" + b"h\x01h\x00\x85R" * 2000 + b"e."
    path = archive(tmp_path / "a.pth", program)
    tracemalloc.start()
    refused(path, "copies one list again and again|a size of")
    assert tracemalloc.get_traced_memory()[1] < 100 * len(program)
    tracemalloc.stop()


PAST_ANY_HASH = b"".join(
    b"\x8a\x0c" + (i * (2**61 - 1)).to_bytes(12, "little") + b"N"
    for i in range(1, 20_000)
)
# What would take a machine's memory or hours, or end the process, if it were followed.
COSTLY = {
    "memo": (b"Nr\xff\xff\xff\xff", "a memo of 4294967295 entries"),
    "memo as text": (b"Np99999999999999999999\n", "a memo of 99999999999999999999 "),
    "memo as long text": (b"Np" + b"9" * 5000 + b"\n", "its pickle is damaged"),
    "text": (b"X\xff\xff\xff\xffa", "its pickle is damaged"),
    "bytes": (b"B\xff\xff\xff\xffa", "its pickle is damaged"),
    "bytes of 64 bits": (b"\x8e" + b"\xff" * 7 + b"\x0fa", "its pickle is damaged"),
    "array": (b"\x96" + b"\xff" * 7 + b"\x0fa", "its pickle is damaged"),
    "integer": (b"\x8b\xff\xff\xff\x7fa", "its pickle is damaged"),
    "integer as text": (b"I" + b"9" * 10**5 + b"\n", "its pickle is damaged"),
    "frame": (b"\x95" + b"\xff" * 7 + b"\x0fN", "is a NoneType, expected a tensor"),
    "wide key": (b"}" + nested(60) + b"K\x01s", "a dict key of type tuple"),
    "deep key": (b"})" + b"\x85" * 50_000 + b"K\x01s", "a dict key of type tuple"),
    "deep pair": (
        b"ccollections\nOrderedDict\n])" + b"\x85" * 50_000 + b"K\x01\x86a\x85R",
        "a dict key of type tuple",
    ),
    "wide element": (b"\x8f(" + nested(60) + b"\x90", "is a set, expected a tensor"),
    "equal hashes": (b"}(" + PAST_ANY_HASH + b"u", "a dict key of type int"),
    "deep list": (b"]" * 50_000 + b"a" * 49_999, "is a list, expected a tensor"),
    "deep tuple": (b")" + b"\x85" * 50_000, "is a tuple, expected a tensor"),
    "deep dict": (
        b"}" + b"K\x01}" * 25_000 + b"s" * 25_000, "is a Dict, expected a tensor"),
    "list in itself": (b"]q\x00h\x00a", "is a list, expected a tensor"),
    "attributes": (
        b"cargparse\nNamespace\n)\x81q\x000}(" + b"".join(
            b"J" + i.to_bytes(4, "little") + b"N" for i in range(10**4)
        ) + b"uq\x010h\x00" + b"h\x01b" * 10**4,
        r"is a argparse\.Namespace, expected a tensor",
    ),
    "dicts": (b"]" + b"}a" * 20_000, "is a list, expected a tensor"),
    "sets": (b"]" + b"\x8fa" * 20_000, "is a list, expected a tensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", COSTLY)
def test_what_a_pickle_costs_follows_from_its_length(tmp_path, name):
    code, message = COSTLY[name]
    path = archive(tmp_path / "a.pth", b"\x80\x02}U\x01a" + code + b"s.")
    tracemalloc.start()
    refused(path, message)
    assert tracemalloc.get_traced_memory()[1] < 2**20 + 400 * len(code)
    tracemalloc.stop()


# As C's unpickler knows them and no file of tensors needs them.
REFUSED = {
    "EXT1": b"\x82\x01", "EXT4": b"\x84\x01\x00\x00\x00", "INST": b"(ios\nsystem\n",
    "OBJ": b"(cargparse\nNamespace\no", "DUP": b"N20", "PERSID": b"Pstorage\n",
    "NEXT_BUFFER": b"\x97", "FROZENSET": b"(\x91", "POP_MARK": b"N(1",
    "NEWOBJ_EX": b"cargparse\nNamespace\n)}\x92", "STRING": b"S'a'\n", "LONG": b"L1L\n",
    "LONG4": b"\x8b\x01\x00\x00\x00\x01", "DICT": b"(d",
    "BYTEARRAY8": b"\x96\x01" + bytes(7) + b"a", "BINUNICODE8": b"\x8d" + bytes(8),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_an_instruction_that_tensors_do_not_need_is_refused(name):
    program = b"\x80\x02" + REFUSED[name] + b"."
    with pytest.raises(weights.WeightsError, match=f"the pickle instruction {name}$"):
        unpickle.load(io.BytesIO(program))


MISUSED = {
    "unhashable id": (b"]Q", "a reference to something that is no storage"),
    "id of nothing": (b"NQ", "a reference to something that is no storage"),
    "callable": (b"U\x01a)R", "damaged"),
    "storage called": (b"ctorch\nFloatStorage\n)R", "damaged"),
    "too few": (b"ctorch._utils\n_rebuild_tensor_v2\n)R", "damaged"),
    "no tuple": (b"ctorch\nSize\n]R", "damaged"),
    "size": (b"ctorch\nSize\n}\x85R", "a size of a Dict"),
    "new": (b"ctorch\nSize\n)\x81", "damaged"),
    "class changed": (b"cargparse\nNamespace\n}b", "damaged"),
    "appended": (b"}Na", "damaged"),
    "item of text": (b"U\x01aK\x00Ns", "damaged"),
    "mark": (b"(\x85", "damaged"),
    "own dict": (b"clitevit_jax\ndict\n]))\x86a\x85R", "damaged"),
    "arguments": (b"ctorch\nSize\n(" + b"N" * 999 + b"tR", "with 999 arguments"),
    "of a new": (b"cnumpy\nndarray\n(" + b"N" * 999 + b"t\x81", "with 999 arguments"),
    "of a class": (b"cnumpy\ndtype\n(" + b"N" * 999 + b"tR", "with 999 arguments"),
    "long id": (STORAGE[:-2] + b"N" * 999 + b"tQ", "to something that is no storage"),
    "no mark": (b"]Ne", "damaged"),
    "empty": (b"0", "damaged"),
    "private": (
        b"clitevit_jax.weights.unpickle\n_Unpickler\n",
        "it names litevit_jax.",
    ),
    "dots": (b"\x8c\x05torch\x8c\x0dSize.__init__\x93", "it names torch.Size.__init__"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISUSED)
def test_instructions_with_odd_arguments_are_refused(name):
    code, message = MISUSED[name]
    with pytest.raises(weights.WeightsError, match=message):
        unpickle.load(io.BytesIO(b"\x80\x04" + code + b"."))


def test_a_pickle_changes_no_object_after_it_was_checked():
    """BUILD writes into `__dict__`, or sets attributes, unless an object objects."""
    stored = tensor((2,), (1,))
    whole = unpickle.load(io.BytesIO(program(stored)))
    states = (
        b"}U\x06offset\x8a\x04\xff\xff\xff\x7fs", b"N}U\x06offsetK\x07s\x86",
        b"N}U\x05numelK\x63s\x86", b"N}U\x04callNs\x86", b"N}U\x05dtypeNs\x86",
    )  # fmt: skip
    for state in states:
        for code in (
            program(stored)[:-1],
            b"\x80\x02" + STORAGE,
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n",
            b"\x80\x02ctorch\nFloatStorage\n",
        ):
            value = unpickle.load(io.BytesIO(code + state + b"b."))
            assert value == unpickle.load(io.BytesIO(code + b"."))
    assert unpickle.load(io.BytesIO(program(stored))) == whole


def test_frames_do_not_change_what_is_read():
    """The unpickler drops the end of a frame that ends inside an instruction."""
    code = b"}X\x03\x00\x00\x00abcK\x01s."
    for size in range(len(code) + 1):
        framed = b"\x80\x04\x95" + size.to_bytes(8, "little") + code
        assert unpickle.load(io.BytesIO(framed)) == {"abc": 1}, size


def test_views_of_a_storage_share_the_file_s_bytes(tmp_path):
    path = archive(tmp_path / "a.pth", program({"t": tensor((8,), (1,))}), {"0": RAW})
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    _, storage_bytes = torch_file.read(str(path), data)
    raw = storage_bytes(unpickle.Storage("0", "float32", 8))
    assert raw.obj is data and bytes(raw) == RAW


def test_an_archive_of_numpy_says_what_it_is(tmp_path):
    path = tmp_path / "ViT-Ti_16.npz"
    np.savez(path, **{"Transformer/encoder_norm/bias": np.zeros(3), "cls": np.zeros(2)})
    refused(path, r"a NumPy archive \(.npz\) of 2 arrays \(Transformer/enc.*timm")


def test_a_compressed_archive_is_refused(tmp_path):
    bomb = archive(
        tmp_path / "a.pth",
        program({"t": tensor((4,), (1,), numel=10**7)}),
        {"0": bytes(4 * 10**7)},
        compression=zipfile.ZIP_DEFLATED,
    )
    assert bomb.stat().st_size < 10**6
    refused(bomb, r"record .* is compressed .*torch\.save compresses nothing")


@pytest.mark.parametrize(
    "name", ["timm.pth", "timm_before_1.6.pth", "timm.safetensors"]
)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, name, share):
    data = (HERE / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data[: int(share * len(data))])
    refused(path, "empty|truncated|damaged|begins with|no JSON|no safetensors|write")


def test_a_changed_byte_of_an_archive_is_noticed(tmp_path):
    data = bytearray((HERE / "timm.pth").read_bytes())
    with zipfile.ZipFile(HERE / "timm.pth") as file:
        storages = [info for info in file.infolist() if "/data/" in info.filename]
        largest = max(storages, key=lambda info: info.file_size)
    data[largest.header_offset + 200] ^= 1
    path = tmp_path / "a.pth"
    path.write_bytes(data)
    refused(path, r"storage '\d+' is damaged")


OTHERS = {
    "web page": (b"<!DOCTYPE html><html>", r"begins with b'<!DOCTYPE html"),
    "pointer": (b"version https://git-lfs", r"begins with b'version https://"),
    "pickle": (pickle.dumps({"a": 1}), "damaged|entry 'a' is a int"),
    "list": (None, r"it holds a list, expected a state dict"),
    "numbers": (None, r"entry 'epoch' is a int, expected a tensor"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_that_holds_no_weights_says_what_it_is(tmp_path, name):
    data, message = OTHERS[name]
    path = tmp_path / "a.pth"
    if data is None:
        archive(path, program([1] if name == "list" else {"epoch": 1}))
    else:
        path.write_bytes(data)
    refused(path, message)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth: no such file of weights"):
        weights.read(tmp_path / "none.pth")


def test_two_state_dicts_are_one_too_many(tmp_path):
    tree = {"model": {}, "state_dict": {}}
    refused(archive(tmp_path / "a.pth", program(tree)), "both 'model' and 'state_dict'")


def test_the_optimizer_beside_the_model_is_not_read(tmp_path):
    tree = {
        "model": {"a": tensor((8,), (1,))},
        "optimizer": {"b": tensor((8,), (1,), key="absent")},
    }
    path = archive(tmp_path / "a.pth", program(tree), {"0": RAW})
    refused(path, r"no patch_embed\.proj\.weight.*begin with a")
