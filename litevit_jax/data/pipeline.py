"""A source and a transform -> batches: endless for training, finite for evaluation.

Everything in a training batch follows from (seed, position), where position counts
the examples of the whole run: batch t holds positions t B .. (t + 1) B - 1. Hence
a run resumes from its step alone, and threads, worker processes and the number of
hosts change nothing but speed.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import weakref
from collections.abc import Callable
from typing import Any

import grain
import numpy as np
from absl import flags

from litevit_jax.data import decode
from litevit_jax.data.sources.base import Source

_log = logging.getLogger(__name__)

# Positions are bounded only because a random-access data set needs a length.
_ENDLESS = 2**62
# Replacements tried for one unreadable example; at the default bound on bad files,
# more than a few in a row mean that none can be read.
_MAX_REPLACEMENTS = 64
_MAX_PREFETCHED = 256
_MAX_NAMED = 20

Transform = Callable[[Any, np.random.Generator], np.ndarray]


class BadDataError(ValueError):
    """More files are unreadable than `max_bad_fraction` allows."""


def train_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    threads: int = 8,
    max_bad_fraction: float = 0.001,
) -> Stream:
    """Endless batches from step `start_step` on, a fresh permutation each epoch.

    Args:
      source: the examples.
      transform: (raw image, rng) -> uint8 [H, W, C], with a `shape` (H, W, C).
      batch_size: of all processes together; each process gets a contiguous part.
      seed: of the order and of the transform's randomness.
      start_step: the first batch to yield.
      process_index: which part of each batch to read.
      process_count: in how many parts batches are read.
      workers: worker processes, each with `threads / workers` threads; 0 reads in
        threads of this process.
      threads: that read and transform at the same time.
      max_bad_fraction: share of the source that may be unreadable.

    Yields:
      `image` uint8 [B, H, W, C], `label` int32 [B], `index` int32 [B] into the
      source. A file that cannot be read is replaced by another one.
    """
    _check_filled(source)
    share = _Share(batch_size, process_index, process_count, first_step=start_step)
    examples = _TrainExamples(source, transform, share, seed)
    limit = _BadLimit(max_bad_fraction, len(source))
    reading = _Reading(share.size, workers, threads)
    return Stream(examples, masked=False, limit=limit, reading=reading)


def eval_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    threads: int = 8,
    max_bad_fraction: float = 0.001,
) -> Stream:
    """Every example once, in the order of the source; arguments as for training.

    Yields:
      `image` uint8 [B, H, W, C], `label` int32 [B], `index` int32 [B], `mask`
      float32 [B]: 1 for an example, 0 for padding (zeros, with index -1) and for
      a file that cannot be read. All processes get the same number of batches.
    """
    _check_filled(source)
    share = _Share(batch_size, process_index, process_count)
    examples = _EvalExamples(source, transform, share)
    limit = _BadLimit(max_bad_fraction, len(source))
    reading = _Reading(share.size, workers, threads)
    return Stream(examples, masked=True, limit=limit, reading=reading)


class Stream:
    """Iterator over batches, a dict of arrays each.

    Attributes:
      bad: unreadable files met so far: name -> reason.
    """

    def __init__(
        self,
        examples: _Examples,
        *,
        masked: bool,
        limit: _BadLimit,
        reading: _Reading,
    ):
        self.bad: dict[str, str] = {}
        self._shape = tuple(examples.transform.shape)
        self._masked = masked
        self._limit = limit
        self._batch_size = reading.batch_size
        self._iterators = [iter(reading.dataset(examples))]
        # Also when the stream is dropped, or the program ends without closing it.
        self._close = weakref.finalize(self, _close_all, self._iterators)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if not self._iterators:
            raise StopIteration
        try:
            # A finite stream ends at a first row: its length is whole batches.
            batch = self._empty_batch()
            for row in range(self._batch_size):
                self._put(batch, row, next(self._iterators[0]))
            return batch
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stops reading ahead; the stream is then at its end."""
        self._close()

    def _empty_batch(self) -> dict[str, np.ndarray]:
        size = self._batch_size
        batch = {
            "image": np.zeros((size, *self._shape), np.uint8),
            "label": np.zeros(size, np.int32),
            "index": np.full(size, -1, np.int32),
        }
        return batch | ({"mask": np.zeros(size, np.float32)} if self._masked else {})

    def _put(self, batch: dict[str, np.ndarray], row: int, example: Any) -> None:
        for name, reason in example["bad"]:
            self._record(name, reason)
        batch["index"][row] = example["index"]
        if example["image"] is not None:
            batch["image"][row] = example["image"]
            batch["label"][row] = example["label"]
            if self._masked:
                batch["mask"][row] = 1
        elif not self._masked:
            raise BadDataError(
                f"{_MAX_REPLACEMENTS} examples in a row cannot be read; "
                + self._limit.describe(self.bad)
            )

    def _record(self, name: str, reason: str) -> None:
        if name in self.bad:
            return
        self.bad[name] = reason
        _log.warning("unreadable, skipped: %s: %s", name, reason)
        if self._limit.exceeded(self.bad):
            raise BadDataError(self._limit.describe(self.bad))


def _close_all(iterators: list[grain.DatasetIterator]) -> None:
    # Emptied, because Grain's iterators complain if they outlive Grain.
    while iterators:
        iterators.pop().close()


@dataclasses.dataclass(frozen=True)
class _BadLimit:
    """How many files of `total` may be unreadable."""

    fraction: float
    total: int

    def exceeded(self, bad: dict[str, str]) -> bool:
        return len(bad) > self.fraction * self.total

    def describe(self, bad: dict[str, str]) -> str:
        """The message of BadDataError."""
        lines = [f"  {name}: {reason}" for name, reason in list(bad.items())]
        if len(lines) > _MAX_NAMED:
            lines[_MAX_NAMED:] = [f"  ... and {len(lines) - _MAX_NAMED} more"]
        allowed = math.floor(self.fraction * self.total)
        return (
            f"{len(bad)} of {self.total} examples cannot be read so far; "
            f"data.max_bad_fraction={self.fraction} allows {allowed}. Repair or "
            "remove them, or raise the limit with --config.data.max_bad_fraction=:\n"
            + "\n".join(lines)
        )


@dataclasses.dataclass(frozen=True)
class _Share:
    """Which positions this process reads: its part of every batch."""

    batch_size: int
    process_index: int
    process_count: int
    first_step: int = 0

    def __post_init__(self):
        if self.batch_size < 1 or self.batch_size % self.process_count:
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of "
                f"{self.process_count} processes; expected at least one example for "
                "each, and the same number"
            )
        if not 0 <= self.process_index < self.process_count:
            raise ValueError(
                f"process_index={self.process_index}; expected 0 to "
                f"{self.process_count - 1} with process_count={self.process_count}"
            )
        if self.first_step < 0:
            raise ValueError(f"start_step={self.first_step}; expected 0 or more")

    @property
    def size(self) -> int:
        """Examples of each batch that this process reads."""
        return self.batch_size // self.process_count

    def position(self, number: int) -> int:
        """Position in the run of the `number`-th example of this process."""
        step, row = divmod(number, self.size)
        step += self.first_step
        return step * self.batch_size + self.process_index * self.size + row


@dataclasses.dataclass(frozen=True)
class _Reading:
    """Threads and processes that read ahead."""

    batch_size: int
    workers: int
    threads: int

    def __post_init__(self):
        if self.workers < 0 or self.threads < 1:
            raise ValueError(
                f"data.workers={self.workers}, data.threads={self.threads}; expected "
                "0 or more workers and at least 1 thread"
            )

    def dataset(self, examples: _Examples) -> grain.IterDataset:
        """Examples in order, prefetched, about two batches ahead at most."""
        processes = max(1, self.workers)
        threads = math.ceil(self.threads / processes)
        ahead = min(2 * self.batch_size, _MAX_PREFETCHED) // processes
        # Grain warns if a thread has no place in the buffer to write to.
        options = grain.ReadOptions(
            num_threads=threads, prefetch_buffer_size=max(ahead, threads)
        )
        dataset = grain.MapDataset.source(examples).to_iter_dataset(options)
        if not self.workers:
            return dataset
        if not flags.FLAGS.is_parsed():  # Grain reads a flag; notebooks parse none
            flags.FLAGS.mark_as_parsed()
        # Shared memory is small in containers: only a few examples wait there.
        return dataset.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=self.workers, per_worker_buffer_size=8
            )
        )


@dataclasses.dataclass(frozen=True)
class _Examples:
    """Random access to the examples of this process, by number."""

    source: Source
    transform: Transform
    share: _Share

    def _read(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Example `index`, with `image` None and a reason in `bad` if unreadable.

        Raises:
          RuntimeError: the transform failed on a readable image; names the file.
        """
        bad = {"image": None, "label": 0, "index": index}
        try:
            raw = self.source[index]
        except Exception as error:  # whatever a file system or a format may raise
            return bad | {"bad": [(self.source.name_of(index), _reason(error))]}
        try:
            image = self.transform(raw["image"], rng)
            _check_shape(image, self.transform.shape)
        except decode.DecodeError as error:
            return bad | {"bad": [(self.source.name_of(index), str(error))]}
        except Exception as error:
            raise RuntimeError(
                f"transform of {self.source.name_of(index)} failed: {_reason(error)}"
            ) from error
        return {"image": image, "label": int(raw["label"]), "index": index, "bad": []}


@dataclasses.dataclass(frozen=True)
class _TrainExamples(_Examples):
    """The endless, shuffled stream."""

    seed: int

    def __post_init__(self):
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed={self.seed}; expected 0 <= seed < 2**64")

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, number: int) -> dict[str, Any]:
        position = self.share.position(number)
        rng = _rng(self.seed, position)
        index, bad = self._index(position), []
        for _ in range(_MAX_REPLACEMENTS):
            example = self._read(index, rng)
            bad += example["bad"]
            if example["image"] is not None:
                break
            index = int(rng.integers(len(self.source)))
        return example | {"bad": bad}

    def _index(self, position: int) -> int:
        """The example at `position`: a permutation of the source per epoch."""
        epoch, place = divmod(position, len(self.source))
        # Hashed, so that epoch 1 of seed 0 is not epoch 0 of seed 1.
        epoch_seed = np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0]
        return grain.experimental.index_shuffle(
            place, max_index=len(self.source) - 1, seed=int(epoch_seed), rounds=4
        )


@dataclasses.dataclass(frozen=True)
class _EvalExamples(_Examples):
    """The source in order, then padding up to whole batches."""

    def __len__(self) -> int:
        return math.ceil(len(self.source) / self.share.batch_size) * self.share.size

    def __getitem__(self, number: int) -> dict[str, Any]:
        position = self.share.position(number)
        if position >= len(self.source):
            return {"image": None, "label": 0, "index": -1, "bad": []}
        return self._read(position, _rng(0, position))


def _rng(seed: int, position: int) -> np.random.Generator:
    """Independent randomness for every (seed, position); cheap to make."""
    return np.random.Generator(np.random.Philox(key=_key(seed, position)))


def _key(seed: int, position: int) -> np.ndarray:
    return np.array([seed, position], np.uint64)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _check_shape(image: np.ndarray, shape: tuple[int, int, int]) -> None:
    if image.shape != tuple(shape) or image.dtype != np.uint8:
        raise ValueError(
            f"result is {image.dtype} {image.shape}; expected uint8 {tuple(shape)}"
        )


def _check_filled(source: Source) -> None:
    if not len(source):
        raise ValueError("the source is empty; expected at least one example")
