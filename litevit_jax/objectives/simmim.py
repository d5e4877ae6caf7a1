"""SimMIM: masked patches stay in place as a token (arXiv 2111.09886, section 3).

The encoder sees every position of the image; one learned token replaces the embedding
of a masked patch. One linear layer predicts raw pixels, and the loss is the mean
absolute error over the masked ones, as in the official `simmim.py`. Whole units of
`mask_unit` x `mask_unit` patches are masked, 32 pixels wide in the paper.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from litevit_jax.models import layers, vit
from litevit_jax.objectives import base, health, masking


def make(
    *,
    encoder: dict[str, Any],
    mask_ratio: float = 0.6,
    mask_unit: int = 1,
    dtype: str = "auto",
) -> SimMim:
    """Builds the objective.

    Args:
      encoder: arguments of `vit.make_encoder`.
      mask_ratio: share of the units that are hidden, rounded up.
      mask_unit: patches along a side of a unit, which is hidden as a whole.
      dtype: of the encoder; 'auto' is bfloat16 on accelerators.

    Raises:
      ValueError: a value out of range, or an unknown choice.
    """
    if not 0 < mask_ratio < 1 or mask_unit < 1:
        raise ValueError(
            f"simmim: mask_ratio={mask_ratio}, mask_unit={mask_unit}; expected "
            "0 < ratio < 1 and a unit of at least 1 patch"
        )
    computed: dict[str, Any] = {"dtype": base.compute_dtype(dtype)}
    module = vit.make_encoder(**{**computed, **encoder})
    return SimMim(module, mask_ratio, mask_unit)


@dataclasses.dataclass(frozen=True)
class SimMim(base.Objective):
    """Predicts the pixels of masked patches from all tokens, linearly."""

    encoder: vit.Encoder
    mask_ratio: float
    mask_unit: int

    def init(self, key, batch):
        """Parameters {'encoder', 'head': {'mask_token', 'pred'}}."""
        image = jnp.zeros((1, *batch["image"].shape[1:]))
        self._units(image)
        width, side = self.encoder.width, self.encoder.patch_size
        encoder_key, token_key, pred_key = jax.random.split(key, 3)
        pred = self._pred(side**2 * image.shape[-1])
        head = {
            "mask_token": layers.normal(0.02)(token_key, (1, 1, width)),
            "pred": pred.init(pred_key, jnp.zeros((1, 1, width)))["params"],
        }
        encoder = self.encoder.init(encoder_key, image)["params"]
        return base.Variables({"encoder": encoder, "head": head}, {}, {})

    def loss(self, params, model_state, teacher, batch, key):
        """Mean absolute error over masked pixels; see `base.Objective`.

        Masks are drawn from `key` unless the batch has `mask [B, N]`.
        """
        image, mask = batch["image"], batch.get("mask")
        if mask is None:
            mask = self.draw_masks(base.example_keys(key, batch), image)
        target = masking.patchify(image, self.encoder.patch_size).astype(jnp.float32)
        pred = self._forward(params, image, mask)
        errors = jnp.abs(pred - target).mean(axis=-1)
        # Every example has as many masked patches: slices of a batch can stand for it.
        loss = (errors * mask).sum() / mask.sum()
        return loss, ({"loss": loss}, model_state)

    def draw_masks(self, keys: jax.Array, image: jax.Array) -> jax.Array:
        """A mask of the patches `[B, N]` for each key `[B]`: 1 where hidden."""
        rows, cols = self._units(image)
        ids = masking.random_masking(keys, rows * cols)
        rank = jnp.argsort(ids, axis=1).reshape(-1, rows, cols)
        hidden = rank < math.ceil(rows * cols * self.mask_ratio)
        for axis in (1, 2):
            hidden = hidden.repeat(self.mask_unit, axis)
        return hidden.reshape(len(rank), -1).astype(jnp.float32)

    def health(self, params, model_state, teacher, batch, key):
        """Health statistics of unmasked images; see `health.describe`."""
        del model_state, teacher, key
        return health.of_encoder(self.encoder, params["encoder"], batch)

    def predict(self, params, model_state, batch):
        """Features of unmasked images in float32, see `vit.features_of`."""
        variables = {"params": params["encoder"]}
        whole = self.encoder.in_float32()
        encoded: Any = whole.apply(variables, batch["image"])
        return vit.features_of(*encoded)

    def _forward(self, params, image, mask):
        """Predicts patches `[B, N, P*P*C]`, float32."""
        hide = (mask, params["head"]["mask_token"])
        variables = {"params": params["encoder"]}
        tokens, _ = self.encoder.apply(variables, image, hide=hide, train=True)
        pred = self._pred(self.encoder.patch_size**2 * image.shape[-1])
        pixels: Any = pred.apply({"params": params["head"]["pred"]}, tokens[:, 1:])
        return pixels.astype(jnp.float32)

    def _pred(self, patch_dim):
        sizes = (self.encoder.width, patch_dim)
        return layers.Linear(patch_dim, self.encoder.dtype, layers.xavier(*sizes))

    def _units(self, image):
        """The number of rows and columns of mask units."""
        rows, cols = masking.grid_of(image.shape, self.encoder.patch_size)
        unit = self.mask_unit
        if rows % unit or cols % unit:
            raise ValueError(
                f"simmim: mask_unit={unit} does not divide the {rows} x {cols} patches "
                f"of an image; with patch_size={self.encoder.patch_size} give "
                "--config.objective.mask_unit=1"
            )
        return rows // unit, cols // unit
