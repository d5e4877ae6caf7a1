"""Puts the parameters of a checkpoint into those of a run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from litevit_jax import checkpoint, trees
from litevit_jax.models import layers, vit, vitdet
from litevit_jax.warm_start import channels, images, match, read
from litevit_jax.weights import positions


class Names(NamedTuple):
    """Says which parameters a run takes from a checkpoint, by patterns of their names.

    Attributes:
      load: of the run, replaced by the checkpoint's.
      if_there: of the run, each pattern replaced as a whole where the checkpoint has
        one of its parameters; none of them may then stay unused.
      skip: of the checkpoint, which may stay unused.
      rename: rules that change the checkpoint's names, as 'old/=new/'.
    """

    load: Sequence[str]
    if_there: Sequence[str] = ()
    skip: Sequence[str] = ()
    rename: Sequence[str] = ()


def check_encoder(path: str, block: ConfigDict, loaded: read.Checkpoint) -> None:
    """Raises ValueError if the encoder of `init` computes another function.

    `path` is that of `init`, `block` the run's encoder.
    """
    checkpoint_block = read.encoder_of(loaded.config)
    check_heads("init", path, block, checkpoint_block)
    _check_windows(path, block, loaded.config.get("windows"))
    table = checkpoint_block.get("pos_embed")
    if not match.agree("pos_embed", block.pos_embed, table):
        raise ValueError(
            f"{path}: the checkpoint's encoder has pos_embed={table}, "
            f"objective.encoder has {block.pos_embed}; give "
            f"--config.objective.encoder.pos_embed={table}"
        )


def check_heads(
    flag: str, path: str, block: ConfigDict, checkpoint_block: dict[str, Any]
) -> None:
    """Raises ValueError if a checkpoint's encoder has another number of heads.

    Args:
      flag: 'init' or 'teacher', which names the checkpoint.
      path: of the checkpoint.
      block: the encoder in the config.
      checkpoint_block: the encoder in the checkpoint's config.
    """
    try:
        heads = vit.of_block(block).num_heads
        checkpoint_heads = vit.of_block(checkpoint_block).num_heads
    except TypeError:  # a field that encoders do not have: the objective names it
        return
    if heads != checkpoint_heads:
        raise ValueError(
            f"{path}: the checkpoint's encoder has {checkpoint_heads} heads, "
            f"{read.block_of(flag)} has {heads}; the shapes agree but the function "
            "does not: leave num_heads out to take the checkpoint's"
        )


def _check_windows(path: str, block: Any, windows: dict[str, Any] | None) -> None:
    """Raises ValueError if the encoder of file `path` has other windows than the run's.

    `block` is the run's encoder, which may have none; `windows` those of the file, see
    `weights.Weights`, or None if it does not tell.
    """
    if not (windows and windows["window"] and block.get("window")):
        return
    depth = vit.of_block(block).depth
    own = vitdet.blocks_without_windows(depth, block.global_blocks)
    if (block.window, own) != (windows["window"], windows["global_blocks"]):
        raise ValueError(
            f"{path}: its encoder has windows of {windows['window']} patches in all "
            f"blocks but {windows['global_blocks']}, objective.encoder windows of "
            f"{block.window} in all but {own}; give --config.objective.encoder.window="
            f"{windows['window']} --config.objective.encoder.global_blocks="
            f'"{windows["global_blocks"]}"'
        )


def fill_params(
    params: Any,
    loaded: read.Checkpoint,
    *,
    path: str,
    grid: match.Grid,
    classes: list[str],
    names: Names,
    patch_size: int,
    init_channels: str | None = None,
) -> Any:
    """Replaces the leaves of `params` that `names` chooses by those of `init`.

    Args:
      params: tree of arrays or shapes.
      loaded: the checkpoint.
      path: of it, for messages.
      grid: rows and columns of patches of the run.
      classes: names of the run's classes.
      names: of what is taken.
      patch_size: of the run's encoder.
      init_channels: how a patch embedding of other channels is adapted, see `channels`.

    Raises:
      ValueError: the checkpoint does not fit.
    """
    try:
        arrays = match_positions(params, loaded, grid)
        arrays = match.rename_params(arrays, names.rename)
        arrays = channels.match(
            params, arrays, patch_size=patch_size, rule=init_channels, load=names.load
        )
        wholes = [p for p in names.if_there if any(re.fullmatch(p, x) for x in arrays)]
        load = (*names.load, *wholes)
        _check_meaning(match.shapes(params, arrays, load), loaded, grid, classes)
        unless = f"(?!(?:{'|'.join(wholes)})$)" if wholes else ""
        skip = [f"{unless}{pattern}" for pattern in names.skip]
        return fill_leaves(params, arrays, load=load, skip=skip)
    except ValueError as error:
        text = f"{error}{match.norm_advice(loaded.params, str(error))}"
        text += _windows_advice(loaded.params, str(error))
        if "decoder/pred" in text and init_channels:
            text += (
                "\nthe decoder, which predicts the pixels of each channel, is not "
                "adapted: leave it out with --config.init_load='(\"encoder/.*\",)' and "
                "--config.init_skip='(\"decoder/.*\",)'"
            )
        raise ValueError(f"--config.init={path}: {text}") from None


def _windows_advice(arrays, problem):
    """Says how a plain encoder takes what it can of a detector's."""
    if "encoder/cls_token" in arrays or "encoder/cls_token" not in problem:
        return ""
    return (
        "\nit is a detector's encoder, without class token and final norm; most of its "
        "blocks see windows. Take its other parameters with "
        "--config.init_load='(\"encoder/(?!cls_token|norm/).*\",)' "
        '--config.init_skip=\'("(?!encoder/).*", "encoder/.*/rel_pos_[hw]")\''
    )


def fill_all(
    shapes: Any,
    loaded: read.Checkpoint,
    path: str,
    grid: match.Grid,
) -> Any:
    """Fills every leaf of `shapes`, on the host, from `init`, which `path` names.

    `grid` are the rows and columns of patches of the images to come.

    Raises:
      ValueError: a leaf is missing or does not fit, or an array of the checkpoint
        stays unused (one of a decoder may).
    """
    try:
        arrays = match_positions(shapes, loaded, grid)
        side = vit.of_block(read.encoder_of(loaded.config)).patch_size
        advice = "fine-tune from it, with --config.init_channels=mean, repeat or rgb"
        arrays = channels.match(
            shapes, arrays, patch_size=side, rule=None, advice=advice
        )
        # Those of the data are matched with these by `train.eval_setup`.
        known = match.classes_of(loaded.config)
        _check_meaning(match.shapes(shapes, arrays, (".*",)), loaded, grid, known)
        return fill_leaves(shapes, arrays, load=(".*",), skip=("decoder/.*",))
    except ValueError as error:
        raise ValueError(f"--config.init={path}: {error}") from None


def fill_teacher(
    shapes: Any,
    loaded: read.Checkpoint,
    path: str,
    grid: match.Grid,
    classes: list[str],
) -> Any:
    """Fills every leaf of `shapes`, a frozen teacher, on the host.

    Arrays that the teacher does not need (decoder, head, later blocks) stay unused,
    but not a position embedding, without which it would compute another function.
    `grid` and `classes` are the run's, as in `fill_params`.

    Raises:
      ValueError: a leaf is missing or does not fit.
    """
    skip = (f"(?!{_POS_EMBED}$).*",)
    try:
        if "head" in shapes:
            match.check_names("head", match.classes_of(loaded.config), classes)
        arrays = match_positions(shapes, loaded, grid)
        return fill_leaves(shapes, arrays, load=(".*",), skip=skip)
    except ValueError as error:
        raise ValueError(f"--config.teacher={path}: {error}") from None


def _check_meaning(
    shapes: dict[str, tuple[match.Shape, match.Shape]],
    loaded: read.Checkpoint,
    grid: match.Grid,
    names: list[str],
) -> None:
    """Raises ValueError if an array of the same shape means something else here.

    `shapes` are those of `match.shapes`, `grid` and `names` the patches and classes of
    the run.
    """
    match.check_classes(shapes, match.classes_of(loaded.config), names)
    match.check_tables(shapes, images.trained_grid(loaded.config), grid)


def match_positions(
    params: Any, loaded: read.Checkpoint, grid: match.Grid
) -> dict[str, np.ndarray]:
    """Returns the checkpoint's arrays with positions of the run's grid.

    An encoder with a fixed table has no such array: a learned one starts as that
    table. An array of another grid is resized, and so are tables of relative positions
    if the grid is larger.

    Args:
      params: arrays or shapes to fill.
      loaded: the checkpoint.
      grid: rows and columns of patches of the run.
    """
    leaves = trees.flatten(params)
    arrays = _match_blocks(leaves, loaded, grid)
    leaf = leaves.get(_POS_EMBED)
    if leaf is None:
        return arrays
    table = arrays.get(_POS_EMBED)
    if table is None:
        kind = read.encoder_of(loaded.config).get("pos_embed") or "sincos"
        if kind.startswith("learned"):
            return arrays  # `fill_leaves` names the missing array
        table = layers.sincos_table(
            images.trained_grid(loaded.config), leaf.shape[-1], kind
        )[None]
    if table.shape[2:] == leaf.shape[2:]:
        old_grid = images.trained_grid(loaded.config)
        table = table if old_grid == grid else positions.resize(table, old_grid, grid)
    return {**arrays, _POS_EMBED: np.asarray(table)}


def _match_blocks(
    leaves: dict[str, Any], loaded: read.Checkpoint, grid: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Returns the checkpoint's arrays as the run's blocks hold them.

    Tables of relative positions are stretched to a larger `grid`, and those by rows and
    by columns interpolated to the run's numbers of them. Where queries and
    values have a bias each and the run's block has one for all three, that is both,
    with 0 for the keys: the function stays the same.
    """
    arrays = dict(loaded.params)
    for name, leaf in leaves.items():
        offsets = arrays[name] if name in arrays and "/rel_pos_" in name else None
        if offsets is not None and offsets.shape[1:] == leaf.shape[1:]:
            arrays[name] = positions.resize_offsets(offsets, leaf.shape[0])
        if name.endswith(match.BIAS_TABLE) and name in arrays:
            rows, cols = old_grid = images.trained_grid(loaded.config)
            if rows <= grid[0] and cols <= grid[1]:  # else `check_tables` refuses it
                arrays[name] = positions.stretch_bias(arrays[name], old_grid, grid)
        parts = [name.replace("/qkv/bias", f"/{kind}_bias") for kind in "qv"]
        if name.endswith("/attn/qkv/bias") and set(parts) <= arrays.keys():
            queries, values = (arrays.pop(part) for part in parts)
            zeros = np.zeros_like(queries)
            arrays[name] = np.concatenate([queries, zeros, values])
    return arrays


_POS_EMBED = "encoder/pos_embed"


def fill_leaves(
    params: Any, arrays: dict[str, np.ndarray], *, load: Sequence[str], skip: Sequence
) -> Any:
    """Replaces every leaf of `params` whose path matches `load` by that of `arrays`.

    Args:
      params: tree of arrays or shapes.
      arrays: 'encoder/norm/scale' -> array.
      load: patterns of the leaves that are replaced.
      skip: patterns of `arrays` that may stay unused.

    Raises:
      ValueError: a leaf is missing or of another shape, or an array stays unused.
    """
    used, problems = set(), []

    def one(keys: Any, leaf: Any) -> Any:
        name = trees.path_of(keys)
        if not any(re.fullmatch(p, name) for p in load):
            return leaf
        used.add(name)
        if name not in arrays:
            problems.append(f"{name} {list(leaf.shape)}: not in the checkpoint")
        elif arrays[name].shape != leaf.shape:
            problems.append(
                f"{name}: checkpoint has {list(arrays[name].shape)}, this model "
                f"{list(leaf.shape)}"
            )
        else:
            return arrays[name].astype(leaf.dtype)
        return leaf

    filled = jax.tree_util.tree_map_with_path(one, params)
    for name in sorted(arrays.keys() - used):
        if not any(re.fullmatch(p, name) for p in skip):
            problems.append(f"{name} {[*arrays[name].shape]}: in the checkpoint only")
    checkpoint.refuse("the checkpoint does not fit this model", problems)
    return filled
