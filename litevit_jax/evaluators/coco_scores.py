"""COCO's numbers of detections, as pycocotools computes them, and what lies behind."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# COCOeval's twelve numbers, in its order.
NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
NAMES += ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")
MODULES = ("pycocotools.coco", "pycocotools.cocoeval")
PREFIXES = {"bbox": "", "segm": "mask_"}
_ALL, _MOST = 0, -1  # objects of any area; as many detections as are counted
_OVERLAPS = {"0.5": slice(0, 1), "0.75": slice(5, 6), "0.5 to 0.95": slice(None)}
_ENDS = 3  # classes with the highest and the lowest precision that have a curve


class Scores(NamedTuple):
    """The agreement of detections with the truth, in percent.

    Attributes:
      numbers: COCO's, by name, without those that there is no object for.
      classes: the average precision of each category, None for one without an object.
      precision: `[T, R, K]`, at each overlap of boxes or masks, recall and category; -1
        for a category without an object.
    """

    numbers: dict[str, float]
    classes: list[float | None]
    precision: np.ndarray


def score(truth: dict[str, Any], detected: list[dict[str, Any]], kind: str) -> Scores:
    """Scores detections.

    Args:
      truth: a COCO data set.
      detected: as `coco_rows.to_coco` lists them, of its images.
      kind: 'bbox' or 'segm'.
    """
    coco, cocoeval = map(importlib.import_module, MODULES)
    truth, detected = _numbered(truth, detected)
    # With boxes, a mask would be small or large as its box is. It adds to copies.
    hidden = "bbox" if kind == "segm" else "segmentation"
    detected = [{k: v for k, v in x.items() if k != hidden} for x in detected]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        known = _indexed(coco.COCO(), {"info": {}} | truth)
        if detected:
            other = known.loadRes(detected)
        else:  # which `loadRes` does not take
            other = _indexed(coco.COCO(), truth | {"annotations": []})
        judge = cocoeval.COCOeval(known, other, kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    pairs = zip(NAMES, judge.stats, strict=True)
    numbers = {PREFIXES[kind] + k: 100 * float(x) for k, x in pairs if x > -1}
    # [overlaps, recalls, categories, areas, most detections]
    precision = judge.eval["precision"][..., _ALL, _MOST]
    precision = np.where(precision > -1, 100 * precision, -1)
    every = (precision[..., number] for number in range(precision.shape[-1]))
    return Scores(numbers, [_mean(each) for each in every], precision)


def _numbered(
    truth: dict[str, Any], detected: list[dict[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns copies with images and categories numbered from 1, in their order.

    pycocotools takes texts, numbers of more than 64 bits and both kinds together for
    one another, or not at all.
    """
    images, kinds = (
        {x["id"]: number for number, x in enumerate(truth[name], start=1)}
        for name in ("images", "categories")
    )

    def those(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            x
            | {
                "image_id": images[x["image_id"]],
                "category_id": kinds[x["category_id"]],
            }
            for x in rows
        ]

    numbered = {
        "images": [x | {"id": images[x["id"]]} for x in truth["images"]],
        "categories": [x | {"id": kinds[x["id"]]} for x in truth["categories"]],
        "annotations": those(truth["annotations"]),
    }
    return numbered, those(detected)


def _indexed(data: Any, content: dict[str, Any]) -> Any:
    data.dataset = content
    data.createIndex()
    return data


def _mean(precision: np.ndarray) -> float | None:
    """The mean of what is known; None if nothing is."""
    known = precision[precision > -1]
    return float(known.mean()) if known.size else None


def curves(scores: dict[str, Scores], names: Sequence[str]) -> list[dict[str, Any]]:
    """Lists precision over recall, in percent.

    Of all classes together at the overlaps ('iou') of `_OVERLAPS`, and at 0.5 of the
    classes with the highest and the lowest average precision.

    Args:
      scores: by kind, 'bbox' or 'segm'.
      names: of the categories.

    Returns:
      Rows with 'of', 'boxes' or 'masks', 'class', None for all, 'iou', and 'precision'
      at the recalls 0, 1, ... 100 %.
    """
    rows = []
    for kind, each in scores.items():
        of = {"bbox": "boxes", "segm": "masks"}[kind]
        for iou, part in _OVERLAPS.items():
            rows.append(_curve(of, None, iou, each.precision[part]))
        for number in _ends(each.classes):
            precision = each.precision[_OVERLAPS["0.5"], :, number : number + 1]
            rows.append(_curve(of, names[number], "0.5", precision))
    return rows


def _ends(classes: Sequence[float | None]) -> list[int]:
    """Returns the numbers of the best and the worst of several classes with objects."""
    pairs = [(-x, number) for number, x in enumerate(classes) if x is not None]
    order = [number for _, number in sorted(pairs)]
    if len(order) < 2:
        return []
    return order if len(order) <= 2 * _ENDS else [*order[:_ENDS], *order[-_ENDS:]]


def _curve(of: str, name: str | None, iou: str, precision: np.ndarray) -> dict:
    """Returns a row of `curves`, of precision `[T, R, K]`."""
    recalls = (_mean(precision[:, number]) for number in range(precision.shape[1]))
    rounded = [0.0 if x is None else round(x, 2) for x in recalls]
    return {"of": of, "class": name, "iou": iou, "precision": rounded}
