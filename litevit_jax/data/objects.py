"""The objects of an image: classes, boxes, and masks as polygons or runs of pixels.

Coordinates are pixels of the upright image, (0, 0) the outer corner of its first one.
A shape is what COCO's files call `segmentation`: a list of polygons, each a flat list
[x, y, x, y, ...]; or runs {'size': [h, w], 'counts': [...]}, numbers of pixels outside
and inside in turn, column by column.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from litevit_jax.data import rasters, resample

Size = tuple[int, int]  # height, width
# How to go without masks, for messages.
BOXES_ALONE = "add the variant boxes: --config=configs/detect.py:boxes,folder,path=DIR"
_MOST_BITS = 45  # of a length in compressed runs


@dataclasses.dataclass(frozen=True)
class Objects:
    """The objects of one image.

    Attributes:
      size: (h, w) of the upright image.
      image_id: number or name of the image in the file of objects.
      ids: of the objects there.
      classes: of the objects, from 0.
      boxes: float64 [n, 4], x1, y1, x2, y2.
      crowd: bool [n], whether it stands for many objects: no target, and ignored where
        detections are scored.
      areas: float64 [n], in pixels, as the file has them.
      shapes: of each object; None: it has a box alone.
    """

    size: Size
    image_id: int | str
    ids: Sequence[int]
    classes: Sequence[int]
    boxes: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    shapes: Sequence[Any]

    def __len__(self) -> int:
        return len(self.ids)

    def records(self, class_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Returns the objects as annotations of a COCO file.

        `class_ids` are its numbers of the classes.
        """
        records = []
        for i, (x1, y1, x2, y2) in enumerate(self.boxes.tolist()):
            record = {
                "id": self.ids[i],
                "image_id": self.image_id,
                "category_id": class_ids[self.classes[i]],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": float(self.areas[i]),
                "iscrowd": int(self.crowd[i]),
            }
            shape = self.shapes[i]
            records.append(record | ({} if shape is None else {"segmentation": shape}))
        return records

    def resized(self, size: Size) -> Objects:
        """Returns the objects of the image resized to `size` (H, W)."""
        if tuple(size) == self.size:
            return self
        scale = np.array(size[::-1]) / self.size[::-1]  # of x and y
        shapes = [None if x is None else _resized(x, size, scale) for x in self.shapes]
        return dataclasses.replace(
            self,
            size=tuple(size),
            boxes=self.boxes * np.tile(scale, 2),
            areas=self.areas * scale.prod(),
            shapes=shapes,
        )


def _resized(shape: Any, size: Size, scale: np.ndarray) -> Any:
    if isinstance(shape, list):
        return [(np.reshape(x, (-1, 2)) * scale).reshape(-1).tolist() for x in shape]
    return runs(resample.nearest(bitmap(shape), resample.Window.whole(size)))


def clean_name(name: str) -> str:
    """Returns a file's name with slashes, without what leads out of the folder."""
    parts = re.split(r"[/\\]+", name)
    return "/".join(part for part in parts if part not in ("", ".", ".."))


def encode(objects: Objects) -> bytes:
    """Encodes the objects of an image without loss."""
    fields = vars(objects)
    arrays = {k: x.tolist() for k, x in fields.items() if isinstance(x, np.ndarray)}
    text = json.dumps(fields | arrays, separators=(",", ":"))
    return zlib.compress(text.encode(), 1)


def decode(encoded: bytes) -> Objects:
    """Decodes what `encode` made."""
    fields = json.loads(zlib.decompress(encoded))
    return Objects(
        **fields
        | {
            "size": tuple(fields["size"]),
            "boxes": np.array(fields["boxes"], np.float64).reshape(-1, 4),
            "crowd": np.array(fields["crowd"], bool),
            "areas": np.array(fields["areas"], np.float64),
        }
    )


def of_masks(masks: np.ndarray, classes: Sequence[int], image_id: int) -> Objects:
    """Returns the objects of masks bool [n, h, w], none of them empty."""
    areas = masks.sum(axis=(1, 2)).astype(np.float64)
    return Objects(
        size=(masks.shape[1], masks.shape[2]),
        image_id=image_id,
        ids=[image_id * 1000 + i for i in range(1, len(masks) + 1)],
        classes=[int(each) for each in classes],
        boxes=np.array([box_of(mask) for mask in masks]).reshape(-1, 4),
        crowd=np.zeros(len(masks), bool),
        areas=areas,
        shapes=[runs(mask) for mask in masks],
    )


def box_of(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Returns the tight box of the pixels in a mask [h, w]; all 0 of an empty one."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return 0.0, 0.0, 0.0, 0.0
    low, high = (columns[0], rows[0]), (columns[-1] + 1, rows[-1] + 1)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def runs(mask: np.ndarray) -> dict[str, Any]:
    """Encodes a mask [h, w] as runs."""
    flat = np.asarray(mask, bool).T.reshape(-1)  # column by column
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0], changes, [flat.size]])
    counts = np.diff(edges).tolist()
    starts_inside = bool(flat.size and flat[0])
    return {"size": list(mask.shape), "counts": [0] * starts_inside + counts}


def bitmap(shape: dict[str, Any]) -> np.ndarray:
    """Decodes runs to a mask bool [h, w]."""
    height, width = shape["size"]
    counts = shape["counts"]
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(width, height).T


def counts_of(text: str | bytes) -> list[int]:
    """Decodes the text of COCO's compressed runs to their lengths.

    Each length has digits of five bits, the lowest first, and from the fourth length
    on it is the difference to the one two before.

    Raises:
      ValueError: the text ends inside a number, has other characters, or a number
        that no image needs.
    """
    counts: list[int] = []
    value = shift = 0
    for code in text.encode() if isinstance(text, str) else text:
        digit = code - 48
        if not 0 <= digit < 64:
            raise ValueError(f"character {chr(code)!r}, which none has")
        value |= (digit & 31) << shift
        shift += 5
        if shift > _MOST_BITS:
            raise ValueError("a number beyond the pixels of any image")
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("it ends inside a number")
    return counts


def pycocotools() -> Any:
    """Imports pycocotools' masks, which draw polygons.

    Raises:
      ModuleNotFoundError: it is not installed.
    """
    try:
        return importlib.import_module("pycocotools.mask")
    except ImportError as error:
        install = '"litevit_jax[dense]"'
        raise rasters.missing("pycocotools", "masks of objects", install) from error
