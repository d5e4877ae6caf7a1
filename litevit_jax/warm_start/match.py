"""Entries of a checkpoint that another run starts from: their names and meaning.

A shape that fits is not enough: a table of relative positions of 2x4 patches has the
size of one of 4x2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from litevit_jax import trees

Shape = tuple[int, ...]
Grid = tuple[int, int]

_DRAWN = ("fraction_of", "long_tail", "shots")
IMAGES = ("channels", "image_size", "image_width")  # left to `images`
_BIAS_TABLE = "relative_position_bias_table"
_CLASSES = re.compile(r"head(_dist)?/fc/kernel")


def data_of(run: dict[str, Any]) -> dict[str, Any]:
    """The data block of a run's saved config, for another run to take.

    Which part of the images was drawn to learn from is that run's own affair.
    """
    block = {k: v for k, v in run["data"].items() if k not in _DRAWN}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in block.items()}


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
    for name, leaf in trees.flatten(params).items():
        if name in found and any(re.fullmatch(p, name) for p in load):
            shapes[name] = (found[name].shape, leaf.shape)
    return shapes


def classes_of(known: Any) -> list[str]:
    """Names of the classes that a run, or a file, tells apart; [] if unknown.

    `known`: the config of either.
    """
    return list(known.get("derived", known).get("classes") or [])


def check_names(head: str, theirs: list[str], ours: list[str]) -> None:
    """Raises a ValueError if a head has other classes under the same numbers."""
    apart = [pair for pair in zip(theirs, ours, strict=False) if pair[0] != pair[1]]
    if theirs and ours and apart:
        label = theirs.index(apart[0][0])
        raise ValueError(
            f"its {head} knows class {label} as {apart[0][0]!r}, the data as "
            f"{apart[0][1]!r} ({len(apart)} classes differ): expected the same names "
            "in the same order; name the folders of the data as they were, or leave "
            "this head out"
        )


def check_classes(
    shapes: dict[str, tuple[Shape, Shape]], known: list[str], names: list[str]
) -> None:
    """Raises a ValueError if a head that is taken tells other classes apart.

    `known` are the names of its classes, `names` those of this run's.
    """
    for name, (theirs, ours) in shapes.items():
        if not _CLASSES.fullmatch(name):
            continue
        check_names(name, known, names)
        if theirs[-1] != ours[-1]:
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


def check_donor(where: str, ours: Any, theirs: Any, fields: Sequence[str]) -> None:
    """Raises a ValueError unless two encoders have the same sizes, so that a block of
    one can stand in the other."""
    for field in fields:
        one, other = getattr(ours, field), getattr(theirs, field)
        if one != other:
            raise ValueError(
                f"{where}: its encoder has {field}={other}, that of --config.init "
                f"{field}={one}; blocks can be swapped between encoders of the same "
                "sizes alone"
            )


def merge(
    found: dict[str, Any], donor: dict[str, Any], load: Sequence[str], where: str
) -> dict[str, Any]:
    """`found` with the entries that `load` names replaced by the donor's.

    Raises:
      ValueError: one of them lacks an entry that the other has.
    """
    taken = {
        side: {k for k in given if any(re.fullmatch(p, k) for p in load)}
        for side, given in (("ours", found), ("theirs", donor))
    }
    apart = sorted(taken["ours"] ^ taken["theirs"])
    if apart:
        raise ValueError(
            f"{where}: {apart[0]} is in one of the two checkpoints alone "
            f"({len(apart)} such entries); their blocks cannot be swapped"
        )
    return {**found, **{name: donor[name] for name in taken["theirs"]}}


def check_same(name: str, theirs: dict[str, Any], ours: Any, where: str) -> None:
    """Raises a ValueError if a field that is set differs from the checkpoint's."""
    for field, value in ours.items():
        if not agree(field, value, theirs.get(field)):
            raise ValueError(
                f"{name}.{field}={value}, but the checkpoint {where} has "
                f"{field}={theirs[field]}: another architecture; leave the field out "
                "to take the checkpoint's"
            )


def agree(field: str, ours: Any, theirs: Any) -> bool:
    """Whether a field of the encoder fits the checkpoint's."""
    if field == "pos_embed" and ours and ours.startswith("learned"):
        return True  # a parameter can start from any table
    return ours is None or theirs in (None, ours)


def about_norm(found: dict[str, Any], problem: str) -> str:
    """What to do if an encoder's last norm is missed that follows the average there."""
    if "encoder/norm/scale" in found or "encoder/norm/scale" not in problem:
        return ""
    if "head/fc_norm/scale" not in found:
        return ""
    return (
        "\nits last norm follows the average of the patch tokens (head/fc_norm); read "
        "those with --config.objective.pool=avg"
    )
