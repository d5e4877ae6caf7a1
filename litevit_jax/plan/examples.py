"""Counts the examples and classes of a run, with or without its data at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from litevit_jax.data import splits
from litevit_jax.data.sources import base, tfds

# (images, classes) of splits, as their authors count them.
_KNOWN = {
    ("cifar10", "train"): (50_000, 10),
    ("cifar100", "train"): (50_000, 100),
    ("imagenet2012", "train"): (1_281_167, 1000),
    ("oxford_iiit_pet", "train"): (3_680, 37),
}


class Counted(base.Source):
    """Examples of which the number and the classes alone are known."""

    def __init__(self, count: int, classes: int):
        self._count, self._classes = count, classes

    @property
    def classes(self) -> list[str]:
        return [str(number) for number in range(self._classes)]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        raise IndexError(f"example {index} is only counted, not here")

    def label_of(self, index: int) -> int:
        return index % self._classes

    def name_of(self, index: int) -> str:
        return f"example {index}"

    def fingerprint(self) -> str:
        return "counted"


def source(data: Any) -> tuple[Callable[[str], base.Source], str]:
    """Returns (split -> its examples, where their number is from: 'data' or 'known').

    Raises:
      ValueError: they are not here, and nobody says how many there are.
      OSError: the named place has no such data.
    """
    # A set that a run requires (`data.required`) may be missing where it is planned.
    if data.source != "tfds" or data.dir or tfds.locate(data.name) is not None:
        return splits.sources(data), "data"
    parts = [(data.name, split.strip()) for split in data.train_split.split("+")]
    unknown = [part for part in parts if part not in _KNOWN]
    drawn = data.shots is not None or data.holdout.eval or data.holdout.select
    if unknown or drawn:
        raise ValueError(
            f"{data.name} is not here, and a plan without it knows whole splits of "
            f"{', '.join(sorted({name for name, _ in _KNOWN}))} only; name its place "
            "with --config.data.dir=DIR"
        )
    count = sum(_KNOWN[part][0] for part in parts)
    counted = Counted(round(count * data.fraction), _KNOWN[parts[0]][1])
    return lambda split: counted, "known"
