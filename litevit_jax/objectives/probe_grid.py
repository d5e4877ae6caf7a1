"""Many linear probes of one frozen encoder, trained at once.

Every batch is encoded once and trains one head per learning rate and choice of
features. The heads are stacked but independent, so that each ends where it would have
ended alone (recipes 7 has the protocols). The evaluator chooses among them on images
held out of the training split.

Class tokens of the last blocks, concatenated, come from DINO (arXiv 2104.14294), a grid
of learning rates and features in one pass from DINOv2 (arXiv 2304.07193).
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp

from litevit_jax import choices
from litevit_jax.models import heads, layers, vit
from litevit_jax.objectives import base

_FEATURE = re.compile(r"(cls|avg)(?:_last(\d+))?")


def make(
    *,
    encoder: dict[str, Any],
    lrs: tuple[float, ...],
    num_classes: int = base.NUM_CLASSES,
    features: tuple[str, ...] = ("cls", "avg"),
    head: str = "probe_bn",
    final_norm: bool = True,
    dtype: str = "auto",
) -> ProbeGrid:
    """Builds the objective.

    Args:
      encoder: arguments of `vit.make_encoder`.
      lrs: the learning rates. Here they only set the number of heads; give the
        optimizer's `lr_factors` the same values.
      num_classes: K.
      features: the inputs of the heads: 'cls', 'avg' (the mean of the patch tokens),
        and 'cls_last4' or 'avg_last4': those of the last 4 (or another number of)
        blocks, concatenated.
      head: 'probe_bn' or 'probe', see `heads.HEADS`.
      final_norm: whether the encoder has a final norm, which is then applied to the
        tokens of every block that is read.
      dtype: of the encoder; 'auto' is bfloat16 on accelerators.

    Raises:
      ValueError: an unknown or empty choice, or one that the encoder does not have.
    """
    choices.check("head", head, ("probe", "probe_bn"))
    defaults: dict[str, Any] = {
        "init_style": "classifier",
        "final_norm": final_norm,
        "dtype": base.compute_dtype(dtype),
    }
    module = vit.make_encoder(**{**defaults, **encoder})
    if not lrs or min(lrs) <= 0 or len(set(lrs)) < len(lrs):
        raise ValueError(
            f"probe_grid: lrs={tuple(lrs)}; expected different positive learning rates"
        )
    if not features or len(set(features)) < len(features):
        raise ValueError(
            f"probe_grid: features={tuple(features)}; expected different features, "
            f"such as {_known(module)}"
        )
    return ProbeGrid(
        encoder=module,
        head=heads.make_head(head=head, num_classes=num_classes, fc_norm=False),
        features=tuple((name, *_parse(name, module)) for name in features),
        num_lrs=len(lrs),
    )


def _known(encoder: vit.Encoder) -> str:
    return f"cls, avg, cls_last1 to cls_last{encoder.depth}, and the same of avg"


def _parse(name: str, encoder: vit.Encoder) -> tuple[str, int]:
    """Splits the name of features: 'avg_last4' -> ('avg', 4)."""
    match = _FEATURE.fullmatch(name)
    if match is None:
        raise ValueError(
            f"probe_grid: feature {name!r} unknown; the encoder has {_known(encoder)}"
        )
    pool, count = match[1], int(match[2] or 1)
    if not 1 <= count <= encoder.depth:
        raise ValueError(
            f"probe_grid: feature {name!r} reads the last {count} blocks, but the "
            f"encoder has {encoder.depth}: it has {_known(encoder)}"
        )
    return pool, count


@dataclasses.dataclass(frozen=True)
class ProbeGrid(base.Objective):
    """Trains all heads at once by the sum of their cross-entropies.

    Attributes:
      encoder: frozen; no gradient reaches it.
      head: one head, of which each of the features has `num_lrs`.
      features: (name, pooling, how many of the last blocks).
      num_lrs: G.
    """

    encoder: vit.Encoder
    head: heads.Classifier
    features: tuple[tuple[str, str, int], ...]
    num_lrs: int

    @property
    def needs_whole_batch(self) -> str:
        """A reason if heads have BatchNorm, whose statistics are the batch's."""
        return "its head has BatchNorm" if self.head.batch_norm else ""

    def init(self, key: jax.Array, batch: base.Batch) -> base.Variables:
        """Parameters {'encoder', 'heads'}; state: the heads' running statistics.

        All heads `kernel [G, D, K]` start as a single probe would. The statistics of
        features are shared by all learning rates.
        """
        encoder_key, head_key = jax.random.split(key)
        image = jnp.zeros((1, *batch["image"].shape[1:]))
        params = {
            "encoder": self.encoder.init(encoder_key, image)["params"],
            "heads": {},
        }
        state = {}
        for name, _, count in self.features:
            pooled = jnp.zeros((1, count * self.encoder.width))
            variables = self.head.init(head_key, pooled)
            params["heads"][name] = jax.tree.map(
                lambda x: jnp.broadcast_to(x, (self.num_lrs, *x.shape)),
                variables["params"],
            )
            if self.head.batch_norm:
                state[name] = variables["batch_stats"]
        return base.Variables(params, state, {})

    def loss(self, params, model_state, teacher, batch, key):
        """Sum over heads of their mean cross-entropy; see `base.Objective`.

        The logged 'loss' is the mean over heads; 'best_loss' and 'best_top1' (percent)
        are the best head's on this batch.
        """
        del teacher, key
        if batch["label"].ndim > 1 or "partner_label" in batch:
            raise ValueError("probe_grid: labels are mixed; take augment.mix out")
        losses, hits, state = [], [], {}
        intermediates = self._encode(jax.lax.stop_gradient(params), batch["image"])[1]
        for name, x in self._read(params, intermediates).items():
            logits, state[name] = self._logits(params, model_state, name, x, train=True)
            losses.append(_cross_entropy(logits, batch["label"]).mean(axis=1))
            hits.append((logits.argmax(axis=-1) == batch["label"]).mean(axis=1))
        each = jnp.concatenate(losses)
        metrics = {"loss": each.mean(), "best_loss": each.min()}
        metrics["best_top1"] = 100 * jnp.concatenate(hits).max()
        return each.sum(), (metrics, state if model_state else model_state)

    def predict(self, params, model_state, batch):
        """Returns features (see `vit.features_of`), and rank and loss of each head.

        Returns:
          'grid_rank/NAME' int `[B, G]`: how many classes head g on features NAME ranks
          above the label (0: it is right; K - 1: its logits are no numbers), and
          'grid_loss/NAME' `[B, G]`: its cross-entropy. A batch without labels has
          neither. The encoder computes in float32, whatever the type in training.
        """
        whole = dataclasses.replace(self, encoder=self.encoder.in_float32())
        tokens, intermediates = whole._encode(params, batch["image"])
        out = vit.features_of(tokens, intermediates)
        if "label" not in batch:
            return out
        label = jnp.maximum(batch["label"], 0)
        for name, x in whole._read(params, intermediates).items():
            logits, _ = self._logits(params, model_state, name, x, train=False)
            out[f"grid_rank/{name}"] = _rank(logits, label).T
            out[f"grid_loss/{name}"] = _cross_entropy(logits, label).T
        return out

    def _encode(self, params, image) -> Any:
        return self.encoder.apply({"params": params["encoder"]}, image)

    def _read(self, params, intermediates):
        """Selects the features that heads read, by name `[B, D]`; no gradient."""
        outs = [
            intermediates[name]
            for name in sorted(intermediates)
            if name.endswith("/out")
        ]
        outs = jax.lax.stop_gradient(outs[-max(count for *_, count in self.features) :])
        if self.encoder.final_norm:
            norm = layers.LayerNorm(self.encoder.dtype)
            weights = {"params": jax.lax.stop_gradient(params["encoder"]["norm"])}
            outs: Any = [norm.apply(weights, x) for x in outs]
        return {
            name: jnp.concatenate(
                [vit.pool_tokens(x, pool) for x in outs[-count:]], axis=-1
            )
            for name, pool, count in self.features
        }

    def _logits(self, params, model_state, name, x, *, train):
        """Logits `[G, B, K]` of the heads on features `x [B, D]`, and their state."""
        variables = {"params": params["heads"][name]}
        axes: dict[str, int | None] = {"params": 0}
        if self.head.batch_norm:
            variables["batch_stats"] = model_state[name]
            axes["batch_stats"] = None

        def one(variables):
            (logits, _), new = self.head.apply(
                variables, x, train=train, mutable=["batch_stats"]
            )
            return logits, new.get("batch_stats", {})

        return jax.vmap(one, in_axes=(axes,), out_axes=(0, None))(variables)


def _cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Cross-entropy `[G, B]` of logits `[G, B, K]` and label `[B]`."""
    own = jnp.take_along_axis(logits, label[None, :, None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - own


def _rank(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Counts the classes ranked above `label [B]` in logits `[G, B, K]`: `[G, B]`.

    Of equal logits the lower class ranks higher. If logits are no numbers, all other
    classes rank above the label.
    """
    own = jnp.take_along_axis(logits, label[None, :, None], axis=-1)
    after = jnp.arange(logits.shape[-1]) > label[:, None]
    beaten = (logits < own) | ((logits == own) & after)
    return logits.shape[-1] - 1 - beaten.sum(axis=-1)
