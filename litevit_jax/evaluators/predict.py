"""Writes what a model says of every image to a file.

Of a classifier the likeliest classes, with their probabilities; of a detector the
objects, see `detections`.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import pathlib
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np

from litevit_jax.evaluators import base, detection_files, detections, parts
from litevit_jax.evaluators.parts import Table, Written, partial

_TOP = 5  # classes of an image


def make(
    *,
    context: base.Context,
    target: str | None = None,
    split: str = "eval",
    top: int | None = None,
    min_score: float | None = None,
    overlay: float = 0.5,
) -> base.Evaluator:
    """Builds the evaluator.

    Args:
      context: see base; its `names` are written, or numbers if it has none.
      target: new file; its ending says how: .csv or .jsonl, of a detector also .json.
        None: predictions.csv in the run directory, where it replaces the last one.
      split: the images.
      top: classes or objects of each image, the likeliest first; None: 5 classes, or
        all objects.
      min_score, overlay: of a detector, see `detections`.

    Raises:
      ValueError: an unknown ending, no class, a score without a detector, or a model
        that labels pixels.
      FileExistsError: the target is there already.
    """
    if "segmentation_logits" in context.predicts:
        raise ValueError(
            "predict: the model tells the class of each pixel; write label maps with "
            "--config=configs/evaluate.py:label_maps,data=folder,path=DIR"
        )
    if top is not None and top < 1:
        raise ValueError(f"predict: top={top}; expected 1 or more")
    detects = "boxes" in context.predicts
    if target is None:
        path = context.outdir.parent / "predictions.csv"
    else:
        path = pathlib.Path(target)
        known = detection_files.WRITERS if detects else _WRITERS
        parts.check_target("predict", path, known, [path])
    if detects:
        return detections.of_target(
            context=context,
            path=path,
            named=target is not None,
            split=split,
            top=top,
            min_score=min_score,
            overlay=overlay,
        )
    if min_score is not None:
        raise ValueError(
            f"predict: min_score={min_score} is of a detector's objects, and the model "
            "is none; leave it out"
        )
    return Predict(context, split, path, _TOP if top is None else top)


@dataclasses.dataclass(frozen=True)
class Predict(base.Evaluator):
    """Writes the `top` likeliest classes of every image of a split to `path`."""

    split: str
    path: pathlib.Path
    top: int
    own_file: ClassVar[bool] = True
    advice: ClassVar[str] = (
        "it has no head that tells classes apart. Train one on its encoder with "
        "configs/linear_probe.py or configs/finetune.py (--config.init=), or compare "
        "images by its features: configs/neighbours.py, configs/embed.py"
    )

    @property
    def reads(self) -> tuple[str, ...]:
        """The logits of the objective."""
        return ("logits",)

    def run(self, state: Any, *, step: int) -> dict[str, Any]:
        """Returns n, the images, `unreadable` among them, and the file."""
        del step
        about = {"top": self.top, "names": list(self.context.names)}
        about["alone"] = self.context.multi_label
        file = parts.Parts(self.context, self.split, self.path, self.reads, about)
        numbers = file.write(state, self._likeliest, _WRITERS[self.path.suffix])
        del numbers["width"]
        return numbers

    def _likeliest(self, out: base.Rows) -> np.ndarray:
        return likeliest(out["logits"], self.top, alone=self.context.multi_label)


def likeliest(logits: np.ndarray, top: int, *, alone: bool = False) -> np.ndarray:
    """Finds the likeliest classes by logits [B, K], the lower number first of equals.

    `alone`: each class has a probability of its own, the sigmoid of its logit, as a
    model of several labels an image learns it; else all of them sum to 1.

    Returns:
      Numbers of classes and their probabilities, float64 [B, top, 2]; not-a-number for
      logits that are not finite.
    """
    logits = logits.astype(np.float64)
    if alone:
        probability = np.exp(-np.logaddexp(0.0, -logits))
    else:
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        probability = odds / odds.sum(axis=1, keepdims=True)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    rows = np.stack([order, np.take_along_axis(probability, order, 1)], axis=-1)
    rows[~np.isfinite(logits).all(axis=1)] = np.nan
    return rows


class Prediction(NamedTuple):
    """A row of the file.

    Attributes:
      path: of the image.
      label: its class by the data, '' if that is not known.
      error: why it could not be read, or ''.
      top: (class, probability), the likeliest first.
    """

    path: str
    label: str
    error: str
    top: list[tuple[str, float]]


def read(path: pathlib.Path, limit: int) -> list[Prediction]:
    """Reads the first `limit` rows of a file of predictions."""
    rows = []
    with path.open(newline="", encoding="utf-8") as file:
        if path.suffix == ".jsonl":
            for line in itertools.islice(file, limit):
                row = json.loads(line)
                text = [row[name] or "" for name in parts.TEXT]
                pairs = [(x["class"], x["probability"]) for x in row["top"]]
                rows.append(Prediction(text[0], text[1], text[2], pairs))
            return rows
        for row in itertools.islice(csv.reader(file), 1, limit + 1):
            pairs = zip(row[3::2], row[4::2], strict=True)
            top = [(name, float(share)) for name, share in pairs if share]
            rows.append(Prediction(row[0], row[1], row[2], top))
    return rows


def _rows(table: Table) -> Iterator[tuple[list[Any], list[tuple[str, float]]]]:
    """Yields (path, label and error, pairs of class and probability) of each image."""
    names = table.about["names"]
    for numbers, columns in table.parts():
        text = zip(*(columns[name] for name in parts.TEXT), strict=True)
        for row, pairs in zip(text, numbers, strict=True):
            known = [(int(k), float(p)) for k, p in pairs if not np.isnan(p)]
            yield list(row), [(names[k] if names else str(k), p) for k, p in known]


def _write_csv(path: pathlib.Path, table: Table) -> Written:
    top = table.shape[0]
    with partial(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        head = ([f"class_{i}", f"probability_{i}"] for i in range(1, top + 1))
        writer.writerow([*parts.TEXT, *itertools.chain(*head)])
        for text, pairs in _rows(table):
            cells = [cell for name, p in pairs for cell in (name, f"{p:.9g}")]
            writer.writerow([*text, *cells, *[""] * (2 * top - len(cells))])
    return [(partial(path), path)]


def _write_jsonl(path: pathlib.Path, table: Table) -> Written:
    with partial(path).open("w", encoding="utf-8") as file:
        for text, pairs in _rows(table):
            row = dict(zip(parts.TEXT, text, strict=True))
            top = [{"class": name, "probability": p} for name, p in pairs]
            file.write(json.dumps({**row, "top": top}, ensure_ascii=False) + "\n")
    return [(partial(path), path)]


_WRITERS: dict[str, parts.Writer] = {".csv": _write_csv, ".jsonl": _write_jsonl}
