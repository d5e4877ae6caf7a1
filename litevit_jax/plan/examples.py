"""Counts the examples and classes of a run, with or without its data at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from litevit_jax.data import settings, splits
from litevit_jax.data.sources import base, tfds

# (images, classes) of splits, as published.
_KNOWN = {
    ("ade20k", "training"): (20_210, 150),
    ("cifar10", "train"): (50_000, 10),
    ("cifar100", "train"): (50_000, 100),
    ("coco", "train2017"): (117_266, 80),  # images with objects that are no crowd
    ("imagenet2012", "train"): (1_281_167, 1000),
    ("oxford_iiit_pet", "train"): (3_680, 37),
}


class Counted(base.Source):
    """A source of which only the numbers of examples and classes are known."""

    def __init__(self, count: int, classes: int, annotations: tuple[str, ...] = ()):
        self._count, self._classes = count, classes
        self.annotations = annotations

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
    """Returns (split -> its source, where the counts come from: 'data' or 'known').

    Raises:
      ValueError: the data is not on this machine, and its size is not known.
      OSError: the named directory has no such data.
    """
    # A plan may do without a data set that the run requires (`data.required`).
    by_name = data.source == "tfds" or data.name in {name for name, _ in _KNOWN}
    here = data.source == "tfds" and tfds.locate(data.name) is not None
    if not by_name or data.dir or here:
        return splits.open_splits(data), "data"
    parts = [(data.name, split.strip()) for split in data.train_split.split("+")]
    unknown = [part for part in parts if part not in _KNOWN]
    drawn = data.shots is not None or data.holdout.eval or data.holdout.select
    if unknown or drawn:
        raise ValueError(
            f"{data.name} is not here, and a plan without it knows whole splits of "
            f"{', '.join(sorted({name for name, _ in _KNOWN}))} only; name its "
            "directory with --config.data.dir=DIR"
        )
    count = sum(_KNOWN[part][0] for part in parts)
    classes, read = _KNOWN[parts[0]][1], settings.annotations_of(data)
    counted = Counted(round(count * data.fraction), classes, read)
    return lambda split: counted, "known"
