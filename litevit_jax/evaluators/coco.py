"""Average precision of boxes and masks by COCO's rules, as pycocotools computes it."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from litevit_jax import distributed, paths
from litevit_jax.data import rasters, relabel
from litevit_jax.data.objects import BOXES_ALONE
from litevit_jax.evaluators import (
    base,
    coco_rows,
    coco_scores,
    outlines,
    parts,
    reconstruction,
    segmentation,
)

_DRAWN = 0.5  # least score of a detection in a picture, if any has it
_SIZES = ("size", "original_size")


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
        for name in coco_scores.MODULES:
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
    named_classes: ClassVar[bool] = True
    advice: ClassVar[str] = (
        "of a detector without a mask head boxes alone are scored: "
        "--config=configs/evaluate.py:coco,boxes"
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
        """Raises ValueError if the split has no object to detect, or an id twice."""
        source = self.context.source(self.split)
        needed = "objects" if self.masks else "boxes"
        if "boxes" not in source.annotations:
            raise ValueError(
                f"split {self.split!r} needs objects with boxes, but its images have "
                "none: give a source that has them, such as cocojson"
            )
        if needed not in source.annotations:
            raise ValueError(
                f"split {self.split!r} has boxes without masks; to score the boxes "
                f"alone, {BOXES_ALONE}"
            )
        crowds, names = True, {}
        for index in range(len(source)):
            objects, name = source.objects(index), source.name_of(index)
            crowds = crowds and bool(objects.crowd.all())
            if names.setdefault(objects.image_id, name) != name:
                raise ValueError(
                    f"split {self.split!r}: {names[objects.image_id]} and {name} have "
                    f"the same id, {objects.image_id}, so their detections cannot be "
                    "told apart: give the images of all files ids of their own, or "
                    "evaluate one file at a time"
                )
        if crowds:
            raise ValueError(
                f"split {self.split!r}: none of its {len(source)} images has an "
                "object, so there is nothing to detect"
            )

    def run(self, state: Any, *, step: int) -> dict[str, Any]:
        """Returns average precisions and recalls, in percent.

        Returns:
          COCO's numbers 'ap', 'ap50', 'ap75', 'ap_small', 'ap_medium', 'ap_large',
          'ar1', 'ar10', 'ar100', 'ar_small', 'ar_medium', 'ar_large', those of masks
          with 'mask_' before them, and none of a size that no object has; 'n': images,
          an id that comes again left out; 'unreadable', if there are any: others, whose
          objects do not count; 'detections' and 'left_out', the scores above the least
          one that were too many to look at; 'table': for each class its 'ap', 'mask_ap'
          (None without an object) and 'objects'; 'curves', see `coco_scores`.
        """
        source, left_out, unreadable = self.context.source(self.split), 0, 0
        images: dict[int | str, dict[str, Any]] = {}
        detected: list[dict[str, Any]] = []
        drawn: dict[int, tuple[Any, Any]] = {}
        categories = coco_rows.category_ids(source)
        called = self._called(source, categories)
        for batch, out in self.context.over(state, self.split, self.reads):
            for row in np.flatnonzero(batch["index"] >= 0):
                index = int(batch["index"][row])
                image = coco_rows.truth_of(source, index, categories)
                if batch["mask"][row] == 0:
                    unreadable += 1
                    continue
                if image["id"] in images:
                    continue
                one = {name: out[name][row] for name in self.reads}
                size, before = (coco_rows.pair(batch[x][row]) for x in _SIZES)
                listed = coco_rows.to_coco(one, size, before, image["id"], called)
                if index < self.images:
                    drawn[index] = (image["annotations"], listed)
                detected += listed
                images[image["id"]] = image
                left_out += int(one["left_out"])
        truth = list(images.values())
        totals = {"n": len(truth)} | ({"unreadable": unreadable} if unreadable else {})
        totals |= {"detections": len(detected), "left_out": left_out}
        numbers = self._judged(truth, detected, categories)
        if distributed.is_primary():
            self._write(step, detected, drawn, categories)
        lists = {key: numbers.pop(key) for key in ("table", "curves")}
        if "ap" not in numbers:
            raise ValueError(
                f"split {self.split!r}: no image with an object could be read "
                f"({unreadable} unreadable), so there is nothing to score"
            )
        return {**numbers, **totals, **lists}

    def _called(self, source: Any, categories: Sequence[int]) -> list[int | None]:
        """Returns the category of each class of the model, None where data lack it."""
        names = list(self.context.names)
        match = (
            relabel.match(list(source.classes), names, len(names)) if names else None
        )
        if match is None:
            return list(categories)
        called: list[int | None] = [None] * len(names)
        for category, number in zip(categories, match.numbers, strict=True):
            if number >= 0:  # the model knows the class
                called[number] = category
        return called

    def _judged(self, truth, detected, categories) -> dict[str, Any]:
        """Returns the numbers, and what stands behind them."""
        data = coco_rows.dataset(truth, categories)
        kinds = ("bbox", "segm") if self.masks else ("bbox",)
        scores = {x: coco_scores.score(data, detected, x) for x in kinds}
        names = list(map(str, self.context.source(self.split).classes))
        counts = _objects(truth, categories)
        prefixes = coco_scores.PREFIXES
        table = [
            {"class": name}
            | {f"{prefixes[x]}ap": scores[x].classes[number] for x in kinds}
            | {"objects": counts[number]}
            for number, name in enumerate(names)
        ]
        numbers = {k: v for x in kinds for k, v in scores[x].numbers.items()}
        return numbers | {"table": table, "curves": coco_scores.curves(scores, names)}

    def _write(self, step, detected, drawn, categories):
        """Writes all detections, and a picture of some images."""
        path = self.context.outdir.parent / "detections.json"
        paths.make_folder(path.parent)
        paths.replace_text(path, json.dumps(detected))
        if drawn:
            picture = _picture(self.context, self.split, drawn, categories)
            path = self.context.outdir / f"detections_{step:07d}.png"
            paths.make_folder(path.parent)
            with path.open("wb") as file:
                Image.fromarray(picture).save(file, format="png")


def _picture(context, split, drawn, categories):
    """Draws the objects of each image beside its detections."""
    source, decoded, rows = context.source(split), parts.decoder(context), []
    names = list(map(str, source.classes))
    for index, (objects, detected) in sorted(drawn.items()):
        image = np.asarray(decoded(source[index]["image"]))
        image = reconstruction.rgb(image.reshape(*image.shape[:2], -1))
        seen = [x for x in detected if x["score"] >= _DRAWN]
        if not seen:  # an early model is sure of nothing; its best guess says more
            seen = sorted(detected, key=lambda x: -x["score"])[:1]
        sides = (segmentation.TILE, segmentation.TILE)
        both = (
            outlines.drawn(image, each, categories, names, sides=sides)
            for each in (objects, seen)
        )
        rows.append([segmentation.tile(each) for each in both])
    return reconstruction.grid(rows, columns=("truth", "detections"))


def _objects(images: list[dict[str, Any]], categories: Sequence[int]) -> list[int]:
    """Counts the objects of each category, without crowds."""
    counts = dict.fromkeys(categories, 0)
    for image in images:
        for x in image["annotations"]:
            counts[x["category_id"]] += not x["iscrowd"]
    return list(counts.values())
