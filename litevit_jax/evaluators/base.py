"""The contract of evaluators, and passes over a split that count each example once."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import pathlib
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Any, ClassVar

import jax
import numpy as np
from jax.sharding import Mesh

from litevit_jax import distributed, preemption, sharding
from litevit_jax.data import device
from litevit_jax.data.kept import Kept

Rows = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Context:
    """The run as an evaluator sees it: data, predictions and mesh.

    Attributes:
      predict: (params, model_state, batch of uint8 images) -> named arrays [B, ...].
      source: split name ('train', 'eval') -> data source.
      batches: source -> finite stream of host batches, each example once.
      mesh: where batches go.
      outdir: where pictures may be written.
      mean, std: per channel, of the normalised images.
      num_classes: K, or 0 for an unlabelled set.
      rows: images that the devices compute at once, however many a batch has; it
        divides a batch. None: the whole batch.
      classes: how the data's classes were matched with the model's, in words; '' if
        they are the same.
      unmatched: images of its split whose class the model does not know, left out.
      size: rows and columns of the images that the model reads.
      kept: batches of earlier passes that stay on the devices, if any do.
      last: the predictions of the last pass, for an evaluator that needs the same.
      images: how images are read and prepared, as text.
      crop: share of the shorter side that is kept of an image.
      names: of the classes that the model tells apart, by number; () if it records
        none.
      multi_label: whether the model answers for each class alone.
      predicts: names of what `predict` returns.
    """

    predict: Callable[..., dict[str, jax.Array]]
    source: Callable[[str], Any]
    batches: Callable[[Any], Generator[Rows, None, None]]
    mesh: Mesh
    outdir: pathlib.Path
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int
    rows: int | None = None
    classes: str = ""
    unmatched: int = 0
    size: tuple[int, int] = (0, 0)
    kept: Kept | None = None
    last: LastPass | None = None
    images: str = ""
    crop: float = 1.0
    names: tuple[str, ...] = ()
    multi_label: bool = False
    predicts: tuple[str, ...] = ()

    def over(
        self,
        state: Any,
        split: str,
        reads: tuple[str, ...],
        *,
        images: bool = False,
        limit: int | None = None,
        change: Callable[[Iterator[Rows]], Iterator[Rows]] | None = None,
    ) -> Iterator[tuple[Rows, Rows]]:
        """Yields (batch, predictions) of a split, of all hosts; padding has mask 0.

        Images are part of the batch only if asked for. `limit` stops after so many
        examples (rounded up to whole pieces of `rows`). `change` turns the pieces into
        others with as many rows, which are predicted instead. A second pass in a row
        with the same state, source and `reads` yields what the first one computed.
        """
        predict = _only(self.predict, reads, images, self.mesh)
        source, whole = self.source(split), limit is None and change is None

        def read() -> Generator[device.Fed, None, None]:
            host = _pieces(self.batches(source), self.rows, limit)
            return device.feed(host if change is None else change(host), self.mesh)

        def compute() -> Iterator[tuple[Rows, Rows]]:
            feed = self.kept.feed(source, read) if self.kept and whole else read()
            for fed in feed:
                distributed.heartbeat(f"evaluating on split {split!r}", grace=True)
                preemption.vote(self.mesh)
                yield jax.device_get(
                    predict(state.params, state.model_state, fed.batch)
                )

        if self.last is None or images or not whole:
            return compute()
        return self.last.over((state, source, predict), compute)


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """Parameters and state of a model, where there is no training state."""

    params: Any
    model_state: Any


class LastPass:
    """The predictions of one pass, while all that they follow from exists."""

    MOST = 2**28  # bytes that are remembered

    def __init__(self) -> None:
        self._of: tuple[weakref.ref[Any], ...] = ()
        self._pairs: list[tuple[Rows, Rows]] = []

    def over(
        self, of: tuple[Any, ...], compute: Callable[[], Iterator[tuple[Rows, Rows]]]
    ) -> Iterator[tuple[Rows, Rows]]:
        """Yields the pairs of `compute`, which follow from the objects `of`."""
        if self._of and all(x() is y for x, y in zip(self._of, of, strict=True)):
            yield from self._pairs
            return
        self.forget()
        pairs: list[tuple[Rows, Rows]] = []
        size = 0
        for pair in compute():
            size += sum(x.nbytes for rows in pair for x in rows.values())
            if size <= self.MOST:
                pairs.append(pair)
            else:
                pairs.clear()
            yield pair
        if size <= self.MOST:
            self._pairs = pairs
            self._of = tuple(weakref.ref(x, self.forget) for x in of)

    def forget(self, _: object = None) -> None:
        """Frees the memory."""
        self._of, self._pairs = (), []


def _pieces(
    batches: Generator[Rows, None, None], rows: int | None, limit: int | None
) -> Iterator[Rows]:
    """Cuts batches into pieces of `rows`, up to `limit` rows of all hosts together."""
    seen = 0
    with contextlib.closing(batches):
        for batch in batches:
            size = len(batch["mask"])
            step = size if rows is None else rows // distributed.process_count()
            for start in range(0, size, step):
                yield {k: x[start : start + step] for k, x in batch.items()}
                # Not the mask's sum: hosts that disagree would wait for each other.
                seen += step * distributed.process_count()
                if limit is not None and seen >= limit:
                    return


@functools.lru_cache(maxsize=16)  # a program keeps its memory as long as it is known
def _only(
    predict: Callable[..., Any], reads: tuple[str, ...], images: bool, mesh: Mesh
) -> Any:
    """Jitted `predict` that computes nothing but `reads`; the batch comes with it, as
    a host has only its own part."""

    def compute(params: Any, model_state: Any, batch: Any) -> tuple[Any, Any]:
        out = predict(params, model_state, batch)
        rows = {k: x for k, x in batch.items() if images or k != "image"}
        return rows, {name: out[name] for name in reads}

    return jax.jit(compute, out_shardings=sharding.replicated(mesh))


@dataclasses.dataclass(frozen=True)
class Evaluator(abc.ABC):
    """Turns a state into numbers. Subclasses are frozen dataclasses; `reads` names what
    they need of the objective's predictions; `best` is the number to maximise. One with
    an `own_file` writes it for images of any classes, or of none, and its results are
    not kept; `advice` says what to do where its predictions are missing.

    >>> class Spread(litevit_jax.Evaluator):
    ...     reads = ("features",)
    ...     def run(self, state, *, step):
    ...         pairs = self.context.over(state, "eval", self.reads)
    ...         return {"spread": max(float(x["features"].std()) for _, x in pairs)}
    >>> Spread.best, Spread.labelled
    (None, False)
    """

    context: Context
    best: ClassVar[str | None] = None
    labelled: ClassVar[bool] = False
    same_classes: ClassVar[bool] = False  # data and model number classes alike
    named_classes: ClassVar[bool] = False  # it matches them by name
    own_file: ClassVar[bool] = False
    advice: ClassVar[str] = ""

    @property
    def metrics(self) -> dict[str, bool]:
        """Number that a step may be chosen by -> whether a higher one is better."""
        return {} if self.best is None else {self.best: True}

    @property
    @abc.abstractmethod
    def reads(self) -> tuple[str, ...]:
        """The names of the predictions that the evaluator needs."""

    @abc.abstractmethod
    def run(self, state: Any, *, step: int) -> dict[str, Any]:
        """Evaluates `state` and returns numbers; `step` names files that are written.

        Names (str) and tables (lists of dicts) beside them are recorded, not plotted.
        """

    def check_data(self) -> None:
        """Raises ValueError if the evaluator's splits lack what it needs.

        A labelled evaluator needs one labelled image to count, and two classes to
        learn from. No more labels are read than it takes to find them.
        """
        if self.labelled:
            for field, least in (("bank", 2), ("select", 1), ("split", 1)):
                split = getattr(self, field, None)
                if split is not None:
                    check_labels(self.context.source(split), f"split {split!r}", least)


def check_labels(source: Any, what: str, least: int = 2) -> None:
    """Raises ValueError if fewer than `least` classes occur in a data source.

    No more labels are read than it takes to find them.
    """
    if source.multi_label:
        raise ValueError(
            f"{what} needs one label an image, but these have several: learn from them "
            "with objective.loss=bce and tell them with the evaluator multi_label, as "
            "--config=finetune:multi_label,... does"
        )
    if not source.classes:
        raise ValueError(
            f"{what} needs labels, but the data has none: {source.label_advice}"
        )
    classes: set[int] = set()
    for row in np.random.default_rng(0).permutation(len(source)):
        classes |= {source.label_of(int(row))} - {-1}
        if len(classes) >= least:
            return
    if not classes:
        raise ValueError(
            f"{what} needs labels, but none of its {len(source)} images has one, such "
            f"as {source.name_of(0)}; name a labelled split, for example with "
            f"--config.data.eval_split=, or {source.label_advice}"
        )
    raise ValueError(
        f"{what}: all images are of one class, {source.classes[min(classes)]!r}; there "
        "is nothing to tell apart: expected two classes or more"
    )


def check_multi_label(source: Any, what: str) -> None:
    """Raises ValueError unless images of a data source may have several labels."""
    if not source.multi_label:
        raise ValueError(
            f"{what} needs several labels an image, but no image has more than one: "
            "give a table with a column labels (data.labels=FILE) or multi-hot arrays; "
            "for one label an image: --config.objective.loss=softmax, or leave the "
            "variant multi_label out"
        )


def check_annotations(
    objective: Any, name: str, classes: bool, read: tuple[str, ...], data: Any
) -> None:
    """Raises ValueError unless data have what a run reads beside images.

    Args:
      objective: of the run.
      name: its name.
      classes: whether it needs classes: of images, if not of annotations.
      read: `data.joint.annotations` of the run.
      data: the source of the training images.
    """
    missing = [each for each in objective.annotations if each not in read]
    if missing:
        raise ValueError(
            f"objective {name!r} reads {', '.join(missing)}, but data.joint.annotations"
            f"={read}; set it to {objective.annotations}"
        )
    lacking = [each for each in read if each not in data.annotations]
    sources = "segfolder" if "label_map" in lacking else "cocojson"
    if lacking:
        raise ValueError(
            f"data.joint.annotations={read}, but the data ({data.summary()}) have no "
            f"{', no '.join(lacking)}; choose a source that has: {sources}, "
            "digit_scenes, or what was packed from them"
        )
    if objective.multi_label:
        check_multi_label(data, f"objective {name!r} with loss=bce, split 'train'")
    elif classes and not objective.annotations:
        check_labels(data, f"objective {name!r}, split 'train'")


def check(name: str, evaluator: Evaluator, predicted: dict[str, Any], by: str) -> None:
    """Raises ValueError if objective `by` does not predict what is read."""
    missing = [r for r in evaluator.reads if r not in predicted]
    if missing:
        raise ValueError(
            f"evaluator {name!r} reads {', '.join(map(repr, missing))}, objective "
            f"{by!r} predicts {', '.join(sorted(predicted))}"
            + (f"; {evaluator.advice}" if evaluator.advice else "")
        )
    if evaluator.labelled and not evaluator.context.num_classes:
        raise ValueError(
            f"evaluator {name!r} needs labels, but the data has none: give a folder "
            "with one subfolder per class, or tar files with a label beside each image"
        )
