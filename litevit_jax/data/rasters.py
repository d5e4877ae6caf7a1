"""Reads files whose pixels are numbers: NumPy, TIFF of several bands or pages, DICOM.

What a file is, its first bytes say. See `tiff` and `dicom` for what these leave out.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from litevit_jax.data import levels

_NPY, _DICOM, _DICOM_AT = b"\x93NUMPY", b"DICM", 128
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_COLOURS = (1, 2, 3, 4)  # channels that an image is more likely to have than as a side

Check = Callable[[int, int], None]


class DecodeError(ValueError):
    """An error of bytes or an array that are not a usable image."""


class Raster(NamedTuple):
    """The pixels of a file.

    Attributes:
      kind: of the file: NumPy, TIFF or DICOM.
      deep: the pixels [H, W] or [H, W, C].
      bands: whether channels are bands or pages of their own, no colours, so that three
        of them have no luminance.
      alpha_left_out: whether a sample was marked as alpha, and left out.
    """

    kind: str
    deep: levels.Deep
    bands: bool = False
    alpha_left_out: bool = False

    @property
    def channels(self) -> int:
        """The number of channels."""
        return channels_of(self.deep.values)


def channels_of(values: np.ndarray) -> int:
    """Returns the channels of an array [H, W] or [H, W, C]."""
    return values.shape[2] if values.ndim == 3 else 1


def read(encoded: bytes, channels: int | None, check: Check) -> Raster | None:
    """Reads the pixels of a file; None if it is one for Pillow.

    Args:
      encoded: the file.
      channels: that are asked for; None: any number.
      check: raises an error if an image of a width and height is too large.

    Raises:
      DecodeError: damaged, or nothing that has channels.
      ModuleNotFoundError: the package that reads such files is not installed.
    """
    from litevit_jax.data import dicom, tiff  # they need what is defined here

    try:
        if encoded.startswith(_NPY):
            return Raster("NumPy", levels.of_array(_npy(encoded, channels, check)))
        if encoded[_DICOM_AT:].startswith(_DICOM):
            return dicom.read(encoded, check)
        if is_tiff(encoded) and not tiff.is_for_pillow(encoded, channels):
            return tiff.read(encoded, channels, check)
    except (DecodeError, ModuleNotFoundError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged file makes a library raise
        reason = f"{type(error).__name__}: {error}"
        raise DecodeError(f"cannot decode {len(encoded)} bytes: {reason}") from error
    return None


def is_tiff(encoded: bytes) -> bool:
    return encoded.startswith(_TIFF)


def channels_first(shape: Sequence[int]) -> bool:
    """Whether a shape looks like [C, H, W] instead of [H, W, C]."""
    a, b, c = shape
    return c not in _COLOURS and (a in _COLOURS or (b == c and a < b))


def _npy(encoded: bytes, channels: int | None, check: Check) -> np.ndarray:
    """Returns the array of a file, its channels last, without a copy."""
    file = io.BytesIO(encoded)
    readers: Any = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(file)
    if version not in readers:
        raise DecodeError(
            f"a .npy file of version {version[0]}.{version[1]}; expected an array of "
            "numbers, saved by np.save"
        )
    shape, fortran, dtype = readers[version](file)
    what = f"an array of {dtype} {list(shape)}"
    if dtype.hasobject:
        raise DecodeError(
            f"{what} of pickled Python objects, which are never loaded: they could run "
            "any code; expected numbers [H, W] or [H, W, C]"
        )
    if dtype.kind not in "iuf" or len(shape) not in (2, 3):
        raise DecodeError(
            f"{what}; expected numbers [H, W] or [H, W, C] in a file for each image "
            "(several images in one file are read by data=arrays,path=FILE)"
        )
    if not math.prod(shape):
        raise DecodeError(f"{what} has no pixel")
    rest, size = len(encoded) - file.tell(), math.prod(shape) * dtype.itemsize
    if rest != size:
        raise DecodeError(
            f"{what} takes {size} bytes, the file has {rest} after its header: it was "
            "cut short or changed"
        )
    order: Any = "F" if fortran else "C"
    flat = np.frombuffer(encoded, dtype, offset=file.tell())
    values = _channels_last(flat.reshape(shape, order=order), channels)
    check(values.shape[1], values.shape[0])
    return np.ascontiguousarray(values.astype(dtype.newbyteorder("="), copy=False))


def _channels_last(values: np.ndarray, channels: int | None) -> np.ndarray:
    """Moves the channels of [C, H, W] to the end, if `channels` says that it is so."""
    if values.ndim == 2:
        return values
    first, *sides = values.shape
    if channels is None and channels_first(values.shape):
        raise DecodeError(
            f"an array {list(values.shape)} looks like [C, H, W]; expected [H, W, C]: "
            "save np.moveaxis(x, 0, -1), or say how many channels there are (a run: "
            f"--config.data.channels={first}, a command: --channels={first})"
        )
    if channels == first < min(sides) and sides[1] != channels:
        return np.moveaxis(values, 0, -1)
    return values


def package(name: str, what: str, extra: str) -> Any:
    """Imports a package that `what` needs, of an extra of this one.

    Raises:
      ModuleNotFoundError: it is not installed.
    """
    try:
        if name == "pydicom":
            import pydicom

            return pydicom
        import tifffile
    except ImportError as error:
        raise missing(name, what, f'"litevit_jax[{extra}]"') from error
    return tifffile


def missing(name: str, what: str, install: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"{what} need the Python package {name!r}, which is not installed: "
        f"pip install {install}"
    )
