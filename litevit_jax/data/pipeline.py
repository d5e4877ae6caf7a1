"""Batches from a source and a transform: endless to train, finite to evaluate.

Everything in a training batch follows from (seed, position), where position counts
the examples of the whole run: batch t holds positions t B .. (t + 1) B - 1. Hence
a run resumes from its step alone, and threads, worker processes and the number of
hosts change nothing but speed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import weakref
from collections.abc import Generator
from typing import Any

import grain
import numpy as np
from absl import flags

from litevit_jax.data import handover, multi_hot, worker_journal
from litevit_jax.data.order import (
    MAX_REPLACEMENTS,
    BatchBuffers,
    Chunks,
    EvalExamples,
    Examples,
    HostShard,
    TrainExamples,
)
from litevit_jax.data.settings import Transform, transform_extras
from litevit_jax.data.sources import base
from litevit_jax.data.sources.base import Source

_log = logging.getLogger(__name__)

_MAX_PREFETCHED = 256
_MAX_CHUNK = 8  # examples that a thread reads before it hands them over
_MAX_NAMED = 20


class WorkerError(RuntimeError):
    """A worker process was killed, by the system or by a library's crash."""


class BadDataError(ValueError):
    """An error of more unreadable files than `max_bad_fraction` allows."""


def train_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int | None = None,
    threads: int | None = None,
    max_bad_fraction: float = 0.001,
) -> Stream:
    """Yields endless batches from `start_step` on, a new permutation every epoch.

    Args:
      source: the examples.
      transform: (raw image, rng) -> uint8 [H, W, C], with a `shape` (H, W, C); or
        [V, H, W, C] of several views, which make the batch's `image` its `views`; or
        (example, rng) -> named arrays, with their `extras`.
      batch_size: of all processes together; each process gets a contiguous part.
      seed: of the order and of the transform's randomness.
      start_step: the first batch to yield.
      process_index: which part of each batch to read.
      process_count: in how many parts batches are read.
      workers: worker processes, each with `threads / workers` threads; 0 reads in
        threads of this process; None: as many as suit the cores.
      threads: that read and transform at the same time; None: by the cores.
      max_bad_fraction: share of the source that may be unreadable.

    Yields:
      `image` uint8 [B, H, W, C] (or `views` [B, V, H, W, C]), `label` int32 [B],
      `index` int32 [B] into the source, and the transform's extras. If images have
      several labels, `labels` uint8 [B, K] is among these. A file that cannot be
      read is replaced by another one.
    """
    _check_filled(source)
    transform = multi_hot.with_labels(source, transform)
    shard = HostShard(batch_size, process_index, process_count, first_step=start_step)
    examples = TrainExamples(source, transform, shard, seed, source.sampling)
    limit = BadLimit(max_bad_fraction, len(source))
    reading = _Reading(shard.size, *reading_counts(source, workers, threads), 2)
    return Stream(examples, masked=False, limit=limit, reading=reading)


def eval_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    workers: int | None = None,
    threads: int | None = None,
    max_bad_fraction: float = 0.001,
) -> Stream:
    """Yields every example once, in source order; arguments as for training.

    Yields:
      `image` uint8 [B, H, W, C], `label` int32 [B], `index` int32 [B], the
      transform's extras, `mask` float32 [B]: 1 for an example, 0 for padding (zeros,
      with index -1) and for a file that cannot be read. All processes get the same
      number of batches.
    """
    _check_filled(source)
    transform = multi_hot.with_labels(source, transform)
    shard = HostShard(batch_size, process_index, process_count)
    examples = EvalExamples(source, transform, shard)
    limit = BadLimit(max_bad_fraction, len(source))
    reading = _Reading(shard.size, *reading_counts(source, workers, threads), 1)
    return Stream(examples, masked=True, limit=limit, reading=reading)


def reading_counts(
    source: Source, workers: int | None, threads: int | None
) -> tuple[int, int]:
    """Returns (workers, threads); None is chosen by the cores of this process.

    Decoding releases the interpreter's lock, so threads of one process fill up to
    eight cores; beyond, the little that does not would hold them up, and one process
    serves four. A thread a core: a few more gained nothing where files are at hand.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    cores = cores or os.cpu_count() or 1
    if workers is None:
        workers = 0 if cores <= 8 or source.in_memory else cores // 4
    return workers, max(cores, 2, workers) if threads is None else threads


class Stream:
    """Iterator over batches, a dict of arrays each.

    Attributes:
      bad: unreadable files met so far: name -> reason.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        masked: bool,
        limit: BadLimit,
        reading: _Reading,
    ):
        self.bad: dict[str, str] = {}
        self._shape = tuple(examples.transform.shape)
        self._extras = transform_extras(examples.transform)
        self._name = "image" if len(self._shape) == 3 else "views"
        self._masked = masked
        self._limit = limit
        self._batch_size = reading.batch_size
        self._journal = worker_journal.Journal.make() if reading.workers else None
        # Threads write training images into the batch; evaluation has rows without an
        # image, and worker processes have their own memory.
        own = not (masked or reading.workers)
        self._batches = BatchBuffers(self._batch_size, self._shape) if own else None
        self._count = 0  # of batches yielded
        examples = dataclasses.replace(examples, journal=self._journal)
        self._name_of = examples.source.name_of
        self._iterators = [iter(reading.dataset(examples, self._batches))]
        self._examples = _flatten(self._iterators)
        # Closes a stream that is dropped, or that the program's end leaves open.
        self._close = weakref.finalize(
            self, _close_all, self._examples, self._iterators, self._journal
        )

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        try:
            # A finite stream is a whole number of batches, so it ends at a first row.
            batch = self._empty_batch()
            for row in range(self._batch_size):
                self._put(batch, row, next(self._examples))
            if self._batches is not None:
                batch[self._name] = self._batches.take(self._count)
                self._count += 1
            return batch
        except BaseException as error:
            lost = self._lost(error)
            self.close()
            if lost is not None:
                raise lost from error
            raise

    def _lost(self, error: BaseException) -> BaseException | None:
        """Returns the error to raise if `error` says that a worker was killed."""
        if self._journal is None or not handover.is_killed(error):
            return None
        indices = self._journal.unfinished()
        names = [base.printable(self._name_of(index)) for index in indices]
        return WorkerError(handover.explain(error, names))

    def close(self) -> None:
        """Stops reading ahead; the stream is then at its end."""
        self._close()

    def _empty_batch(self) -> dict[str, np.ndarray]:
        size = self._batch_size
        batch: dict[str, np.ndarray] = {
            "label": np.zeros(size, np.int32),
            "index": np.full(size, -1, np.int32),
        }
        for name, (shape, dtype) in self._extras.items():
            batch[name] = np.zeros((size, *shape), dtype)
        if self._batches is None:
            batch[self._name] = np.zeros((size, *self._shape), np.uint8)
        return batch | ({"mask": np.zeros(size, np.float32)} if self._masked else {})

    def _put(self, batch: dict[str, np.ndarray], row: int, example: Any) -> None:
        for name, reason in example["bad"]:
            self._record(name, reason)
        batch["index"][row] = example["index"]
        if example["image"] is not None:
            if self._batches is None:
                batch[self._name][row] = example["image"]
            for name in ("label", *self._extras):
                batch[name][row] = example[name]
            if self._masked:
                batch["mask"][row] = 1
        elif not self._masked:
            raise BadDataError(
                f"{MAX_REPLACEMENTS} examples in a row cannot be read; "
                + self._limit.describe(self.bad)
            )

    def _record(self, name: str, reason: str) -> None:
        name = base.printable(name)
        if name in self.bad:
            return
        self.bad[name] = reason
        _log.warning("unreadable, skipped: %s: %s", name, reason)
        if self._limit.exceeded(self.bad):
            raise BadDataError(self._limit.describe(self.bad))


def _flatten(iterators: list[grain.DatasetIterator]) -> Generator[dict[str, Any]]:
    """Yields the examples of the iterator's chunks; ends when it is removed."""
    while iterators:
        try:
            chunk = next(iterators[0])
        except StopIteration:
            return
        yield from chunk


def _close_all(
    examples: Generator[dict[str, Any]],
    iterators: list[grain.DatasetIterator],
    kept: worker_journal.Journal | None,
) -> None:
    examples.close()  # it may hold memory that is shared with workers
    # Emptied, because Grain's iterators complain if they outlive Grain.
    while iterators:
        with contextlib.suppress(AttributeError):  # closed at the program's end as well
            iterators.pop().close()
    handover.drain()
    if kept is not None:
        kept.remove()


@dataclasses.dataclass(frozen=True)
class BadLimit:
    """The number of files of `total` that may be unreadable: one of a small set."""

    fraction: float
    total: int

    def exceeded(self, bad: dict[str, str]) -> bool:
        return len(bad) > self.allowed

    @property
    def allowed(self) -> int:
        one = self.fraction > 0 and self.total > 1
        return max(math.floor(self.fraction * self.total), int(one))

    def describe(self, bad: dict[str, str]) -> str:
        """The message of BadDataError."""
        lines = [f"  {name}: {reason}" for name, reason in bad.items()]
        if len(lines) > _MAX_NAMED:
            lines[_MAX_NAMED:] = [f"  ... and {len(lines) - _MAX_NAMED} more"]
        return (
            f"{len(bad)} of {self.total} examples cannot be read so far; "
            f"data.max_bad_fraction={self.fraction} allows {self.allowed}. Repair or "
            "remove them, or raise the limit with --config.data.max_bad_fraction=:\n"
            + "\n".join(lines)
        )


@dataclasses.dataclass(frozen=True)
class _Reading:
    """Threads and processes that read ahead."""

    batch_size: int
    workers: int
    threads: int
    streams: int  # that read at the same time

    def __post_init__(self):
        if self.workers < 0 or self.threads < 1:
            raise ValueError(
                f"data.workers={self.workers}, data.threads={self.threads}; expected "
                "0 or more workers and at least 1 thread"
            )

    def dataset(
        self, examples: Examples, batches: BatchBuffers | None = None
    ) -> grain.IterDataset:
        """Returns chunks of examples in order, prefetched up to two batches ahead."""
        processes = max(1, self.workers)
        threads = math.ceil(self.threads / processes)
        # A batch is whole chunks, and each thread reads a part of it.
        most = min(_MAX_CHUNK, math.ceil(self.batch_size / (threads * processes)))
        chunk = next(n for n in range(most, 0, -1) if not self.batch_size % n)
        ahead = min(2 * self.batch_size, _MAX_PREFETCHED) // (processes * chunk)
        # Grain warns if a thread has no place in the buffer to write to.
        options = grain.ReadOptions(
            num_threads=threads, prefetch_buffer_size=max(ahead, threads)
        )
        chunks = Chunks(examples, chunk, batches)
        dataset = grain.MapDataset.source(chunks).to_iter_dataset(options)
        if not self.workers:
            return dataset
        if not flags.FLAGS.is_parsed():  # Grain reads a flag; notebooks parse none
            flags.FLAGS.mark_as_parsed()
        # Shared memory is small in containers: few examples wait there.
        handover.check_memory(
            self.workers, chunk, _bytes(examples.transform), self.streams
        )
        return dataset.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=self.workers,
                per_worker_buffer_size=max(_MAX_CHUNK // chunk, 1),
            ),
            handover.settle,
        )


def _bytes(transform: Transform) -> int:
    """Returns the size of what a transform yields."""
    extras = transform_extras(transform).values()
    sizes = (math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in extras)
    return math.prod(transform.shape) + sum(sizes)


def _check_filled(source: Source) -> None:
    if not len(source):
        raise ValueError("the source is empty; expected at least one example")
