"""Transformations of a batch on the device: (key, batch) -> batch, pure."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import jax

from litevit_jax.augment import color

Op = Callable[[jax.Array, dict[str, Any]], dict[str, Any]]

OPS: dict[str, Callable[..., Op]] = {"normalize": color.normalize}


def make(blocks: dict[str, dict[str, Any]]) -> tuple[Op, ...]:
    """Builds the ops named by `config.augment`, in its order.

    Raises:
      ValueError: unknown op, with near matches.
    """
    for name in blocks:
        if name not in OPS:
            near = difflib.get_close_matches(name, OPS)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(
                f"augment {name!r} unknown; {hint}choose from {', '.join(OPS)}"
            )
    return tuple(OPS[name](**kwargs) for name, kwargs in blocks.items())


def apply(ops: tuple[Op, ...], key: jax.Array, batch: dict[str, Any]) -> dict[str, Any]:
    """Runs `ops` in order, each with its own key."""
    for place, op in enumerate(ops):
        batch = op(jax.random.fold_in(key, place), batch)
    return batch
