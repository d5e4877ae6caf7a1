"""Packs images, resized once, into a few large files that are quick to read.

    python -m litevit_jax.data.pack SRC DST --short-side=256 --quality=90
    python -m litevit_jax.data.pack DATA_DIR DST --source=tfds --name=imagenet2012 \\
        --split=train --shard=$TASK/16
    python -m litevit_jax.data.pack DST DST --verify

SRC is what data.dir is for data.source=folder (or --source), or - for none. The shorter
side of every image becomes --short-side, if it is longer; a JPEG that is small enough
already keeps its bytes. Labels, label maps, objects, class and file names are kept. All
splits of SRC are packed, unless --split names some. A shard that is complete is not
written again, so an interrupted command goes on where it stopped; the result depends on
SRC and the settings alone. With --shard=I/N the I-th of N jobs (from 0) writes its
part, so that an array job packs a large set. Train with
--config=...:data=packed,path=DST.
"""

from __future__ import annotations

import argparse
import ast
import concurrent.futures
import functools
import hashlib
import json
import math
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from litevit_jax import paths, registry
from litevit_jax.data import levels, shrink, survey
from litevit_jax.data.sources import base, packed

_PER_SHARD = 10_000
_EXIT_FAILED, _EXIT_USAGE = 1, 2


def pack(
    source: base.Source,
    target: pathlib.Path,
    *,
    split: str,
    short_side: int = 256,
    quality: int = 90,
    value_range: str = "full",
    shards: int | None = None,
    part: tuple[int, int] = (0, 1),
    threads: int = 4,
    max_bad_fraction: float = 0.001,
) -> int:
    """Writes the missing shards of `part`; returns how many.

    Args:
      source: the examples.
      target: folder to write to.
      split: name of the split there.
      short_side, quality: of the JPEGs.
      value_range: of pixels of more than 8 bits, as in `levels.parse`; not 'auto'.
      shards: files of the split; None: one for 10,000 images.
      part: (i, n): those shards whose number is i modulo n.
      threads: that decode and encode.
      max_bad_fraction: share of a shard (at least one image) that may be unreadable.

    Raises:
      ValueError: `target` holds other settings, or too many images are unreadable.
    """
    if not 0 <= part[0] < part[1]:
        raise ValueError(f"--shard={part[0]}/{part[1]}; expected I/N with 0 <= I < N")
    if short_side < 1 or not 1 <= quality <= 100:
        raise ValueError(
            f"--short-side={short_side}, --quality={quality}; expected at least 1 "
            "pixel and a quality from 1 to 100"
        )
    how = {"short_side": short_side, "quality": quality}
    shards = shards or max(math.ceil(len(source) / _PER_SHARD), 1)
    about = {
        "examples": len(source),
        "shards": shards,
        **how,
        "range": value_range,
        "classes": source.classes,
        "source": source.fingerprint(),
        **_kept(source),
    }
    _describe(target / f"{split}.json", about)
    written = 0
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for shard in range(part[0], shards, part[1]):
            stem = target / packed.shard_name(split, shard, shards)
            if _complete(stem):
                continue
            rows = range(*(n * len(source) // shards for n in (shard, shard + 1)))
            limit = max(max_bad_fraction * len(rows), 1 if max_bad_fraction else 0)
            images = _images(source, rows, pool, how | {"value_range": value_range})
            _write_shard(stem, images, limit)
            written += 1
    return written


def _kept(source: base.Source) -> dict[str, Any]:
    """Returns what else a manifest keeps of a source, where there is any."""
    kept = {x: [*getattr(source, x)] for x in ("annotations", "class_ids")}
    return {name: value for name, value in kept.items() if value}


def _check_labels(source: base.Source) -> None:
    """Raises ValueError for labels that packed images cannot keep."""
    if source.multi_label:
        raise ValueError(
            "images of several labels keep none of them when they are packed; pack "
            "them without, and give the table when they are read: data.labels=FILE"
        )


def _describe(path: pathlib.Path, about: dict[str, Any]) -> None:
    """Writes the manifest of a split, or checks that it is the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        old = {"range": "full", **_manifest(path)}
        changed = [k for k in about if old.get(k) != about[k]]
        if changed:
            key = changed[0]
            raise ValueError(
                f"{path} was begun with another {key} ({_short(old.get(key))}, now "
                f"{_short(about[key])}); pack into an empty folder, or repeat the "
                "first command"
            )
        return
    _write_json(path, about)


def _short(value: Any) -> str:
    return text if len(text := json.dumps(value)) <= 60 else text[:57] + "..."


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    # Jobs that run at the same time write the same; the last one stays.
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    partial.write_text(json.dumps(content))
    paths.rename(partial, path)


def _complete(stem: pathlib.Path) -> bool:
    manifest = stem.with_name(f"{stem.name}.json")
    file = stem.with_name(f"{stem.name}.{packed.EXTENSION}")
    if not manifest.exists() or not file.exists():
        return False
    try:
        return file.stat().st_size == _manifest(manifest).get("bytes")
    except ValueError:  # cut short: it is packed again
        return False


def _manifest(path: pathlib.Path) -> dict[str, Any]:
    return paths.read_json(path, "pack into an empty folder")


def _images(
    source: base.Source, rows: range, pool: Any, how: dict[str, Any]
) -> Iterator[tuple[str, int, bytes | Exception]]:
    """Yields name, label and JPEG (or the error) of each row, in order."""

    def one(row: int) -> tuple[str, int, bytes | Exception]:
        name = source.name_of(row)
        try:
            example = source[row]
            image = shrink.content(example, source.annotations, how)
            return name, int(example["label"]), image
        except base.AnnotationError:
            raise
        except Exception as error:  # whatever a file system or a format may raise
            return name, -1, error

    for start in range(rows.start, rows.stop, 256):  # a few in memory at a time
        yield from pool.map(one, range(start, min(start + 256, rows.stop)))


def _write_shard(
    stem: pathlib.Path,
    images: Iterator[tuple[str, int, bytes | Exception]],
    most_bad: float,
) -> None:
    """Writes one shard and, when it is complete, its manifest."""
    from array_record.python import array_record_module

    file = stem.with_name(f"{stem.name}.{packed.EXTENSION}")
    partial = file.with_name(f"{file.name}.{os.getpid()}.part")
    # group_size 1: records are read one at a time. A JPEG is compressed already.
    writer = array_record_module.ArrayRecordWriter(
        os.fspath(partial), "group_size:1,uncompressed"
    )
    labels, bad = [], []
    try:
        for name, label, image in images:
            if isinstance(image, Exception):
                bad.append([base.printable(name), f"{type(image).__name__}: {image}"])
                print(f"unreadable, skipped: {bad[-1][0]}: {bad[-1][1]}", flush=True)
                if len(bad) > most_bad:
                    raise ValueError(_too_many(bad, most_bad))
                continue
            writer.write(packed.encode(label, name, image))
            labels.append(label)
    finally:
        writer.close()
    manifest = {
        "count": len(labels),
        "bytes": partial.stat().st_size,
        "sha256": _checksum(partial),
        "labels": labels,
        "bad": bad,
    }
    paths.rename(partial, file)
    _write_json(stem.with_name(f"{stem.name}.json"), manifest)
    print(f"{file.name}: {len(labels)} images, {manifest['bytes']:,} bytes", flush=True)


def _too_many(bad: list[list[str]], most: float) -> str:
    listed = "\n".join(f"  {name}: {reason}" for name, reason in bad[:20])
    return (
        f"{len(bad)} images of one shard cannot be read, at most {math.floor(most)} "
        f"may; repair or remove them, or raise --max-bad-fraction:\n{listed}"
    )


def _checksum(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: pathlib.Path) -> list[str]:
    """Lists differences between the shards in `folder` and their manifests."""
    wrong = []
    for manifest in sorted(folder.glob("*-of-*.json")):
        file = manifest.with_suffix(f".{packed.EXTENSION}")
        try:
            checksum = _manifest(manifest).get("sha256")
        except ValueError as error:
            wrong.append(str(error))
            continue
        if not file.exists():
            wrong.append(f"{file.name}: missing")
        elif _checksum(file) != checksum:
            wrong.append(f"{file.name}: its checksum is not the manifest's")
    return wrong


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m litevit_jax.data.pack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("src", metavar="SRC")
    parser.add_argument("dst", metavar="DST", type=pathlib.Path)
    parser.add_argument("--source", default="folder", help="folder, tfds, cocojson...")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the source, as data.options: reduce_zero_label=True",
    )
    parser.add_argument("--name", default="", help="TFDS name: imagenet2012")
    parser.add_argument(
        "--split", action="append", help="default: train and all beside it"
    )
    parser.add_argument("--short-side", type=int, default=256)
    parser.add_argument("--quality", type=int, default=90, help="of JPEG, 1 to 100")
    parser.add_argument(
        "--range",
        default="full",
        help="black and white of more than 8 bits, as data.range: full, auto (of the "
        "first split), auto_each or LOW,HIGH",
    )
    parser.add_argument("--shards", type=int, help="default: one for 10,000 images")
    parser.add_argument("--shard", default="0/1", help="I/N: this job's part")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--max-bad-fraction", type=float, default=0.001)
    parser.add_argument("--verify", action="store_true", help="check DST's checksums")
    args = parser.parse_args(argv)
    try:
        index, count = args.shard.split("/")
        args.shard = int(index), int(count)
    except ValueError:
        parser.error(f"--shard={args.shard}; expected I/N, for example 0/16")
    return args


def _check(args: argparse.Namespace) -> None:
    """Raises ValueError for a number out of bounds, or a DST that is no folder."""
    bounds = {
        x: registry.bound_of(f"data.{x}") for x in ("max_bad_fraction", "threads")
    }
    for name, bound in {**bounds, "shards": registry.Bound(1, whole=True)}.items():
        value, flag = getattr(args, name), f"--{name.replace('_', '-')}"
        if value is not None and bound is not None and not bound.holds(value):
            raise ValueError(f"{flag}={value}; expected {bound.text(value)}")
    if args.dst.is_file():
        raise ValueError(f"{args.dst} is a file; expected a folder to pack into")


def _pack_splits(args: argparse.Namespace) -> None:
    """Packs each split asked for, or all there are."""
    _check(args)
    for split, source in _sources(args):
        # A folder's path is a split's name too: 'a/train'.
        name = split.strip("./").replace("/", "-") or "train"
        print(f"{name}: {source.summary()}", flush=True)
        _check_labels(source)
        _settle_range(args, source)
        for line in survey.check(source, channels=None, range=args.range):
            line = line.replace("--config.data.range", "--range")
            print(f"{name}: {line}", flush=True)
        pack(
            source,
            args.dst,
            split=name,
            short_side=args.short_side,
            quality=args.quality,
            value_range=args.range,
            shards=args.shards,
            part=args.shard,
            threads=args.threads,
            max_bad_fraction=args.max_bad_fraction,
        )


def _sources(args: argparse.Namespace) -> Iterator[tuple[str, base.Source]]:
    """Yields (split, its examples); by default 'train' and those beside it."""
    make = functools.partial(
        registry.make,
        "data.sources",
        args.source,
        dir=None if args.src == "-" else args.src,
        name=args.name,
        **dict(map(_option, args.option)),
    )
    splits = args.split or ["train"]
    opened = [(split, make(split=split)) for split in splits]
    yield from opened
    if args.split:
        return
    others = opened[0][1].other_splits
    for split in others or ["test"]:
        try:
            yield split, make(split=split)
        except ValueError as error:  # the source does not tell which it has
            if others:
                raise
            print(f"no split {split!r}: {error}")


def _option(text: str) -> tuple[str, Any]:
    """Returns name and value of NAME=VALUE; what is no literal is text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--option={text}; expected NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value


def _settle_range(args: argparse.Namespace, source: base.Source) -> None:
    """Resolves range 'auto': the same values for all splits of a folder."""
    if levels.parse(args.range) != "auto":
        return
    manifests = [p for p in sorted(args.dst.glob("*.json")) if "-of-" not in p.stem]
    if manifests:
        args.range = _manifest(manifests[0]).get("range", "full")
    else:
        pair = survey.percentiles(source)
        args.range = "full" if pair is None else levels.spell(pair)
    print(f"--range=auto is {args.range}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 2 for a mistake in it or its data."""
    args = _parse(argv)
    try:
        if args.verify:
            wrong = verify(args.dst)
            print("\n".join(wrong) or f"{args.dst}: all checksums agree")
            return _EXIT_FAILED if wrong else 0
        _pack_splits(args)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        # Errors of the system have a number; ours tell what the user can mend.
        system = isinstance(error, OSError) and error.errno is not None
        return _EXIT_FAILED if system else _EXIT_USAGE
    print(f"train with --config=configs/mae_tiny.py:data=packed,path={args.dst}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
