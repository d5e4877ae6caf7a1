"""Images of several labels: `labels [K]` beside each image, 1 for its classes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from litevit_jax.data.settings import Transform, transform_extras
from litevit_jax.data.sources import base


@dataclasses.dataclass(frozen=True)
class WithLabels:
    """A transform of whole examples that hands their labels on."""

    transform: Transform
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of every image."""
        return self.transform.shape

    @property
    def extras(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Name -> (shape, type) of what comes beside the image."""
        own = {"labels": ((self.classes,), np.uint8)}
        return {**transform_extras(self.transform), **own}

    def __call__(
        self,
        example: dict[str, Any],
        rng: np.random.Generator,
        out: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Returns `image`, `labels` and the other extras of an example."""
        if transform_extras(self.transform):
            arrays = self.transform(example, rng, out)
        else:
            arrays = {"image": self.transform(example["image"], rng, out)}
        return {**arrays, "labels": example["labels"]}


def with_labels(source: base.Source, transform: Transform) -> Transform:
    """Returns `transform`, which hands the labels on if images have several."""
    if not source.multi_label:
        return transform
    return WithLabels(transform, len(source.classes))
