"""Matches the arrays of a checkpoint with those of a run, by name and by meaning.

A shape that fits is not enough: a table of relative positions of 2x4 patches has the
size of one of 4x2.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from litevit_jax import trees

if TYPE_CHECKING:
    from litevit_jax.models import vit

Shape = tuple[int, ...]
Grid = tuple[int, int]

_DRAWN = ("fraction_of", "long_tail", "shots")
IMAGES = ("channels", "image_size", "image_width")  # left to `images`
BIAS_TABLE = "relative_position_bias_table"
_DETECTS = "box_head/logits/kernel"  # of the classes, and of background after them
_CLASSES = re.compile(rf"((decode_)?head|head_dist)/fc/kernel|{_DETECTS}")


def data_of(run: dict[str, Any]) -> dict[str, Any]:
    """Returns the data block of a run's saved config, for another run to take.

    Fields that draw a part of the images stay behind: they are that run's own.
    """
    block = {"unlisted": "refuse"}  # older runs have not recorded it
    block |= {k: v for k, v in run["data"].items() if k not in _DRAWN}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in block.items()}


def rename_params(arrays: dict[str, Any], rules: Sequence[str]) -> dict[str, Any]:
    """Changes the beginnings of names by rules such as 'old/=new/'.

    Raises:
      ValueError: a rule has another form, fits no name, or leads to a name that
        exists already.
    """
    for rule in rules:
        old, _, new = rule.partition("=")
        moved = {k: new + k.removeprefix(old) for k in arrays if k.startswith(old)}
        clashes = sorted(set(moved.values()) & (arrays.keys() - moved.keys()))
        if not (old and new and moved) or clashes:
            why = "nothing has that name"
            if clashes:
                why = f"{clashes[0]} is there already"
            raise ValueError(
                f"init_rename={rule!r}: {why}; expected 'OLD/=NEW/' for a beginning "
                f"of names in the checkpoint, which has {', '.join(sorted(arrays)[:4])}"
            )
        arrays = {moved.get(name, name): x for name, x in arrays.items()}
    return arrays


def shapes(
    params: Any, arrays: dict[str, Any], load: Sequence[str]
) -> dict[str, tuple[Shape, Shape]]:
    """Maps the names in `load` to their shapes in `arrays` and in `params`.

    Names that only one of the two has are left out.
    """
    return {
        name: (arrays[name].shape, leaf.shape)
        for name, leaf in trees.flatten(params).items()
        if name in arrays and any(re.fullmatch(p, name) for p in load)
    }


def classes_of(config: Any) -> list[str]:
    """Returns the names of a run's or a file's classes; [] if they are unknown.

    `config` is the run's saved config, or the file's.
    """
    return list(config.get("derived", config).get("classes") or [])


def check_names(head: str, known: list[str], names: list[str]) -> None:
    """Raises ValueError if a head has other classes under the same numbers.

    `known` are the names of the head's classes, `names` those of the run's.
    """
    pairs = enumerate(zip(known, names, strict=False))
    differing = [(label, *pair) for label, pair in pairs if pair[0] != pair[1]]
    if differing:
        label, old, new = differing[0]
        raise ValueError(
            f"its {head} knows class {label} as {old!r}, the data as "
            f"{new!r} ({len(differing)} classes differ): expected the same names "
            "in the same order; name the folders of the data as they were, or leave "
            "this head out"
        )


def check_classes(
    shapes: dict[str, tuple[Shape, Shape]], known: list[str], names: list[str]
) -> None:
    """Raises ValueError if a head that is loaded tells other classes apart.

    Args:
      shapes: name -> shapes in the checkpoint and in the run.
      known: names of the checkpoint's classes.
      names: names of the run's.
    """
    for name, (old, new) in shapes.items():
        if not _CLASSES.fullmatch(name):
            continue
        if name == _DETECTS:
            if old[-1] != new[-1] or any(map(operator.ne, known, names)):
                masks = any(other.startswith("mask_head/") for other in shapes)
                raise _other_objects(old[-1] - 1, known, new[-1] - 1, names, masks)
            continue
        check_names(name, known, names)
        if old[-1] == new[-1]:
            continue
        raise ValueError(
            f"its {name} tells {old[-1]} classes apart, this run {new[-1]}; "
            "leave the head out of --config.init_load (and name it in "
            "--config.init_skip) for a fresh one, or set "
            f"--config.objective.num_classes={old[-1]}"
        )


def _other_objects(
    count: int, known: list[str], own: int, names: list[str], masks: bool
) -> ValueError:
    """The error of a detector of other classes; the counts are without background."""
    from litevit_jax.data.sources.base import first

    those, mine = (f" ({first(x, 3)})" * bool(x) for x in (known, names))
    heads = ["box_head/logits", "box_head/offsets", *["mask_head/logits"] * masks]
    load = ["encoder/.*/rel_pos_[hw]", "neck/p./.*", "rpn/.*"]
    load += ["box_head/(conv_.*|fc/.*)", *["mask_head/(conv_.*|up/.*)"] * masks]
    quoted = ", ".join(f'"{pattern}"' for pattern in load)
    return ValueError(
        f"its {_DETECTS} tells {count} classes apart{those}, this run {own}{mine}: "
        f"{', '.join(heads)} do not fit; load the others with "
        f"--config.init_load_if_there='({quoted})'"
    )


def check_tables(
    shapes: dict[str, tuple[Shape, Shape]], old_grid: Grid, grid: Grid
) -> None:
    """Raises ValueError if a table of relative positions is for a larger grid.

    `old_grid` is the checkpoint's, `grid` the run's: rows and columns of patches.
    """
    tables = [name for name in shapes if name.endswith(BIAS_TABLE)]
    if tables and (old_grid[0] > grid[0] or old_grid[1] > grid[1]):
        raise ValueError(
            f"its {tables[0]} is for {old_grid[0]}x{old_grid[1]} patches, this run has "
            f"{grid[0]}x{grid[1]}; tables of relative positions are stretched to more "
            "rows and columns, never to fewer: give images of at least the size that "
            "it was trained with (--config.data.image_size)"
        )


def check_donor(
    flag: str, encoder: vit.Encoder, donor: vit.Encoder, fields: Sequence[str]
) -> None:
    """Raises ValueError unless the donor's blocks fit into the encoder of `init`.

    `flag` names the donor, `fields` the sizes that must agree.
    """
    for field in fields:
        value, other = getattr(encoder, field), getattr(donor, field)
        if value != other:
            raise ValueError(
                f"{flag}: its encoder has {field}={other}, that of --config.init "
                f"{field}={value}; blocks can be swapped between encoders of the same "
                "sizes alone"
            )


def swap_blocks(
    arrays: dict[str, Any], donor: dict[str, Any], load: Sequence[str], flag: str
) -> dict[str, Any]:
    """Replaces the arrays that `load` names by the donor's; `flag` names the donor.

    Raises:
      ValueError: only one of the two checkpoints has such an array.
    """
    own, donated = (
        {name for name in side if any(re.fullmatch(p, name) for p in load)}
        for side in (arrays, donor)
    )
    unpaired = sorted(own ^ donated)
    if unpaired:
        raise ValueError(
            f"{flag}: {unpaired[0]} is in one of the two checkpoints alone "
            f"({len(unpaired)} such entries); their blocks cannot be swapped"
        )
    return {**arrays, **{name: donor[name] for name in donated}}


def check_same(
    name: str, checkpoint_block: dict[str, Any], block: Any, path: str
) -> None:
    """Raises ValueError if a field that is set differs from the checkpoint's.

    Args:
      name: of the encoder's block in the config.
      checkpoint_block: the encoder in the checkpoint's config.
      block: the encoder in the config.
      path: of the checkpoint.
    """
    for field, value in block.items():
        if not agree(field, value, checkpoint_block.get(field)):
            raise ValueError(
                f"{name}.{field}={value}, but the checkpoint {path} has "
                f"{field}={checkpoint_block[field]}: another architecture; leave the "
                "field out to take the checkpoint's"
            )


def agree(field: str, value: Any, checkpoint_value: Any) -> bool:
    """Whether a field of the encoder fits the checkpoint's; None fits any."""
    if field == "pos_embed" and value and value.startswith("learned"):
        return True  # a parameter can start from any table
    if field == "rpe_style" and value == "dense":
        return True  # such blocks compute what those of any style do
    return value is None or checkpoint_value in (None, value)


def norm_advice(arrays: dict[str, Any], problem: str) -> str:
    """Says how to read a classifier whose last norm follows the average of tokens.

    Returns '' unless `problem` is that norm, missing from the encoder.
    """
    if "encoder/norm/scale" in arrays or "encoder/norm/scale" not in problem:
        return ""
    if "head/fc_norm/scale" not in arrays:
        return ""
    return (
        "\nits last norm follows the average of the patch tokens (head/fc_norm); read "
        "those with --config.objective.pool=avg"
    )
