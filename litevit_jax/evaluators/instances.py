"""Detections in the pixels of the pictures as they were stored."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np


def rescale(
    boxes: np.ndarray, size: tuple[int, int], original_size: tuple[int, int]
) -> np.ndarray:
    """Boxes `[D, 4]` of an image in the pixels of its picture, cut to it.

    Args:
      boxes: left, top, right, bottom in the network's input.
      size: rows and columns of the image there, without padding.
      original_size: rows and columns of the picture.
    """
    factor = np.divide(original_size, size, dtype=np.float32)[::-1]
    most = np.asarray(original_size, np.float32)[::-1]
    return np.clip(boxes * np.tile(factor, 2), 0, np.tile(most, 2)).astype(np.float32)


def paste(
    mask: np.ndarray, box: np.ndarray, original_size: tuple[int, int]
) -> np.ndarray:
    """Returns which pixels of a picture belong to an object, bool `[H, W]`.

    A pixel belongs to it where the mask, interpolated at the pixel's centre, is at
    least a half; beyond the mask it falls to 0 over half a pixel of the mask.

    Args:
      mask: probabilities `[m, m]`, laid over the box.
      box: `[4]` in the picture's pixels.
      original_size: H, W.
    """
    whole = np.zeros(original_size, bool)
    if box[2] <= box[0] or box[3] <= box[1]:
        return whole
    # Further out it is less than a half.
    low = np.maximum(np.floor(box[:2]).astype(int) - 1, 0)
    high = np.minimum(np.ceil(box[2:]).astype(int) + 1, original_size[::-1])
    columns, rows = (
        _weights(np.arange(low[i], high[i]), box[i], box[i + 2], mask.shape[1 - i])
        for i in (0, 1)
    )
    part = np.asarray(rows @ mask.astype(np.float32) @ columns.T >= 0.5)
    whole[low[1] : high[1], low[0] : high[0]] = part
    return whole


def _weights(pixel, low, high, length):
    """Weights `[n, length]` of the mask's pixels along one axis."""
    at = (pixel + np.float32(0.5) - low) / (high - low) * length - np.float32(0.5)
    distance = np.abs(at[:, None] - np.arange(length, dtype=np.float32))
    return np.maximum(1 - distance, 0).astype(np.float32)


def encode(mask: np.ndarray) -> dict[str, Any]:
    """Returns a mask, bool `[H, W]`, as COCO's compressed run lengths."""
    code = importlib.import_module("pycocotools.mask").encode(
        np.asfortranarray(mask, np.uint8)
    )
    return {"size": [*map(int, code["size"])], "counts": code["counts"].decode("ascii")}


def decode(shape: Any, size: tuple[int, int]) -> np.ndarray:
    """Returns the mask, bool `[H, W]`, of polygons or run lengths as COCO has them."""
    masks = importlib.import_module("pycocotools.mask")
    if isinstance(shape, list):
        shape = masks.merge(masks.frPyObjects(shape, *size))
    elif isinstance(shape["counts"], list):
        shape = masks.frPyObjects(shape, *size)
    with warnings.catch_warnings():  # NumPy 2's, of how pycocotools makes arrays
        warnings.simplefilter("ignore", DeprecationWarning)
        return masks.decode(shape).astype(bool)
