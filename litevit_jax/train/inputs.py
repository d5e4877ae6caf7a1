"""A `data` block of a config -> its sources, and batches of them for evaluation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from litevit_jax import registry
from litevit_jax.data import ops as data_ops
from litevit_jax.data import pipeline, subset
from litevit_jax.data.sources import base as sources
from litevit_jax.train import batches

SPLITS = ("eval", "train")
_PROBED = 64  # examples that are asked for their labels

# What says which examples a block means; the rest is how they are read.
_WHICH = {
    "source": None,
    "name": "",
    "dir": None,
    "train_split": "train",
    "eval_split": "test",
    "holdout": 0.0,
    "validation_share": 0.0,
    "shots": None,
    "fraction": 1.0,
    "subset_seed": 0,
}
_HOW = ("image_size", "image_width", "eval_crop_fraction", "max_bad_fraction")


def source(data: Any, split: str) -> sources.Source:
    """The examples of 'train' or 'eval', by what `data` says of splits and parts.

    `a+b` joins splits. With `validation_share`, 'eval' is a part of the training
    split, drawn by `subset_seed`, and 'train' the rest.

    Raises:
      ValueError, OSError: no such data, split or part.
    """
    registry.check("split", split, list(SPLITS))
    share, seed = data["validation_share"], data["subset_seed"]
    if split == "eval":
        if not share:
            return _open(data, data["eval_split"])
        return subset.divide(_open(data, data["train_split"]), share, seed)[1]
    whole = _open(data, data["train_split"])
    if share:
        whole = subset.divide(whole, share, seed)[0]
    return subset.take(whole, shots=data["shots"], fraction=data["fraction"], seed=seed)


def _open(data: Any, splits: str) -> sources.Source:
    kwargs = {key: data[key] for key in ("dir", "name", "holdout")}
    return subset.join(
        [
            registry.make("data.sources", data["source"], split=split.strip(), **kwargs)
            for split in splits.split("+")
        ]
    )


def own(title: str, block: dict[str, Any], data: Any) -> dict[str, Any]:
    """The data of evaluator `title`: `block`, which says which; `data` says how.

    Raises:
      ValueError: no source, or a field that such a block does not have.
    """
    given = {key: value for key, value in block.items() if value is not None}
    for key in given:
        known = [*_WHICH, *_HOW]
        registry.check(f"field of evals.{title}.data", key, known)
    if "source" not in given:
        raise ValueError(
            f"evals.{title}.data names no source; choose from "
            f"{', '.join(registry.choices('data.sources'))}"
        )
    return {**data.to_dict(), **_WHICH, **given}


def image_block(data: Any) -> dict[str, Any]:
    """What `data` says of images, as `data.ops` takes it."""
    return {
        "image_size": batches.image_size(data),
        "channels": data["channels"],
        "max_pixels": data["max_pixels"],
        "crop_scale": tuple(data["crop_scale"]),
        "crop_ratio": tuple(data["crop_ratio"]),
        "interpolation": data["interpolation"],
        "single_draw": data["single_draw"],
        "flip": data["flip"],
        "views": data["views"],
        "randaugment": dict(data["randaugment"]),
        "eval_crop_fraction": data["eval_crop_fraction"],
    }


def evaluation_batches(data: Any, batch_size: int, mesh: Mesh) -> Callable[..., Any]:
    """source -> each of its examples once, in batches no larger than training's."""
    size = min(batch_size, max(256, mesh.size))  # what fits there fits here
    size = max(size // mesh.size, 1) * mesh.size
    return functools.partial(
        pipeline.eval_batches,
        transform=data_ops.eval_ops(**image_block(data)),
        batch_size=size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=data["workers"],
        threads=data["threads"],
        max_bad_fraction=data["max_bad_fraction"],
    )


def check_labels(found: sources.Source, what: str) -> None:
    """Raises ValueError if `found` has no labels, or nothing to tell apart.

    A few examples all over it are asked: data without labels has none at all.
    """
    if not found.classes:
        raise ValueError(
            f"{what} needs labels, but the data has none: give a folder with one "
            "subfolder per class"
        )
    if len(found.classes) == 1:
        raise ValueError(
            f"{what}: all examples are of one class, {found.classes[0]!r}; there is "
            "nothing to tell apart: expected two classes or more"
        )
    probed = np.linspace(0, len(found) - 1, min(len(found), _PROBED)).astype(int)
    if all(found.label_of(int(index)) < 0 for index in probed):
        raise ValueError(
            f"{what} needs labels, but this split has none (as {len(probed)} of its "
            f"{len(found)} examples say, such as {found.name_of(int(probed[0]))}); "
            "name a labelled split, for example the validation split where the test "
            "labels are kept secret"
        )
