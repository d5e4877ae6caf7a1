"""Renumbers a data set's labels by another list of classes, matched by name."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from litevit_jax.data import wrapped
from litevit_jax.data.sources import base


@dataclasses.dataclass(frozen=True)
class Match:
    """The positions of a data set's classes among the known classes.

    Attributes:
      numbers: int32 [K], of each class of the data its known number, -1 without.
      how: in words; '' where both lists are the same.
    """

    numbers: np.ndarray
    how: str

    @property
    def unknown(self) -> np.ndarray:
        """Returns the labels of the unknown classes."""
        return np.flatnonzero(self.numbers < 0)


def match(names: list[str], known: list[str], count: int) -> Match | None:
    """Matches classes by name, or by number where one side has numbers as names.

    Args:
      names: of the data's classes, by label.
      known: names of the known classes, by number; [] if they have none.
      count: of the known classes.

    Returns:
      None if the known classes have no names and are not as many.

    Raises:
      ValueError: a name, or a number, stands for several classes.
    """
    same = np.arange(len(names), dtype=np.int32)
    if names == known:
        return Match(same, "")
    if not known:
        how = f"{count} classes matched by number: those of the model have no names"
        return Match(same, how) if len(names) == count else None
    if _are_numbers(names) and not _are_numbers(known):
        _check_unique((int(name) for name in names), "number", "data")
        numbers_of = [int(name) if int(name) < count else -1 for name in names]
        how = "matched by number, as the data's have numbers for names"
    else:
        _check_unique(names, "name", "data")
        wanted = set(names)
        _check_unique((name for name in known if name in wanted), "name", "model")
        number = {name: index for index, name in enumerate(known)}
        numbers_of = [number.get(name, -1) for name in names]
        how = "matched by name"
    numbers = np.array(numbers_of, np.int32)
    known_count = len(set(numbers_of) - {-1})
    return Match(numbers, f"{known_count} of the {count} classes of the model, {how}")


def _are_numbers(names: list[str]) -> bool:
    return all(name.isascii() and name.isdecimal() for name in names)


def _check_unique(keys: Iterable[Any], what: str, owner: str) -> None:
    """Raises ValueError if two classes share one of `keys`."""
    counts = collections.Counter(keys)
    several = [f"{key!r} of {n} classes" for key, n in counts.items() if n > 1]
    if several:
        shown = ", ".join(several[:5]) + ", ..." * (len(several) > 5)
        raise ValueError(
            f"classes of the {owner} have the same {what} ({shown}), so that classes "
            f"of the data and of the model cannot be matched by {what}; give each "
            f"class of the {owner} a {what} of its own"
        )


class Relabelled(wrapped.Wrapped):
    """A source whose labels are mapped by `numbers` [K] into `classes`."""

    def __init__(self, source: base.Source, numbers: np.ndarray, classes: list[str]):
        super().__init__(source)
        self._numbers, self._classes = numbers, classes

    @property
    def classes(self) -> list[str]:
        return list(self._classes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._source[index]
        return {**example, "label": self._number(int(example["label"]))}

    def label_of(self, index: int) -> int:
        return self._number(self._source.label_of(index))

    def fingerprint(self) -> str:
        numbers = self._numbers.astype("<i4").tobytes()
        return base.digest([self._source.fingerprint().encode(), numbers])

    def _number(self, label: int) -> int:
        return int(self._numbers[label]) if label >= 0 else -1


def count(source: base.Source, labels: np.ndarray) -> int:
    """Returns the examples of `source` with one of `labels`; reads every label."""
    wanted = {int(label) for label in labels}
    return sum(source.label_of(index) in wanted for index in range(len(source)))
