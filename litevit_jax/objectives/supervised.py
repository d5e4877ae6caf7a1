"""Supervised classification: from scratch, fine-tuning and linear probing.

arXiv 2205.14443 (recipes 1.3, 5 and 7). Average pooling normalises the mean of the
patch tokens, which have not gone through the final norm; class-token pooling takes the
token after the final norm. The probe heads are those of MAE (`probe_bn`) and MoCo v3
(`probe`).

With `distill` a second head on the class token imitates a frozen classifier, as in
DeiT (arXiv 2012.12877; recipes 1.3 and 5.6). The authors' teacher is a RegNet; here any
vision transformer with a classification head can be the teacher.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from litevit_jax import choices
from litevit_jax.models import heads, vit
from litevit_jax.objectives import base, health


def make(
    *,
    encoder: dict[str, Any],
    num_classes: int = base.NUM_CLASSES,
    pool: str = "avg",
    head: str = "linear",
    label_smoothing: float = 0.0,
    loss: str = "softmax",
    class_weights: str | None = None,
    class_counts: tuple[int, ...] | None = base.CLASS_COUNTS,
    frozen_encoder: bool = False,
    drop_path: float = 0.0,
    teacher: dict[str, Any] | None = None,
    distill: dict[str, Any] | None = None,
    dtype: str = "auto",
) -> Supervised:
    """Builds the objective.

    Args:
      encoder: arguments of `vit.make_encoder`; the default is a classifier's initial
        values and a learned position embedding.
      num_classes: K.
      pool: 'avg' or 'cls'.
      head: 'linear', 'probe' or 'probe_bn'.
      label_smoothing: share of the target spread evenly over all classes.
      loss: 'softmax' over the classes, or 'bce' of each by itself, for several labels.
      class_weights: 'balanced' weighs each class by the inverse of its count of images.
      class_counts: the training images of each class.
      frozen_encoder: whether no gradient passes the encoder's tokens.
      drop_path: rate of the encoder's last block.
      teacher: arguments like `encoder` for the classifier to imitate, and its `pool`
        ('avg' by default).
      distill: arguments of `make_distillation`; needs average pooling and the
        linear head.
      dtype: of the encoder; 'auto' is bfloat16 on accelerators.

    Raises:
      ValueError: a value out of range, or an unknown choice.
    """
    choices.check("pool", pool, ("avg", "cls"))
    _check_loss(loss, label_smoothing, distill)
    distillation = None
    if teacher is not None or distill is not None:
        _check_distillation(teacher, distill, pool, head)
        distillation = make_distillation(
            teacher or {}, num_classes, dtype, **(distill or {})
        )
    module = _encoder(encoder, pool, dtype, drop_path=drop_path)
    fc_norm = not module.final_norm  # tokens are normalised once, before or after
    return Supervised(
        encoder=module,
        head=heads.make_head(head=head, num_classes=num_classes, fc_norm=fc_norm),
        pool=pool,
        label_smoothing=label_smoothing,
        multi_label=loss == "bce",
        weights=_weights(class_weights, class_counts),
        frozen_encoder=frozen_encoder,
        distill=distillation,
    )


def _check_loss(loss, label_smoothing, distill):
    """Raises ValueError for settings that contradict each other."""
    choices.check("objective.loss", loss, ("softmax", "bce"))
    if not 0 <= label_smoothing < 1:
        raise ValueError(
            f"supervised: label_smoothing={label_smoothing}, expected 0 <= value < 1"
        )
    if loss == "bce" and (label_smoothing or distill is not None):
        raise ValueError(
            f"supervised: loss='bce' with label_smoothing={label_smoothing} and "
            f"{distill=}; both are for one class an image: expected 0 and None"
        )


def _encoder(block, pool, dtype, **defaults):
    """Builds the encoder of a classifier that pools by `pool`."""
    defaults |= {
        "init_style": "classifier",
        "pos_embed": "learned",
        "final_norm": pool == "cls",
        "dtype": base.compute_dtype(dtype),
    }
    return vit.make_encoder(**{**defaults, **block})


def _check_distillation(teacher, distill, pool, head):
    if teacher is None or distill is None:
        raise ValueError(
            f"supervised: {teacher=} and {distill=}; logit distillation needs both "
            "objective.teacher, an encoder, and objective.distill, its settings"
        )
    if (pool, head) != ("avg", "linear"):
        raise ValueError(
            f"supervised: distill with pool={pool!r} and head={head!r}; the second "
            "head reads the class token, so expected pool='avg', head='linear'"
        )


def make_distillation(
    teacher: dict[str, Any],
    num_classes: int,
    dtype: str = "auto",
    *,
    alpha: float = 0.5,
    tau: float = 1.0,
    hard: bool = True,
) -> Distillation:
    """Builds the teacher and the loss by which a student imitates it.

    Args:
      teacher: arguments of its encoder, and `pool`.
      num_classes: K, the student's.
      dtype: of the teacher's encoder.
      alpha: weight of the distillation loss; the label's loss has 1 - alpha.
      tau: temperature of the soft form.
      hard: whether the target is the teacher's first choice (else all its logits).

    Raises:
      ValueError: a value out of range, or an unknown choice.
    """
    pool, encoder = teacher.get("pool", "avg"), {**teacher}
    encoder.pop("pool", None)
    choices.check("teacher.pool", pool, ("avg", "cls"))
    if not (0 <= alpha <= 1 and tau > 0):
        raise ValueError(
            f"supervised: distill.alpha={alpha}, distill.tau={tau}; expected 0 <= "
            "alpha <= 1 and tau > 0"
        )
    return Distillation(
        encoder=_encoder(encoder, pool, dtype),
        head=heads.make_head(
            head="linear", num_classes=num_classes, fc_norm=pool == "avg"
        ),
        pool=pool,
        alpha=alpha,
        tau=tau,
        hard=hard,
    )


@dataclasses.dataclass(frozen=True)
class Distillation:
    """A frozen classifier, and the loss of a student that imitates its logits."""

    encoder: vit.Encoder
    head: heads.Classifier
    pool: str
    alpha: float
    tau: float
    hard: bool

    def init(self, key: jax.Array, image: jax.Array) -> base.Tree:
        """Parameters {'encoder', 'head'} for images of the given shape."""
        encoder = self.encoder.init(key, image)["params"]
        head = self.head.init(key, jnp.zeros((1, self.encoder.width)))["params"]
        return {"encoder": encoder, "head": head}

    def logits(self, teacher: base.Tree, image: jax.Array) -> jax.Array:
        """The teacher's logits `[B, K]` for images `[B, H, W, C]`; no gradient."""
        teacher = jax.lax.stop_gradient(teacher)
        tokens: Any = self.encoder.apply({"params": teacher["encoder"]}, image)
        pooled = vit.pool_tokens(tokens[0], self.pool)
        logits: Any = self.head.apply({"params": teacher["head"]}, pooled)
        return logits[0]

    def loss(self, logits: jax.Array, wanted: jax.Array) -> jax.Array:
        """The distance of student logits `[B, K]` from the teacher's `[B, K]`.

        Hard: cross-entropy with the teacher's first choice. Soft: tau^2 times the
        divergence KL(teacher | student) at temperature tau, summed and divided by
        B K, as DeiT divides it.
        """
        if self.hard:
            target = jax.nn.one_hot(wanted.argmax(axis=-1), wanted.shape[-1])
            return _cross_entropy(logits, target)
        log_student = jax.nn.log_softmax(logits / self.tau)
        log_teacher = jax.nn.log_softmax(wanted / self.tau)
        divergence = jnp.exp(log_teacher) * (log_teacher - log_student)
        return divergence.mean() * self.tau**2


def _cross_entropy(logits, target):
    """Mean over the batch for logits and target distribution `[B, K]`."""
    return -(target * jax.nn.log_softmax(logits)).sum(axis=-1).mean()


def _labels(batch):
    """The target of each class `[B, K]`, mixed as the images are."""
    labels = batch["labels"].astype(jnp.float32)
    if "partner_labels" not in batch:
        return labels
    share = batch["label_share"][:, None]
    return share * labels + (1 - share) * batch["partner_labels"]


def _weights(kind, counts):
    """Returns a weight for each class, 1 on average over the images; None for none.

    Classes without images have the weight 1.
    """
    if kind is None:
        return None
    choices.check("objective.class_weights", kind, ["balanced"])
    if counts is None:  # a model that only predicts
        return None
    images = [count for count in counts if count]
    return tuple(sum(images) / len(images) / n if n else 1.0 for n in counts)


def _binary(logits, target, weights=None):
    """Mean binary cross-entropy of logits and targets `[B, K]`, and its metrics.

    `weights` are of the classes, where an image has them.
    """
    positive = target * jnp.asarray(weights or 1.0)
    loss = (1 - target) * jnp.logaddexp(0, logits)
    loss += positive * jnp.logaddexp(0, -logits)
    right = (logits > 0) == (target > 0.5)
    return loss.mean(), {"label_acc": 100 * right.mean()}


@dataclasses.dataclass(frozen=True)
class Supervised(base.Objective):
    """Cross-entropy of an encoder with a classification head.

    That of a softmax over the classes; with `multi_label` of each class by itself.

    With `distill` a second head of the same kind reads the class token, learns from
    the teacher, and the mean of both logits is the prediction.
    """

    encoder: vit.Encoder
    head: heads.Classifier
    pool: str = "avg"
    label_smoothing: float = 0.0
    multi_label: bool = False
    weights: tuple[float, ...] | None = None  # of the classes
    frozen_encoder: bool = False
    distill: Distillation | None = None

    @property
    def needs_whole_batch(self) -> str:
        """A reason if the head has BatchNorm, whose statistics are the batch's."""
        return "its head has BatchNorm" if self.head.batch_norm else ""

    @property
    def frozen_teacher(self) -> bool:
        """Whether a classifier is imitated, which comes from a checkpoint."""
        return self.distill is not None

    def init(self, key: jax.Array, batch: base.Batch) -> base.Variables:
        """Parameters {'encoder', 'head'}; state: running statistics of 'head'.

        Distillation adds the parameters 'head_dist' and a teacher.
        """
        encoder_key, head_key = jax.random.split(key)
        image = jnp.zeros((1, *batch["image"].shape[1:]))
        encoder = self.encoder.init(encoder_key, image)["params"]
        pooled = jnp.zeros((1, self.encoder.width))
        head = self.head.init(head_key, pooled)
        state = {"head": head["batch_stats"]} if "batch_stats" in head else {}
        params = {"encoder": encoder, "head": head["params"]}
        if self.distill is None:
            return base.Variables(params, state, {})
        second_key, teacher_key = jax.random.split(jax.random.fold_in(head_key, 1))
        params["head_dist"] = self.head.init(second_key, pooled)["params"]
        return base.Variables(params, state, self.distill.init(teacher_key, image))

    def loss(self, params, model_state, teacher, batch, key):
        """Softmax or binary cross-entropy; see `base.Objective`.

        `label` is `[B]` int, or `[B, K]` if the target is a mix of classes; with
        `partner_label [B]` and `label_share [B]` the target is mixed here. 'top1', the
        share of examples whose likeliest target class is predicted, is in percent.
        With `multi_label` the target is `labels [B, K]`, mixed with `partner_labels`,
        and 'label_acc' the share of them, in percent, on whose side the logit is.
        """
        drop_keys = base.example_keys(key, batch)
        tokens = self._encode(params, batch["image"], drop_keys)
        logits, _, model_state = self._classify(params, model_state, tokens, True)
        if self.multi_label:
            loss, metrics = _binary(logits, _labels(batch), self.weights)
            return loss, ({"loss": loss} | metrics, model_state)
        target = self._target(batch)
        loss = _cross_entropy(logits, target * jnp.asarray(self.weights or 1.0))
        hits = logits.argmax(axis=-1) == target.argmax(axis=-1)
        metrics = {"top1": 100 * hits.mean()}
        if self.distill is not None:
            wanted = self.distill.logits(teacher, batch["image"])
            imitation = self.distill.loss(self._second_logits(params, tokens), wanted)
            metrics |= {"class_loss": loss, "distill_loss": imitation}
            loss = (1 - self.distill.alpha) * loss + self.distill.alpha * imitation
        return loss, ({"loss": loss} | metrics, model_state)

    def health(self, params, model_state, teacher, batch, key):
        """Health statistics of the pooled tokens and the last block."""
        del model_state, teacher, key
        encoder = params["encoder"]
        return health.of_encoder(self.encoder, encoder, batch, pool=self.pool)

    def predict(self, params, model_state, batch):
        """Returns 'logits' `[B, K]` and the head's input, 'features' `[B, D]`.

        Logits of two heads are averaged. Tokens and other features are those of
        `vit.features_of`. All are computed in float32, whatever the type in training:
        results are those of the parameters as they are saved (recipes 5.1).
        """
        encoder = self.encoder.in_float32()
        encoded: Any = encoder.apply({"params": params["encoder"]}, batch["image"])
        tokens, intermediates = encoded
        logits, features, _ = self._classify(params, model_state, tokens, False)
        if self.distill is not None:
            logits = (logits + self._second_logits(params, tokens)) / 2
        others = vit.features_of(tokens, intermediates)
        return {**others, "logits": logits, "features": features}

    def _encode(self, params, image, drop_keys):
        """Encodes images in training: tokens `[B, T, D]`."""
        variables = {"params": params["encoder"]}
        tokens, _ = self.encoder.apply(
            variables, image, drop_keys=drop_keys, train=True
        )
        return jax.lax.stop_gradient(tokens) if self.frozen_encoder else tokens

    def _second_logits(self, params, tokens):
        """Computes logits `[B, K]` of the head that imitates the teacher."""
        pooled = vit.pool_tokens(tokens, "cls")
        logits: Any = self.head.apply({"params": params["head_dist"]}, pooled)
        return logits[0]

    def _classify(self, params, model_state, tokens, train):
        """Computes logits, features and the new model state."""
        variables = {"params": params["head"]}
        if model_state:
            variables["batch_stats"] = model_state["head"]
        (logits, features), new = self.head.apply(
            variables,
            vit.pool_tokens(tokens, self.pool),
            train=train,
            mutable=["batch_stats"],
        )
        state = {"head": new["batch_stats"]} if new else model_state
        return logits, features, state

    def _target(self, batch):
        """The target distribution `[B, K]`; smoothing comes after mixing."""
        num_classes, smoothing = self.head.num_classes, self.label_smoothing
        label = batch["label"]
        if label.ndim == 1:
            label = jax.nn.one_hot(label, num_classes)
        if "partner_label" in batch:
            share = batch["label_share"][:, None]
            partner = jax.nn.one_hot(batch["partner_label"], num_classes)
            label = share * label + (1 - share) * partner
        return label * (1 - smoothing) + smoothing / num_classes
