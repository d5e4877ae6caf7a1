"""All images of a folder or of another source, each read once, by several threads."""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

from litevit_jax import registry
from litevit_jax.data.sources import base

T = TypeVar("T")

_AT_ONCE = 256  # images in memory at once, at most


def parser(command: str, text: str) -> argparse.ArgumentParser:
    """Returns the parser of a command about a place of images."""
    made_of = argparse.RawDescriptionHelpFormatter
    parsed = argparse.ArgumentParser(
        prog=f"litevit {command}", description=text, formatter_class=made_of
    )
    parsed.add_argument("dir", metavar="DIR", help="as data.dir: a folder or a file")
    parsed.add_argument(
        "--source", default="folder", help="as data.source: folder, tar, packed, arrays"
    )
    parsed.add_argument("--labels", help="as data.labels: a table of labels")
    parsed.add_argument("--name", default="", help="as data.name")
    parsed.add_argument(
        "--channels",
        type=int,
        help="as data.channels; default: as they are",
    )
    parsed.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parsed


def open_source(args: argparse.Namespace, split: str) -> base.Source:
    """Opens a split of the images that a command is about."""
    more = {"labels": args.labels} if args.labels else {}
    known = registry.defaults("data.sources", args.source)
    if args.labels and "labels" not in known:
        raise ValueError(f"--labels: source {args.source!r} takes no table of labels")
    return registry.make(
        "data.sources", args.source, split=split, dir=args.dir, name=args.name, **more
    )


@dataclasses.dataclass(frozen=True)
class Split:
    """A split and its images."""

    name: str
    source: base.Source


def splits(args: argparse.Namespace) -> Iterator[Split]:
    """Yields the split to train on, and those beside it; 'test' may be called 'val'.

    Raises:
      ValueError: there is none, or one is ambiguous.
    """
    first = open_source(args, "train")
    yield Split("train", first)
    for name in first.other_splits:
        yield Split(name, open_source(args, name))


def read_all(
    read: Callable[[int], T], count: int, threads: int
) -> Iterator[tuple[int, T]]:
    """Yields (n, read(n)) for n from 0 to `count`, in order."""
    with concurrent.futures.ThreadPoolExecutor(max(threads, 1)) as pool:
        for start in range(0, count, _AT_ONCE):
            rows = range(start, min(start + _AT_ONCE, count))
            yield from zip(rows, pool.map(read, rows), strict=True)


def reason(error: BaseException) -> str:
    """Returns why an image cannot be read, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return base.printable(text)


def check_numbers(args: argparse.Namespace) -> None:
    """Raises ValueError unless there is a thread at least, and channels if any."""
    for name in ("threads", "channels"):
        value, bound = getattr(args, name), registry.bound_of(f"data.{name}")
        if value is not None and bound is not None and not bound.holds(value):
            raise ValueError(f"--{name}={value}; expected {bound.text(value)}")
