"""Files of `torch.save`, both its formats, and pickles of arrays, without PyTorch.

Since PyTorch 1.6 a file is a zip archive: `data.pkl` describes the object and
`data/<key>` holds the bytes of each storage, uncompressed. Before, a file was a series
of pickles followed by the storages. detectron2 publishes pickles of NumPy's arrays.
Storages are read on demand, and every size is checked against the file before memory is
allocated for it.
"""

from __future__ import annotations

import functools
import io
import mmap
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

from litevit_jax.weights import unpickle
from litevit_jax.weights.base import (
    ITEM_SIZES,
    Entry,
    WeightsError,
    count,
    decode,
    short,
)

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the format before 1.6
_PROTOCOL = 1001

# The errors of `zipfile` for a damaged archive.
_DAMAGED = (
    zipfile.BadZipFile,
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,
    UnicodeDecodeError,
)

Tree = Any
Bytes = Callable[[unpickle.Storage], memoryview]


def starts_like_one(data: mmap.mmap) -> bool:
    """Whether the first bytes are those of a zip archive or of a pickle."""
    return data[:4] == b"PK\x03\x04" or data[:1] == b"\x80"


def read(path: str, data: mmap.mmap) -> tuple[Tree, Bytes]:
    """The object of a file, and a function that gives the bytes of a storage.

    Raises:
      WeightsError: the file is damaged, or holds more than tensors.
    """
    if data[:4] == b"PK\x03\x04":
        return _read_zip(path, data)
    return _read_legacy(data)


def entries(tree: dict[str, Any], storage_bytes: Bytes, size: int) -> dict[str, Entry]:
    """The tensors of a state dict as entries that are read when asked for.

    Args:
      tree: name -> `unpickle.Tensor`, or `Array` of a known type; other values hold no
        weights and are refused.
      storage_bytes: from `read`.
      size: the file's bytes. Tensors may share a storage, so their total size is
        bounded too.

    Raises:
      WeightsError: a value that is no tensor, or more tensors than the file has.
    """
    result, total = {}, 0
    for name, value in tree.items():
        dtype = _dtype(value)
        if not isinstance(name, str) or dtype is None:
            raise WeightsError(
                f"entry {short(name)} is a {type(value).__name__}, expected a tensor; "
                "save the state dict alone"
            )
        total += ITEM_SIZES[dtype] * count(value.shape)
        of_numpy = isinstance(value, unpickle.Array)
        read = _array(value) if of_numpy else _reader(value, storage_bytes)
        result[name] = Entry(value.shape, dtype, read)
    if total > 4 * size:
        raise WeightsError(
            f"its tensors take {total} bytes, the file has {size}: views of the same "
            "numbers again and again"
        )
    return result


def _dtype(value: Any) -> str | None:
    """The type of a tensor's or array's numbers, or None for anything else."""
    if isinstance(value, unpickle.Tensor):
        return value.storage.dtype
    return value.dtype if isinstance(value, unpickle.Array) else None


def _array(array: unpickle.Array) -> Callable[[], np.ndarray]:
    return lambda: decode(array.raw, str(array.dtype)).reshape(array.shape)


def _reader(tensor: unpickle.Tensor, storage_bytes: Bytes) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        flat = decode(storage_bytes(tensor.storage), tensor.storage.dtype)
        if 0 in tensor.shape:
            return np.zeros(tensor.shape, flat.dtype)
        strides = [s * flat.itemsize for s in tensor.stride]
        # `unpickle` checked that every element lies inside.
        view = np.lib.stride_tricks.as_strided(
            flat[tensor.offset :], tensor.shape, strides, writeable=False
        )
        return np.array(view)

    return read


def _read_zip(path: str, data: mmap.mmap) -> tuple[Tree, Bytes]:
    try:
        archive = zipfile.ZipFile(path)
        infos = {info.filename: info for info in archive.infolist()}
        _check_archive(archive, infos, len(data))
        roots = [n.removesuffix("data.pkl") for n in infos if n.endswith("/data.pkl")]
        if len(roots) != 1:
            raise WeightsError(_other_archive(list(infos)))
        root = roots[0]
        if f"{root}constants.pkl" in infos:
            raise WeightsError("a TorchScript program; save the state dict alone")
        order = f"{root}byteorder"
        if order in infos and archive.read(order) != b"little":
            raise WeightsError("written on a big-endian machine")
        tree = unpickle.load(io.BytesIO(archive.read(f"{root}data.pkl")))
    except _DAMAGED as error:
        raise WeightsError(f"a damaged or truncated archive ({error!s:.120})") from None

    @functools.cache
    def start(name: str) -> int:
        """Returns the offset of a record in the file, after a check of its checksum."""
        with archive.open(name) as record:
            while record.read(1 << 20):
                pass
        header = infos[name].header_offset
        lengths = struct.unpack_from("<2H", data, header + 26)
        return header + 30 + sum(lengths)

    def storage_bytes(storage: unpickle.Storage) -> memoryview:
        name = f"{root}data/{storage.key}"
        wanted = storage.numel * ITEM_SIZES[storage.dtype]
        got = infos[name].file_size if name in infos else None
        if got != wanted:
            raise WeightsError(
                f"storage {short(storage.key)} takes {wanted} bytes, the file has {got}"
            )
        try:
            begin = start(name)
        except _DAMAGED as error:
            raise WeightsError(
                f"storage {short(storage.key)} is damaged ({error!s:.120})"
            ) from None
        return memoryview(data)[begin : begin + wanted]

    return tree, storage_bytes


def _other_archive(names: list[str]) -> str:
    """Describes a zip archive that torch.save did not write."""
    arrays = [name.removesuffix(".npy") for name in names if name.endswith(".npy")]
    if not arrays:
        return "a zip archive that torch.save did not write"
    first_names = ", ".join(name[:60] for name in arrays[:3])
    return (
        f"a NumPy archive (.npz) of {len(arrays)} arrays ({first_names}, ...), as "
        "JAX's original vision transformers are published, which is not read; load it "
        "in timm (create_model(..., checkpoint_path=FILE)) and save the state dict as "
        ".safetensors"
    )


def _check_archive(archive: Any, infos: dict[str, Any], size: int) -> None:
    if len(infos) != len(archive.infolist()):
        raise WeightsError("an archive with two records of one name")
    for name, info in infos.items():
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > size:
            raise WeightsError(
                f"record {short(name)} is compressed to {info.compress_size} of "
                f"{info.file_size} bytes; torch.save compresses nothing"
            )


def _read_legacy(data: mmap.mmap) -> tuple[Tree, Bytes]:
    data.seek(0)
    head = [unpickle.load(data)]
    if isinstance(head[0], dict):  # a pickle alone, whose arrays are in it
        return head[0], _no_storage
    head += [unpickle.load(data) for _ in range(2)]
    if head[:2] != [_MAGIC, _PROTOCOL] or not isinstance(head[2], dict):
        raise WeightsError("a pickle that torch.save did not write")
    if head[2].get("little_endian") is not True:
        raise WeightsError("written on a big-endian machine")
    tree, keys = unpickle.load(data), unpickle.load(data)
    spans = _walk_storages(data, keys, _storages(tree))

    def storage_bytes(storage: unpickle.Storage) -> memoryview:
        start, numel, item_size = spans.get(storage.key, (0, -1, 0))
        if (numel, item_size) != (storage.numel, ITEM_SIZES[storage.dtype]):
            raise WeightsError(
                f"storage {short(storage.key)} has {numel} elements, its tensors "
                f"expect {storage.numel} of {storage.dtype}"
            )
        return memoryview(data)[start : start + numel * item_size]

    return tree, storage_bytes


def _no_storage(storage: unpickle.Storage) -> memoryview:
    raise WeightsError(f"storage {short(storage.key)} is in no file")


def _storages(tree: Any) -> dict[str, unpickle.Storage]:
    """Every storage that a tensor of the tree views, by key."""
    storages, seen, left = {}, set(), [tree]
    while left:
        value = left.pop()
        if isinstance(value, unpickle.Tensor):
            storages[value.storage.key] = value.storage
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            left += value.values() if isinstance(value, dict) else value
    return storages


def _walk_storages(data: mmap.mmap, keys: Any, storages: dict) -> dict[str, Any]:
    """Returns (start, elements, bytes of one) of each storage, in the file's order."""
    spans, offset = {}, data.tell()
    for key in keys if isinstance(keys, list) else ():
        if not isinstance(key, str) or key not in storages:
            raise WeightsError("a storage that no tensor views")
        item_size = ITEM_SIZES[storages[key].dtype]
        numel = int.from_bytes(data[offset : offset + 8], "little")
        spans[key] = (offset + 8, numel, item_size)
        offset += 8 + numel * item_size
        if offset > len(data):
            raise WeightsError(
                f"truncated: storage {short(key)} ends at byte {offset}, the file at "
                f"{len(data)}"
            )
    return spans
