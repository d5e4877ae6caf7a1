"""Batches by shape: as the host yields them, as training and evaluation see them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from ml_collections import ConfigDict

from litevit_jax import augment
from litevit_jax.train import state as states

Shapes = dict[str, jax.ShapeDtypeStruct]


def image_size(data: Any) -> tuple[int, int]:
    """(H, W) that a `data` block asks for."""
    return data["image_size"], data.get("image_width") or data["image_size"]


def flips_on_host(data: Any) -> bool:
    """Whether `data.flip` is done where images are decoded.

    It is where RandAugment must follow it; else the device flips, in the same share
    of the images.
    """
    return data["randaugment"]["layers"] > 0


def augmentation(config: ConfigDict) -> dict[str, Any]:
    """Blocks of the ops that the device runs: `config.augment`, and `data.flip`.

    Raises:
      ValueError: both ask for a flip.
    """
    blocks = config.augment.to_dict()
    if not config.data.flip or flips_on_host(config.data):
        return blocks
    if "flip" in blocks:
        raise ValueError(
            f"data.flip={config.data.flip} and augment.flip both swap left and right; "
            "set --config.data.flip=0"
        )
    return blocks | {"flip": {"probability": config.data.flip}}


def leave_out_colours(config: ConfigDict) -> None:
    """Takes what needs red, green and blue out of `config.augment`, with a line."""
    channels = config.data.channels
    blocks, left_out = augment.for_channels(config.augment.to_dict(), channels)
    if left_out:
        config.augment = blocks
        logging.warning(
            "images of data.channels=%d are not red, green and blue: the augmentation "
            "leaves out %s",
            channels,
            ", ".join(left_out),
        )


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
    image = (*image_size(config.data), channels)
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
