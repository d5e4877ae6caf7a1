"""Shapes of training batches: from the host, and as the objective sees them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from litevit_jax import augment
from litevit_jax.data import settings
from litevit_jax.train import state as states
from litevit_jax.train.state import Shapes

if TYPE_CHECKING:
    from litevit_jax.objectives.base import Objective


def augmentation(ops: ConfigDict, data: ConfigDict) -> dict[str, Any]:
    """Returns the blocks of the device's ops: those of `config.augment`, and the flip.

    Raises:
      ValueError: both ask for a flip.
    """
    blocks = ops.to_dict()
    if not data.flip or settings.flips_on_host(data):
        return blocks
    if "flip" in blocks:
        raise ValueError(
            f"data.flip={data.flip} and augment.flip both swap left and right; "
            "set --config.data.flip=0"
        )
    return blocks | {"flip": {"probability": data.flip}}


def host(data: ConfigDict, normalize: ConfigDict, batch_size: int) -> Shapes:
    """Returns the host's training batch, of all processes together.

    `normalize` is the block of `config.augment`.

    Raises:
      ValueError: normalisation and images differ in their channels.
    """
    channels = len(normalize.mean)
    if channels != data.channels:
        raise ValueError(
            f"augment.normalize has {channels} means, data.channels is "
            f"{data.channels}; give one mean and std per channel, as litevit stats DIR "
            "prints them"
        )
    image = (*settings.image_size(data), channels)
    if data.views == 1:
        pixels = {"image": _shape(batch_size, *image, dtype=jnp.uint8)}
    else:
        pixels = {"views": _shape(batch_size, data.views, *image, dtype=jnp.uint8)}
    beside = {
        name: _shape(batch_size, *shape, dtype=dtype)
        for name, (shape, dtype) in settings.extras(data).items()
    }
    return pixels | beside | {"label": _shape(batch_size), "index": _shape(batch_size)}


def training(
    data: ConfigDict, blocks: ConfigDict, batch_size: int, ops: tuple[augment.Op, ...]
) -> Shapes:
    """Returns a training batch as the objective sees it, augmented by `ops`.

    `blocks` are those of `config.augment`.

    Raises:
      ValueError: colour jitter together with RandAugment.
    """
    layers = data.randaugment.layers
    if "color_jitter" in blocks and layers:
        raise ValueError(
            f"augment.color_jitter beside data.randaugment.layers={layers}: recipes "
            "have one or the other, as RandAugment changes colours itself; leave "
            "color_jitter out, or set --config.data.randaugment.layers=0"
        )
    batch = host(data, blocks.normalize, batch_size) | {"slot": _shape(batch_size)}
    if "views" in batch:
        size, views, *image = batch["views"].shape
        batch["views"] = jax.ShapeDtypeStruct((views, size, *image), jnp.uint8)
    return _augmented(ops, batch)


def check_batch(
    objective: Objective, name: str, batch_size: int, mesh: Mesh, *, views: int
) -> None:
    """Raises ValueError for a batch too small for `objective`, or of other views."""
    least = objective.min_batch_per_device * mesh.size
    if batch_size < least:
        raise ValueError(
            f"{batch_size=} is {batch_size // mesh.size} "
            f"on each of {mesh.size} devices; objective {name!r} needs at least "
            f"{objective.min_batch_per_device} there: set "
            f"--config.batch_size={least} or more"
        )
    if objective.num_views != views:
        raise ValueError(
            f"objective {name!r} reads {objective.num_views} view(s) "
            f"of each image, but data.views={views}; set "
            f"--config.data.views={objective.num_views}"
        )


def _shape(
    batch_size: int, *shape: int, dtype: Any = jnp.int32
) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch_size, *shape), dtype)


def _augmented(ops: tuple[augment.Op, ...], batch: Shapes) -> Shapes:
    apply = functools.partial(augment.apply, ops)
    return jax.eval_shape(apply, states.abstract_key(), batch)
