"""The contract of evaluators, and a pass over a split that counts each example once."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax
import numpy as np
from jax.sharding import Mesh

from litevit_jax import sharding
from litevit_jax.data import device

Rows = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Context:
    """What an evaluator is given.

    Attributes:
      predict: (params, model_state, batch of uint8 images) -> named arrays [B, ...].
      source: split name ('train', 'eval') -> data source.
      batches: source -> finite stream of host batches, each example once.
      mesh: where batches go.
      outdir: where pictures may be written.
      mean, std: per channel, of the normalised images.
      num_classes: K, or 0 for an unlabelled set.
    """

    predict: Callable[..., dict[str, jax.Array]]
    source: Callable[[str], Any]
    batches: Callable[[Any], Iterator[Rows]]
    mesh: Mesh
    outdir: pathlib.Path
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int

    def over(
        self, state: Any, split: str, reads: tuple[str, ...], limit: int | None = None
    ) -> Iterator[tuple[Rows, Rows]]:
        """(host batch, predictions) over a split; padded rows have mask 0.

        `limit` stops after so many examples (rounded up to whole batches).
        """
        predict = _only(self.predict, reads, self.mesh)
        kept: list[Rows] = []
        host = _keep(self.batches(self.source(split)), kept, limit)
        for fed in device.feed(host, self.mesh):
            out = predict(state.params, state.model_state, fed.batch)
            yield kept.pop(0), jax.device_get(out)


def _keep(
    batches: Iterator[Rows], kept: list[Rows], limit: int | None
) -> Iterator[Rows]:
    """Passes batches on and remembers them; ends after `limit` examples."""
    seen = 0
    with contextlib.closing(batches):
        for batch in batches:
            kept.append(batch)
            yield batch
            seen += int(batch["mask"].sum())
            if limit is not None and seen >= limit:
                return


@functools.cache
def _only(predict: Callable[..., Any], reads: tuple[str, ...], mesh: Mesh) -> Any:
    """Jitted `predict` that computes nothing but `reads`."""

    def some(params: Any, model_state: Any, batch: Any) -> dict[str, jax.Array]:
        out = predict(params, model_state, batch)
        return {name: out[name] for name in reads}

    return jax.jit(some, out_shardings=sharding.replicated(mesh))


class Evaluator(abc.ABC):
    """A state -> numbers. Subclasses are frozen dataclasses; `reads` names what
    they need of the objective's predictions; `best` is the number to maximise."""

    reads: ClassVar[tuple[str, ...]]
    best: ClassVar[str | None] = None
    labelled: ClassVar[bool] = False

    @abc.abstractmethod
    def run(self, state: Any, *, step: int) -> dict[str, float]:
        """Numbers of `state`; `step` names files that are written."""


def check(name: str, evaluator: Evaluator, predicted: dict[str, Any], by: str) -> None:
    """Raises ValueError if objective `by` does not predict what is read."""
    missing = [r for r in evaluator.reads if r not in predicted]
    if missing:
        raise ValueError(
            f"evaluator {name!r} reads {', '.join(map(repr, missing))}, objective "
            f"{by!r} predicts {', '.join(sorted(predicted))}"
        )
    if evaluator.labelled and not evaluator.context.num_classes:
        raise ValueError(
            f"evaluator {name!r} needs labels, but the data has none: give a folder "
            "with one subfolder per class"
        )
