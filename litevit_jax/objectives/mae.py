"""Masked autoencoders (He et al., arXiv 2111.06377; recipes 2).

The loss is that of `models_mae.py` in the official repository: mean squared error
on masked patches, whose target pixels are normalised per patch. Only the order of the
computation differs: one permutation of the patches serves encoder, decoder and target,
and only masked patches are predicted.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from litevit_jax.models import layers, mae_decoder, pixels, vit
from litevit_jax.objectives import base, health, masking


def make(
    *,
    encoder: dict[str, Any],
    decoder: dict[str, Any],
    mask_ratio: float = 0.75,
    norm_pix_loss: bool = True,
    dtype: str = "auto",
) -> Mae:
    """Builds the objective.

    Args:
      encoder: arguments of `vit.make_encoder`.
      decoder: arguments of `mae_decoder.make_decoder`.
      mask_ratio: share of the patches that are hidden.
      norm_pix_loss: whether targets are normalised per patch.
      dtype: of the computation; 'auto' is bfloat16 on accelerators.

    Raises:
      ValueError: a value out of range, or an unknown choice.
    """
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mae: mask_ratio={mask_ratio}, expected 0 < ratio < 1")
    computed: dict[str, Any] = {"dtype": base.compute_dtype(dtype)}
    return Mae(
        encoder=vit.make_encoder(**{**computed, **encoder}),
        decoder=mae_decoder.make_decoder(**{**computed, **decoder}),
        mask_ratio=mask_ratio,
        norm_pix_loss=norm_pix_loss,
    )


@dataclasses.dataclass(frozen=True)
class Mae(base.Objective):
    """Reconstructs the masked patches of an image from the kept ones.

    Attributes:
      encoder, decoder: the networks.
      mask_ratio, norm_pix_loss: see `make`.
      decode_after: the decoder reads the tokens after this many blocks, through the
        final norm; None means after all of them. The later blocks need another loss.
    """

    encoder: vit.Encoder
    decoder: mae_decoder.Decoder
    mask_ratio: float = 0.75
    norm_pix_loss: bool = True
    decode_after: int | None = None

    @property
    def encoded_share(self) -> float:
        """The share of the patches that are kept."""
        return 1 - self.mask_ratio

    @property
    def takes_pixels(self) -> bool:
        """True: each patch is read once, to be encoded or as a target."""
        return True

    def init(self, key: jax.Array, batch: base.Batch) -> base.Variables:
        """Parameters {'encoder', 'decoder'} for images of the batch's shape."""
        encoder_key, decoder_key = jax.random.split(key)
        image = jnp.zeros((1, *batch["image"].shape[1:]))
        ids = jnp.arange(self._num_patches(image))[None]
        ids_keep = ids[:, : self._num_kept(image)]
        encoder = self.encoder.init(encoder_key, image, ids_keep)["params"]
        latent, _ = self.encoder.apply({"params": encoder}, image, ids_keep)
        shapes = self._decoder_shapes(image)
        decoder = self.decoder.init(decoder_key, latent, ids, **shapes)["params"]
        return base.Variables({"encoder": encoder, "decoder": decoder}, {}, {})

    def loss(self, params, model_state, teacher, batch, key):
        """Mean squared error over masked patches; see `base.Objective`.

        Masks are drawn from `key` unless the batch has `ids_shuffle [B, N]`.
        """
        ids = self.masks_of(batch, key)
        loss = self.example_losses(params, batch["image"], ids).mean()
        return loss, ({"loss": loss}, model_state)

    def masks_of(self, batch: base.Batch, key: jax.Array) -> jax.Array:
        """The batch's `ids_shuffle [B, N]`, or masks drawn from `key`."""
        ids = batch.get("ids_shuffle")
        if ids is None:
            ids = self.draw_masks(base.example_keys(key, batch), batch["image"])
        return ids

    def draw_masks(self, keys: jax.Array, image: jax.Array) -> jax.Array:
        """A permutation of the patches `[B, N]` for each key `[B]`; first M kept."""
        return masking.random_masking(keys, self._num_patches(image))

    def example_losses(
        self, params: base.Tree, image: jax.Array, ids_shuffle: jax.Array
    ) -> jax.Array:
        """The loss of each example `[B]`, float32.

        All examples have the same number of masked patches, so the mean over examples
        is the mean over all masked patches.

        Args:
          params: {'encoder', 'decoder'}.
          image: normalised images `[B, H, W, C]`.
          ids_shuffle: permutations of the patches `[B, N]`.
        """
        pred, *_ = self.forward(params, image, ids_shuffle)
        return self.pixel_errors(pred, image, ids_shuffle)

    def pixel_errors(
        self, pred: jax.Array, image: jax.Array, ids_shuffle: jax.Array
    ) -> jax.Array:
        """Mean squared error `[B]` of the prediction `[B, N - M, P*P*C]`, float32."""
        target = self._masked_patches(image, ids_shuffle)
        if self.norm_pix_loss:
            target = masking.normalize_patches(target)
        return jnp.square(pred.astype(jnp.float32) - target).mean(axis=(1, 2))

    def forward(
        self,
        params: base.Tree,
        image: jax.Array,
        ids_shuffle: jax.Array,
        *,
        all_patches: bool = False,
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """Encodes the kept patches and predicts the masked ones.

        Returns:
          The prediction `[B, N - M, P*P*C]` in the order of `ids_shuffle[:, M:]`
          (or `[B, N, P*P*C]` in image order for `all_patches`), the tokens
          `[B, 1 + M, D]` that the decoder reads, and the encoder's intermediates.
        """
        ids_keep = ids_shuffle[:, : self._num_kept(image)]
        encoded: Any = self.encoder.apply(
            {"params": params["encoder"]}, image, ids_keep, train=True
        )
        latent, intermediates = encoded
        if self.decode_after is not None:
            norm = layers.LayerNorm(self.encoder.dtype)
            early: Any = norm.apply(
                {"params": params["encoder"]["norm"]},
                intermediates[f"block_{self.decode_after:02d}/in"],
            )
            latent = early
        shapes = self._decoder_shapes(image)
        pred: Any = self.decoder.apply(
            {"params": params["decoder"]},
            latent,
            ids_shuffle,
            all_patches=all_patches,
            **shapes,
        )
        return pred, latent, intermediates

    def health(self, params, model_state, teacher, batch, key):
        """Health statistics of the class token and the last block, nothing masked."""
        del model_state, teacher, key
        return health.of_encoder(self.encoder, params["encoder"], batch)

    def predict(self, params, model_state, batch):
        """Returns features of the whole image, and pictures of a masked one.

        Returns:
          'features' `[B, D]`: class token after the final norm, nothing masked;
          'features_avg' `[B, D]`: mean of the patch tokens after that norm;
          'features_blocks', 'features_blocks_avg' `[B, L, D]`: after every block;
          'mae_loss' `[B]`: each example's loss;
          'masked' `[B, H, W, C]`: masked patches are 0, the data set's mean;
          'reconstruction' `[B, H, W, C]`: masked patches are predictions, scaled to
          the true mean and deviation where targets are normalised.
          Masks depend only on `index [B]`, so pictures can be compared. Features are
          computed in float32, whatever the type in training.
        """
        del model_state
        image = batch["image"]
        slot = {"slot": batch["index"]} if "index" in batch else {}
        keys = base.example_keys(jax.random.key(0), {"image": image} | slot)
        ids = self.draw_masks(keys, image)
        whole = self.encoder.in_float32()
        encoded: Any = whole.apply({"params": params["encoder"]}, image)
        return {
            **vit.features_of(*encoded),
            "mae_loss": self.example_losses(params, image, ids),
            **self._pictures(params, image, ids),
        }

    def _pictures(self, params, image, ids_shuffle):
        masked = self._masked_patches(image, ids_shuffle)
        pred = self.forward(params, image, ids_shuffle)[0].astype(jnp.float32)
        if self.norm_pix_loss:
            mean, std = masking.patch_stats(masked)
            pred = pred * std + mean
        return {
            "masked": self._paste(image, jnp.zeros_like(masked), ids_shuffle),
            "reconstruction": self._paste(image, pred, ids_shuffle),
        }

    def _paste(self, image, masked, ids_shuffle):
        """Replaces the masked patches of the image by `masked [B, N-M, P*P*C]`."""
        side, num_kept = self.encoder.patch_size, self._num_kept(image)
        patches = masking.patchify(image, side)
        kept = masking.take_tokens(patches, ids_shuffle[:, :num_kept])
        shuffled = jnp.concatenate([kept, masked], axis=1)
        patches = masking.take_tokens(shuffled, jnp.argsort(ids_shuffle, axis=1))
        return masking.unpatchify(patches, masking.grid_of(image.shape, side), side)

    def _masked_patches(self, image, ids_shuffle):
        ids = ids_shuffle[:, self._num_kept(image) :]
        return pixels.patches(image, self.encoder.patch_size, ids).astype(jnp.float32)

    def _num_patches(self, image):
        rows, cols = masking.grid_of(image.shape, self.encoder.patch_size)
        return rows * cols

    def _num_kept(self, image):
        return masking.count_kept(self.mask_ratio, self._num_patches(image))

    def _decoder_shapes(self, image):
        side = self.encoder.patch_size
        grid = masking.grid_of(image.shape, side)
        return {"grid": grid, "patch_dim": side**2 * image.shape[-1]}
