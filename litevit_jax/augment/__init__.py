"""Transformations of a batch on the device: (key, batch) -> batch, pure."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import jax

from litevit_jax import choices

Op = Callable[[jax.Array, dict[str, Any]], dict[str, Any]]

# Name -> 'module.function' that builds the op, in the order in which ops run. The order
# of a config cannot serve, since a ConfigDict sorts its keys.
OPS = {
    "photometric": "photometric.make",
    "color_jitter": "color.color_jitter",
    "gaussian_blur": "spatial.gaussian_blur",  # before grey: the authors' MoCo v3
    "grayscale": "color.grayscale",
    "flip": "spatial.flip",
    "solarize": "color.solarize",
    "normalize": "color.normalize",
    "erase": "erase.make",
    "mix": "mix.make",
}


def make(blocks: dict[str, dict[str, Any]]) -> tuple[Op, ...]:
    """Builds the ops named by `config.augment`, in the order of `OPS`.

    Raises:
      ValueError: unknown op, with near matches.
    """
    for name in blocks:
        choices.check("augment", name, OPS)
    return tuple(
        _maker(path)(**blocks[name]) for name, path in OPS.items() if name in blocks
    )


def _maker(path: str) -> Callable[..., Op]:
    module, _, function = path.partition(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), function)


def apply(
    ops: tuple[Op, ...], key: jax.Array, batch: dict[str, Any], *, first: int = 0
) -> dict[str, Any]:
    """Runs `ops` in order, each with its own key.

    `first` is the index of the first op among all, if others ran before.
    """
    for index, op in enumerate(ops, start=first):
        batch = op(jax.random.fold_in(key, index), batch)
    return batch


def split(ops: tuple[Op, ...]) -> tuple[tuple[Op, ...], tuple[Op, ...]]:
    """Splits `ops` into those that need the whole batch and those that run on parts.

    The numbers drawn for an example depend on its `slot` alone, so the second kind may
    run on slices of a batch. An op that mixes examples has a true `pairs_examples`.
    """
    count = 0
    for index, op in enumerate(ops):
        if getattr(op, "pairs_examples", False):
            count = index + 1
    return ops[:count], ops[count:]
