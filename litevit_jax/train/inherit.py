"""What a run takes from another: parameters, encoder, data, a teacher.

`config.init` names the run, or the file of weights, whose parameters are loaded;
`config.teacher` the one whose encoder teaches and never changes; `config.like` a run
that only lends its encoder and data (to compare with random parameters).
"""

from __future__ import annotations

import hashlib
import pathlib
import re
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from litevit_jax import checkpoint, distributed, paths, sharding, weights
from litevit_jax.models import layers
from litevit_jax.train import entries, views
from litevit_jax.train import state as states
from litevit_jax.weights import names, positions

_POS_EMBED = "encoder/pos_embed"


def read(
    path: str,
    *,
    num_heads: int | None = None,
    grid: tuple[int, int] | None = None,
    average: bool = False,
) -> checkpoint.Checkpoint:
    """Parameters and config of a run, of a step in it, or of a file of weights.

    The config of a file has `objective.encoder`, and there its `grid` of patches, and
    `objective.pool`, see `weights.Weights`; `classes`, names of what its head tells
    apart, and `normalize`, both maybe empty. What had to be assumed of it is printed.

    Args:
      path: of a run directory, a step inside it, or a file.
      num_heads: of the file's encoder, if the file does not record it.
      grid: rows and columns of its patches, if they are not as many.
      average: the run's average of its parameters instead of the last ones.

    Raises:
      FileNotFoundError: nothing is there.
      ValueError: the file cannot be read, or does not say how many heads it has; or
        there is no average.
    """
    if not paths.path(path).is_file():
        if average:
            return checkpoint.read_params(path, average=True)
        return checkpoint.read_params(path)
    if average:
        raise ValueError(
            f"{path}: a file of weights holds one set of parameters and no average; "
            "leave --config.init_ema out"
        )
    file = str(paths.local_file(path))
    found = weights.read(file, num_heads=num_heads, grid=grid)
    for note in found.notes if distributed.primary() else ():
        print(f"{path}: {note}", flush=True)
    encoder = {**found.encoder, "grid": found.grid}
    config: dict[str, Any] = {"objective": {"encoder": encoder, "pool": found.pool}}
    config |= {"classes": found.classes, "normalize": found.normalize}
    config["range"] = found.metadata.get("range")
    return checkpoint.Checkpoint(found.params, config, 0, pathlib.Path(path))


def inherit(config: ConfigDict) -> checkpoint.Checkpoint | None:
    """Reads `init`, and takes what the config leaves open from its run (or `like`'s).

    Open are fields of the encoder that are None, and the data if its source is None;
    for images see `views.settle`. `config.fallback.encoder` fills what is then still
    open of the encoder.

    Raises:
      ValueError: nothing says where to start, or which encoder or data.
    """
    if config.init_required and not config.init:
        raise ValueError(
            f"{config.name} starts from a pre-trained encoder: which? Give its run "
            "with --config.init=RUN_DIR (or a step in it, RUN_DIR/checkpoints/STEP, or "
            "a file of weights), or --config.init=random for one that never learned"
        )
    encoder = config.objective.encoder
    loaded = None
    if config.init and config.init != "random":
        average = bool(config.init_ema)
        grid = config.init_grid
        loaded = read_flag("init", config.init, encoder, average=average, grid=grid)
        loaded = _with_donor(loaded, config)
    like = None if loaded is None else loaded.config
    if config.like:
        like = views.run_config(config.like)
    if like is not None:
        theirs = encoder_of(like)
        _take_encoder("objective.encoder", encoder, theirs, config.init or config.like)
        if config.data.source is None:
            take_data(config, like)
    else:
        known = config.fallback.encoder.items()
        encoder.update({k: v for k, v in known if not encoder[k]})
    if config.data.source is None or not (encoder.variant or encoder.width):
        raise ValueError(
            f"{config.name}: which encoder and data? Give a pre-training run with "
            "--config.init=RUN_DIR; or, to start from --config.init=random, either "
            "--config.like=RUN_DIR (its encoder and data) or a variant (:digits)"
        )
    return loaded


def _with_donor(loaded: checkpoint.Checkpoint, config: ConfigDict) -> Any:
    """`loaded`, with what `init_donor_load` names of another checkpoint instead."""
    if not config.init_donor:
        return loaded
    donor = read_flag("init_donor", config.init_donor, config.objective.encoder)
    ours, theirs = (views.encoder(encoder_of(x.config)) for x in (loaded, donor))
    where = f"--config.init_donor={config.init_donor}"
    entries.check_donor(where, ours, theirs, views.SIZES)
    params = entries.merge(loaded.params, donor.params, config.init_donor_load, where)
    return loaded._replace(params=params)


def teacher(config: ConfigDict) -> checkpoint.Checkpoint | None:
    """Reads `teacher`, and takes from it what `objective.teacher` leaves open.

    Raises:
      ValueError: the objective has a teacher and none is given, or the reverse.
      FileNotFoundError: nothing is there.
    """
    block = config.objective.get("teacher")
    if not config.teacher:
        if block is None:
            return None
        raise ValueError(which_teacher(config))
    if block is None:
        raise ValueError(no_teacher(config))
    loaded = read_flag("teacher", config.teacher, block)
    objective = loaded.config["objective"]
    beside = {k: objective.get(k) for k in block if k not in ("encoder", "name")}
    theirs = {**without_none(beside), **encoder_of(loaded.config)}
    _take_encoder("objective.teacher", block, theirs, config.teacher)
    _check_heads("teacher", config.teacher, block, theirs)
    return loaded


def which_teacher(config: ConfigDict) -> str:
    """What to say of a teacher that is needed and not given."""
    return (
        f"objective {config.objective.name!r} learns from a teacher: which? Give its "
        "run or its weights with --config.teacher=RUN_DIR or --config.teacher=FILE"
    )


def no_teacher(config: ConfigDict) -> str:
    """What to say of a teacher that is given and that nobody asks."""
    return (
        f"--config.teacher={config.teacher}: objective {config.objective.name!r} has "
        "no frozen teacher; leave the flag out"
    )


def read_flag(
    flag: str, path: str, block: Any, average: bool = False, grid: str | None = None
) -> checkpoint.Checkpoint:
    """`read` for a flag of the command line, with the heads that `block` gives."""
    sides = names.grid_of_flag("init_grid", grid)
    try:
        heads = block.get("num_heads")
        return read(path, num_heads=heads, grid=sides, average=average)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--config.{flag}={error}") from None
    except checkpoint.CorruptCheckpoint:
        raise
    except ValueError as error:
        hint = ""
        if "num_heads" in str(error) and not block.get("num_heads"):
            hint = f"; here: --config.{_block_of(flag)}.num_heads=A"
        elif "give grid" in str(error):
            convert = (
                "convert the file first, with configs/convert.py and --config.grid"
            )
            hint = "--config.init_grid" if flag == "init" else convert
            hint = f"; here: {hint}=ROWSxCOLUMNS"
        raise ValueError(f"--config.{flag}={error}{hint}") from None


def _block_of(flag: str) -> str:
    """The config block of the encoder that a flag of the command line reads."""
    return "objective.encoder" if flag == "init" else "objective.teacher"


def encoder_of(config: dict[str, Any]) -> dict[str, Any]:
    """The encoder's block in the config of a run or of a file of weights."""
    block = config["objective"]["encoder"]
    if "data" in config:
        return block
    return {name: block[name] for name in views.FILE_FIELDS if name in block}


def _take_encoder(name: str, block: ConfigDict, theirs: dict, where: str) -> None:
    """Fills the fields of an encoder's `block` that are None."""
    if block.get("variant") is None:
        entries.check_same(name, theirs, block, where)
        block.update({**theirs, **without_none(block.to_dict())})
    elif block.get("pos_embed") is None:
        block.pos_embed = theirs.get("pos_embed")


def take_data(config: ConfigDict, like: dict[str, Any]) -> None:
    """The other run's data; what the recipe sets stays.

    Size, channels and normalisation of the images are left to `views.take`.
    """
    if "data" not in like:
        raise ValueError(
            f"--config.init={config.init}: a file of weights says nothing about data; "
            f"name some: --config=...{config.name}.py:digits, :imagenet2012 or "
            ":data=folder,path=DIR"
        )
    known = entries.data_of(like).items()
    entries.take_open(config.data, {k: v for k, v in known if k not in entries.IMAGES})


def check(params: Any, loaded: Any, config: ConfigDict) -> None:
    """Refuses an `init` that computes another function or does not fit `params`."""
    if loaded is None:
        return
    theirs = encoder_of(loaded.config)
    _check_heads("init", config.init, config.objective.encoder, theirs)
    ours, table = config.objective.encoder.pos_embed, theirs.get("pos_embed")
    if not entries.agree("pos_embed", ours, table):
        raise ValueError(
            f"{config.init}: the checkpoint's encoder has pos_embed={table}, "
            f"objective.encoder has {ours}; give --config.objective.encoder.pos_embed="
            f"{table}"
        )
    fill(params, loaded, config)


def _check_heads(flag: str, where: str, block: ConfigDict, theirs: dict) -> None:
    name = _block_of(flag)
    try:
        ours, given = (views.encoder(x).num_heads for x in (block, theirs))
    except TypeError:  # a field that encoders do not have: the objective names it
        return
    if ours != given:
        raise ValueError(
            f"{where}: the checkpoint's encoder has {given} heads, {name} has {ours}; "
            "the shapes agree but the function does not: leave num_heads out to take "
            "the checkpoint's"
        )


def fill(params: Any, loaded: checkpoint.Checkpoint, config: ConfigDict) -> Any:
    """`params` with those that `init_load` names replaced by `init`'s.

    Those of `init_load_if_there` are replaced if the checkpoint has them.
    """
    try:
        found = _with_positions(params, loaded, config, config.objective.encoder)
        found = entries.rename(found, config.init_rename)
        optional = [
            re.escape(name)
            for name in found
            if any(re.fullmatch(p, name) for p in config.init_load_if_there)
        ]
        load = (*config.init_load, *optional)
        names = entries.classes_of(config)
        _check_meaning(entries.taken(params, found, load), loaded, config, names)
        return checkpoint.fill(params, found, load=load, skip=config.init_skip)
    except ValueError as error:
        text = f"{error}{entries.about_norm(loaded.params, str(error))}"
        raise ValueError(f"--config.init={config.init}: {text}") from None


def fill_all(shapes: Any, loaded: checkpoint.Checkpoint, config: ConfigDict) -> Any:
    """Every leaf of `shapes`, on the host, from `init`; none of it may stay unused."""
    try:
        found = _with_positions(shapes, loaded, config, config.objective.encoder)
        known = entries.classes_of(loaded.config)  # data have their own: `evaluation`
        _check_meaning(entries.taken(shapes, found, (".*",)), loaded, config, known)
        return checkpoint.fill(shapes, found, load=(".*",), skip=("decoder/.*",))
    except ValueError as error:
        raise ValueError(f"--config.init={config.init}: {error}") from None


def _check_meaning(
    taken: dict[str, Any], loaded: Any, config: ConfigDict, names: list[str]
) -> None:
    """What is taken must mean the same here, beside having the same shape."""
    entries.check_classes(taken, entries.classes_of(loaded.config), names)
    grids = _their_grid(loaded), views.grid(config.data, config.objective.encoder)
    entries.check_tables(taken, *grids)


def start(
    create: Any, abstract: Any, loaded: Any, fixed: Any, config: Any, optimizer: Any
) -> states.TrainState:
    """The initial state, on the mesh, with what `init` and `teacher` give in place."""
    state, given = create(jax.random.key(config.seed)), dict(fixed)
    if loaded is not None:
        given["params"] = fill(state.params, loaded, config)
    state = sharding.replace(state, given, abstract)
    if loaded is None or optimizer.ema_decay is None:
        return state
    return states.restart_optimizer(state, optimizer)  # the average starts there too


def fill_teacher(shapes: Any, loaded: checkpoint.Checkpoint, config: ConfigDict) -> Any:
    """The arrays of a frozen teacher, on the host; every leaf of `shapes` is filled.

    What the teacher does not need of the file (decoder, head, later blocks) stays
    unused, but not a position embedding, without which it were another function.
    """
    skip = (f"(?!{_POS_EMBED}$).*",)
    try:
        if "head" in shapes:
            known = entries.classes_of(loaded.config)
            entries.check_names("head", known, entries.classes_of(config))
        found = _with_positions(shapes, loaded, config, config.objective.teacher)
        return checkpoint.fill(shapes, found, load=(".*",), skip=skip)
    except ValueError as error:
        raise ValueError(f"--config.teacher={config.teacher}: {error}") from None


def _with_positions(
    wanted: Any, loaded: checkpoint.Checkpoint, config: ConfigDict, block: ConfigDict
) -> dict[str, np.ndarray]:
    """The parameters found, with a position embedding of `wanted`'s size.

    A fixed table is no parameter: where one is wanted it starts as that table. A
    parameter of another grid is resized.
    """
    found = loaded.params
    leaf = checkpoint.flatten(wanted).get(_POS_EMBED)
    if leaf is None:
        return found
    theirs = encoder_of(loaded.config)
    grid = views.grid(config.data, block)
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


def _their_grid(loaded: checkpoint.Checkpoint) -> tuple[int, int]:
    if "data" in loaded.config:
        return views.grid(loaded.config["data"], encoder_of(loaded.config))
    return tuple(loaded.config["objective"]["encoder"]["grid"])


def fingerprint(arrays: Any) -> str:
    """A hash of names, shapes and bits of host arrays; the same on any machine."""
    digest = hashlib.sha256()
    for name, x in checkpoint.flatten(arrays).items():
        digest.update(f"{name} {x.dtype} {x.shape};".encode())
        digest.update(np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()[:16]


def without_none(block: dict[str, Any]) -> dict[str, Any]:
    """`block` without the fields that are None, at any depth."""
    return {
        key: without_none(value) if isinstance(value, dict) else value
        for key, value in block.items()
        if value is not None
    }
