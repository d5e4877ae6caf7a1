"""Augmentations of single images, in one or several views of each example.

They work on bytes and round after each change as PIL and torchvision do, which define
the recipe of MoCo v3 (recipes 4.4).
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class ImageOp(abc.ABC):
    """Changes each image with the probability of its view.

    Attributes:
      probability: one per view; a single one serves all views.
    """

    probability: tuple[float, ...]

    @abc.abstractmethod
    def change(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Changes one image `[H, W, C]`, uint8; random numbers come from `key`."""

    def __call__(self, key: jax.Array, batch: dict[str, Any]) -> dict[str, Any]:
        """Changes images drawn from `image [B, H, W, C]` or `views [V, B, H, W, C]`.

        The numbers drawn depend only on the key, the example's `slot [B]` and the
        number of the view, so they are the same on any mesh.

        Raises:
          ValueError: probabilities for another number of views, or no bytes.
        """
        name = "views" if "views" in batch else "image"
        images = batch[name] if name == "views" else batch[name][None]
        self._check(images)
        slots = batch.get("slot")
        if slots is None:
            slots = jnp.arange(images.shape[1])

        def one(rate: Any, view: Any, slot: Any, image: Any) -> jax.Array:
            own = jax.random.fold_in(jax.random.fold_in(key, slot), view)
            pick_key, change_key = jax.random.split(own)
            picked = jax.random.uniform(pick_key) < rate
            return jnp.where(picked, self.change(change_key, image), image)

        over_batch = jax.vmap(one, (None, None, 0, 0))
        over_views = jax.vmap(over_batch, (0, 0, None, 0))
        views = jnp.arange(images.shape[0])
        rates = jnp.broadcast_to(jnp.array(self.probability), views.shape)
        changed = over_views(rates, views, slots, images)
        return {**batch, name: changed if name == "views" else changed[0]}

    def _check(self, images: Any) -> None:
        if len(self.probability) not in (1, len(images)):
            raise ValueError(
                f"augment: {self} has {len(self.probability)} probabilities for "
                f"{len(images)} view(s); give one per view, or a single one for all"
            )
        if images.dtype != jnp.uint8:
            raise ValueError(
                f"augment: {self} got {images.dtype} pixels, expected uint8; it must "
                "come before normalize"
            )


def probabilities(op: str, probability: Any) -> tuple[float, ...]:
    """Returns a probability, or one per view, as a tuple.

    Raises:
      ValueError: one of them is not in 0 to 1.
    """
    given = probability if isinstance(probability, Sequence) else (probability,)
    if not given or not all(0 <= p <= 1 for p in given):
        raise ValueError(
            f"augment.{op}: probability={probability}; expected values from 0 to 1, "
            "one per view or a single one for all"
        )
    return tuple(given)


def check_rgb(op: str, image: Any) -> None:
    """Raises a ValueError unless the image is `[H, W, 3]`."""
    if image.shape[-1] != 3:
        raise ValueError(
            f"augment.{op} needs red, green and blue, but images have "
            f"{image.shape[-1]} channel(s); color.for_channels leaves it out"
        )
