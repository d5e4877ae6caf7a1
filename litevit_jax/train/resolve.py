"""Resolves a config: every value that the command line leaves open is set here.

Nothing else in the package writes into a config.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from litevit_jax import distributed, registry
from litevit_jax.data import settings

if TYPE_CHECKING:
    from litevit_jax.data.sources.base import Source


def copy(config: ConfigDict) -> ConfigDict:
    """Copies `config` for a job to complete.

    Raises:
      ValueError: a number out of its bounds.
    """
    config = config.copy_and_resolve_references().unlock()
    registry.check_fields(config)
    return config


def settle(config: ConfigDict) -> ConfigDict:
    """Copies `config` for a run: numbers checked, the decoder that 'auto' means chosen.

    Raises:
      ValueError: a number out of its bounds, or an unknown writer.
      ModuleNotFoundError: a writer's package is missing.
    """
    from litevit_jax.data import cache, turbo
    from litevit_jax.train import services

    config = copy(config)
    distributed.check_joined()
    services.check(config.log.writers)
    config.data.cache = cache.setting(config.data)
    config.data.decoder = turbo.choose(config.data.decoder)
    return config


def pixel_range(data: ConfigDict, split: str) -> None:
    """Sets `data.range` to what the run must record of it: numbers for 'auto'.

    Raises:
      ValueError: no range, or not the one that the images of `split` have.
    """
    from litevit_jax.data import splits

    data.range = splits.pixel_range(data, split)


def derive(
    config: ConfigDict, source: Callable[[str], Source], cropped_on: str = "host"
) -> list[str]:
    """Sets what follows from the data: fields that `auto` chooses, and `derived`.

    Augmentations that need red, green and blue are left out for other images. Returns
    a line about what was chosen, if anything was.

    Raises:
      ValueError: a run without a step, or a warm-up that does not fit into it.
    """
    from litevit_jax.train import auto

    lr_batch, steps_at_least = config.batch_size, 0
    images = source("train")
    chosen = auto.settings(
        len(images),
        batch_size=config.batch_size,
        batch=config.auto_batch,
        lr_base=config.lr.base,
        epochs=config.epochs,
        warmup_epochs=config.lr.warmup_epochs,
        objective=config.objective,
    )
    for name, value in chosen.items():
        _set(config, name, value)
    if lr_batch is None:
        lr_batch = config.auto_batch.lr_batch or config.batch_size
        steps_at_least = config.auto_batch.steps_at_least
    config.data.multi_hot = len(images.classes) if images.multi_label else None
    length = auto.length(
        len(images),
        steps=config.steps,
        epochs=config.epochs,
        warmup_epochs=config.lr.warmup_epochs,
        batch_size=config.batch_size,
        at_least=steps_at_least,
        extend_to=config.extend_to,
    )
    config.derived = {
        "train_examples": len(images),
        "train_fingerprint": images.fingerprint(),
        "num_classes": len(images.classes),
        "classes": list(images.classes),
        "image_size": list(settings.image_size(config.data)),
        "class_counts": _class_counts(images, config.objective.get("class_weights")),
        "cropped_on": cropped_on,
        **length,
        "peak_lr": config.lr.base * lr_batch / 256,
    }
    if config.data.channels != 3:
        _leave_colors_out(config.augment, config.data.channels)
    return auto.note(len(images), chosen, config.steps)


def _class_counts(images: Source, weights: str | None) -> tuple[int, ...] | None:
    """Counts the images of each class if `objective.class_weights` needs it."""
    if not weights:
        return None
    counts = np.zeros(len(images.classes), np.int64)  # labels may be bytes
    for row in range(len(images)):
        counts += images.labels_of(row)
    return tuple(map(int, counts))


def _leave_colors_out(ops: ConfigDict, channels: int) -> None:
    """Removes the augmentations that need red, green and blue, with a warning."""
    from litevit_jax.augment import color

    kept, left_out = color.for_channels(ops.to_dict(), channels)
    for name in ops.keys() - kept.keys():
        del ops[name]
    ops.update(kept)
    if left_out:
        logging.warning(
            "images of data.channels=%d are not red, green and blue: the augmentation "
            "leaves out %s",
            channels,
            ", ".join(left_out),
        )


def objective(
    block: ConfigDict, derived: ConfigDict
) -> tuple[dict[str, Any], str | None]:
    """Completes the objective's `block` by what the run derives.

    Returns:
      The block without open fields, and the name of its field that counts classes, if
      it has one; that field is set in `block`, too.
    """
    from litevit_jax.objectives import base as objectives

    fields = objectives.complete(without_none(block.to_dict()), derived)
    classes = objectives.classes_field(fields["name"])
    if classes is not None:
        block[classes] = fields[classes]
    return fields, classes


def assign(block: ConfigDict, values: dict[str, Any]) -> None:
    """Sets fields of a config's block; a block in `values` replaces the old one."""
    for key, value in values.items():
        block[key] = value


def fill_open(block: ConfigDict, values: dict[str, Any]) -> None:
    """Sets those fields of `block` that are None, at any depth."""
    for key, value in values.items():
        if isinstance(value, dict) and block.get(key) is not None:
            fill_open(block[key], value)
        elif block.get(key) is None:
            block[key] = value


def changed(
    config: ConfigDict, fields: dict[str, Any], *, without: Sequence[str] = ()
) -> ConfigDict:
    """Copies `config` with other values of some fields, for a job to run.

    Args:
      config: of any job; it stays as it is.
      fields: dotted name, as 'lr.base' -> value.
      without: names of blocks to leave out.
    """
    copied = config.copy_and_resolve_references().unlock()
    for name, value in fields.items():
        _set(copied, name, value)
    for name in without:
        del copied[name]
    return copied


def _set(block: ConfigDict, name: str, value: Any) -> None:
    """Sets the field of a dotted name."""
    *blocks, last = name.split(".")
    functools.reduce(lambda part, key: part[key], blocks, block)[last] = value


def without_none(block: dict[str, Any]) -> dict[str, Any]:
    """Copies `block` without the fields that are None, at any depth."""
    return {
        key: without_none(value) if isinstance(value, dict) else value
        for key, value in block.items()
        if value is not None
    }
