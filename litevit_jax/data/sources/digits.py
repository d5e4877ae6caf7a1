"""Scikit-learn's 1797 handwritten digits: grey, 8 x 8, nothing to download.

A fixed fifth of every class is the 'test' split.
"""

from __future__ import annotations

import functools
import importlib.util
import pathlib
from typing import Any

import numpy as np

from litevit_jax.data.sources import base

_SPLITS = ("train", "test")
_TEST_SHARE = 0.2
_WHITE = 16  # load_digits counts ink in 0..16


class Digits(base.Source):
    """Images [N, 8, 8] uint8 and labels [N] of one split."""

    def __init__(self, split: str, images: np.ndarray, labels: np.ndarray):
        self._split = split
        self._images = images
        self._labels = labels

    @property
    def classes(self) -> list[str]:
        return [str(digit) for digit in range(10)]

    @property
    def in_memory(self) -> bool:
        return True

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._images[index], "label": int(self._labels[index])}

    def name_of(self, index: int) -> str:
        return f"digits/{self._split}[{index}]"

    def fingerprint(self) -> str:
        return base.digest([b"digits", self._images.tobytes(), self._labels.tobytes()])


def make(
    *,
    split: str,
    dir: str | None = None,
    name: str | None = None,
    holdout: float = 0.0,
) -> Digits:
    """The 'train' or 'test' split.

    Args:
      split: 'train' or 'test'.
      dir: must be None; the data is embedded.
      name: ignored.
      holdout: ignored; the split is fixed.
    """
    del name, holdout
    base.check_split(split, _SPLITS, "digits")
    if dir is not None:
        raise ValueError(
            f"data.dir={dir!r} is set, but the source 'digits' reads no directory; "
            "choose data.source=folder, tfds or arrays, or leave data.dir empty"
        )
    images, labels = load()
    chosen = _is_test(labels) == (split == "test")
    return Digits(split, images[chosen], labels[chosen])


def load() -> tuple[np.ndarray, np.ndarray]:
    """Returns images uint8 [N, 8, 8] in 0..255 and labels int32 [N]."""
    rows = table()
    images = np.rint(rows[:, :-1].reshape(-1, 8, 8) * (255 / _WHITE)).astype(np.uint8)
    return images, rows[:, -1].astype(np.int32)


@functools.cache
def table() -> np.ndarray:
    """Returns float64 [N, 65]: ink of 64 pixels and the label, as in scikit-learn.

    Its file is read without it: to import scikit-learn takes as long as JAX does.
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is not None and spec.origin is not None:
        path = pathlib.Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if path.exists():
            return np.loadtxt(path, delimiter=",")
    from sklearn import datasets

    digits: Any = datasets.load_digits()  # a version that keeps its file elsewhere
    return np.column_stack([digits.data, digits.target])


def _is_test(labels: np.ndarray) -> np.ndarray:
    """Marks a fifth of every class, the same in every run: bool [N]."""
    # RandomState, because NumPy promises never to change what it yields.
    rng = np.random.RandomState(0)
    chosen = np.zeros(len(labels), bool)
    for digit in np.unique(labels):
        members = np.flatnonzero(labels == digit)
        chosen[rng.permutation(members)[: round(_TEST_SHARE * len(members))]] = True
    return chosen
