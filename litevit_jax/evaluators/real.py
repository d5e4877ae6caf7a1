"""Accuracy by sets of labels, such as ImageNet-ReaL (arXiv 2006.07159).

A prediction is right if it is one of the labels that people gave the image; images
without any are left out. The file is the one that the authors publish: a JSON list
with a list of labels for each image, in the order of ILSVRC2012_val_00000001 to
..._00050000. Images with such names are matched by number, whatever their order in
the split; others are taken in the order of the split.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from typing import Any, ClassVar

import numpy as np

from litevit_jax.evaluators import base

_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")


def make(*, context: base.Context, labels: str | None, split: str = "eval") -> Real:
    """Builds the evaluator.

    Args:
      context: see base.
      labels: the JSON file.
      split: 'eval' or 'train'.

    Raises:
      FileNotFoundError: no file is there.
      ValueError: no file was named, it is not such a list, or it is not of this split.
    """
    if not labels:
        raise ValueError(
            "evaluator 'real' needs the file of label lists: labels=real.json (from "
            "https://github.com/google-research/reassessed-imagenet)"
        )
    sets = _read(pathlib.Path(labels), context.num_classes)
    source = context.source(split)
    numbered = _number(source.name_of(0)) is not None
    if not numbered and len(sets) != len(source):
        raise ValueError(
            f"{labels} has labels of {len(sets)} images, split {split!r} has "
            f"{len(source)}, whose names ({source.name_of(0)}) have no number "
            "ILSVRC2012_val_...; expected as many, in the order of the split"
        )
    return Real(context, split, tuple(sets), numbered)


def _read(path: pathlib.Path, num_classes: int) -> list[frozenset[int]]:
    """Reads and checks the sets of labels in a file."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no file of ReaL labels there; get real.json from "
            "https://github.com/google-research/reassessed-imagenet"
        )
    try:
        lists = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(lists, list) or not any(lists):
        kind = type(lists).__name__
        raise ValueError(
            f"{path}: a {kind} without labels; expected a list with one list of labels "
            "for each image, as in [[65], [], [970, 795]]"
        )
    for position, labels in enumerate(lists):
        if not isinstance(labels, list) or not all(
            type(label) is int and 0 <= label < num_classes for label in labels
        ):
            raise ValueError(
                f"{path}: entry {position} is {str(labels)[:60]}; expected a list of "
                f"labels from 0 to {num_classes - 1}"
            )
    return [frozenset(labels) for labels in lists]


def _number(name: str) -> int | None:
    """Returns the position in the file of the image of that name, or None."""
    match = _NUMBER.search(name)
    return None if match is None else int(match[1]) - 1


@dataclasses.dataclass(frozen=True)
class Real(base.Evaluator):
    """Accuracy where any label of an image's set counts as right.

    Attributes:
      split: which images.
      sets: the labels of each image, in the order of the file.
      numbered: whether an image's name gives its position in the file.
    """

    split: str
    sets: tuple[frozenset[int], ...]
    numbered: bool

    best: ClassVar[str | None] = "top1"

    @property
    def reads(self) -> tuple[str, ...]:
        """The logits of the objective."""
        return ("logits",)

    def run(self, state: Any, *, step: int) -> dict[str, float]:
        """Returns top1 (percent), n images counted and unlabelled, those left out.

        Raises:
          ValueError: the name of an image gives no position in the file.
        """
        right, n, unlabelled = 0, 0, 0
        for batch, out in self.context.over(state, self.split, self.reads):
            first = np.argmax(out["logits"], axis=1)
            for row in np.flatnonzero(batch["mask"] > 0):
                labels = self.sets[self._position(int(batch["index"][row]))]
                unlabelled += not labels
                n += bool(labels)
                right += int(first[row]) in labels
        return {"top1": 100 * right / max(n, 1), "n": n, "unlabelled": unlabelled}

    def _position(self, index: int) -> int:
        if not self.numbered:
            return index
        name = self.context.source(self.split).name_of(index)
        position = _number(name)
        if position is None or not 0 <= position < len(self.sets):
            raise ValueError(
                f"evaluator 'real': {name} tells no place among {len(self.sets)} "
                "entries of the file; expected ILSVRC2012_val_00000001 and so on"
            )
        return position
