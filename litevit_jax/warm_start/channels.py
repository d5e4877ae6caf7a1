"""Adapts the patch embedding of an encoder to images of another number of channels.

A kernel K of C input channels becomes K' of N by one of three rules:

    mean     K'_n = (K_1 + ... + K_C) / N
    repeat   K'_n = K_c / m_c, with c = n modulo C, where m_c of the N take channel c
    rgb      K'_1, K'_2, K'_3 = K_1, K_2, K_3; all others are 0

Each leaves the sum over the channels as it is, so an image of equal channels has the
features that it had. Nothing else of an encoder depends on the number of channels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from litevit_jax import choices, trees

RULES = ("mean", "repeat", "rgb")
_KERNEL = "encoder/patch_embed/kernel"


def adapt(kernel: np.ndarray, patch_size: int, channels: int, rule: str) -> np.ndarray:
    """Returns a patch kernel `[P*P*N, D]` of `[P*P*C, D]`; see the module.

    Args:
      kernel: of C channels.
      patch_size: P.
      channels: N.
      rule: one of `RULES`.

    Raises:
      ValueError: the rule would drop channels of the kernel.
    """
    # [P*P*C, D] -> [P*P, C, D]
    old = kernel.reshape(patch_size**2, -1, kernel.shape[-1]).astype(np.float64)
    count = old.shape[1]
    if rule == "rgb" and (count != 3 or channels < 3):
        raise ValueError(
            f"init_channels=rgb copies the kernels of three channels, here are {count} "
            f"for {channels}; take mean"
        )
    if rule == "repeat" and channels < count:
        raise ValueError(
            f"init_channels=repeat would drop {count - channels} of the kernel's "
            f"{count} channels; take mean, which adds all"
        )
    if rule == "mean":
        new = np.repeat(old.sum(1, keepdims=True) / channels, channels, axis=1)
    elif rule == "repeat":
        source = np.arange(channels) % count
        new = old[:, source] / np.bincount(source)[source][:, None]
    else:
        new = np.pad(old, ((0, 0), (0, channels - 3), (0, 0)))
    return new.reshape(-1, kernel.shape[-1]).astype(kernel.dtype)


def match(
    params: Any,
    arrays: Mapping[str, np.ndarray],
    *,
    patch_size: int,
    rule: str | None,
    load: Sequence[str] = (".*",),
    advice: str = "adapt it with --config.init_channels=mean, repeat or rgb",
) -> dict[str, np.ndarray]:
    """Returns a checkpoint's arrays with a patch kernel of the run's channels.

    Args:
      params: tree of arrays or shapes of the run.
      arrays: the checkpoint's.
      patch_size: of the run's encoder.
      rule: one of `RULES`; None: the channels must be the same.
      load: patterns of the parameters that are taken.
      advice: for the message about other channels.

    Raises:
      ValueError: the channels differ and there is no rule, or it does not fit; or
        there is no such rule.
    """
    if rule is not None:
        choices.check("init_channels", rule, list(RULES))
    leaf, kernel = trees.flatten(params).get(_KERNEL), arrays.get(_KERNEL)
    taken = any(re.fullmatch(pattern, _KERNEL) for pattern in load)
    if leaf is None or kernel is None or not taken:
        return dict(arrays)
    new, old = (x.shape[0] / patch_size**2 for x in (leaf, kernel))
    if new == old or new % 1 or old % 1 or leaf.shape[1:] != kernel.shape[1:]:
        return dict(arrays)  # `fill_leaves` tells of other differences
    if rule is None:
        raise ValueError(
            f"its {_KERNEL} reads {old:.0f} channels, the images have {new:.0f} "
            f"(data.channels); {advice}, or read images with "
            f"--config.data.channels={old:.0f}"
        )
    return {**arrays, _KERNEL: adapt(kernel, patch_size, int(new), rule)}


def note(path: str, old: int, new: int, rule: str | None) -> list[str]:
    """Returns the line for the start about a kernel that is adapted, if it is."""
    if old == new or rule is None:
        return []
    return [
        f"--config.init={path}: its patch embedding of {old} channels becomes one of "
        f"{new} (init_channels={rule})"
    ]
