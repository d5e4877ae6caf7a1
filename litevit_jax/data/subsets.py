"""Parts of a source, drawn by seed, and several sources as one."""

from __future__ import annotations

from typing import Any

import numpy as np

from litevit_jax import choices
from litevit_jax.data import wrapped
from litevit_jax.data.sources import base


class Subset(wrapped.Wrapped):
    """Examples `rows` of `source`, in that order, with its classes and names."""

    def __init__(self, source: base.Source, rows: np.ndarray):
        super().__init__(source)
        self._rows = np.asarray(rows, np.int64)
        counts = source.object_counts
        self.object_counts = [counts[row] for row in self._rows] if counts else ()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[int(self._rows[index])]

    def label_of(self, index: int) -> int:
        return self._source.label_of(int(self._rows[index]))

    def labels_of(self, index: int) -> np.ndarray:
        return self._source.labels_of(int(self._rows[index]))

    def objects(self, index: int) -> Any:
        return self._source.objects(int(self._rows[index]))

    def name_of(self, index: int) -> str:
        return self._source.name_of(int(self._rows[index]))

    def fingerprint(self) -> str:
        rows = self._rows.astype("<i8").tobytes()
        return base.digest([self._source.fingerprint().encode(), rows])


class ConcatSource(base.Source):
    """Several sources of the same classes, one after the other."""

    def __init__(self, sources: list[base.Source]):
        self._sources = sources
        self.annotations = sources[0].annotations
        self.class_ids = sources[0].class_ids
        counts = [source.object_counts for source in sources]
        self.object_counts = [x for each in counts for x in each] if all(counts) else []
        self.multi_label = sources[0].multi_label
        self.stored_range = sources[0].stored_range
        self._ends = np.cumsum([len(source) for source in sources])

    @property
    def classes(self) -> list[str]:
        return self._sources[0].classes

    @property
    def label_advice(self) -> str:
        return self._sources[0].label_advice

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        source, row = self._locate(index)
        return source[row]

    def label_of(self, index: int) -> int:
        source, row = self._locate(index)
        return source.label_of(row)

    def labels_of(self, index: int) -> np.ndarray:
        source, row = self._locate(index)
        return source.labels_of(row)

    def objects(self, index: int) -> Any:
        source, row = self._locate(index)
        return source.objects(row)

    def name_of(self, index: int) -> str:
        source, row = self._locate(index)
        return source.name_of(row)

    def fingerprint(self) -> str:
        return base.digest(source.fingerprint().encode() for source in self._sources)

    def _locate(self, index: int) -> tuple[base.Source, int]:
        """Returns the source that holds example `index`, and its row there."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[number - 1]) if number else 0
        return self._sources[number], index - start


class Sampled(wrapped.Wrapped):
    """A source that training reads in the order of `sampling`."""

    def __init__(self, source: base.Source, sampling: np.ndarray):
        super().__init__(source)
        self.sampling = sampling
        self._read = sampling.astype("<i8").tobytes()

    def fingerprint(self) -> str:
        return base.digest([self._source.fingerprint().encode(), self._read])


def join(sources: list[base.Source]) -> base.Source:
    """Concatenates `sources`; a single one is returned as it is.

    Raises:
      ValueError: their classes differ.
    """
    if len(sources) == 1:
        return sources[0]
    for number, source in enumerate(sources[1:], start=2):
        if source.classes != sources[0].classes:
            raise ValueError(
                f"the splits cannot be joined: number {number} has "
                f"{len(source.classes)} classes, the first {len(sources[0].classes)}, "
                "or they have other names; expected the same classes"
            )
    return ConcatSource(sources)


def split_validation(
    source: base.Source, share: float, seed: int
) -> tuple[base.Source, base.Source]:
    """Splits off a share of the examples, drawn by `seed`: (rest, part).

    Raises:
      ValueError: the share leaves one of them empty.
    """
    held = round(share * len(source))
    if not 0 < held < len(source):
        raise ValueError(
            f"data.holdout.eval={share} of {len(source)} training examples holds "
            f"out {held}; expected a share that leaves examples on both sides"
        )
    # Another stream than `training_subset` uses: the two are independent.
    order = np.random.default_rng([seed, 1]).permutation(len(source))
    rest, part = np.sort(order[held:]), np.sort(order[:held])
    return Subset(source, rest), Subset(source, part)


FRACTIONS = ("images", "balanced", "classes")


def training_subset(
    source: base.Source,
    *,
    shots: int | None,
    fraction: float,
    seed: int,
    of: str | None = None,
    long_tail: float | None = None,
) -> base.Source:
    """Draws the training subset that a config's data block asks for.

    Args:
      source: all examples.
      shots: images of each class; None: no limit.
      fraction: share of the examples, in (0, 1].
      seed: seed of the drawing. A smaller subset is contained in a larger one.
      of: unit of `fraction`: 'images' over all classes (the same as None),
        'balanced', the same share of every class and at least one image of it, or
        'classes', all images of that share of the classes. Labels keep their numbers.
      long_tail: how many times more images the most frequent class keeps than the
        rarest; the classes between them follow a geometric series in a drawn order.
        Applied before `fraction`; None: all images.

    Raises:
      ValueError: settings exclude each other, a value is out of range, there are no
        classes, or a class has too few images.
    """
    if shots is not None and (fraction != 1 or long_tail is not None):
        other = "data.fraction" if fraction != 1 else "data.long_tail"
        value = fraction if fraction != 1 else long_tail
        raise ValueError(f"data.shots={shots} and {other}={value}: give one of them")
    if shots is not None:
        _check_shots(source, shots)
        what = f"data.shots={shots}"
        rows = draw_per_class(
            source, count=shots, seed=seed, what=what, lower="data.shots"
        )
        return Subset(source, np.sort(rows.ravel()))
    if of is not None:
        choices.check("data.fraction_of", of, list(FRACTIONS))
    if long_tail is not None:
        source = _long_tail(source, long_tail, seed)
    if fraction == 1:
        return source
    if not 0 < fraction < 1 or round(fraction * len(source)) < 1:
        raise ValueError(
            f"data.fraction={fraction} of {len(source)} examples; expected a share in "
            "(0, 1] that leaves at least one"
        )
    if of == "balanced":
        rows = _balanced(source, fraction, seed)
    elif of == "classes":
        rows = _of_classes(source, fraction, seed)
    else:
        order = np.random.default_rng(seed).permutation(len(source))
        rows = order[: round(fraction * len(source))]
    return Subset(source, np.sort(rows))


def by_class(source: base.Source, seed: int, what: str) -> list[np.ndarray]:
    """Returns the rows of each class in drawing order; reads all labels.

    Raises:
      ValueError: there are no classes; `what`, the setting that needs them, is named.
    """
    if source.multi_label:
        raise ValueError(
            f"{what} needs one label an image, but these have several; leave it out"
        )
    if not source.classes:
        raise ValueError(
            f"{what} needs labels, but the data has no classes; leave it out, or "
            f"{source.label_advice}"
        )
    order = np.random.default_rng(seed).permutation(len(source))
    labels = np.array([source.label_of(int(row)) for row in order])
    return [order[labels == k] for k in range(len(source.classes))]


SAMPLING = ("images", "classes")


def sampled(source: base.Source, sampling: str, seed: int) -> base.Source:
    """Returns the images to train on, drawn as the config's `data.sampling` says.

    Args:
      source: the images.
      sampling: 'images', each of them once; or 'classes', each class as often as the
        largest: images of the others come up again, all of them about as often.
      seed: of drawing those that come up once more.

    Raises:
      ValueError: another setting, no labels, or images without one.
    """
    choices.check("data.sampling", sampling, list(SAMPLING))
    if sampling == "images":
        return source
    rows = [x for x in by_class(source, seed, "data.sampling=classes") if len(x)]
    lacking = len(source) - sum(map(len, rows))
    if lacking or not rows:
        raise ValueError(
            f"data.sampling=classes: {lacking:,} of {len(source):,} images have no "
            "label, so they would never be read; leave them out or give them one"
        )
    most = max(map(len, rows))
    return Sampled(source, np.concatenate([np.resize(x, most) for x in rows]))


def _balanced(source: base.Source, fraction: float, seed: int) -> np.ndarray:
    rows = by_class(source, seed, "data.fraction_of=balanced")
    return np.concatenate([r[: max(round(fraction * len(r)), 1)] for r in rows])


def _of_classes(source: base.Source, fraction: float, seed: int) -> np.ndarray:
    rows = by_class(source, seed, "data.fraction_of=classes")
    kept = np.random.default_rng([seed, 2]).permutation(len(rows))
    count = round(fraction * len(rows))
    if count < 1:
        raise ValueError(
            f"data.fraction={fraction} of {len(rows)} classes keeps none; expected a "
            "share that leaves at least one"
        )
    return np.concatenate([rows[k] for k in kept[:count]])


def _long_tail(source: base.Source, ratio: float, seed: int) -> base.Source:
    """Keeps n ratio^(-i / (K - 1)) images of class i of K, in a drawn order.

    n is the size of the smallest class, so that every class has enough images and the
    ratio is exact up to rounding; every class keeps at least one image.
    """
    if not ratio >= 1:
        raise ValueError(
            f"data.long_tail={ratio}; expected how many times more images the most "
            "frequent class keeps than the rarest, from 1"
        )
    rows = by_class(source, seed, f"data.long_tail={ratio}")
    most = min(len(r) for r in rows)
    if not most:
        raise ValueError(
            f"data.long_tail={ratio}: a class of {len(rows)} has no images at all; "
            "expected images of each"
        )
    rank = np.random.default_rng([seed, 3]).permutation(len(rows))
    steps = max(len(rows) - 1, 1)
    sizes = np.maximum(np.round(most * float(ratio) ** (-rank / steps)), 1).astype(int)
    kept = [r[:size] for r, size in zip(rows, sizes, strict=True)]
    return Subset(source, np.sort(np.concatenate(kept)))


def _check_shots(source: base.Source, shots: int) -> None:
    if shots < 1:
        raise ValueError(f"data.shots={shots}; expected at least 1 image of each class")
    if not source.classes:
        raise ValueError(
            f"data.shots={shots} needs labels, but the data has no classes; use "
            f"data.fraction, or {source.label_advice}"
        )


def draw_per_class(
    source: base.Source, *, count: int, seed: int, what: str, lower: str
) -> np.ndarray:
    """Draws `count` rows of each class: `[K, count]` in drawing order.

    Args:
      source: labelled examples.
      count: rows of each class.
      seed: seed of the order. A longer drawing begins with the shorter one.
      what: the setting that asks for so many, for the message.
      lower: the setting to lower, for the message.

    Raises:
      ValueError: a class has fewer than `count` images.
    """
    order = np.random.default_rng(seed).permutation(len(source))
    drawn = _first_of_each(source, order, count)
    few = [(k, len(rows)) for k, rows in enumerate(drawn) if len(rows) < count]
    if few:
        raise ValueError(
            f"{what}, but class {source.classes[few[0][0]]!r} has only {few[0][1]} "
            f"images ({len(few)} of {len(drawn)} classes have too few); lower "
            f"{lower}"
        )
    return np.array(drawn)


def _first_of_each(
    source: base.Source, order: np.ndarray, count: int
) -> list[list[int]]:
    """Returns the first `count` rows of each class in `order`, or all if it has fewer.

    Labels are read in that order and only until every class is complete, which for a
    few images of each takes a small part of a large data set.
    """
    rows: list[list[int]] = [[] for _ in source.classes]
    lacking = len(rows)
    for row in order:
        label = source.label_of(int(row))
        if label < 0 or len(rows[label]) == count:
            continue
        rows[label].append(int(row))
        lacking -= len(rows[label]) == count
        if not lacking:
            break
    return rows


def split_selection(
    source: base.Source, *, share: float, at_most: int, seed: int
) -> tuple[base.Source, base.Source]:
    """Splits the training images into (the rest, a part for choosing settings).

    Every class gives the same number of images to that part, but at most half of its
    own; images without a label stay in the rest. If nothing is labelled, the part is
    drawn from all images.

    Args:
      source: all training examples.
      share: share to hold out, in (0, 0.5].
      at_most: upper limit of images to hold out.
      seed: seed of the drawing.

    Raises:
      ValueError: a value out of range, or nothing would be held out.
    """
    where = f"data.holdout.select={share} of {len(source)} training images"
    if not 0 < share <= 0.5 or at_most < 1:
        raise ValueError(
            f"{where} and data.holdout.select_at_most={at_most}; expected a share in "
            "(0, 0.5] and at least 1"
        )
    wanted = min(round(share * len(source)), at_most)
    # Another stream than `training_subset` uses, which is seeded by `seed` alone.
    order = np.random.default_rng([seed, 1]).permutation(len(source))
    held = order[:wanted]
    if source.classes and not source.annotations:
        each = round(wanted / len(source.classes))
        rows = _first_of_each(source, order, 2 * each)
        held = np.array([row for r in rows for row in r[: min(each, len(r) // 2)]])
    if not len(held) or len(held) == len(source):
        raise ValueError(
            f"{where} in {len(source.classes)} classes leaves nothing to choose by, or "
            "nothing to train on; raise --config.data.holdout.select (at most 0.5) or "
            "give more images of each class"
        )
    rest = np.setdiff1d(np.arange(len(source)), held)
    return Subset(source, rest), Subset(source, np.sort(held))
