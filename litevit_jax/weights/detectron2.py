"""detectron2's names and layouts of a ViTDet Mask R-CNN <-> ours.

Arrays go in and out bit for bit: axes are permuted, nothing is computed.
"""

from __future__ import annotations

import re

import numpy as np

from litevit_jax.weights import names
from litevit_jax.weights.base import WeightsError

_ENCODER = "backbone.net."  # timm's names follow
# Modules of detectron2 -> ours; # is a number.
_MODULES = {
    "backbone.simfp_2.0": "neck/p2/up",
    "backbone.simfp_2.1": "neck/p2/up_norm",
    "backbone.simfp_2.3": "neck/p2/up_again",
    "backbone.simfp_3.0": "neck/p3/up",
    **{
        f"backbone.simfp_{level}.{first + step}{norm}": f"neck/p{level}/{name}{suffix}"
        for level, first in ((2, 4), (3, 1), (4, 0), (5, 1))
        for step, name in enumerate(("project", "convolve"))
        for norm, suffix in (("", ""), (".norm", "_norm"))
    },
    "proposal_generator.rpn_head.conv.conv#": "rpn/conv_#",
    "proposal_generator.rpn_head.objectness_logits": "rpn/logits",
    "proposal_generator.rpn_head.anchor_deltas": "rpn/offsets",
    "roi_heads.box_head.conv#": "box_head/conv_#",
    "roi_heads.box_head.conv#.norm": "box_head/conv_#_norm",
    "roi_heads.box_head.fc1": "box_head/fc",
    "roi_heads.box_predictor.cls_score": "box_head/logits",
    "roi_heads.box_predictor.bbox_pred": "box_head/offsets",
    "roi_heads.mask_head.mask_fcn#": "mask_head/conv_#",
    "roi_heads.mask_head.mask_fcn#.norm": "mask_head/conv_#_norm",
    "roi_heads.mask_head.deconv": "mask_head/up",
    "roi_heads.mask_head.predictor": "mask_head/logits",
}
_MOST = 10  # names that an error lists


def from_detectron2(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a detector's parameters by our names, in our layouts.

    Args:
      arrays: by detectron2's names, in PyTorch's layouts.

    Raises:
      WeightsError: names that such a detector does not have.
    """
    renamed = {key: our_name(key) for key in arrays}
    _check(renamed, "of detectron2's ViTDet Mask R-CNN")
    return {
        name: _array(name, arrays[key], out=False)
        for key, name in renamed.items()
        if name is not None
    }


def to_detectron2(
    params: dict[str, np.ndarray], *, patch_size: int
) -> dict[str, np.ndarray]:
    """Returns a detector's parameters by detectron2's names; see `from_detectron2`.

    Args:
      params: 'encoder/...', 'neck/...' and so on, by our names.
      patch_size: P.

    Raises:
      WeightsError: names that such a detector does not have.
    """
    renamed = {name: _other_name(name) for name in params}
    _check(renamed, "parameters of this package's detector")
    return {
        key: _array(name, params[name], out=True, patch_size=patch_size)
        for name, key in renamed.items()
        if key is not None
    }


def _check(renamed, what):
    unknown = sorted(name for name, other in renamed.items() if other is None)
    if unknown:
        more = f" and {len(unknown) - _MOST} more" * (len(unknown) > _MOST)
        raise WeightsError(
            f"{len(unknown)} names are not those {what}: "
            f"{', '.join(name[:80] for name in unknown[:_MOST])}{more}"
        )


def our_name(key):
    """Turns backbone.simfp_2.4.norm.weight into neck/p2/project_norm/scale, or None."""
    if key.startswith(_ENCODER):
        return names.from_timm(key.removeprefix(_ENCODER))
    module, _, leaf = key.rpartition(".")
    name = _translated(module, _MODULES.items())
    if name is None or leaf not in ("weight", "bias"):
        return None
    weight = "scale" if "norm" in name.rpartition("/")[2] else "kernel"
    return f"{name}/{weight if leaf == 'weight' else leaf}"


def _other_name(name):
    """Turns neck/p2/project_norm/scale into backbone.simfp_2.4.norm.weight."""
    if name.startswith("encoder/"):
        key = names.to_timm(name)
        return None if key is None else _ENCODER + key
    module, _, leaf = name.rpartition("/")
    key = _translated(module, ((name, key) for key, name in _MODULES.items()))
    leaves = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    return None if key is None or leaf not in leaves else f"{key}.{leaves[leaf]}"


def _translated(module, pairs):
    for pattern, other in pairs:
        pattern = re.escape(pattern).replace(r"\#", r"(\d{1,2})")
        if match := re.fullmatch(pattern, module):
            return other.replace("#", match[1]) if match.groups() else other
    return None


def _array(name, array, *, out, patch_size=0):
    """An array in PyTorch's layout (`out`), or in ours."""
    if array.ndim != 4 or name.startswith("encoder/"):
        if out:
            return names.array_to_timm(name, array, patch_size=patch_size)
        return names.array_from_timm(name, array)
    enlarges = re.search(r"/up(_again)?/kernel$", name)
    if enlarges:  # [I, O, h, w] <-> [I, h, w, O]
        axes = (0, 3, 1, 2) if out else (0, 2, 3, 1)
    else:  # [O, I, h, w] <-> [h, w, I, O]
        axes = (3, 2, 0, 1) if out else (2, 3, 1, 0)
    return np.ascontiguousarray(array.transpose(axes))
