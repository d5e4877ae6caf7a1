"""Supervised classification: from scratch, fine-tuning and linear probing.

arXiv 2205.14443, sections 1.3 (pooling), 5 and 7 of the recipes. Average pooling
takes the un-normed patch tokens and normalises their mean; class-token pooling
takes the token after the final norm. The probe heads are those of MAE
(`probe_bn`) and MoCo v3 (`probe`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from litevit_jax.models import heads, vit
from litevit_jax.objectives import base


def make(
    *,
    encoder: dict[str, Any],
    num_classes: int,
    pool: str = "avg",
    head: str = "linear",
    label_smoothing: float = 0.0,
    frozen_encoder: bool = False,
    dtype: str = "auto",
) -> Supervised:
    """Builds the objective.

    Args:
      encoder: arguments of `vit.make_encoder`; by default initialised as a
        classifier, with a learned position embedding.
      num_classes: K.
      pool: 'avg' or 'cls'.
      head: 'linear', 'probe' or 'probe_bn'.
      label_smoothing: share of the target spread evenly over all classes.
      frozen_encoder: cuts the gradient at the pooled tokens.
      dtype: of the encoder; 'auto' is bfloat16 on accelerators.

    Raises:
      ValueError: a value out of range, or an unknown choice.
    """
    vit.check_choice("pool", pool, ("avg", "cls"))
    if not 0 <= label_smoothing < 1:
        raise ValueError(
            f"supervised: label_smoothing={label_smoothing}, expected 0 <= value < 1"
        )
    defaults: dict[str, Any] = {
        "init_style": "classifier",
        "pos_embed": "learned",
        "final_norm": pool == "cls",
        "dtype": base.compute_dtype(dtype),
    }
    return Supervised(
        encoder=vit.make_encoder(**{**defaults, **encoder}),
        head=heads.make_head(head=head, num_classes=num_classes, fc_norm=pool == "avg"),
        pool=pool,
        label_smoothing=label_smoothing,
        frozen_encoder=frozen_encoder,
    )


@dataclasses.dataclass(frozen=True)
class Supervised(base.Objective):
    """Softmax cross-entropy of an encoder with a classification head."""

    encoder: vit.Encoder
    head: heads.Classifier
    pool: str = "avg"
    label_smoothing: float = 0.0
    frozen_encoder: bool = False

    @property
    def accumulates(self) -> bool:
        """BatchNorm sees the whole batch or another result comes out."""
        return not self.head.batch_norm

    def init(self, key: jax.Array, batch: base.Batch) -> base.Variables:
        """Parameters {'encoder', 'head'}; state: running statistics of 'head'."""
        encoder_key, head_key = jax.random.split(key)
        image = jnp.zeros((1, *batch["image"].shape[1:]))
        encoder = self.encoder.init(encoder_key, image)["params"]
        pooled = jnp.zeros((1, self.encoder.width))
        head = self.head.init(head_key, pooled)
        state = {"head": head["batch_stats"]} if "batch_stats" in head else {}
        params = {"encoder": encoder, "head": head["params"]}
        return base.Variables(params, state, {})

    def loss(self, params, model_state, teacher, batch, key):
        """Softmax cross-entropy; see `base.Objective`.

        `label` is `[B]` int, or `[B, K]` when a mix of classes is the target.
        """
        drop_keys = base.example_keys(key, batch)
        pooled = self._pooled(params, batch["image"], drop_keys=drop_keys, train=True)
        logits, _, model_state = self._classify(params, model_state, pooled, True)
        target = self._target(batch["label"])
        loss = -(target * jax.nn.log_softmax(logits)).sum(axis=-1).mean()
        hits = logits.argmax(axis=-1) == target.argmax(axis=-1)
        return loss, ({"loss": loss, "top1": hits.mean()}, model_state)

    def predict(self, params, model_state, batch):
        """'logits' `[B, K]` and 'features' `[B, D]`, those that the head reads."""
        pooled = self._pooled(params, batch["image"])
        logits, features, _ = self._classify(params, model_state, pooled, False)
        return {"logits": logits, "features": features}

    def _pooled(self, params, image, **kwargs):
        variables = {"params": params["encoder"]}
        tokens, _ = self.encoder.apply(variables, image, **kwargs)
        pooled = vit.pool_tokens(tokens, self.pool)
        return jax.lax.stop_gradient(pooled) if self.frozen_encoder else pooled

    def _classify(self, params, model_state, pooled, train):
        """Logits, features and the new model state."""
        variables = {"params": params["head"]}
        if model_state:
            variables["batch_stats"] = model_state["head"]
        (logits, features), new = self.head.apply(
            variables, pooled, train=train, mutable=["batch_stats"]
        )
        state = {"head": new["batch_stats"]} if new else model_state
        return logits, features, state

    def _target(self, label):
        """The target distribution `[B, K]`."""
        num_classes, smoothing = self.head.num_classes, self.label_smoothing
        if label.ndim == 1:
            label = jax.nn.one_hot(label, num_classes)
        return label * (1 - smoothing) + smoothing / num_classes
