"""Regression of a frozen teacher's tokens, nothing masked (arXiv 2205.14141).

A linear map takes the student's tokens to the teacher's width, where they are to equal
the teacher's tokens after its final norm. As in the paper on feature distillation,
`smooth_l1` whitens the target per token (a LayerNorm without parameters); `cosine`
compares directions alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from litevit_jax import choices
from litevit_jax.models import adapter, ops, vit
from litevit_jax.objectives import base, distill, health

DISTANCES = ("smooth_l1", "cosine")
BETA = 2.0  # where the smooth L1 becomes linear, as in the paper


def make(
    *,
    encoder: dict[str, Any],
    teacher: dict[str, Any],
    distance: str = "smooth_l1",
    dtype: str = "auto",
) -> Feature:
    """Builds the objective.

    Args:
      encoder: arguments of `vit.make_encoder` for the student.
      teacher: the same for the teacher.
      distance: 'smooth_l1' or 'cosine'.
      dtype: of both networks; 'auto' is bfloat16 on accelerators.

    Raises:
      ValueError: an unknown choice, or a teacher with other patches.
    """
    choices.check("feature: distance", distance, DISTANCES)
    computed: dict[str, Any] = {"dtype": base.compute_dtype(dtype)}
    student, teacher_encoder = (
        vit.make_encoder(**{**computed, **block}) for block in (encoder, teacher)
    )
    distill.check_patches("feature", student, teacher_encoder)
    linear = adapter.Adapter(teacher_encoder.width, -1)
    return Feature(student, teacher_encoder, linear, distance)


@dataclasses.dataclass(frozen=True)
class Feature(base.Objective):
    """Predicts a frozen teacher's tokens from the student's by a linear map.

    Attributes:
      encoder: the student.
      teacher: the frozen encoder.
      adapter: maps the student's width to the teacher's.
      distance: see `make`.
    """

    encoder: vit.Encoder
    teacher: vit.Encoder
    adapter: adapter.Adapter
    distance: str

    @property
    def frozen_teacher(self) -> bool:
        """True: the teacher is another run's encoder."""
        return True

    def init(self, key, batch):
        """Parameters {'encoder', 'adapter'}, teacher {'encoder'}."""
        image = jnp.zeros((1, *batch["image"].shape[1:]))
        student_key, teacher_key, adapter_key = jax.random.split(key, 3)
        token = jnp.zeros((1, 1, self.encoder.width))
        params = {
            "encoder": self.encoder.init(student_key, image)["params"],
            "adapter": self.adapter.init(adapter_key, token)["params"],
        }
        teacher = self.teacher.init(teacher_key, image)["params"]
        teacher = base.cast_teacher_kernels(teacher, self.teacher.dtype)
        return base.Variables(params, {}, {"encoder": teacher})

    def loss(self, params, model_state, teacher, batch, key):
        """Mean distance over all tokens, cls included; see `base.Objective`."""
        del key
        x, y = self._compare(params, teacher, batch["image"])
        cosine = _cosine(x, y).mean()
        loss = 1 - cosine
        if self.distance == "smooth_l1":
            gap = jnp.abs(x - _whiten(y))
            loss = jnp.where(gap < BETA, gap**2 / (2 * BETA), gap - BETA / 2).mean()
        return loss, ({"loss": loss, "cosine": cosine}, model_state)

    def health(self, params, model_state, teacher, batch, key):
        """Returns `health.describe`, and the mean cosine of matched class tokens."""
        batch = health.some_examples(batch)
        x, y = self._compare(params, teacher, batch["image"])
        statistics = health.of_encoder(self.encoder, params["encoder"], batch)
        return {**statistics, "teacher_agreement": _cosine(x[:, 0], y[:, 0]).mean()}

    def predict(self, params, model_state, batch):
        """The student's features in float32, see `vit.features_of`."""
        weights = {"params": params["encoder"]}
        whole = self.encoder.in_float32()
        encoded: Any = whole.apply(weights, batch["image"])
        return vit.features_of(*encoded)

    def _compare(self, params, teacher, image):
        """Returns the student's mapped tokens and the teacher's, `[B, T, E]` each."""
        tokens, _ = self.encoder.apply({"params": params["encoder"]}, image)
        mapped: Any = self.adapter.apply({"params": params["adapter"]}, tokens)
        target, _ = self.teacher.apply({"params": teacher["encoder"]}, image)
        return mapped, jax.lax.stop_gradient(target.astype(jnp.float32))


def _whiten(x):
    x = x - x.mean(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + ops.EPSILON)


def _cosine(x, y):
    norms = jnp.square(x).sum(axis=-1) * jnp.square(y).sum(axis=-1)
    return (x * y).sum(axis=-1) * jax.lax.rsqrt(norms + 1e-12)
