"""A config's data block -> the sources of its splits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from litevit_jax import registry
from litevit_jax.data import subset


def sources(data: ConfigDict) -> Callable[[str], Any]:
    """Split -> source: 'train', 'eval', and 'select', the part held out of 'train'.

    Each is opened once, when it is asked for.

    Raises:
      ValueError: (when asked) no such split, or a drawing that is not possible.
    """
    parts = functools.cache(functools.partial(_training_parts, data))
    return functools.cache(functools.partial(_source, data, parts))


def _source(data: ConfigDict, parts: Callable[[], Any], split: str) -> Any:
    if split == "select" and not data.select_fraction:
        raise ValueError(
            "split 'select' is a part of the training images, but "
            f"data.select_fraction={data.select_fraction}; keep a share of them for it "
            "with --config.data.select_fraction=0.1"
        )
    known = ["eval", "train"] + ["select"] * bool(data.select_fraction)
    registry.check("split", split, sorted(known))
    if split == "eval":
        return _read_source(data, data.eval_split)
    return parts()[split == "select"]


def _read_source(data: ConfigDict, split: str) -> Any:
    return registry.make(
        "data.sources",
        data.source,
        split=split,
        dir=data.dir,
        name=data.name,
        holdout=data.holdout,
    )


def _training_parts(data: ConfigDict) -> tuple[Any, Any]:
    """The images to train on, and those of them that are kept to choose by."""
    source = subset.take(
        _read_source(data, data.train_split),
        shots=data.shots,
        fraction=data.fraction,
        seed=data.subset_seed,
    )
    if not data.select_fraction:
        return source, None
    return subset.hold_out(
        source,
        fraction=data.select_fraction,
        at_most=data.select_at_most,
        seed=data.subset_seed,
    )
