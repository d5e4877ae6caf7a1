"""Average precision of boxes and masks by COCO's rules, as pycocotools computes it."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import json
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from litevit_jax import distributed, paths
from litevit_jax.data import decode, rasters
from litevit_jax.evaluators import (
    base,
    coco_rows,
    outlines,
    reconstruction,
    segmentation,
)

# COCOeval's twelve numbers, in its order.
_NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
_NAMES += ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")
_MODULES = ("pycocotools.coco", "pycocotools.cocoeval")
_PREFIXES = {"bbox": "", "segm": "mask_"}
_DRAWN = 0.5  # least score of a detection in a picture
_ALL, _MOST = 0, -1  # objects of any area; as many detections as are counted


def make(
    *,
    context: base.Context,
    split: str = "eval",
    masks: bool = True,
    images: int = 4,
) -> Coco:
    """Builds the evaluator.

    Args:
      context: see base.
      split: 'eval' or 'train'.
      masks: whether masks are scored, too.
      images: how many are drawn; 0: no picture.

    Raises:
      ModuleNotFoundError: pycocotools is not installed.
    """
    try:
        for name in _MODULES:
            importlib.import_module(name)
    except ImportError as error:
        install = '"litevit_jax[dense]"'
        raise rasters.missing("pycocotools", "scores of objects", install) from error
    return Coco(context, split, masks, images)


@dataclasses.dataclass(frozen=True)
class Coco(base.Evaluator):
    """Detects the objects of every image, and scores them at the images' own size.

    The detections of the last evaluation are in `detections.json` of the run's
    directory, as COCO's servers and tools read them; some are drawn into `pictures`.
    """

    split: str
    masks: bool
    images: int

    best: ClassVar[str | None] = "ap"
    same_classes: ClassVar[bool] = True
    advice: ClassVar[str] = (
        "masks=False scores boxes alone, of a detector without a mask head"
    )

    @property
    def metrics(self) -> dict[str, bool]:
        """Average precisions."""
        names = ("ap", "ap50", "ap75", "mask_ap", "mask_ap50", "mask_ap75")
        return dict.fromkeys(names if self.masks else names[:3], True)

    @property
    def reads(self) -> tuple[str, ...]:
        """The detections of the objective."""
        return coco_rows.reads(masks=self.masks)

    def check_data(self) -> None:
        """Raises ValueError if no image of the split has an object to detect."""
        source = self.context.source(self.split)
        if "objects" not in source.annotations:
            raise ValueError(
                f"split {self.split!r} needs objects with boxes, but its images have "
                "none: give a source that has them, such as cocojson"
            )
        objects = (source.objects(index) for index in range(len(source)))
        if all(each.crowd.all() for each in objects):
            raise ValueError(
                f"split {self.split!r}: none of its {len(source)} images has an "
                "object, so there is nothing to detect"
            )

    def run(self, state: Any, *, step: int) -> dict[str, Any]:
        """Returns average precisions and recalls, in percent.

        Returns:
          COCO's numbers 'ap', 'ap50', 'ap75', 'ap_small', 'ap_medium', 'ap_large',
          'ar1', 'ar10', 'ar100', 'ar_small', 'ar_medium', 'ar_large', those of masks
          with 'mask_' before them, and none of a size that no object has; 'n': images;
          'detections' and 'left_out', the scores above the least one that were too many
          to look at; 'table': for each class its 'ap', 'mask_ap' (None without an
          object) and 'objects'.
        """
        source, n, left_out = self.context.source(self.split), 0, 0
        truth: list[dict[str, Any]] = []
        detected: list[dict[str, Any]] = []
        drawn: dict[int, tuple[Any, Any]] = {}
        categories = coco_rows.category_ids(source)
        for batch, out in self.context.over(state, self.split, self.reads):
            for row in np.flatnonzero(batch["mask"] > 0):
                index = int(batch["index"][row])
                image = coco_rows.truth_of(source, index, categories)
                size, original_size = (
                    coco_rows.pair(batch[name][row])
                    for name in ("size", "original_size")
                )
                one = {name: out[name][row] for name in self.reads}
                listed = coco_rows.to_coco(
                    one, size, original_size, image["id"], categories
                )
                if index < self.images:
                    drawn[index] = (image["annotations"], listed)
                detected += listed
                truth.append(image)
                left_out += int(one["left_out"])
                n += 1
        if distributed.is_primary():
            self._write(step, detected, drawn, categories)
        kinds = ("bbox", "segm") if self.masks else ("bbox",)
        judged = {
            x: score(coco_rows.dataset(truth, categories), detected, x) for x in kinds
        }
        counts = _objects(truth, categories)
        table = [
            {"class": str(name)}
            | {f"{_PREFIXES[x]}ap": judged[x][1][number] for x in kinds}
            | {"objects": counts[number]}
            for number, name in enumerate(source.classes)
        ]
        numbers = {k: v for x in kinds for k, v in judged[x][0].items()}
        totals = {"n": n, "detections": len(detected), "left_out": left_out}
        return {"ap": 0.0, **numbers, **totals, "table": table}

    def _write(self, step, detected, drawn, categories):
        """Writes all detections, and a picture of some images."""
        path = self.context.outdir.parent / "detections.json"
        paths.make_folder(path.parent)
        with path.open("w") as file:
            json.dump(detected, file)
        if drawn:
            source, channels = self.context.source(self.split), len(self.context.mean)
            picture = _picture(source, drawn, channels, categories)
            path = self.context.outdir / f"detections_{step:07d}.png"
            paths.make_folder(path.parent)
            with path.open("wb") as file:
                Image.fromarray(picture).save(file, format="png")


def _picture(source, drawn, channels, categories):
    """Draws the objects of each image beside its detections."""
    decoded, rows = decode.Decode(channels=channels), []
    names = list(map(str, source.classes))
    for index, (objects, detected) in sorted(drawn.items()):
        image = np.asarray(decoded(source[index]["image"]))
        image = reconstruction.rgb(image.reshape(*image.shape[:2], -1))
        seen = [x for x in detected if x["score"] >= _DRAWN]
        sides = (segmentation.TILE, segmentation.TILE)
        both = (
            outlines.drawn(image, each, categories, names, sides=sides)
            for each in (objects, seen)
        )
        rows.append([segmentation.tile(each) for each in both])
    return reconstruction.grid(rows, columns=("truth", "detections"))


def score(
    truth: dict[str, Any], detected: list[dict[str, Any]], kind: str
) -> tuple[dict[str, float], list[float | None]]:
    """Scores detections, in percent.

    Args:
      truth: a COCO data set.
      detected: as `to_coco` lists them, of its images.
      kind: 'bbox' or 'segm'.

    Returns:
      COCO's numbers by name, without those that there is no object for, and the average
      precision of each category, None for one without an object.
    """
    coco, cocoeval = map(importlib.import_module, _MODULES)
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
    pairs = zip(_NAMES, judge.stats, strict=True)
    numbers = {_PREFIXES[kind] + k: 100 * float(x) for k, x in pairs if x > -1}
    # [overlaps, recalls, categories, areas, most detections]
    precision = judge.eval["precision"][..., _ALL, _MOST]
    every = (precision[..., number] for number in range(precision.shape[-1]))
    return numbers, [_mean(each) for each in every]


def _indexed(data: Any, content: dict[str, Any]) -> Any:
    data.dataset = content
    data.createIndex()
    return data


def _mean(precision: np.ndarray) -> float | None:
    """The mean in percent of what is known; None if nothing is."""
    known = precision[precision > -1]
    return 100 * float(known.mean()) if known.size else None


def _objects(images: list[dict[str, Any]], categories: Sequence[int]) -> list[int]:
    """Counts the objects of each category, without crowds."""
    counts = dict.fromkeys(categories, 0)
    for image in images:
        for x in image["annotations"]:
            counts[x["category_id"]] += not x["iscrowd"]
    return list(counts.values())
