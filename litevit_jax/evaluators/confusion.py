"""The classes of a classifier one by one, and which it takes for which."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from PIL import Image, ImageDraw

from litevit_jax import distributed, paths
from litevit_jax.data import decode
from litevit_jax.evaluators import base, reconstruction

_DRAWN = 8  # pairs in the picture
_TILE, _GAP, _LINE = 96, 4, 16  # pixels


def make(
    *, context: base.Context, split: str = "eval", k: int = 10, images: int = 5
) -> Confusion:
    """Builds the evaluator.

    Args:
      context: see base.
      split: 'eval' or 'train'.
      k: the most pairs in the table.
      images: how many of a pair are drawn; 0: no picture.

    Raises:
      ValueError: k is below 1.
    """
    if k < 1:
        raise ValueError(f"evaluator 'confusion': k={k} pairs; expected 1 or more")
    return Confusion(context, split, k, images)


@dataclasses.dataclass(frozen=True)
class Confusion(base.Evaluator):
    """Counts which class is called which; 'classification' tells the best step."""

    split: str
    k: int
    images: int

    labelled: ClassVar[bool] = True

    @property
    def metrics(self) -> dict[str, bool]:
        """Accuracy, and F1 of the classes."""
        return {"top1": True, "macro_f1": True}

    @property
    def reads(self) -> tuple[str, ...]:
        """The logits of the objective."""
        return ("logits",)

    def run(self, state: Any, *, step: int) -> dict[str, Any]:
        """Returns accuracy, scores of each class and the confusions over the split.

        Returns:
          'top1', in percent; 'macro_f1', the mean F1 score in percent of the classes
          that occur in a label or a prediction; 'pairs': how many ordered pairs of
          classes are confused at all; 'n': images counted, those with a label; 'table':
          up to k of the pairs, the most frequent first, each with 'class', what it was
          'called', 'count' and 'percent' of the images of its class; 'classes': of each
          class its 'images', 'recall', 'precision' and 'f1' in percent (None where it
          has no image or is never called), and how often it is 'called'; 'matrix': of
          each 'class' the counts by what its images are 'called', without zeros.
        """
        classes = self.context.num_classes
        counts = np.zeros((classes, classes + 1), np.int64)
        examples: dict[tuple[int, int], list[int]] = collections.defaultdict(list)
        for own, called, index in self._labelled(state):
            np.add.at(counts, (own, called), 1)
            for row in np.flatnonzero(own != called):
                pair = int(own[row]), int(called[row])
                if len(examples[pair]) < self.images:
                    examples[pair].append(int(index[row]))
        n, right = counts.sum(), np.trace(counts)
        wrong = counts.copy()
        np.fill_diagonal(wrong, 0)
        if self.images and examples and distributed.is_primary():
            self._draw(wrong, examples, step)
        names = self._names()
        rows = scores(counts, names)
        f1 = [row["f1"] for row in rows if row["f1"] is not None]
        return {
            "top1": float(100 * right / max(n, 1)),
            "macro_f1": float(np.mean(f1)) if f1 else 0.0,
            "pairs": int(np.count_nonzero(wrong)),
            "n": int(n),
            "table": self._table(wrong, counts.sum(axis=1)),
            "classes": rows,
            "matrix": [
                {
                    "class": names[own],
                    "called": {names[c]: int(row[c]) for c in np.flatnonzero(row)},
                }
                for own, row in enumerate(counts)
            ],
        }

    def _labelled(
        self, state: Any
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields label, what it is called and index of the labelled images, batchwise.

        Logits that are no numbers call it K. Of equal logits the first class is called.
        """
        for batch, out in self.context.over(state, self.split, self.reads):
            logits, label = out["logits"], batch["label"]
            broken = np.isnan(logits).any(axis=1)
            called = np.where(broken, self.context.num_classes, logits.argmax(axis=1))
            counted = (batch["mask"] > 0) & (label >= 0)
            yield label[counted], called[counted], batch["index"][counted]

    def _names(self) -> list[str]:
        """Returns the names of the classes, and behind them that of no class."""
        known = self.context.source(self.split).classes
        return [*map(str, known or range(self.context.num_classes)), "not a number"]

    def _table(self, wrong: np.ndarray, images: np.ndarray) -> list[dict[str, Any]]:
        """Lists the largest counts of `wrong` [K, K + 1], of `images` [K]; see `run`.

        Of equal counts the pair of the first classes comes first.
        """
        names = self._names()
        return [
            {
                "class": names[own],
                "called": names[called],
                "count": int(wrong[own, called]),
                "percent": float(100 * wrong[own, called] / images[own]),
            }
            for own, called in most(wrong, self.k)
        ]

    def _draw(
        self,
        wrong: np.ndarray,
        examples: dict[tuple[int, int], list[int]],
        step: int,
    ) -> None:
        """Writes a picture of the most confused pairs, a line of images for each."""
        names, source = self._names(), self.context.source(self.split)
        rows = []
        for pair in most(wrong, _DRAWN):
            tiles = [_tile(source, n, len(self.context.mean)) for n in examples[pair]]
            own, called = (names[number] for number in pair)
            rows.append((f"{own} called {called}: {wrong[pair]:,}", tiles))
        path = self.context.outdir / f"confusion_{step:07d}.png"
        paths.make_folder(path.parent)
        with path.open("wb") as file:
            _sheet(rows, self.images).save(file, format="png")


def most(wrong: np.ndarray, count: int) -> list[tuple[int, int]]:
    """Returns up to `count` pairs with the largest counts of `wrong` [K, K + 1].

    Of equal counts the pair of the first classes comes first.
    """
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [(int(own), int(called)) for own, called in pairs if wrong[own, called]]


def scores(counts: np.ndarray, names: list[str]) -> list[dict[str, Any]]:
    """Returns the scores of each class from counts [K, K + 1]; see `Confusion.run`."""
    right, images = np.diagonal(counts), counts.sum(axis=1)
    called = counts[:, :-1].sum(axis=0)

    def percent(part: Any, whole: Any) -> float | None:
        return float(100 * part / whole) if whole else None

    return [
        {
            "class": name,
            "images": int(has),
            "recall": percent(hits, has),
            "precision": percent(hits, given),
            "f1": percent(2 * hits, has + given),
            "called": int(given),
        }
        for name, hits, has, given in zip(names, right, images, called, strict=False)
    ]


def _tile(source: Any, index: int, channels: int) -> np.ndarray:
    """Returns an image as uint8 `[h, w, 3]`; grey if it cannot be read."""
    try:
        image = np.asarray(decode.Decode(channels)(source[index]["image"]))
    except Exception:  # the run has counted it
        return np.full((_TILE, _TILE, 3), 200, np.uint8)
    return reconstruction.rgb(image.reshape(*image.shape[:2], -1))


def _sheet(rows: list[tuple[str, list[np.ndarray]]], columns: int) -> Image.Image:
    """Draws a line of text and one of images for each row."""
    height = _LINE + _TILE + _GAP
    size = (columns * (_TILE + _GAP), len(rows) * height)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for number, (text, tiles) in enumerate(rows):
        plain = text.encode("latin-1", "replace").decode("latin-1")  # of the font
        draw.text((2, number * height + 2), plain, fill="black")
        for column, image in enumerate(tiles):
            picture = Image.fromarray(image)
            scale = _TILE / max(picture.size)
            width, tall = (max(1, round(scale * side)) for side in picture.size)
            resized = picture.resize((width, tall), Image.Resampling.BICUBIC)
            sheet.paste(resized, (column * (_TILE + _GAP), number * height + _LINE))
    return sheet
