"""Images, objects and detections as COCO's files have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from litevit_jax.evaluators import instances


def reads(*, masks: bool) -> tuple[str, ...]:
    """Returns the predictions that detections are made of: for all, one program."""
    names = ("boxes", "scores", "classes", "valid", "left_out")
    return (*names, "masks") if masks else names


def category_ids(source: Any) -> tuple[int, ...]:
    """Returns the id of each class in COCO's files; 1 to K if a source has none."""
    known = getattr(source, "class_ids", None)
    return tuple(known or range(1, len(source.classes) + 1))


def truth_of(source: Any, index: int, categories: Sequence[int]) -> dict[str, Any]:
    """Returns an image as COCO's files have it, with its objects as 'annotations'."""
    objects = source.objects(index)
    height, width = objects.size
    return {
        "id": objects.image_id,
        "height": height,
        "width": width,
        "annotations": objects.records(categories),
    }


def dataset(images: list[dict[str, Any]], categories: Sequence[int]) -> dict[str, Any]:
    """Makes a COCO data set of images with their 'annotations'.

    Annotations are numbered anew: pycocotools takes one with the id 0 for none.
    """
    every = [x for image in images for x in image["annotations"]]
    return {
        "images": [
            {name: image[name] for name in ("id", "height", "width")}
            for image in images
        ],
        "categories": [{"id": number, "name": str(number)} for number in categories],
        "annotations": [x | {"id": number} for number, x in enumerate(every, start=1)],
    }


def to_coco(
    out: dict[str, np.ndarray],
    size: tuple[int, int],
    original_size: tuple[int, int],
    image_id: int | str,
    categories: Sequence[int | None],
) -> list[dict[str, Any]]:
    """Lists the detections of an image as COCO has them.

    Args:
      out: 'boxes' `[D, 4]`, 'scores', 'classes' and 'valid' `[D]`, and perhaps 'masks'
        `[D, m, m]`; see `models.detector.Detector.detect`.
      size: rows and columns of the image in the network's input.
      original_size: rows and columns of the picture.
      image_id: of the picture, as its truth has it.
      categories: the id of each class; None: its detections are left out.
    """
    boxes = instances.rescale(out["boxes"], size, original_size)
    sides = boxes[:, 2:] - boxes[:, :2]
    keep = np.asarray(out["valid"]) & (sides > 0).all(axis=1)
    rows = []
    for row in np.flatnonzero(keep):
        category = categories[int(out["classes"][row])]
        if category is None:
            continue
        one: dict[str, Any] = {
            "image_id": image_id,
            "category_id": int(category),
            "bbox": [*map(float, boxes[row, :2]), *map(float, sides[row])],
            "score": float(out["scores"][row]),
        }
        if "masks" in out:
            mask = instances.paste(out["masks"][row], boxes[row], original_size)
            one["segmentation"] = instances.encode(mask)
        rows.append(one)
    return rows


def pair(size: Any) -> tuple[int, int]:
    """Returns rows and columns as numbers."""
    rows, columns = map(int, size)
    return rows, columns
