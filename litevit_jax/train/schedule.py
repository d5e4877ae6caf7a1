"""The learning rate of each update."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from litevit_jax import choices
from litevit_jax.train.optimizer import Schedule

DECAYS = ("cosine", "linear", "steps")  # of the learning rate after its warm-up
_STEPS = ((8, 9), (26, 27))  # shares of a run, after which 'steps' takes a tenth


def of_run(lr: Any, derived: Any) -> Schedule:
    """Returns the schedule of a run: its blocks `lr` and `derived` of the config."""
    return warmcos(
        peak=derived.peak_lr,
        total_steps=derived.total_steps,
        warmup_steps=derived.warmup_steps,
        start=lr.start,
        end=lr.end,
        decay=lr.decay,
    )


def extension(decay: str, derived: Any) -> list[str]:
    """Says by which rule a run goes on that was extended; [] for another."""
    planned, total = derived.get("planned_steps"), derived.total_steps
    if planned is None:
        return []
    warmup = derived.warmup_steps
    left = f"({total:,} - k) / {total - warmup:,}"
    steps = " and ".join(f"k >= {_after(share, total):,}" for share in _STEPS)
    c = {
        "cosine": f"sin^2(pi/2 {left})",
        "linear": left,
        "steps": f"1, and a tenth of it from each of {steps} on",
    }[decay]
    return [
        f"extended to {total:,} updates (planned: {planned:,}): from the last "
        "checkpoint on, the update after k others has the learning rate of a run of "
        f"{total:,} with the same warm-up ({warmup:,}): "
        f"lr(k) = peak c + end (1 - c), c = {c}"
    ]


def warmcos(
    *,
    peak: float,
    total_steps: int,
    warmup_steps: int,
    start: float,
    end: float,
    decay: str = "cosine",
) -> Schedule:
    """Builds a linear warm-up and half a cosine over the number k of updates done.

    lr(k) = start + (peak - start) k/W for k < W, else peak c + end (1 - c) with
    c = (1 + cos(pi (k - W)/(T - W))) / 2. The first update has lr = start. c is
    taken as sin^2 of the remaining angle, which keeps its last values exact in
    float32 where 1 + cos cancels.

    'linear' is mmsegmentation's: the warm-up's last update (k = W - 1) already has the
    peak, and then c falls in a line, so that the last update has lr = end.

    'steps' is detectron2's: c is 1, a tenth after 8/9 and a hundredth after 26/27 of
    all updates.

    Raises:
      ValueError: the warm-up is not shorter than the run, or an unknown decay.
    """
    choices.check("lr.decay", decay, DECAYS)
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"warm-up of {warmup_steps} steps does not fit a run of {total_steps}; "
            "lower --config.lr.warmup_epochs or train longer"
        )
    line = decay == "linear"
    to_peak, to_end = warmup_steps - line, total_steps - warmup_steps - line

    def lr(k: int | jax.Array) -> jax.Array:
        left = (total_steps - line - k) / jnp.float32(max(to_end, 1))
        c = left if line else jnp.sin(jnp.pi / 2 * left) ** 2
        if decay == "steps":
            tenths = (k >= _after(share, total_steps) for share in _STEPS)
            c = 0.1 ** sum(jnp.float32(x) for x in tenths)
        warm = start + (peak - start) * (k / jnp.float32(max(to_peak, 1)))
        return jnp.where(k < warmup_steps, warm, peak * c + end * (1 - c))

    return lr


def _after(share: tuple[int, int], total_steps: int) -> int:
    """The number of updates in a share of a run, rounded down."""
    return share[0] * total_steps // share[1]
