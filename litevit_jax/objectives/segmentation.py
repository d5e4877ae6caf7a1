"""Semantic segmentation: the class of every pixel, from an encoder's patch tokens.

`sem_fpn` is the model that arXiv 2205.14443's authors train on ADE20K, with an encoder
whose blocks have tables of relative positions and layer scale (`rpe_style="dense"`).
`linear` and `linear_ms` are the probes of DINOv2 (arXiv 2304.07193): one linear layer
on the last block's patches, or on those of the last four blocks. `linear_each` trains a
`linear` on every block at once, to see which block to take.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from litevit_jax import choices
from litevit_jax.models import layers, segmentation, vit
from litevit_jax.objectives import base, health

IGNORED = 255  # the label of pixels that have none


def make(
    *,
    encoder: dict[str, Any],
    num_classes: int = base.NUM_CLASSES,
    head: str = "sem_fpn",
    out_blocks: tuple[int, ...] = (),
    channels: int = 128,
    dropout: float = 0.1,
    mean_over: str = "all",
    frozen_encoder: bool = False,
    drop_path: float = 0.0,
    dtype: str = "auto",
) -> Segmentation:
    """Builds the objective.

    Args:
      encoder: arguments of `vit.make_encoder`.
      num_classes: K.
      head: one of `models.segmentation.HEADS`.
      out_blocks: numbers of the blocks that the head reads, see
        `models.segmentation.blocks_read`.
      channels: of the convolutions of 'sem_fpn'.
      dropout: share of the channels that are dropped before the last layer.
      mean_over: pixels over which the cross-entropy is averaged: 'all', where those
        without a label count as 0 (mmsegmentation's default), or 'valid'.
      frozen_encoder: whether no gradient passes the encoder's tokens.
      drop_path: rate of the encoder's last block.
      dtype: of encoder and convolutions; 'auto' is bfloat16 on accelerators.

    Raises:
      ValueError: a value out of range, or an unknown choice.
    """
    choices.check("mean_over", mean_over, ("all", "valid"))
    choices.check("head", head, segmentation.HEADS)
    dtype, pyramid = base.compute_dtype(dtype), head == "sem_fpn"
    defaults: dict[str, Any] = {
        "init_style": "classifier",
        "pos_embed": "learned_sincos",
        "rpe_style": "dense" if pyramid else "none",
        "final_norm": not pyramid,
        "drop_path": drop_path,
        "dtype": dtype,
    }
    module = vit.make_encoder(**{**defaults, **encoder})
    return Segmentation(
        encoder=module,
        neck=segmentation.Neck(module.width // 4, dtype) if pyramid else None,
        head=segmentation.make_head(
            head=head,
            num_classes=num_classes,
            channels=channels,
            dropout=dropout,
            dtype=dtype,
        ),
        blocks=segmentation.blocks_read(head, module.depth, tuple(out_blocks)),
        mean_over=mean_over,
        frozen_encoder=frozen_encoder,
    )


@dataclasses.dataclass(frozen=True)
class Segmentation(base.Objective):
    """Cross-entropy of each pixel, of logits enlarged to the size of the label map.

    Attributes:
      encoder: its tokens leave `blocks`; a final norm, if it has one, is applied to
        those of each block.
      neck: makes a pyramid of the maps; None: the head reads them as they are.
      head: maps to logits; `LinearEach` to those of each block.
      blocks: numbers of the blocks that are read, from 1.
      mean_over: 'all' or 'valid' pixels.
      frozen_encoder: whether the encoder only predicts.
    """

    encoder: vit.Encoder
    neck: segmentation.Neck | None
    head: segmentation.LinearHead | segmentation.LinearEach | segmentation.SemanticFpn
    blocks: tuple[int, ...]
    mean_over: str = "all"
    frozen_encoder: bool = False

    @property
    def annotations(self) -> tuple[str, ...]:
        """The labels of all pixels."""
        return ("label_map",)

    @property
    def reads_each(self) -> bool:
        """Whether each block has a head of its own."""
        return isinstance(self.head, segmentation.LinearEach)

    @property
    def needs_whole_batch(self) -> str:
        """A reason: BatchNorm takes its statistics from the batch."""
        return "its head has BatchNorm"

    def init(self, key: jax.Array, batch: base.Batch) -> base.Variables:
        """Parameters {'encoder', 'neck', 'decode_head'}; state: running statistics."""
        encoder_key, neck_key, head_key = jax.random.split(key, 3)
        image = jnp.zeros((1, *batch["image"].shape[1:]))
        params = {"encoder": self.encoder.init(encoder_key, image)["params"]}
        maps, state = self._maps(params, image, None), {}
        if self.neck is not None:
            variables = self.neck.init(neck_key, maps, train=False)
            params["neck"] = variables["params"]
            state["neck"] = variables["batch_stats"]
            maps: Any = self.neck.apply(variables, maps, train=False)
        variables = self.head.init(head_key, maps, train=False)
        params["decode_head"] = variables["params"]
        state["decode_head"] = variables["batch_stats"]
        return base.Variables(params, state, {})

    def loss(self, params, model_state, teacher, batch, key):
        """Softmax cross-entropy of labelled pixels; see `base.Objective`.

        `label_map` is uint8 `[B, H, W]`, 255 where a pixel has no label. 'pixel_acc' is
        the share of labelled pixels that are right, in percent. Of a head for each
        block, it is the best one's, the scalar is the sum of all losses, so that each
        learns as it would alone, and 'loss' their mean.
        """
        del teacher
        keys = base.example_keys(key, batch)
        logits, model_state = self._logits(params, model_state, batch["image"], keys)
        label = batch["label_map"].astype(jnp.int32)
        valid = label != IGNORED

        def of_a_head(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = segmentation.resize(logits, label.shape[1:])
            loss = _cross_entropy(logits, label, valid, self.mean_over)
            right = (logits.argmax(axis=-1) == label) & valid
            return loss, right.sum() / jnp.maximum(valid.sum(), 1)

        if self.reads_each:  # one after the other: enlarged logits are large
            each = jax.lax.map(jax.checkpoint(of_a_head), jnp.moveaxis(logits, -2, 0))
            loss, mean, share = each[0].sum(), each[0].mean(), each[1].max()
        else:
            loss, share = of_a_head(logits)
            mean = loss
        return loss, ({"loss": mean, "pixel_acc": 100 * share}, model_state)

    def health(self, params, model_state, teacher, batch, key):
        """Health statistics of the patch tokens and the last block."""
        del model_state, teacher, key
        return health.of_encoder(self.encoder, params["encoder"], batch, pool="avg")

    def predict(self, params, model_state, batch):
        """Returns logits of the network's own stride, and features.

        Returns:
          'segmentation_logits' `[B, h, w, K]`, at a quarter of the image's height and
          width for 'sem_fpn', else one a patch; and what `vit.features_of` gives. All
          are computed in float32, whatever the type in training. Of a head for each
          block they are the last one's, and 'segmentation_logits_each'
          `[B, h, w, L, K]` has those of all.
        """
        whole = dataclasses.replace(self, encoder=self.encoder.in_float32())
        if self.neck is not None:
            parts = {"neck": self.neck, "head": self.head}
            exact: Any = {k: x.clone(dtype="float32") for k, x in parts.items()}
            whole = dataclasses.replace(whole, **exact)
        logits, _ = whole._logits(params, model_state, batch["image"], None)
        encoded: Any = whole.encoder.apply(
            {"params": params["encoder"]}, batch["image"]
        )
        predicted = {"segmentation_logits": logits, **vit.features_of(*encoded)}
        if self.reads_each:
            predicted["segmentation_logits"] = logits[..., -1, :]
            predicted["segmentation_logits_each"] = logits
        return predicted

    def _logits(self, params, model_state, image, keys):
        """Computes logits and the new model state; without `keys`, to predict."""
        train = keys is not None
        drop_keys, head_keys = None, None
        if train:
            drop_keys, head_keys = (
                jax.vmap(jax.random.fold_in, (0, None))(keys, i) for i in (0, 1)
            )
        maps: Any = self._maps(params, image, drop_keys)
        state = {}
        for part, args in (("neck", ()), ("decode_head", (head_keys,))):
            module = self.neck if part == "neck" else self.head
            if module is None:
                continue
            variables = {"params": params[part], "batch_stats": model_state[part]}
            maps, new = module.apply(
                variables, maps, *args, train=train, mutable=["batch_stats"]
            )
            state[part] = new["batch_stats"]
        return maps, state

    def _maps(self, params, image, drop_keys):
        """Encodes images: the maps `[B, h, w, D]` of the blocks that are read."""
        train = drop_keys is not None and not self.frozen_encoder
        encoded: Any = self.encoder.apply(
            {"params": params["encoder"]}, image, drop_keys=drop_keys, train=train
        )
        grid = layers.grid_of(image.shape, self.encoder.patch_size)
        tokens = [encoded[1][f"block_{block - 1:02d}/out"] for block in self.blocks]
        if self.encoder.final_norm:
            norm = layers.LayerNorm(self.encoder.dtype)
            weights = {"params": params["encoder"]["norm"]}
            tokens: Any = [norm.apply(weights, x) for x in tokens]
        if self.frozen_encoder:
            tokens = jax.lax.stop_gradient(tokens)
        return [segmentation.as_map(x, grid) for x in tokens]


def _cross_entropy(logits, label, valid, mean_over):
    """Mean over pixels for logits `[B, H, W, K]` and label, valid `[B, H, W]`."""
    own = label[..., None] == jnp.arange(logits.shape[-1])
    # A lookup's gradient is summed in no fixed order on GPUs.
    picked = jnp.where(own, logits, 0).sum(axis=-1)
    each = jnp.where(valid, jax.nn.logsumexp(logits, axis=-1) - picked, 0)
    if mean_over == "all":
        return each.mean()
    return each.sum() / jnp.maximum(valid.sum(), 1)
