"""Sources made of what other sources hold: what they share."""

from __future__ import annotations

from typing import Any

import numpy as np

from litevit_jax.data.sources import base


class Wrapped(base.Source):
    """The examples of `source`, all of them as they are; subclasses change some of it.

    Attributes:
      stored_range, annotations, class_ids, object_counts, multi_label: those of
        `source`.
    """

    def __init__(self, source: base.Source):
        self._source = source
        self.stored_range = source.stored_range
        self.annotations = source.annotations
        self.class_ids = source.class_ids
        self.object_counts = source.object_counts
        self.multi_label = source.multi_label

    @property
    def classes(self) -> list[str]:
        return self._source.classes

    @property
    def label_advice(self) -> str:
        return self._source.label_advice

    @property
    def in_memory(self) -> bool:
        return self._source.in_memory

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[index]

    def label_of(self, index: int) -> int:
        return self._source.label_of(index)

    def labels_of(self, index: int) -> np.ndarray:
        if not self.multi_label:
            return super().labels_of(index)
        return self._source.labels_of(index)

    def objects(self, index: int) -> Any:
        return self._source.objects(index)

    def name_of(self, index: int) -> str:
        return self._source.name_of(index)

    def fingerprint(self) -> str:
        return self._source.fingerprint()
