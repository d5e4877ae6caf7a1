"""Writes files as `torch.save` does, without PyTorch: a zip archive with a pickle.

The pickle names PyTorch's functions, which need not be here, so it is put together
from its instructions.
"""

from __future__ import annotations

import io
import struct
import zipfile

import numpy as np

_ALIGNED = 64  # bytes, to which PyTorch aligns the numbers
_EXTRA = struct.Struct("<HH")  # of a field in a zip header: its kind and size


def write(arrays: dict[str, np.ndarray], container: str = "model") -> bytes:
    """Returns a file with {container: {name: float32 tensor}}.

    Args:
      arrays: name -> float32 array.
      container: name of the dict that holds them.
    """
    parts = [b"\x80\x02}", _text(container), b"}("]
    for number, (name, array) in enumerate(arrays.items()):
        parts += [_text(name), _tensor(str(number), array.shape)]
    parts.append(b"us.")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "data.pkl", b"".join(parts), stream.tell())
        _add(archive, "byteorder", b"little", stream.tell())
        for number, array in enumerate(arrays.values()):
            raw = np.ascontiguousarray(array, "<f4").tobytes()
            _add(archive, f"data/{number}", raw, stream.tell())
        _add(archive, "version", b"3\n", stream.tell())
    return stream.getvalue()


def _add(archive, name, data, offset):
    info = zipfile.ZipInfo(f"archive/{name}")
    start = offset + 30 + len(info.filename) + _EXTRA.size
    gap = -start % _ALIGNED
    info.extra = _EXTRA.pack(0x4246, gap) + b"Z" * gap
    archive.writestr(info, data)


def _text(text):
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _number(value):
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _sizes(values):
    return b"(" + b"".join(map(_number, values)) + b"t"


def _tensor(key, shape):
    """Instructions for a tensor of float32 whose numbers are stored under `key`."""
    strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
    storage = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text(key)
    storage += _text("cpu") + _number(int(np.prod(shape))) + b"tQ"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + _number(0)
    hooks = b"ccollections\nOrderedDict\n)R"
    return call + _sizes(shape) + _sizes(strides) + b"\x89" + hooks + b"tR"
