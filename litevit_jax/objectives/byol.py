"""BYOL: one view predicts the other, without negatives (arXiv 2006.07733).

Networks and teacher are MoCo v3's, so that comparing both compares their losses. The
paper's projector is a layer shallower, without a last BatchNorm.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from litevit_jax.objectives import base, moco_v3


def make(
    *,
    encoder: dict[str, Any],
    momentum_steps: int = base.TOTAL_STEPS,
    mlp_dim: int = 4096,
    embed_dim: int = 256,
    momentum: float = 0.996,
    dtype: str = "auto",
) -> Byol:
    """Builds the objective; see `moco_v3.make`, which has a temperature beside these.

    Raises:
      ValueError: a value out of range, or an unknown choice.
    """
    if not 0 <= momentum <= 1 or momentum_steps < 1:
        raise ValueError(
            f"byol: {momentum=}, {momentum_steps=}; expected 0 to 1, and 1 or more"
        )
    sizes: Any = {"mlp_dim": mlp_dim, "embed_dim": embed_dim, "dtype": dtype}
    slow: Any = {"momentum": momentum, "momentum_steps": momentum_steps}
    return Byol(**vars(moco_v3.make(encoder=encoder, **sizes, **slow)))


@dataclasses.dataclass(frozen=True)
class Byol(moco_v3.MoCoV3):
    """Moves the student's prediction of a view to the teacher's other view."""

    @property
    def needs_whole_batch(self) -> str:
        """A reason: slices have statistics of their own."""
        return "its BatchNorm is that of all images"

    def loss(self, params, model_state, teacher, batch, key):
        """Returns 4 - 2 cos(q1, k2) - 2 cos(q2, k1), equation 2 of the paper both ways.

        It is from 0 to 8 and draws nothing. 'cosine' is the mean of both cosines.
        """
        del key
        queries, keys, state = self.embed(params, model_state, teacher, batch["views"])
        one, two = (mean_cosine(queries[i], keys[1 - i]) for i in (0, 1))
        loss, cosine = 4 - 2 * (one + two), (one + two) / 2
        return loss, ({"loss": loss, "cosine": cosine}, state)


def mean_cosine(x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean cosine of the rows of x and y `[B, E]`; that with a zero row counts as 0."""
    squares = jnp.square(x).sum(axis=-1) * jnp.square(y).sum(axis=-1)
    return ((x * y).sum(axis=-1) * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))).mean()
