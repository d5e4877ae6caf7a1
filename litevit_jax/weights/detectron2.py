"""detectron2's names and layouts of a ViTDet Mask R-CNN <-> ours.

Arrays go in and out bit for bit: axes are permuted, nothing is computed.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np

from litevit_jax.weights import names
from litevit_jax.weights.base import Entry, WeightsError

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
# What detectron2 computes and some of its files hold.
_COMPUTED = r"pixel_(mean|std)|proposal_generator\.anchor_generator\.cell_anchors\.\d"
# Cascades have several box heads.
_CASCADE = r"roi_heads\.(box_head|box_predictor)\.\d\..*"
_TABLE = r"encoder/blocks_(\d+)/attn/rel_pos_([hw])"
_MOST = 10  # names that an error lists


class Parts(NamedTuple):
    """The entries of a file with a ViTDet encoder.

    Attributes:
      encoder: under timm's names.
      others: of pyramid and heads, under detectron2's.
      unused: names in the file that are expected and not needed.
      notes: facts that a user should know.
    """

    encoder: dict[str, Entry]
    others: dict[str, Entry]
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def is_one(keys: Any) -> bool:
    """Whether a file with entries of these names holds a ViTDet encoder."""
    return any(key.startswith(_ENCODER) for key in keys)


def split(entries: dict[str, Entry]) -> Parts:
    """Splits the entries of a file; the heads of a cascade are left out."""
    encoder, others, unused = {}, {}, []
    cascade = any(re.fullmatch(_CASCADE, key) for key in entries)
    for key, entry in entries.items():
        if key.startswith(_ENCODER):
            encoder[key.removeprefix(_ENCODER)] = entry
        elif re.fullmatch(_COMPUTED, key) or (cascade and key.startswith("roi_heads.")):
            unused.append(key)
        else:
            others[key] = entry
    note = (
        "its heads are a cascade's, several in a row, which this package's detector "
        "has not: they are left out"
    )
    return Parts(encoder, others, tuple(unused), (note,) * cascade)


def heads(entries: dict[str, Entry], width: int) -> int | None:
    """The number of heads by the tables of an encoder; None without tables.

    Args:
      entries: under timm's names.
      width: D.

    Raises:
      WeightsError: a table that no encoder of that width has.
    """
    counts = {}
    for key, entry in entries.items():
        if not re.fullmatch(_TABLE, names.from_timm(key) or ""):
            continue
        shape = entry.shape
        if len(shape) != 2 or not shape[0] % 2 or not shape[1] or width % shape[1]:
            raise WeightsError(
                f"{key}: got shape {list(shape)}, expected [2 K - 1, {width} / heads] "
                "of K rows or columns of patches"
            )
        counts.setdefault(width // shape[1], key)
    if len(counts) > 1:
        listed = ", ".join(f"{n} heads ({key})" for n, key in counts.items())
        raise WeightsError(f"its tables of relative positions are of {listed}")
    return next(iter(counts), None)


def table_shapes(
    entries: dict[str, Entry], depth: int, width: int
) -> dict[str, tuple[int, ...]]:
    """The tables by our names -> shapes; {} if the encoder has none, else all of them.

    A table that is missing has the shape `[1, E]`.
    """
    count = heads(entries, width)
    if count is None:
        return {}
    shapes = {
        f"encoder/blocks_{i}/attn/rel_pos_{axis}": (1, width // count)
        for i in range(depth)
        for axis in "hw"
    }
    known = {names.from_timm(key): entry.shape for key, entry in entries.items()}
    return {name: known.get(name, shape) for name, shape in shapes.items()}


def windows(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """Tells windows and the whole grid apart, by the shapes of an encoder's tables.

    Returns:
      'window' and 'global_blocks' as `vitdet.make_encoder` takes them, both None if
      all tables have one size; 'grid', rows and columns of patches.
      None without tables.
    """
    sides: dict[int, list[int]] = {}
    for name, shape in shapes.items():
        if match := re.fullmatch(_TABLE, name):
            sides.setdefault(int(match[1]), []).append((shape[0] + 1) // 2)
    kinds = {tuple(pair) for pair in sides.values()}
    if not kinds:
        return None
    window, grid = min(kinds), max(kinds)
    if len(kinds) != 2 or window[0] != window[1]:
        return {"window": None, "global_blocks": None, "grid": grid}
    blocks = tuple(sorted(i + 1 for i, pair in sides.items() if tuple(pair) == grid))
    return {"window": window[0], "global_blocks": blocks, "grid": grid}


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
