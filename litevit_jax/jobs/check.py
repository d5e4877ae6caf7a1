"""Reads every image of a data set once, and lists what is wrong with it.

    litevit check DIR
    litevit check DIR --labels=FILE.csv
    litevit check DIR --source=tar
    litevit check DIR --channels=12

It prints kinds and sizes of the images, the classes of each split, equal images (the
same bytes), and at the end every file that cannot be read, with the reason. Of files
with any number of channels (.npy, TIFF of several bands or pages) those are bad that
have others than most, or than --channels.
The exit code is 1 if there is any, or if the layout or the labels are refused.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import hashlib
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from litevit_jax import exits, terminal
from litevit_jax.data import decode, examples, filetree, layout, survey
from litevit_jax.data.sources import base, folder

_SHOWN = 20  # classes, and groups of equal images; bad files are all shown


@dataclasses.dataclass(frozen=True, slots=True)
class Look:
    """One image: its kind, as 'JPEG RGB', size, digest of its content, or the error."""

    kind: str = ""
    width: int = 0
    height: int = 0
    size: int = 0  # bytes
    digest: bytes = b""
    error: str = ""
    channels: int = 0  # of files that may have any number; 0 of others


@dataclasses.dataclass
class Report:
    """The findings.

    Attributes:
      images: how many were looked at.
      looks: name -> of each image that can be read.
      bad: (name, reason) of each that cannot.
      others: extension -> number of files that are no images.
      splits: what each split is, and its images by class.
      refused: why the layout or the labels are refused; '' if they are not.
      split_of: name -> split of each image that is in one.
    """

    images: int = 0
    looks: dict[str, Look] = dataclasses.field(default_factory=dict)
    bad: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    others: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    splits: list[tuple[str, dict[str, int]]] = dataclasses.field(default_factory=list)
    refused: str = ""
    split_of: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether anything is wrong."""
        return bool(self.bad or self.refused or not self.images)

    def same(self) -> list[list[str]]:
        """Returns the names of images with the same content, in groups."""
        groups = collections.defaultdict(list)
        for name, look in self.looks.items():
            groups[look.digest].append(name)
        return [names for names in groups.values() if len(names) > 1]


def look_at(image: Any, wanted: int | None = None) -> Look:
    """Decodes an image, bytes or an array; an error becomes part of the result.

    `wanted` are the channels that a run asks for.
    """
    max_pixels = decode.DEFAULT_MAX_PIXELS
    try:
        raster, channels = survey.raster_of(image, wanted, max_pixels), 0
        if raster is not None:
            values, channels = raster.deep.values, raster.channels
            decode.Decode(wanted or channels, max_pixels, "auto_each")(image)
            named = terminal.counted(channels, "channel")
            kind = f"{raster.kind} of {values.dtype}, {named}"
            content = image
            if isinstance(image, np.ndarray):
                content = np.ascontiguousarray(image).tobytes()
            height, width = values.shape[:2]
        else:
            with decode.open_image(image) as opened:
                kind, (width, height) = f"{opened.format} {opened.mode}", opened.size
            decode.Decode(wanted or 3, max_pixels, "auto_each")(image)
            content = image
    except (OSError, ValueError) as error:
        return Look(error=examples.reason(error))
    digest = hashlib.blake2b(content, digest_size=16).digest()
    return Look(kind, width, height, len(content), digest, channels=channels)


def check(args: argparse.Namespace) -> Report:
    """Looks at all images that a command is about.

    Raises:
      ValueError, OSError: there is no such place.
    """
    report, how = Report(), {"threads": args.threads, "wanted": args.channels}
    if args.source == "folder":
        names, read = _files(folder.open_root(args.dir, "NAME:data=folder"), report)
        if names:
            _look(report, names, read, **how)
    rows: list[tuple[str, Callable[[int], Any], Sequence[str]]] = []
    try:
        for split in examples.splits(args):
            source = split.source
            names = [source.name_of(n) for n in range(len(source))]
            report.split_of |= dict.fromkeys(names, split.name)
            text = f"{split.name}: {source.summary()}"
            report.splits.append((text, _by_class(source)))
            rows.append((split.name, source.__getitem__, names))
    except ValueError as error:
        report.refused = str(error)
    if not report.images:  # those of a folder are files, whatever split has them
        for _, read_row, names in rows:
            _look(report, names, lambda n, r=read_row: r(n)["image"], **how)
    return report


def _files(
    root: filetree.Tree, report: Report
) -> tuple[list[str], Callable[[int], bytes]]:
    """Returns the image files below a folder; notes what else there is."""
    skipped: dict[str, str] = {}
    names = []
    for name in root.walk("", skipped):
        if layout.is_image(root, name):
            names.append(name)
        else:
            report.others[f".{layout.extension(name)}"] += 1
    broken = (pair for pair in skipped.items() if pair[1] not in filetree.HARMLESS)
    report.bad += [(name, why) for name, why in broken if layout.is_image(root, name)]
    names.sort()
    return names, lambda n: root.read(names[n])


def _look(
    report: Report,
    names: Sequence[str],
    read: Callable[[int], Any],
    *,
    threads: int,
    wanted: int | None = None,
) -> None:
    def one(number: int) -> Look:
        try:
            return look_at(read(number), wanted)
        except ModuleNotFoundError:  # of all files alike
            raise
        except Exception as error:  # whatever a file system or a format may raise
            return Look(error=examples.reason(error))

    for number, look in examples.read_all(one, len(names), threads):
        report.images += 1
        if look.error:
            report.bad.append((names[number], look.error))
        else:
            report.looks[names[number]] = look
    if wanted is None:
        _check_channels(report)


def _check_channels(report: Report) -> None:
    """Calls images bad that no run could read together with most of the others."""
    each = collections.Counter(look.channels for look in report.looks.values())
    most = each.most_common(1)[0][0] if each else 0
    if not most:
        return
    for name, look in list(report.looks.items()):
        own = look.channels or 3
        if not decode.fits(own, most):
            has = terminal.counted(own, "channel")
            report.bad.append((name, f"{has}; most images have {most}"))
            del report.looks[name]


def _by_class(source: base.Source) -> dict[str, int]:
    """Counts the images of each class; '' are those without a label."""
    counts = np.zeros(len(source.classes), np.int64)
    lacking = 0
    for row in range(len(source)) if source.classes else ():
        labels = source.labels_of(row)
        counts += labels
        lacking += not labels.any()
    return {**dict(zip(source.classes, map(int, counts), strict=True)), "": lacking}


def lines(report: Report) -> Iterator[str]:
    """Yields the text of a report."""
    looks = list(report.looks.values())
    size = sum(look.size for look in looks) / 2**20
    yield f"{report.images:,} images, {len(looks):,} of them readable, {size:,.1f} MiB"
    kinds = collections.Counter(look.kind for look in looks).most_common()
    if looks:
        yield "kinds: " + ", ".join(f"{count:,} {kind}" for kind, count in kinds)
        yield f"sizes: {_sizes(looks)}"
    if report.others:
        others = ", ".join(f"{n:,} {kind}" for kind, n in report.others.most_common())
        yield f"no images: {others}"
    for text, counts in report.splits:
        yield text
        if any(name for name in counts):
            yield f"  images by class: {_counts(counts)}"
    yield from _duplicates(report)
    if report.refused:
        yield f"refused: {report.refused}"
    yield f"bad: {len(report.bad):,} of {report.images:,} images"
    for name, why in sorted(report.bad):
        yield f"  {base.printable(name)}: {why}"


def _sizes(looks: Sequence[Look]) -> str:
    area = sorted(looks, key=lambda look: look.width * look.height)
    ends = " to ".join(f"{look.width}x{look.height}" for look in (area[0], area[-1]))
    median = (
        f"{statistics.median(values):g}"
        for values in ([x.width for x in looks], [x.height for x in looks])
    )
    different = len({(look.width, look.height) for look in looks})
    return f"{ends}, median {'x'.join(median)} (width x height), {different:,} in all"


def _counts(counts: dict[str, int]) -> str:
    classes = [(name, n) for name, n in counts.items() if name]
    shown = [f"{base.printable(name)} {n:,}" for name, n in classes[:_SHOWN]]
    more = len(classes) - _SHOWN
    values = [n for _, n in classes]
    shown += [f"... ({more:,} more; {min(values):,} to {max(values):,})"] * (more > 0)
    shown += [f"no label {counts['']:,}"] * bool(counts[""])
    return ", ".join(shown)


def _duplicates(report: Report) -> Iterator[str]:
    """Yields groups of equal images, those in several splits first."""
    groups = report.same()
    across = {id(g): {report.split_of[n] for n in g if n in report.split_of}
              for g in groups}  # fmt: skip
    leaks = sum(len(splits) > 1 for splits in across.values())
    extra = sum(len(group) - 1 for group in groups)
    yield (
        f"duplicates by content: {extra:,} in {len(groups):,} groups"
        + f"; {leaks:,} of these are in several splits" * bool(leaks)
    )
    groups.sort(key=lambda group: (-len(across[id(group)]), group))
    for group in groups[:_SHOWN]:
        where = sorted(across[id(group)])
        more = f" (in {' and '.join(where)})" * (len(where) > 1)
        names = [*map(base.printable, group[:5]), *["..."] * (len(group) > 5)]
        yield f"  {' = '.join(names)}{more}"
    if len(groups) > _SHOWN:
        yield f"  ... ({len(groups) - _SHOWN:,} groups more)"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 1 if anything is bad."""
    args = examples.parser("check", __doc__ or "").parse_args(argv)
    try:
        examples.check_numbers(args)
        report = check(args)
    except (ValueError, OSError, ImportError) as error:
        return exits.report(error, begun=False)
    print("\n".join(lines(report)), flush=True)
    return exits.FAILED if report.failed else exits.OK


if __name__ == "__main__":
    sys.exit(main())
