"""Computes mean and deviation of each channel, as flags to paste behind a recipe.

    litevit stats DIR
    litevit stats DIR --split=train --channels=1
    litevit stats DIR --channels=12
    litevit stats FILE.npy --source=arrays

Every image of the split is read once, at its own size; each pixel counts once. Values
are those that a model gets before they are normalised, in 0..1. If pixels have more
than 8 bits, their percentiles are proposed as data.range, one range of all channels,
unless --range says another. Channels are those that .npy and TIFF files have.
"""

from __future__ import annotations

import collections
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from litevit_jax import exits
from litevit_jax.data import decode, examples, levels, survey
from litevit_jax.data.sources import base

_GREY = ("1", "L", "LA", "I", "F")  # modes, and all that begin with I;
_DIGITS = 4


@dataclasses.dataclass
class Stats:
    """The values of all pixels, counted.

    Attributes:
      counts: int64 [C, 256], how many pixels have each value.
      range: as data.range has it.
      proposed: whether that was chosen here.
      images: how many were read.
      notes: what a run would say of the images.
      bad: (name, reason) of each that was not.
    """

    counts: np.ndarray
    range: str
    proposed: bool
    images: int = 0
    notes: Sequence[str] = ()
    bad: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    @property
    def mean(self) -> np.ndarray:
        """The mean of each channel, [C]."""
        values = np.arange(256) / 255
        return (self.counts * values).sum(1) / self.counts.sum(1)

    @property
    def std(self) -> np.ndarray:
        """The standard deviation of each channel, [C]."""
        squares = (np.arange(256) / 255 - self.mean[:, None]) ** 2
        return np.sqrt((self.counts * squares).sum(1) / self.counts.sum(1))


def compute(
    source: base.Source, *, channels: int | None, range: str | None, threads: int
) -> Stats:
    """Reads every image of a source.

    Args:
      source: the images.
      channels: as data.channels; None: as the images have them.
      range: as data.range; None: percentiles where images have more than 8 bits.
      threads: that read.

    Raises:
      ValueError: no image can be read, or not with such channels or range.
    """
    channels = channels or _channels(source)
    proposed = range is None or levels.parse(range) == "auto"
    if range is None or proposed:
        pair = survey.percentiles(source, channels=channels)
        range = "full" if pair is None else levels.spell(pair)
    noted = survey.check(source, channels=channels, range=range)
    stats = Stats(np.zeros((channels, 256), np.int64), range, proposed, notes=noted)
    decoded = decode.Decode(channels, range=range)

    def one(number: int) -> np.ndarray | str:
        try:
            pixels = np.asarray(decoded(source[number]["image"]))
        except ModuleNotFoundError:
            raise
        except Exception as error:  # whatever a file system or a format may raise
            return examples.reason(error)
        each = pixels.reshape(-1, channels).T
        return np.stack([np.bincount(values, minlength=256) for values in each])

    for number, counts in examples.read_all(one, len(source), threads):
        if isinstance(counts, str):
            stats.bad.append((source.name_of(number), counts))
        else:
            stats.counts += counts
            stats.images += 1
    if not stats.images:
        raise _unreadable(source, *stats.bad[0])
    return stats


def _unreadable(source: base.Source, name: str, why: str) -> ValueError:
    return ValueError(f"none of {len(source):,} images can be read; {name}: {why}")


def _channels(source: base.Source) -> int:
    """Returns what most of the images looked at have: 1 if all are grey, else 3.

    Raises:
      ModuleNotFoundError: a package that reads such files is not installed.
      ValueError: none can be read.
    """
    if source.channels is not None:
        return source.channels
    rows = np.linspace(0, len(source) - 1, min(len(source), survey.IMAGES))
    each: collections.Counter[int] = collections.Counter()
    reasons = []
    for row in map(int, rows):
        try:
            each[_channels_of(source[row]["image"])] += 1
        except ModuleNotFoundError:
            raise
        except Exception as error:  # whatever a file system or a format may raise
            reasons.append((source.name_of(row), examples.reason(error)))
    if not each:
        raise _unreadable(source, *reasons[0])
    if set(each) <= {1, 3}:
        return 1 if set(each) == {1} else 3
    return each.most_common(1)[0][0]


def _channels_of(image: Any) -> int:
    """Returns the channels of an image, of an encoded one 1 (grey) or 3."""
    raster = survey.raster_of(image, None, decode.DEFAULT_MAX_PIXELS)
    if raster is not None:
        return raster.channels
    with decode.open_image(image) as opened:
        return 1 if opened.mode in _GREY or opened.mode.startswith("I;") else 3


def lines(stats: Stats, summary: str) -> Iterator[str]:
    """Yields the text of the result; its last line are the flags."""
    yield summary
    yield f"{stats.images:,} images, {int(stats.counts[0].sum()):,} pixels"
    yield from stats.notes
    if stats.bad:
        names = [name for name, _ in stats.bad]
        yield f"left out, as they cannot be read: {len(names):,} ({base.first(names)})"
    flat = [n for n, std in enumerate(stats.std) if std == 0]
    if flat:
        yield f"channels whose pixels are all the same: {', '.join(map(str, flat))}"
    yield " ".join(flags(stats))


def flags(stats: Stats) -> list[str]:
    """Returns the fields of the config, as the command line takes them."""
    channels = len(stats.counts)
    given = [f"--config.data.channels={channels}"] * (channels != 3)
    given += [f"--config.data.range={stats.range}"] * (stats.range != "full")
    for name, values in (("mean", stats.mean), ("std", stats.std)):
        text = ", ".join(f"{max(x, 10.0**-_DIGITS):.{_DIGITS}f}" for x in values)
        text += "," * (channels == 1)
        given.append(f'--config.augment.normalize.{name}="({text})"')
    return given


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = examples.parser("stats", __doc__ or "")
    parser.add_argument("--split", default="train", help="of the images")
    parser.add_argument("--range", help="as data.range; default: percentiles")
    args = parser.parse_args(argv)
    try:
        examples.check_numbers(args)
        source = examples.open_source(args, args.split)
        stats = compute(
            source, channels=args.channels, range=args.range, threads=args.threads
        )
    except (ValueError, OSError, ImportError) as error:
        return exits.report(error, begun=False)
    print("\n".join(lines(stats, source.summary())), flush=True)
    return exits.OK


if __name__ == "__main__":
    sys.exit(main())
