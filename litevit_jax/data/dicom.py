"""Reads DICOM files of one frame, through pydicom: CT, X-ray, MR.

Values are rescaled as the file says (slope and intercept); of MONOCHROME1 the low end
of the range is white.
"""

from __future__ import annotations

import io
import math
import warnings
from typing import Any

import numpy as np

from litevit_jax.data import levels, rasters

# Odd values of fields that are not read say nothing about the pixels.
warnings.filterwarnings("ignore", category=UserWarning, module=r"pydicom\.")


def read(encoded: bytes, check: rasters.Check) -> rasters.Raster:
    """Reads one frame of a DICOM file; rescaled as it says, high values are white."""
    pydicom = rasters.package("pydicom", "DICOM files", "dicom")
    data = pydicom.dcmread(io.BytesIO(encoded))
    frames = int(data.get("NumberOfFrames") or 1)
    colours = str(data.get("PhotometricInterpretation") or "none")
    if frames > 1:
        raise rasters.DecodeError(
            f"a DICOM file of {frames} frames; expected one: write each frame, or the "
            "frames that are channels as a .npy file [H, W, C]"
        )
    if colours not in ("MONOCHROME1", "MONOCHROME2", "RGB"):
        raise rasters.DecodeError(
            f"a DICOM file of photometric interpretation {colours}; expected "
            "MONOCHROME1, MONOCHROME2 or RGB: convert it"
        )
    if data.get("ModalityLUTSequence"):
        raise rasters.DecodeError(
            "a DICOM file with a table of modality values (ModalityLUTSequence); "
            "expected a slope and an intercept at most: convert it"
        )
    check(int(data.Columns), int(data.Rows))
    values = _pixels(data)
    slope = float(data.get("RescaleSlope", 1) or 0)
    intercept = float(data.get("RescaleIntercept", 0) or 0)
    if not (math.isfinite(slope) and math.isfinite(intercept) and slope):
        raise rasters.DecodeError(
            f"a DICOM file of slope {slope:g}, intercept {intercept:g}"
        )
    kind, full = f"DICOM of type {values.dtype}", None
    if values.dtype.kind != "f":
        bits, signed = int(data.BitsStored), bool(data.PixelRepresentation)
        full = levels.of_integers(values, kind, bits=bits, signed=signed).full
    if (slope, intercept) != (1, 0):
        values = values.astype(np.float64) * slope + intercept
        ends = [end * slope + intercept for end in full or ()]
        full = (min(ends), max(ends)) if ends else None
    elif values.dtype == np.uint8 and full != (0, 255):
        values = values.astype(np.uint16)  # fewer bits than a byte are stretched
    deep = levels.Deep(values, kind, full, inverted=colours == "MONOCHROME1")
    return rasters.Raster("DICOM", deep)


def _pixels(data: Any) -> np.ndarray:
    """Returns the stored values of a file's pixels."""
    try:
        return np.asarray(data.pixel_array)
    except (RuntimeError, NotImplementedError) as error:
        syntax = data.file_meta.TransferSyntaxUID
        if syntax.is_compressed and "missing dependencies" in str(error):
            what = f"DICOM files of {syntax.name}"
            raise rasters.missing("pylibjpeg", what, '"pylibjpeg[all]"') from error
        raise
