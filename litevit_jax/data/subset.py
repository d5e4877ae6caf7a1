"""A part of a source, drawn by seed: few images of every class, or a share of all."""

from __future__ import annotations

from typing import Any

import numpy as np

from litevit_jax.data.sources import base


class Subset(base.Source):
    """Examples `rows` of `source`, in that order, with its classes and names."""

    def __init__(self, source: base.Source, rows: np.ndarray):
        self._source = source
        self._rows = np.asarray(rows, np.int64)

    @property
    def classes(self) -> list[str]:
        return self._source.classes

    @property
    def in_memory(self) -> bool:
        return self._source.in_memory

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[int(self._rows[index])]

    def name_of(self, index: int) -> str:
        return self._source.name_of(int(self._rows[index]))

    def fingerprint(self) -> str:
        rows = self._rows.astype("<i8").tobytes()
        return base.digest([self._source.fingerprint().encode(), rows])


def take(
    source: base.Source, *, shots: int | None, fraction: float, seed: int
) -> base.Source:
    """The part of `source` that a config's data.shots and data.fraction ask for.

    Args:
      source: all examples.
      shots: images of each class; None: no such limit.
      fraction: share of the examples, over all classes, in (0, 1].
      seed: of the drawing. A smaller part is contained in a larger one.

    Raises:
      ValueError: both are given, a value is out of range, there are no classes, or a
        class has fewer images than `shots`.
    """
    if shots is None and fraction == 1:
        return source
    if shots is not None and fraction != 1:
        raise ValueError(
            f"data.shots={shots} and data.fraction={fraction}: give one of them"
        )
    order = np.random.default_rng(seed).permutation(len(source))
    if shots is not None:
        return Subset(source, _of_each_class(source, order, shots))
    if not 0 < fraction < 1 or round(fraction * len(source)) < 1:
        raise ValueError(
            f"data.fraction={fraction} of {len(source)} examples; expected a share in "
            "(0, 1] that leaves at least one"
        )
    return Subset(source, np.sort(order[: round(fraction * len(source))]))


def _of_each_class(source: base.Source, order: np.ndarray, shots: int) -> np.ndarray:
    """The first `shots` rows of each class in `order`, sorted.

    Labels are read in that order and only until every class is complete, which for a
    few images of each takes a small part of a large data set.
    """
    if shots < 1:
        raise ValueError(f"data.shots={shots}; expected at least 1 image of each class")
    if not source.classes:
        raise ValueError(
            f"data.shots={shots} needs labels, but the data has no classes; use "
            "data.fraction, or give a folder with one subfolder per class"
        )
    left = np.full(len(source.classes), shots)
    rows = []
    for row in order:
        label = source[int(row)]["label"]
        if label >= 0 and left[label]:
            left[label] -= 1
            rows.append(row)
            if not left.any():
                return np.sort(rows)
    lacking = int(np.argmax(left))
    raise ValueError(
        f"data.shots={shots}, but class {source.classes[lacking]!r} has only "
        f"{shots - left[lacking]} images ({np.count_nonzero(left)} of {len(left)} "
        "classes have too few); lower data.shots"
    )
