"""Batches by shape: as the host yields them, as training and evaluation see them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from litevit_jax import augment
from litevit_jax.data import settings
from litevit_jax.train import state as states

Shapes = dict[str, jax.ShapeDtypeStruct]


def augmentation(config: ConfigDict) -> dict[str, Any]:
    """Blocks of the ops that the device runs: `config.augment`, and `data.flip`.

    Raises:
      ValueError: both ask for a flip.
    """
    blocks = config.augment.to_dict()
    if not config.data.flip or settings.flips_on_host(config.data):
        return blocks
    if "flip" in blocks:
        raise ValueError(
            f"data.flip={config.data.flip} and augment.flip both swap left and right; "
            "set --config.data.flip=0"
        )
    return blocks | {"flip": {"probability": config.data.flip}}


def host(config: ConfigDict) -> Shapes:
    """A training batch of the host, of all processes together.

    Raises:
      ValueError: normalisation and images differ in their channels.
    """
    channels = len(config.augment.normalize.mean)
    if channels != config.data.channels:
        raise ValueError(
            f"augment.normalize has {channels} means, data.channels is "
            f"{config.data.channels}; give one mean and std per channel"
        )
    image = (*settings.image_size(config.data), channels)
    if config.data.views == 1:
        pixels = {"image": _shape(config, *image, dtype=jnp.uint8)}
    else:
        pixels = {"views": _shape(config, config.data.views, *image, dtype=jnp.uint8)}
    return pixels | {"label": _shape(config), "index": _shape(config)}


def training(config: ConfigDict, ops: tuple[augment.Op, ...]) -> Shapes:
    """A training batch as the objective sees it: augmented by `ops`.

    Raises:
      ValueError: colour jitter together with RandAugment.
    """
    layers = config.data.randaugment.layers
    if "color_jitter" in config.augment and layers:
        raise ValueError(
            f"augment.color_jitter beside data.randaugment.layers={layers}: recipes "
            "have one or the other, as RandAugment changes colours itself; leave "
            "color_jitter out, or set --config.data.randaugment.layers=0"
        )
    batch = host(config) | {"slot": _shape(config)}
    if "views" in batch:
        size, views, *image = batch["views"].shape
        batch["views"] = jax.ShapeDtypeStruct((views, size, *image), jnp.uint8)
    return _augmented(ops, batch)


def evaluation(config: ConfigDict, size: tuple[int, int], rows: int) -> Shapes:
    """A batch of an evaluation: `rows` images (H, W) as they were decoded."""
    shapes = {
        "image": ((rows, *size, config.data.channels), jnp.uint8),
        "label": ((rows,), jnp.int32),
        "index": ((rows,), jnp.int32),
        "mask": ((rows,), jnp.float32),
    }
    return {name: jax.ShapeDtypeStruct(*given) for name, given in shapes.items()}


@dataclasses.dataclass(frozen=True)
class Predict:
    """(params, model_state, batch of uint8 images) -> what an objective predicts.

    Equal ones are one to JAX: runs of one process share what is traced and compiled.
    """

    objective: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, params: Any, model_state: Any, batch: Any) -> dict[str, Any]:
        """Named arrays `[B, ...]` for images normalised by `mean` and `std`."""
        ops = augment.make({"normalize": {"mean": self.mean, "std": self.std}})
        batch = augment.apply(ops, jax.random.key(0), batch)
        return self.objective.predict(params, model_state, batch)


def _shape(config: ConfigDict, *shape: int, dtype: Any = jnp.int32):
    return jax.ShapeDtypeStruct((config.batch_size, *shape), dtype)


def _augmented(ops: tuple[augment.Op, ...], batch: Shapes) -> Shapes:
    apply = functools.partial(augment.apply, ops)
    return jax.eval_shape(apply, states.abstract_key(), batch)
