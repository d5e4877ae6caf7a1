"""The order of a run's examples, and the reading of one of them.

An example is addressed by its position in the run; its index in the source and its
random numbers follow from (seed, position).
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
import threading
from typing import Any

import grain
import numpy as np

from litevit_jax.data import decode
from litevit_jax.data.settings import Transform, transform_extras
from litevit_jax.data.sources.base import AnnotationError, Source
from litevit_jax.data.worker_journal import Journal

# Positions are bounded only because a random-access data set needs a length.
_ENDLESS = 2**62
# Replacements tried for one unreadable example; at the default bound on bad files,
# more than a few in a row mean that none can be read.
MAX_REPLACEMENTS = 64


@dataclasses.dataclass(frozen=True)
class HostShard:
    """The positions that this process reads: its part of every batch."""

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
        """Number of examples of each batch that this process reads."""
        return self.batch_size // self.process_count

    def position(self, number: int) -> int:
        """Returns the position in the run of this process's `number`-th example."""
        step, row = divmod(number, self.size)
        step += self.first_step
        return step * self.batch_size + self.process_index * self.size + row


@dataclasses.dataclass(frozen=True)
class Examples(abc.ABC):
    """Random access to the examples of this process, in the order it reads them."""

    source: Source
    transform: Transform
    shard: HostShard
    _: dataclasses.KW_ONLY
    journal: Journal | None = None

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of examples of this process, a multiple of its part of a batch."""

    @abc.abstractmethod
    def read(self, number: int, out: np.ndarray | None) -> dict[str, Any]:
        """Reads `image` (None: padding or unreadable), `label`, `index` and `bad`.

        Beside a readable image come the transform's extras.

        `number` counts the examples of this process; the image is written to `out`,
        if that is given.
        """

    def _read(self, index: int, *how: Any) -> dict[str, Any]:
        """Calls `_read_one`, recorded in the journal if there is one."""
        if self.journal is None:
            return self._read_one(index, *how)
        with self.journal.reading(index):
            return self._read_one(index, *how)

    def _read_one(
        self, index: int, rng: np.random.Generator, out: np.ndarray | None
    ) -> dict[str, Any]:
        """Reads example `index`; if unreadable, `image` is None, `bad` has a reason.

        Raises:
          AnnotationError: what is drawn on the image contradicts the settings.
          RuntimeError: the transform failed on a readable image; names the file.
        """
        bad = {"image": None, "label": 0, "index": index}
        try:
            raw = self.source[index]
        except AnnotationError:
            raise
        except Exception as error:  # whatever a file system or a format may raise
            return bad | {"bad": [(self.source.name_of(index), _reason(error))]}
        try:
            arrays = self._transformed(raw, rng, out)
            if out is not None and arrays["image"] is not out:
                out[:] = arrays["image"]
        except decode.DecodeError as error:
            return bad | {"bad": [(self.source.name_of(index), str(error))]}
        except AnnotationError as error:
            raise AnnotationError(f"{self.source.name_of(index)}: {error}") from None
        except Exception as error:
            raise RuntimeError(
                f"transform of {self.source.name_of(index)} failed: {_reason(error)}"
            ) from error
        return arrays | {"label": int(raw["label"]), "index": index, "bad": []}

    def _transformed(
        self, raw: dict[str, Any], rng: np.random.Generator, out: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        """Returns `image` and the transform's extras, of the shapes that it names."""
        extras = transform_extras(self.transform)
        if not extras:
            image = self.transform(raw["image"], rng, out)
            _check_shape(image, self.transform.shape)
            return {"image": image}
        arrays = self.transform(raw, rng, out)
        _check_shape(arrays["image"], self.transform.shape)
        for name, (shape, dtype) in extras.items():
            _check_shape(arrays[name], shape, dtype)
        return arrays


@dataclasses.dataclass(frozen=True)
class TrainExamples(Examples):
    """The endless, shuffled stream."""

    seed: int
    sampling: np.ndarray | None = None  # see `Source`

    def __post_init__(self):
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed={self.seed}; expected 0 <= seed < 2**64")

    def __len__(self) -> int:
        return _ENDLESS

    def read(self, number: int, out: np.ndarray | None) -> dict[str, Any]:
        position = self.shard.position(number)
        rng = generator(self.seed, position)
        count = len(self.source)
        chosen, bad = example_at(self.seed, position, count, self.sampling), []
        for _ in range(MAX_REPLACEMENTS):
            example = self._read(chosen, rng, out)
            bad += example["bad"]
            if example["image"] is not None:
                break
            chosen = int(rng.integers(len(self.source)))
        return example | {"bad": bad}


@dataclasses.dataclass(frozen=True)
class EvalExamples(Examples):
    """The examples of the source in order, then padding up to whole batches."""

    def __len__(self) -> int:
        return math.ceil(len(self.source) / self.shard.batch_size) * self.shard.size

    def read(self, number: int, out: np.ndarray | None) -> dict[str, Any]:
        position = self.shard.position(number)
        if position >= len(self.source):
            return {"image": None, "label": 0, "index": -1, "bad": []}
        return self._read(position, generator(0, position), out)


@dataclasses.dataclass(frozen=True)
class Chunks:
    """Random access to chunks of `size` consecutive examples: one thread's work.

    Queueing each example by itself would cost a tenth of its decoding.
    """

    examples: Examples
    size: int
    batches: BatchBuffers | None = None  # to write the images to

    def __len__(self) -> int:
        return len(self.examples) // self.size

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        numbers = range(index * self.size, (index + 1) * self.size)
        if self.batches is None:
            return [self.examples.read(number, None) for number in numbers]
        rows = self.batches.rows(numbers)
        pairs = zip(numbers, rows, strict=True)
        return [self.examples.read(number, row) for number, row in pairs]


class BatchBuffers:
    """Buffers for the images of batches that threads are writing, by batch number."""

    def __init__(self, size: int, shape: tuple[int, ...]):
        self._shape = (size, *shape)
        self._lock = threading.Lock()
        self._begun: dict[int, np.ndarray] = {}

    def rows(self, numbers: range) -> np.ndarray:
        """Returns the buffers for the examples of these numbers, all of one batch."""
        batch, row = divmod(numbers.start, self._shape[0])
        with self._lock:
            if batch not in self._begun:
                self._begun[batch] = np.empty(self._shape, np.uint8)
            return self._begun[batch][row : row + len(numbers)]

    def take(self, number: int) -> np.ndarray:
        """Returns and forgets batch `number`, whose examples have all been read."""
        with self._lock:
            return self._begun.pop(number)


def index_at(seed: int, position: int, count: int) -> int:
    """Returns which of `count` examples is at `position`: each epoch permutes them."""
    epoch, row = divmod(position, count)
    return grain.experimental.index_shuffle(
        row, max_index=count - 1, seed=_epoch_seed(seed, epoch), rounds=4
    )


def example_at(
    seed: int, position: int, count: int, sampling: np.ndarray | None
) -> int:
    """Returns which of `count` examples is at `position`, permuted as `sampling`."""
    if sampling is None:
        return index_at(seed, position, count)
    return int(sampling[index_at(seed, position, len(sampling))])


@functools.lru_cache(maxsize=4)
def _epoch_seed(seed: int, epoch: int) -> int:
    # Hashed, so that epoch 1 of seed 0 is not epoch 0 of seed 1.
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def generator(seed: int, position: int) -> np.random.Generator:
    """Returns a generator independent for every (seed, position); cheap to make."""
    key = np.array([seed, position], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _check_shape(
    array: np.ndarray, shape: tuple[int, ...], dtype: Any = np.uint8
) -> None:
    if array.shape != tuple(shape) or array.dtype != dtype:
        raise ValueError(
            f"result is {array.dtype} {array.shape}; expected {np.dtype(dtype)} "
            f"{tuple(shape)}"
        )
