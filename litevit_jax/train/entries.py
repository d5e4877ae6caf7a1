"""Entries of a checkpoint that another run starts from: their names and meaning.

A shape that fits is not enough: a table of relative positions of 2x4 patches has the
size of one of 4x2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from litevit_jax import checkpoint

Shape = tuple[int, ...]
Grid = tuple[int, int]

_BIAS_TABLE = "relative_position_bias_table"
_CLASSES = re.compile(r"head(_dist)?/fc/kernel")


def rename(found: dict[str, Any], rules: Sequence[str]) -> dict[str, Any]:
    """`found` with beginnings of names changed by rules such as 'old/=new/'.

    Raises:
      ValueError: a rule that is none, that no name fits, or whose result is taken.
    """
    for rule in rules:
        old, _, new = rule.partition("=")
        moved = {k: new + k.removeprefix(old) for k in found if k.startswith(old)}
        there = sorted(set(moved.values()) & (found.keys() - moved.keys()))
        if not (old and new and moved) or there:
            why = f"{there[0]} is there already" if there else "nothing has that name"
            raise ValueError(
                f"init_rename={rule!r}: {why}; expected 'OLD/=NEW/' for a beginning "
                f"of names in the checkpoint, which has {', '.join(sorted(found)[:4])}"
            )
        found = {moved.get(name, name): x for name, x in found.items()}
    return found


def taken(
    params: Any, found: dict[str, Any], load: Sequence[str]
) -> dict[str, tuple[Shape, Shape]]:
    """Name -> (shape in `found`, shape in `params`) of what `load` names of both."""
    shapes = {}
    for dotted, leaf in checkpoint.flatten(params).items():
        name = dotted.replace(".", "/")
        if name in found and any(re.fullmatch(p, name) for p in load):
            shapes[name] = (found[name].shape, leaf.shape)
    return shapes


def check_classes(shapes: dict[str, tuple[Shape, Shape]]) -> None:
    """Raises a ValueError if a head tells another number of classes apart."""
    for name, (theirs, ours) in shapes.items():
        if _CLASSES.fullmatch(name) and theirs[-1] != ours[-1]:
            raise ValueError(
                f"its {name} tells {theirs[-1]} classes apart, this run {ours[-1]}; "
                "leave the head out of --config.init_load (and name it in "
                "--config.init_skip) for a fresh one, or set "
                f"--config.objective.num_classes={theirs[-1]}"
            )


def check_tables(
    shapes: dict[str, tuple[Shape, Shape]], theirs: Grid, ours: Grid
) -> None:
    """Raises a ValueError if a table of relative positions is for another grid."""
    tables = [name for name in shapes if name.endswith(_BIAS_TABLE)]
    if tables and theirs != ours:
        raise ValueError(
            f"its {tables[0]} is for {theirs[0]}x{theirs[1]} patches, this run has "
            f"{ours[0]}x{ours[1]}; tables of relative positions are not resized: give "
            "images of the size that it was trained with (--config.data.image_size)"
        )
