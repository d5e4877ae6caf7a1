"""Mixup and CutMix on the device (arXiv 1710.09412, 1905.04899; recipes 5.1, 5.2).

One share is drawn for the global batch and an example's partner is its mirror image
in the global batch, B - 1 - i, so results do not depend on the mesh. timm, which the
authors use, draws and mirrors on each device instead.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Mix:
    """Mixes every example with its partner.

    The label stays an index; `partner_label` and `label_share` describe the other part
    of the image, and the objective computes the target distribution from the three.

    Attributes:
      mixup: alpha of Beta(alpha, alpha), from which the share of the example's own
        pixels is drawn; 0 turns mixup off.
      cutmix: the same for CutMix, which pastes a box of the partner; 0 turns it off.
      switch: probability that a batch gets CutMix where both are on.
    """

    mixup: float
    cutmix: float
    switch: float

    @property
    def pairs_examples(self) -> bool:
        """Whether an example needs another one of its batch."""
        return bool(self.mixup or self.cutmix)

    def __call__(self, key: jax.Array, batch: dict[str, Any]) -> dict[str, Any]:
        """Mixes `image`, float [B, H, W, C].

        Adds `partner_label [B]` and `label_share [B]`, the part of `label` in the
        target; `partner_label` has the rest. Of images with several labels,
        `labels [B, K]`, it adds `partner_labels [B, K]`, too.

        Raises:
          ValueError: an odd batch: its middle example would be its own partner.
        """
        if "image" not in batch:
            raise ValueError("augment.mix needs one image an example: data.views=1")
        if not (self.mixup or self.cutmix):
            return batch
        image = batch["image"]
        size, height, width = image.shape[:3]
        if size % 2:
            raise ValueError(
                f"batch_size={size} is odd, but augment.mix pairs the examples of a "
                f"batch; try --config.batch_size={size + 1}"
            )
        weight, share = self.weights(key, height, width)
        labels = {}
        if "labels" in batch:
            labels["partner_labels"] = batch["labels"][::-1]
        weight = weight[:, :, None].astype(image.dtype)
        return {
            **batch,
            **labels,
            "image": weight * image + (1 - weight) * image[::-1],
            "partner_label": batch["label"][::-1],
            "label_share": jnp.full(size, share),
        }

    def weights(
        self, key: jax.Array, height: int, width: int
    ) -> tuple[jax.Array, jax.Array]:
        """Draws weights of own pixels `[H, W]`, and their mean: the label's share."""
        switch_key, mixup_key, cutmix_key = jax.random.split(key, 3)
        if not self.cutmix:
            return self._mixup(mixup_key, height, width)
        if not self.mixup:
            return self._cutmix(cutmix_key, height, width)
        cut = jax.random.uniform(switch_key) < self.switch
        one = self._cutmix(cutmix_key, height, width)
        other = self._mixup(mixup_key, height, width)
        return jnp.where(cut, one[0], other[0]), jnp.where(cut, one[1], other[1])

    def _mixup(self, key: jax.Array, height: int, width: int):
        share = jax.random.beta(key, self.mixup, self.mixup)
        return jnp.full((height, width), share), share

    def _cutmix(self, key: jax.Array, height: int, width: int):
        share_key, top_key, left_key = jax.random.split(key, 3)
        side = jnp.sqrt(1 - jax.random.beta(share_key, self.cutmix, self.cutmix))
        row = _in_cut(top_key, side, height)
        column = _in_cut(left_key, side, width)
        weight = 1.0 - (row[:, None] & column[None])
        # The box may stick out of the image: only the part inside counts.
        return weight, weight.mean()


def _in_cut(key: jax.Array, side: jax.Array, length: int) -> jax.Array:
    """Draws a cut of relative length `side`: bool [length], True inside.

    Its middle is uniform, and the part outside the image is lost.
    """
    half = (side * length).astype(jnp.int32) // 2
    middle = jax.random.randint(key, (), 0, length)
    position = jnp.arange(length)
    return (position >= middle - half) & (position < middle + half)


def make(*, mixup: float = 0.0, cutmix: float = 0.0, switch: float = 0.5) -> Mix:
    """Builds `Mix`; with both alphas 0 it does nothing.

    Raises:
      ValueError: a negative alpha, or a `switch` that is no probability.
    """
    for name, alpha in (("mixup", mixup), ("cutmix", cutmix)):
        if not alpha >= 0:
            raise ValueError(f"augment.mix: {name}={alpha}, expected 0 or more")
    if not 0 <= switch <= 1:
        raise ValueError(
            f"augment.mix: switch={switch}, expected a probability from 0 to 1"
        )
    return Mix(mixup, cutmix, switch)
