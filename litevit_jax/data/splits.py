"""Opens the splits that a config's `data` block names, and batches them to evaluate."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging
from jax.sharding import Mesh

from litevit_jax import choices, distributed, paths, registry, terminal
from litevit_jax.data import (
    cache,
    canvases,
    joint,
    levels,
    pipeline,
    settings,
    subsets,
    survey,
    transforms,
)
from litevit_jax.data.sources import base as sources_base

# Fields that select examples, with defaults; the others set how they are read.
_WHICH: dict[str, Any] = {
    "source": None,
    "name": "",
    "dir": None,
    "options": {},
    "labels": None,
    "unlisted": "refuse",
    "train_split": "train",
    "eval_split": "test",
    "holdout": {"test": 0.0, "eval": 0.0, "select": 0.0, "select_at_most": 20_000},
    "shots": None,
    "fraction": 1.0,
    "fraction_of": None,
    "long_tail": None,
    "sampling": "images",
    "subset_seed": 0,
}
_SETTLED = (
    f"{levels.PERCENTILES[0]} % of the pixels of up to {survey.IMAGES} images are "
    f"darker, {100 - levels.PERCENTILES[1]} % brighter"
)
_IN_STORES = ("arrays", "folder", "segfolder", "tfds")  # sources that read gs://
_ROWS = 32  # images of 224 x 224 pixels that a device evaluates at once
_HOW = ("image_size", "image_width", "eval_crop_fraction", "max_bad_fraction")


def open_splits(data: Any) -> Callable[[str], sources_base.Source]:
    """Returns a function from a split's name to its examples, by the block `data`.

    Splits are 'train', 'eval', and 'select', which `holdout.select` keeps out of
    'train' to choose settings by. `a+b` joins splits of the data set. With
    `holdout.eval`, 'eval' is a part of the training split, drawn by `subset_seed`,
    and 'train' the rest. Each split is opened once, on its first call.

    Raises:
      ValueError, OSError: (on a call) no such data, split or part, or images that
        cannot have the channels or the range asked for.
    """
    parts = functools.cache(functools.partial(_training_parts, data))
    classes: dict[str, list[str]] = {}

    @functools.cache
    def opened(split: str) -> sources_base.Source:
        chosen = _source(data, parts, split)
        _survey(chosen, split, data)
        kept = cache.keep_if_asked(chosen, data)
        classes[split] = kept.classes
        _check_same_classes(classes, data)
        return kept

    return opened


def _survey(source: sources_base.Source, split: str, data: Any) -> None:
    """Warns about what images would lose, judged by a few of them.

    Raises:
      ValueError: they cannot have the channels or the range asked for.
    """
    lines = survey.check(
        source,
        channels=data["channels"],
        range=data["range"] or "full",
        max_pixels=data["max_pixels"],
    )
    for line in [*lines, *_left_out(source, data)]:
        _warn(f"split {split!r}: {line}")


def _left_out(source: sources_base.Source, data: Any) -> list[str]:
    """Says which objects are too many, where training reads them."""
    counts = np.array(source.object_counts, int)
    if not joint.has_objects(settings.annotations_of(data)) or not len(counts):
        return []
    most = (data["joint"] or {}).get("max_objects", joint.Settings.max_objects)
    images, objects = (counts > most).sum(), np.maximum(counts - most, 0).sum()
    if not images:
        return []
    return [
        f"{images} of {len(counts)} images have more than data.joint.max_objects="
        f"{most} objects (up to {counts.max()}): the largest are kept, and "
        f"{objects} are no targets in training"
    ]


@functools.cache
def _warn(line: str) -> None:
    """Warns once, on the first process."""
    if distributed.is_primary():
        logging.warning("%s", line)


def pixel_range(data: Any, split: str) -> str | None:
    """Resolves `data.range` for the run's record: the values instead of 'auto'.

    Packed images bring their range. `split` is read for either.

    Raises:
      ValueError: the range is invalid, or differs from that of packed images.
    """
    text = data["range"]
    auto = levels.parse(text or "full") == "auto"
    if not (auto or data["source"] == "packed"):
        return text
    images = _open(data, split)
    stored = images.stored_range
    if stored not in (None, "full"):
        if text not in (None, "auto", stored):
            raise ValueError(
                f"data.range={text}, but the images of {data['dir']} were packed with "
                f"range {stored}; leave data.range out, or pack them again"
            )
        return stored
    if not auto:
        return text
    pair = survey.percentiles(
        images, channels=data["channels"], max_pixels=data["max_pixels"]
    )
    chosen = "full" if pair is None else levels.spell(pair)
    why = "no image looked at has more than 8 bits" if pair is None else _SETTLED
    _warn(f"data.range=auto is {chosen} (split {split!r}): {why}")
    return chosen


def _check_same_classes(classes: dict[str, list[str]], data: Any) -> None:
    """Raises ValueError if training and evaluation number other classes."""
    train, test = (set(classes.get(split, ())) for split in ("train", "eval"))
    if train and test and classes["train"] != classes["eval"]:
        lists = [
            sources_base.first(sorted(s)) or "none"
            for s in (train - test, test - train)
        ]
        raise ValueError(
            f"data.train_split={data['train_split']!r} and data.eval_split="
            f"{data['eval_split']!r} have other classes (only the first: {lists[0]}; "
            f"only the second: {lists[1]}), so their labels cannot be compared; name "
            "splits with the same classes"
        )


def open_split(data: Any, split: str) -> sources_base.Source:
    """Opens one split, see `open_splits`."""
    return open_splits(data)(split)


def _source(data: Any, parts: Callable[[], Any], split: str) -> Any:
    holdout = data["holdout"]
    if split == "select" and not holdout["select"]:
        raise ValueError(
            "split 'select' is a part of the training images, but "
            f"data.holdout.select={holdout['select']}; keep a share of them for it "
            "with --config.data.holdout.select=0.1"
        )
    known = ["eval", "train"] + ["select"] * bool(holdout["select"])
    choices.check("split", split, sorted(known))
    if split != "eval":
        return parts()[split == "select"]
    if not holdout["eval"]:
        return _open(data, data["eval_split"])
    whole = _open(data, data["train_split"])
    return subsets.split_validation(whole, holdout["eval"], data["subset_seed"])[1]


def _training_parts(data: Any) -> tuple[Any, Any]:
    """Returns the images to train on, and those held out to choose settings by."""
    whole, seed = _open(data, data["train_split"]), data["subset_seed"]
    holdout = data["holdout"]
    if holdout["eval"]:
        whole = subsets.split_validation(whole, holdout["eval"], seed)[0]
    whole = subsets.training_subset(
        whole,
        shots=data["shots"],
        fraction=data["fraction"],
        seed=seed,
        of=data["fraction_of"],
        long_tail=data["long_tail"],
    )
    share, most = holdout["select"], holdout["select_at_most"]
    parts = whole, None
    if share:
        parts = subsets.split_selection(whole, share=share, at_most=most, seed=seed)
    sampling = data.get("sampling") or "images"
    return subsets.sampled(parts[0], sampling, seed), parts[1]


def _open(data: Any, splits: str) -> sources_base.Source:
    kwargs = {key: data[key] for key in ("dir", "name")}
    # An open option has the default of the source.
    options = dict(data.get("options") or {}).items()
    kwargs |= {key: value for key, value in options if value is not None}
    kwargs["holdout"] = data["holdout"]["test"]
    kwargs |= _table(data["source"], data.get("labels"), data.get("unlisted"))
    if not paths.is_local(data["dir"] or ""):
        paths.path(data["dir"])  # an error names the missing package
        if data["source"] not in _IN_STORES:
            raise ValueError(
                f"data.dir={data['dir']}: source {data['source']!r} reads local files; "
                "copy them to each host or mount the bucket (gcsfuse). Straight from a "
                f"store are read: {', '.join(_IN_STORES)}"
            )
    opened = [
        registry.make("data.sources", data["source"], split=split, **kwargs)
        for split in map(str.strip, splits.split("+"))
    ]
    for split, source in zip(splits.split("+"), opened, strict=True):
        _check_channels(source, data)
        name = split.strip()
        what = "" if name == "." else f"split {name!r}: "
        _say(f"{what}{source.summary()}")
    return subsets.join(opened)


def _table(source: str, labels: str | None, unlisted: str | None) -> dict[str, Any]:
    """Returns the keywords of a source that are about a table of labels.

    Raises:
      ValueError: there is a table, and the source takes none.
    """
    known = registry.defaults("data.sources", source)
    if labels and "labels" not in known:
        raise ValueError(
            f"data.labels={labels}: source {source!r} takes no table of labels; leave "
            "it out, or read a folder, tar files or packed images"
        )
    given = {"labels": labels or None, "unlisted": unlisted}
    return {k: v for k, v in given.items() if v is not None and k in known}


def _check_channels(source: sources_base.Source, data: Any) -> None:
    stored, wanted = source.channels, data["channels"]
    if None not in (stored, wanted) and stored != wanted and {stored, wanted} != {1, 3}:
        raise ValueError(
            f"data.dir={data['dir']}: its images have {stored} channels, data.channels="
            f"{wanted}; set --config.data.channels={stored} (1 and 3 alone are "
            "converted to each other)"
        )


@functools.cache
def _say(text: str) -> None:
    """Prints a line, once however often the same data are opened."""
    terminal.ConsoleLine().say(text)


def evaluator_data(title: str, block: dict[str, Any], data: Any) -> dict[str, Any]:
    """Returns the data block of evaluator `title`: examples of `block`, read as `data`.

    Raises:
      ValueError: no source, or an unknown field.
    """
    given = {key: value for key, value in block.items() if value is not None}
    kept = {**_WHICH["holdout"], **given.get("holdout", {})}
    for block, known in ((given, [*_WHICH, *_HOW]), (kept, [*_WHICH["holdout"]])):
        for key in block:
            choices.check(f"field of evals.{title}.data", key, known)
    if "source" not in given:
        raise ValueError(
            f"evals.{title}.data names no source; choose from "
            f"{', '.join(registry.choices('data.sources'))}"
        )
    return {**data.to_dict(), **_WHICH, **given, "holdout": kept}


def open_evaluator(title: str, data: Any) -> Callable[[str], sources_base.Source]:
    """Opens the splits of evaluator `title`, whose block `data` advice then names."""
    opened = open_splits(data)
    fields = "|".join([*_WHICH, *_HOW])

    def source(split: str) -> sources_base.Source:
        try:
            return opened(split)
        except (ValueError, FileNotFoundError) as error:
            flag = rf"--config\.data\.(?=({fields})\b)"
            text = re.sub(flag, f"--config.evals.{title}.data.", str(error))
            kind = ValueError if isinstance(error, ValueError) else FileNotFoundError
            raise kind(f"evals.{title}.data: {text}") from error

    return source


def evaluation_rows(data: Any, mesh: Mesh) -> int:
    """Returns how many images all devices of `mesh` evaluate at once.

    Each device has a power of two that depends on the image size alone: for another
    shape a compiler adds in another order, and where features are nearly equal such
    rounding changes the nearest neighbours.
    """
    height, width = settings.image_size(data)
    rows = min(_ROWS, _ROWS * 224**2 // (height * width))
    return 2 ** max(rows.bit_length() - 1, 0) * mesh.size


def evaluation_batches(data: Any, batch_size: int, mesh: Mesh) -> Callable[..., Any]:
    """Returns a function from a source to batches that show each example once.

    Batches have about `batch_size` images, at most 256, a multiple of
    `evaluation_rows`; with several processes exactly that many, since parts of larger
    batches would mix the order of the examples. Images with annotations are whole, on
    canvases; all of a batch have one size, with objects the image size. With label maps
    the function takes `scales`, too: factors of the images' size, for each of which the
    batch follows, see `canvases.batches`.
    """
    rows = evaluation_rows(data, mesh)
    many = min(batch_size, 256) // rows if distributed.process_count() == 1 else 1
    images = settings.image_settings(data)
    stream = functools.partial(
        pipeline.eval_batches,
        batch_size=rows * max(many, 1),
        process_index=distributed.process_index(),
        process_count=distributed.process_count(),
        workers=data["workers"],
        threads=data["threads"],
    )
    fraction = data["max_bad_fraction"]
    if not settings.annotations_of(data):
        transform = transforms.eval_ops(**images)
        return functools.partial(stream, transform=transform, max_bad_fraction=fraction)
    if joint.has_objects(settings.annotations_of(data)):
        canvas = transforms.canvas_op(settings.image_size(data), **images)
        return functools.partial(stream, transform=canvas, max_bad_fraction=fraction)
    return _canvas_batches(data, images, stream)


def _canvas_batches(
    data: Any, images: dict[str, Any], stream: Callable[..., Any]
) -> Callable[[sources_base.Source], canvases.Batches]:
    """Returns `evaluation_batches` of whole images, on canvases of few sizes."""
    crop, how = settings.image_size(data), joint.Settings(**images["joint"])
    threads = data["threads"] or os.cpu_count() or 1

    @functools.cache
    def group(source: sources_base.Source, scales: tuple[float, ...]) -> Any:
        return canvases.group(source, [how.scaled(x) for x in scales], crop, threads)

    def batches(
        source: sources_base.Source, scales: tuple[float, ...] = (1.0,)
    ) -> canvases.Batches:
        def open_stream(part: sources_base.Source, view: int, size: joint.Size) -> Any:
            bad = data["max_bad_fraction"] * len(source) / len(part)
            scaled = dataclasses.asdict(how.scaled(scales[view]))
            transform = transforms.canvas_op(size, **images | {"joint": scaled})
            return stream(part, transform=transform, max_bad_fraction=min(bad, 1.0))

        return canvases.batches(source, group(source, scales), open_stream)

    return batches
