"""The objective of a file that holds a detector.

Shapes tell most of it; what they do not, files of ours record. Of other files it is
that of the published detector.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

_RECORDED = ("anchor_sizes", "pooled", "rules")
_OF_ENCODER = ("window", "global_blocks")
_DETECTS, _PROPOSES = "box_head/logits/kernel", "rpn/logits/kernel"


def is_one(path: Any, params: dict[str, np.ndarray]) -> bool:
    """Whether the parameters of a file are those of a detector.

    Raises:
      ValueError: only its encoder is; `path` names the file.
    """
    if any("/rel_pos_" in name for name in params) and _DETECTS not in params:
        raise ValueError(
            f"{path}: it has the encoder of a detector and no box head, so that it "
            "detects nothing; configs/detect.py trains one: --config.init=FILE"
        )
    return _DETECTS in params


def recorded(objective: dict[str, Any]) -> dict[str, Any]:
    """Selects what a file records of the objective's block of a run's config."""
    encoder = {name: objective["encoder"][name] for name in _OF_ENCODER}
    return {name: objective[name] for name in _RECORDED} | {"encoder": encoder}


def block(config: dict[str, Any], params: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns the complete block of the objective 'detect' of a file.

    Args:
      config: of the file, as `read.read` gives it.
      params: of the file, by name.
    """
    known, windows = dict(config["detector"]), config["windows"] or {}
    encoder = dict(config["objective"]["encoder"])
    grid, side = encoder.pop("grid"), encoder["patch_size"]
    rows, columns = windows.get("grid") or grid
    encoder |= {"pos_embed": "learned_sincos", "pos_grid": tuple(grid)}
    shown = {k: windows[k] for k in _OF_ENCODER if windows.get(k)}
    encoder |= shown or {"window": max(rows, columns)}  # of one size: no windows
    encoder |= known.pop("encoder", {})
    channels = params[_PROPOSES].shape[-2]
    hidden = params["box_head/fc/kernel"]
    bins = math.isqrt(hidden.shape[0] // channels)

    def convolutions(part):
        return sum(f"{part}/conv_{i}/kernel" in params for i in range(100))

    return {
        "name": "detect",
        "num_classes": params[_DETECTS].shape[-1] - 1,
        "image_size": (rows * side, columns * side),
        "masks": "mask_head/logits/kernel" in params,
        "channels": channels,
        "rpn_convs": convolutions("rpn"),
        "box_convs": convolutions("box_head"),
        "box_hidden": hidden.shape[1],
        "mask_convs": convolutions("mask_head"),
        "pooled": (bins, 2 * bins),
        **known,
        "encoder": encoder,
    }
