"""The start of a run: open fields by the recipe's `fallback`, and random parameters.

`warm_start.start` has the other kind of start, from checkpoints of runs and from files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from litevit_jax import sharding
from litevit_jax.data import settings
from litevit_jax.terminal import counted
from litevit_jax.train import resolve
from litevit_jax.train.job import TrainState
from litevit_jax.train.optimizer import Optimizer
from litevit_jax.trees import PyTree

# Fields that name a checkpoint, or say how one is read.
ABOUT_CHECKPOINTS = ("init", "init_donor", "init_ema", "init_grid", "init_required")
ABOUT_CHECKPOINTS += ("init_channels", "like", "teacher")


@dataclasses.dataclass(frozen=True)
class Start:
    """A start from random parameters.

    Attributes:
      seed: of the random parameters.
      objective: its name.
      notes: lines about the encoder and the images, for the start.
    """

    seed: int
    objective: str
    notes: list[str]

    def check_teacher(self, *, needed: bool) -> None:
        """Raises ValueError if a frozen teacher is missing, or given and not needed."""
        if needed:
            raise ValueError(teacher_missing_error(self.objective))

    def teacher_arrays(self, shapes: PyTree) -> PyTree:
        """Returns the frozen teacher's arrays, on the host; here there is none."""
        raise ValueError(teacher_missing_error(self.objective))

    def check(self, params: PyTree) -> None:
        """Raises ValueError if `params` cannot start from the checkpoint, if any."""

    def state(
        self,
        create: Callable[[jax.Array], TrainState],
        abstract: TrainState,
        fixed: dict[str, Any],
        optimizer: Optimizer,
    ) -> TrainState:
        """Creates the initial TrainState on the mesh.

        Args:
          create: key -> a state with random parameters.
          abstract: its shapes and shardings.
          fixed: part of the state -> host arrays that never change.
          optimizer: of the run; a start that replaces parameters restarts it.
        """
        del optimizer
        state = create(jax.random.key(self.seed))
        return sharding.replace(state, fixed, abstract)


def random_start(
    objective: ConfigDict,
    data: ConfigDict,
    augment: ConfigDict,
    fallback: ConfigDict,
    *,
    seed: int,
    name: str,
) -> Start:
    """Fills what the blocks leave open with `fallback`; parameters will be random.

    `name` is the recipe's, for messages.

    Raises:
      ValueError: no encoder, no data, or images that nothing describes.
    """
    take_fallback_encoder(objective.encoder, fallback.encoder)
    check_known(name, objective.encoder, data)
    notes = []
    if "normalize" in augment:  # else misspelt: `augment.make` raises
        take_fallback(data, augment.normalize, fallback)
        notes = [images_note(data, objective.encoder)]
    return Start(seed, objective.name, notes)


def take_fallback_encoder(encoder: ConfigDict, fallback: ConfigDict) -> None:
    """Fills the fields of an encoder's block that are open with the recipe's."""
    resolve.assign(encoder, {k: v for k, v in fallback.items() if not encoder[k]})


def check_known(name: str, encoder: ConfigDict, data: ConfigDict) -> None:
    """Raises ValueError if a run of recipe `name` knows no encoder or no data."""
    if data.source is None or not (encoder.variant or encoder.width):
        raise ValueError(
            f"{name}: which encoder and data? Give a pre-training run with "
            "--config.init=RUN_DIR; or, to start from --config.init=random, either "
            "--config.like=RUN_DIR (its encoder and data) or a variant (:digits)"
        )


def take_fallback(
    data: ConfigDict, normalize: ConfigDict, fallback: ConfigDict
) -> None:
    """Fills what is still open of the images with the recipe's `fallback`.

    Raises:
      ValueError: it has not one mean and one deviation per channel.
    """
    known = {name: fallback[name] for name in ("image_size", "channels")}
    resolve.fill_open(data, known)
    channels = data.channels
    for name in ("mean", "std"):
        if normalize[name] is not None:
            continue
        if len(fallback[name] or ()) != channels:
            raise ValueError(
                f"augment.normalize.{name} of images of {channels} channels is not "
                f"known: give a number for each, as litevit stats DIR prints them: "
                f"--config.augment.normalize.{name}="
            )
        resolve.assign(normalize, {name: tuple(fallback[name])})


def images_note(data: ConfigDict, encoder: ConfigDict) -> str:
    """Describes the images and their patches in a line for the start."""
    from litevit_jax.models import vit

    height, width = settings.image_size(data)
    side = vit.of_block(encoder).patch_size
    return (
        f"images of {height}x{width} pixels, {counted(data.channels, 'channel')}: "
        f"{(height // side) * (width // side):,} patches of {side}x{side} an image"
    )


def teacher_missing_error(objective: str) -> str:
    """Returns the message for a teacher that is needed and not given."""
    return (
        f"objective {objective!r} learns from a teacher: which? Give its "
        "run or its weights with --config.teacher=RUN_DIR or --config.teacher=FILE"
    )
