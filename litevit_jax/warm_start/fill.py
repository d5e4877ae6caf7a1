"""Puts the parameters of a checkpoint into those of a run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from litevit_jax import checkpoint, trees
from litevit_jax.models import layers
from litevit_jax.warm_start import images, match, read
from litevit_jax.weights import positions


def check(params: Any, loaded: Any, config: ConfigDict) -> None:
    """Refuses an `init` that computes another function or does not fit `params`."""
    if loaded is None:
        return
    theirs = read.encoder_of(loaded.config)
    check_heads("init", config.init, config.objective.encoder, theirs)
    ours, table = config.objective.encoder.pos_embed, theirs.get("pos_embed")
    if not match.agree("pos_embed", ours, table):
        raise ValueError(
            f"{config.init}: the checkpoint's encoder has pos_embed={table}, "
            f"objective.encoder has {ours}; give --config.objective.encoder.pos_embed="
            f"{table}"
        )
    fill_params(params, loaded, config)


def check_heads(flag: str, where: str, block: ConfigDict, theirs: dict) -> None:
    name = read.block_of(flag)
    try:
        ours, given = (images.encoder(x).num_heads for x in (block, theirs))
    except TypeError:  # a field that encoders do not have: the objective names it
        return
    if ours != given:
        raise ValueError(
            f"{where}: the checkpoint's encoder has {given} heads, {name} has {ours}; "
            "the shapes agree but the function does not: leave num_heads out to take "
            "the checkpoint's"
        )


def fill_params(params: Any, loaded: read.Checkpoint, config: ConfigDict) -> Any:
    """`params` with those that `init_load` names replaced by `init`'s.

    Those of `init_load_if_there` are replaced if the checkpoint has them.
    """
    try:
        found = _with_positions(params, loaded, config, config.objective.encoder)
        found = match.rename(found, config.init_rename)
        optional = [
            re.escape(name)
            for name in found
            if any(re.fullmatch(p, name) for p in config.init_load_if_there)
        ]
        load = (*config.init_load, *optional)
        names = match.classes_of(config)
        _check_meaning(match.taken(params, found, load), loaded, config, names)
        return fill_leaves(params, found, load=load, skip=config.init_skip)
    except ValueError as error:
        text = f"{error}{match.about_norm(loaded.params, str(error))}"
        raise ValueError(f"--config.init={config.init}: {text}") from None


def fill_all(shapes: Any, loaded: read.Checkpoint, config: ConfigDict) -> Any:
    """Every leaf of `shapes`, on the host, from `init`; none of it may stay unused."""
    try:
        found = _with_positions(shapes, loaded, config, config.objective.encoder)
        known = match.classes_of(loaded.config)  # data have their own: `evaluation`
        _check_meaning(match.taken(shapes, found, (".*",)), loaded, config, known)
        return fill_leaves(shapes, found, load=(".*",), skip=("decoder/.*",))
    except ValueError as error:
        raise ValueError(f"--config.init={config.init}: {error}") from None


def fill_teacher(shapes: Any, loaded: read.Checkpoint, config: ConfigDict) -> Any:
    """The arrays of a frozen teacher, on the host; every leaf of `shapes` is filled.

    What the teacher does not need of the file (decoder, head, later blocks) stays
    unused, but not a position embedding, without which it were another function.
    """
    skip = (f"(?!{_POS_EMBED}$).*",)
    try:
        if "head" in shapes:
            known = match.classes_of(loaded.config)
            match.check_names("head", known, match.classes_of(config))
        found = _with_positions(shapes, loaded, config, config.objective.teacher)
        return fill_leaves(shapes, found, load=(".*",), skip=skip)
    except ValueError as error:
        raise ValueError(f"--config.teacher={config.teacher}: {error}") from None


def _check_meaning(
    taken: dict[str, Any], loaded: Any, config: ConfigDict, names: list[str]
) -> None:
    """What is taken must mean the same here, beside having the same shape."""
    match.check_classes(taken, match.classes_of(loaded.config), names)
    grids = _their_grid(loaded), images.grid(config.data, config.objective.encoder)
    match.check_tables(taken, *grids)


def _with_positions(
    wanted: Any, loaded: read.Checkpoint, config: ConfigDict, block: ConfigDict
) -> dict[str, np.ndarray]:
    """The parameters found, with a position embedding of `wanted`'s size.

    A fixed table is no parameter: where one is wanted it starts as that table. A
    parameter of another grid is resized.
    """
    found = loaded.params
    leaf = trees.flatten(wanted).get(_POS_EMBED)
    if leaf is None:
        return found
    theirs = read.encoder_of(loaded.config)
    grid = images.grid(config.data, block)
    table = found.get(_POS_EMBED)
    if table is None:
        kind = theirs.get("pos_embed") or "sincos"
        if kind.startswith("learned"):
            return found  # it should be there: `checkpoint.fill` says so
        table = layers.sincos_table(grid, leaf.shape[-1], kind)[None]
    elif table.shape[2:] == leaf.shape[2:]:
        given = _their_grid(loaded)
        table = table if given == grid else positions.resize(table, given, grid)
    return {**found, _POS_EMBED: np.asarray(table)}


def _their_grid(loaded: read.Checkpoint) -> tuple[int, int]:
    if "data" in loaded.config:
        return images.grid(loaded.config["data"], read.encoder_of(loaded.config))
    return tuple(loaded.config["objective"]["encoder"]["grid"])


_POS_EMBED = "encoder/pos_embed"


def fill_leaves(
    params: Any, found: dict[str, np.ndarray], *, load: Sequence[str], skip: Sequence
) -> Any:
    """`params` with every leaf whose path matches `load` replaced by `found`'s.

    Strict both ways. `skip`: patterns of entries of `found` that may stay unused.

    Raises:
      ValueError: a leaf is missing or of another shape, or an entry stays unused.
    """
    used, problems = set(), []

    def one(keys: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(keys, simple=True, separator="/")
        if not any(re.fullmatch(p, name) for p in load):
            return leaf
        used.add(name)
        if name not in found:
            problems.append(f"{name} {list(leaf.shape)}: not in the checkpoint")
        elif found[name].shape != leaf.shape:
            problems.append(
                f"{name}: checkpoint has {list(found[name].shape)}, this model "
                f"{list(leaf.shape)}"
            )
        else:
            return found[name].astype(leaf.dtype)
        return leaf

    filled = jax.tree_util.tree_map_with_path(one, params)
    for name in sorted(found.keys() - used):
        if not any(re.fullmatch(p, name) for p in skip):
            problems.append(f"{name} {list(found[name].shape)}: in the checkpoint only")
    checkpoint.refuse("the checkpoint does not fit this model", problems)
    return filled
