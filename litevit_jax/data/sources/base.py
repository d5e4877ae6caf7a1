"""The Source contract: random access to raw examples of one split.

A source file exposes

    make(*, split, dir=None, name=None, holdout=0.0) -> Source
"""

from __future__ import annotations

import abc
import collections
import hashlib
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from litevit_jax import choices


class AnnotationError(ValueError):
    """An error of what is drawn on an image: it ends a run, for it would mislead it."""


class Source(abc.ABC):
    """Raw examples of one split; picklable, and safe to read from many threads.

    Attributes:
      annotations: names of what examples have beside image and label, and what moves
        with the pixels: 'label_map'; or 'objects' and 'boxes', boxes alone.
      object_counts: of images, how many objects are to be found; () if not known.
      class_ids: of classes of objects, their numbers in the file; () where there is
        none.
      multi_label: whether an image may have several labels: an example then has
        `labels`, uint8 `[K]`, 1 for its classes, and its label is -1.
      sampling: examples in whose permutations training reads, some of them several
        times, int64 `[n]`; None: each of them once.
      notes: what else there is to know of them, for `summary`.
      other_splits: names of the splits beside this one.
      stored_range: by which pixels of more than 8 bits became the bytes that are
        stored; None: they are as they were.

    >>> class Noise(litevit_jax.Source):
    ...     classes = []
    ...     def __len__(self):
    ...         return 10
    ...     def __getitem__(self, index):
    ...         pixels = np.random.default_rng(index).integers(0, 256, (8, 8))
    ...         return {"image": pixels.astype(np.uint8), "label": -1}
    ...     def name_of(self, index):
    ...         return f"noise {index}"
    ...     def fingerprint(self):
    ...         return "noise-1"
    >>> Noise().summary()
    '10 images, no labels'
    """

    annotations: Sequence[str] = ()
    object_counts: Sequence[int] = ()
    class_ids: Sequence[int] = ()
    multi_label: bool = False
    sampling: np.ndarray | None = None
    notes: Sequence[str] = ()
    other_splits: Sequence[str] = ()
    stored_range: str | None = None

    @property
    def label_advice(self) -> str:
        """Advice for messages about missing labels."""
        return "give a folder with one subfolder per class"

    @property
    def in_memory(self) -> bool:
        """Whether images are held in memory: a worker process would only copy them."""
        return False

    @property
    def channels(self) -> int | None:
        """Number of channels of raw arrays; None: images are decoded to any number."""
        return None

    @property
    @abc.abstractmethod
    def classes(self) -> list[str]:
        """Names of the classes by label; [] when the data has no labels."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of examples."""

    @abc.abstractmethod
    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns example `index`, not decoded.

        Returns:
          `image`: encoded bytes, or numbers [H, W] or [H, W, C];
          `label`: int, -1 when the example has none;
          `label_map`, if that is among `annotations`: uint8 [h, w], the class of each
            pixel of the upright image, 255 for none;
          `objects`, if 'boxes' is among `annotations`: a `data.objects.Objects`.
        """

    def label_of(self, index: int) -> int:
        """Returns the label of example `index`, or -1; reads no image if possible."""
        return int(self[index]["label"])

    def labels_of(self, index: int) -> np.ndarray:
        """Returns the labels uint8 `[K]` of example `index`, 1 for its classes."""
        if self.multi_label:
            return np.asarray(self[index]["labels"])
        label = self.label_of(index)
        return np.eye(1, len(self.classes), label, np.uint8)[0] * (label >= 0)

    def label_map(self, index: int) -> Any:
        """Returns the label map uint8 [h, w] of example `index`, never resized."""
        return self[index]["label_map"]

    def objects(self, index: int) -> Any:
        """Returns the objects of example `index`, a `data.objects.Objects`."""
        return self[index]["objects"]

    @property
    def labelled(self) -> bool:
        """Whether any example has a label; one of its pixels is none."""
        return bool(self.classes) and not self.annotations

    def summary(self) -> str:
        """Summarizes images, classes, notes and other splits in one line."""
        classes = self.classes
        plural = "es" * (len(classes) > 1)
        kinds = f"{len(classes):,} class{plural} ({first(classes)})"
        labels = "no labels"
        if "label_map" in self.annotations:
            labels = f"label maps of {kinds}"
        elif "boxes" in self.annotations:
            masks = " and masks" * ("objects" in self.annotations)
            labels = f"boxes{masks} of objects of {kinds}"
        elif self.labelled:
            labels = f"labelled, {kinds}"
        elif classes:
            labels += f" (other splits have {kinds})"
        images = f"{len(self):,} image{'s' * (len(self) != 1)}"
        notes = [f"{images}, {labels}", *self.notes]
        notes += [f"other splits: {first(self.other_splits)}"] * bool(self.other_splits)
        return printable("; ".join(notes))

    @abc.abstractmethod
    def name_of(self, index: int) -> str:
        """Names the file of example `index` for messages; does not raise."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Returns a short hex digest of the data's content, the same in any folder."""


def utf8(name: str) -> str:
    """Returns `name` as any file can hold it: bytes that are no UTF-8 as \\xff."""
    try:
        return os.fsencode(name).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a letter, of no file's name
        return name.encode("utf-8", "backslashreplace").decode()


def printable(name: str) -> str:
    """Returns `name` on one line that any log can hold.

    Bytes that are no UTF-8, ends of lines and control characters are spelled out.
    """
    return "".join(
        x.encode("unicode_escape").decode() if _is_control(x) else x for x in utf8(name)
    )


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Zl", "Zp")


def check_exists(path: Any, dir: str, expected: str) -> None:
    """Raises FileNotFoundError if `path`, which `data.dir` names, does not exist."""
    try:
        exists, why = path.exists(), "does not exist"
    except OSError as error:  # a folder above is closed, or the name is too long
        exists, why = False, f"cannot be reached ({error.strerror})"
    if not exists:
        raise FileNotFoundError(f"data.dir={dir!r} {why}; expected {expected}")


def check_split(split: str, known: Iterable[str], where: str) -> str:
    """Returns `split` if it is one of `known`, else a ValueError listing them."""
    return choices.check(f"split of {where}", split, sorted(known))


def check_holdout(holdout: float) -> float:
    """Returns `holdout` if it is a share of the data, in [0, 1)."""
    if not 0 <= holdout < 1:
        raise ValueError(
            f"data.holdout.test={holdout} is not a share of the data; expected a "
            "number from 0, below 1, for example 0.1"
        )
    return holdout


def in_holdout(key: bytes, holdout: float) -> bool:
    """Whether the example called `key` belongs to the held-out share.

    It depends on `key` alone, so that adding examples never moves others.
    """
    bits = hashlib.blake2b(key, digest_size=8).digest()
    return int.from_bytes(bits, "little") < holdout * 2**64


def part_of(
    keys: Iterable[bytes], part: str | None, holdout: float, where: str
) -> np.ndarray:
    """Whether each example belongs to `part`, 'train' or 'test' (None: all do).

    Raises:
      ValueError: none of them does.
    """
    held = np.array([part and in_holdout(key, holdout) for key in keys], bool)
    keep = held == (part == "test")
    if not keep.any():
        raise ValueError(
            f"data.holdout.test={holdout} of the {len(keep)} images of {where} leaves "
            f"no image in split {part!r}; choose another share"
        )
    return keep


def first(names: Sequence[str], count: int = 5) -> str:
    """Returns the first names of a possibly long list, for a message."""
    return ", ".join([*map(printable, names[:count]), *["..."] * (len(names) > count)])


def skipped_entries(skipped: Mapping[str, str]) -> list[str]:
    """Returns a note on files that a `filetree.Tree` skipped: name -> reason."""
    if not skipped:
        return []
    reasons = collections.Counter(skipped.values()).most_common()
    counted = ", ".join(f"{count} {reason}" for reason, count in reasons)
    return [f"skipped, as no regular files: {counted} ({first(sorted(skipped))})"]


def digest(parts: Iterable[bytes]) -> str:
    """Returns 16 hex digits of the sequence of `parts`."""
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.hexdigest()
