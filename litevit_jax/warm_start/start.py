"""Resolves what a run takes from another one: parameters, encoder, data, a teacher.

`config.init` names the run, or the file of weights, whose parameters are loaded;
`config.teacher` the one whose encoder teaches and never changes; `config.like` a run
that only lends its encoder and data (to compare with random parameters).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from litevit_jax import sharding
from litevit_jax.models import vit
from litevit_jax.train import resolve
from litevit_jax.train import start as starts
from litevit_jax.train.job import TrainState
from litevit_jax.train.optimizer import Optimizer
from litevit_jax.warm_start import Checkpoint, channels, images, match


@dataclasses.dataclass(frozen=True)
class WarmStart(starts.Start):
    """A start from checkpoints; the config is complete now.

    Attributes:
      config: of the run; what it left open is filled by `warm_start`.
      init: the checkpoint whose parameters are loaded, or None.
      teacher: the frozen teacher's checkpoint, or None.
    """

    config: ConfigDict
    init: Checkpoint | None
    teacher: Checkpoint | None

    def check_teacher(self, *, needed: bool) -> None:
        """Raises ValueError if a teacher is missing, or is given and not needed."""
        if self.teacher is None:
            super().check_teacher(needed=needed)
        elif not needed:
            raise ValueError(teacher_unused_error(self.config.teacher, self.objective))

    def teacher_arrays(self, shapes: Any) -> Any:
        """Fills every leaf of `shapes` with the teacher's arrays, on the host.

        Raises:
          ValueError: a leaf is missing or of another shape.
        """
        from litevit_jax.warm_start import fill

        assert self.teacher is not None
        config = self.config
        grid = images.grid(config.data, config.objective.teacher)
        classes = match.classes_of(config)
        return fill.fill_teacher(shapes, self.teacher, config.teacher, grid, classes)

    def check(self, params: Any) -> None:
        """Raises ValueError unless `init` computes the same function and fits."""
        if self.init is not None:
            from litevit_jax.warm_start import fill

            encoder = self.config.objective.encoder
            fill.check_encoder(self.config.init, encoder, self.init)
            self.fill(params)

    def fill(self, params: Any) -> Any:
        """Replaces the leaves of `params` that `init_load` names by those of `init`.

        Leaves that `init_load_if_there` names are replaced if the checkpoint has them.

        Raises:
          ValueError: the checkpoint does not fit.
        """
        from litevit_jax.warm_start import fill

        assert self.init is not None
        config = self.config
        return fill.fill_params(
            params,
            self.init,
            path=config.init,
            grid=images.grid(config.data, config.objective.encoder),
            classes=match.classes_of(config),
            names=fill.Names(
                config.init_load,
                config.init_load_if_there,
                config.init_skip,
                config.init_rename,
            ),
            patch_size=vit.of_block(config.objective.encoder).patch_size,
            init_channels=config.init_channels,
        )

    def state(
        self,
        create: Callable[[jax.Array], TrainState],
        abstract: TrainState,
        fixed: dict[str, Any],
        optimizer: Optimizer,
    ) -> TrainState:
        """Creates the initial TrainState, with the parameters of `init`, on the mesh.

        The optimizer starts anew if it averages them: the average starts there.
        """
        state = super().state(create, abstract, fixed, optimizer)
        if self.init is None:
            return state
        params = self.fill(state.params)
        state = sharding.replace(state, {"params": params}, abstract)
        if optimizer.ema_decay is None:
            return state
        shardings = jax.tree.map(lambda x: x.sharding, state.opt_state)
        init = jax.jit(optimizer.init, out_shardings=shardings)
        return dataclasses.replace(state, opt_state=init(state.params))


def warm_start(config: ConfigDict) -> WarmStart:
    """Reads the checkpoints that `config` names and fills the fields it leaves open.

    Raises:
      ValueError: the config names no start, no encoder or no data; or a checkpoint
        contradicts it.
      FileNotFoundError: a checkpoint does not exist.
    """
    init = init_checkpoint(config)
    teacher = teacher_checkpoint(config.teacher, config.objective)
    notes = images.settle(config, init, teacher)
    if init is not None:
        old, new = images.spec_of("", init).channels, config.data.channels
        notes += channels.note(config.init, old, new, config.init_channels)
    seed, objective = config.seed, config.objective.name
    return WarmStart(seed, objective, notes, config, init, teacher)


def init_checkpoint(config: ConfigDict) -> Checkpoint | None:
    """Reads `init`, and fills open fields of the config from its run (or `like`'s).

    Open are fields of the encoder that are None, and the data if its source is None;
    for images see `images.settle`. `config.fallback.encoder` fills what then remains
    open of the encoder.

    Raises:
      ValueError: the config names no start, no encoder or no data.
    """
    if config.init_required and not config.init:
        raise ValueError(
            f"{config.name} starts from a pre-trained encoder: which? Give its run "
            "with --config.init=RUN_DIR (or a step in it, RUN_DIR/checkpoints/STEP, or "
            "a file of weights), or --config.init=random for one that never learned"
        )
    reads = ("init_donor", "init_ema", "init_grid", "init_channels")
    unread = [name for name in reads if config[name]]
    if unread and not config.init:
        raise ValueError(
            f"--config.{unread[0]}={config[unread[0]]} goes with --config.init=, which "
            "is not given: give the run or file, or leave it out"
        )
    encoder = config.objective.encoder
    loaded = None
    if config.init and config.init != "random":
        from litevit_jax.warm_start import read

        average, grid = bool(config.init_ema), config.init_grid
        loaded = read.read_flag("init", config.init, encoder, average, grid)
        if config.init_donor:
            loads = config.init_donor_load
            loaded = _with_donor(loaded, config.init_donor, loads, encoder)
    like = _lender(config.like, loaded)
    if like is not None:
        from litevit_jax.warm_start import read

        path = config.init or config.like
        _take_encoder("objective.encoder", encoder, read.encoder_of(like), path)
        if "pos_grid" in encoder:  # its table is interpolated in every pass
            grid = images.trained_grid(like)
            resolve.fill_open(encoder, {"pos_grid": grid})
        if config.data.source is None:
            take_data(config.data, like, init=config.init, name=config.name)
    else:
        starts.take_fallback_encoder(encoder, config.fallback.encoder)
    starts.check_known(config.name, encoder, config.data)
    return loaded


def _lender(like: str | None, loaded: Checkpoint | None) -> dict[str, Any] | None:
    """Returns the config to take open fields from: that of run `like`, or of `init`."""
    if like:
        from litevit_jax.warm_start import read

        return read.run_config(like)
    return None if loaded is None else loaded.config


def _with_donor(
    loaded: Checkpoint, donor_path: str, load: Sequence[str], encoder: ConfigDict
) -> Checkpoint:
    """Replaces the blocks of `loaded` that `load` names by the donor's."""
    from litevit_jax.warm_start import read

    donor = read.read_flag("init_donor", donor_path, encoder)
    own, other = (vit.of_block(read.encoder_of(x.config)) for x in (loaded, donor))
    flag = f"--config.init_donor={donor_path}"
    match.check_donor(flag, own, other, vit.SIZES)
    arrays = match.swap_blocks(loaded.params, donor.params, load, flag)
    return loaded._replace(params=arrays)


def teacher_checkpoint(path: str | None, objective: ConfigDict) -> Checkpoint | None:
    """Reads `teacher`, and fills from it what `objective.teacher` leaves open.

    Raises:
      ValueError: the objective has a teacher and none is given, or the reverse.
      FileNotFoundError: the checkpoint does not exist.
    """
    block = objective.get("teacher")  # most objectives have none
    if not path:
        if block is None:
            return None
        raise ValueError(starts.teacher_missing_error(objective.name))
    if block is None:
        raise ValueError(teacher_unused_error(path, objective.name))
    from litevit_jax.warm_start import fill, read

    loaded = read.read_flag("teacher", path, block)
    run = loaded.config["objective"]
    settings = {k: run.get(k) for k in block if k not in ("encoder", "name")}
    known = {**resolve.without_none(settings), **read.encoder_of(loaded.config)}
    _take_encoder("objective.teacher", block, known, path)
    fill.check_heads("teacher", path, block, known)
    return loaded


def teacher_unused_error(path: str, objective: str) -> str:
    """Returns the message for a teacher that is given and not needed."""
    return (
        f"--config.teacher={path}: objective {objective!r} has "
        "no frozen teacher; leave the flag out"
    )


_OF_WINDOWS = ("window", "global_blocks", "pos_grid")  # fields of a detector's encoder


def _take_encoder(
    name: str, block: ConfigDict, known: dict[str, Any], path: str
) -> None:
    """Fills the fields of encoder `block` that are None from the checkpoint's `known`.

    `name` is the block's in the config, `path` the checkpoint's.
    """
    # A plain encoder has no windows: a detector's parameters are refused by name.
    known = {k: v for k, v in known.items() if k in block or k not in _OF_WINDOWS}
    if block.get("variant") is None:
        match.check_same(name, known, block, path)
        own = resolve.without_none(block.to_dict())
        resolve.assign(block, {**known, **own})
    elif block.get("pos_embed") is None:
        resolve.assign(block, {"pos_embed": known.get("pos_embed")})


def take_data(
    data: ConfigDict, like: dict[str, Any], *, init: str | None, name: str
) -> None:
    """Fills open fields of block `data` from another run's config, `like`.

    Size, channels and normalisation of the images are left to `images.take`. `init` and
    `name`, the recipe's, are for messages.

    Raises:
      ValueError: `like` is the config of a file, which records no data.
    """
    if "data" not in like:
        raise ValueError(
            f"--config.init={init}: a file of weights says nothing about data; "
            f"name some: --config=...{name}.py:digits, :imagenet2012 or "
            ":data=folder,path=DIR"
        )
    known = match.data_of(like).items()
    resolve.fill_open(data, {k: v for k, v in known if k not in match.IMAGES})
