"""PyTorch names and layouts of timm's vision transformers <-> ours.

timm, DeiT, MAE, mae-lite and the trunk of MoCo v3 share one set of names ("timm
keys"); only prefixes and containers differ (recipes 11). Ours are paths into a tree
of parameters, `encoder/blocks_0/attn/qkv/kernel`. Every other importer and exporter
translates to or from timm keys and leaves the arrays to this module.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

# Metadata of the safetensors files that we write, all of it text.
WRITER = "writer"  # its value is PACKAGE if this package wrote the file
PACKAGE = "litevit_jax"
NUM_HEADS = "num_heads"
DECODER_NUM_HEADS = "decoder_num_heads"
GRID = "grid"  # rows and columns of patches, '14x14'
CLASSES = "classes"  # names of the classes by number, a JSON list
# What a classifier's logits become: a key of PROBABILITIES_OF.
PROBABILITIES = "probabilities"
# Of all classes together, or of each alone -> our loss that learns them.
PROBABILITIES_OF = {"softmax": "softmax", "sigmoid": "bce"}
DETECTOR = "detector"  # settings of ours, which shapes do not tell, as JSON
LICENCE = "licence"  # of the weights, by its SPDX identifier if it has one

_TOP = {
    "cls_token": "encoder/cls_token",
    "pos_embed": "encoder/pos_embed",
    "patch_embed.proj.weight": "encoder/patch_embed/kernel",
    "patch_embed.proj.bias": "encoder/patch_embed/bias",
    "norm.weight": "encoder/norm/scale",
    "norm.bias": "encoder/norm/bias",
    "mask_token": "decoder/mask_token",
    "decoder_embed.weight": "decoder/embed/kernel",
    "decoder_embed.bias": "decoder/embed/bias",
    "decoder_norm.weight": "decoder/norm/scale",
    "decoder_norm.bias": "decoder/norm/bias",
    "decoder_pred.weight": "decoder/pred/kernel",
    "decoder_pred.bias": "decoder/pred/bias",
    "fc_norm.weight": "head/fc_norm/scale",
    "fc_norm.bias": "head/fc_norm/bias",
    "head.weight": "head/fc/kernel",
    "head.bias": "head/fc/bias",
    "dist_norm.weight": "head_dist/fc_norm/scale",
    "dist_norm.bias": "head_dist/fc_norm/bias",
    "head_dist.weight": "head_dist/fc/kernel",
    "head_dist.bias": "head_dist/fc/bias",
}
_BLOCK = {
    "norm1.weight": "norm1/scale",
    "norm1.bias": "norm1/bias",
    "attn.qkv.weight": "attn/qkv/kernel",
    "attn.qkv.bias": "attn/qkv/bias",
    "attn.proj.weight": "attn/proj/kernel",
    "attn.proj.bias": "attn/proj/bias",
    "norm2.weight": "norm2/scale",
    "norm2.bias": "norm2/bias",
    "mlp.fc1.weight": "mlp/fc1/kernel",
    "mlp.fc1.bias": "mlp/fc1/bias",
    "mlp.fc2.weight": "mlp/fc2/kernel",
    "mlp.fc2.bias": "mlp/fc2/bias",
}
# Of blocks with relative position bias (recipes 1.5), besides those above.
_RELATIVE = {
    "attn.q_bias": "attn/q_bias",
    "attn.v_bias": "attn/v_bias",
    "attn.relative_position_bias_table": "attn/relative_position_bias_table",
    "attn.rel_pos_h": "attn/rel_pos_h",  # of detectron2's ViTDet
    "attn.rel_pos_w": "attn/rel_pos_w",
    "gamma_1": "gamma_1",
    "gamma_2": "gamma_2",
}
_TOP_BACK = {name: key for key, name in _TOP.items()}
_BLOCK_BACK = {name: key for key, name in (_BLOCK | _RELATIVE).items()}

# Leaves of one block by timm's names; both encoder and decoder have them all.
BLOCK_KEYS = tuple(_BLOCK)

# Which row of the bias table two tokens read: computed here, and no parameter.
BIAS_TABLE = ".attn.relative_position_bias_table"
BIAS_INDEX = ".attn.relative_position_index"

# A table and no parameter: our decoder computes it (recipes 1.2).
DECODER_POS_EMBED = "decoder_pos_embed"


def from_timm(key: str) -> str | None:
    """Turns blocks.3.norm1.bias into encoder/blocks_3/norm1/bias; None if unknown."""
    match = re.fullmatch(r"(decoder_)?blocks\.(0|[1-9]\d{0,3})\.(.+)", key)
    if not match:
        return _TOP.get(key)
    part = "decoder" if match[1] else "encoder"
    leaf = _BLOCK.get(match[3]) or _RELATIVE.get(match[3])
    return leaf and f"{part}/blocks_{match[2]}/{leaf}"


def to_timm(name: str) -> str | None:
    """Turns encoder/blocks_3/norm1/bias into blocks.3.norm1.bias; None if unknown."""
    match = re.fullmatch(r"(encoder|decoder)/blocks_(\d+)/(.+)", name)
    if not match:
        return _TOP_BACK.get(name)
    prefix = "decoder_blocks" if match[1] == "decoder" else "blocks"
    leaf = _BLOCK_BACK.get(match[3])
    return leaf and f"{prefix}.{match[2]}.{leaf}"


def array_from_timm(name: str, tensor: np.ndarray) -> np.ndarray:
    """PyTorch's tensor in the layout of our parameter `name`; contiguous.

    A linear weight [out, in] becomes a kernel [in, out]. The patch convolution
    [D, C, P, P] becomes [P*P*C, D]: ours flattens a patch as (row, column, channel).
    """
    if name == "encoder/patch_embed/kernel":
        tensor = tensor.transpose(2, 3, 1, 0).reshape(-1, tensor.shape[0])
    elif name.endswith("/kernel"):
        tensor = tensor.T
    return np.ascontiguousarray(tensor)


def array_to_timm(name: str, array: np.ndarray, *, patch_size: int) -> np.ndarray:
    """Our parameter `name` in PyTorch's layout; the inverse of `array_from_timm`."""
    if name == "encoder/patch_embed/kernel":
        channels = array.shape[0] // patch_size**2
        shape = (patch_size, patch_size, channels, array.shape[1])
        array = array.reshape(shape).transpose(3, 2, 0, 1)
    elif name.endswith("/kernel"):
        array = array.T
    return np.ascontiguousarray(array)


def of_head(classes: Sequence[str] | None, multi_label: bool) -> dict[str, str]:
    """Returns the metadata of a classifier's head: its probabilities and classes."""
    about = {PROBABILITIES: "sigmoid" if multi_label else "softmax"}
    return about | ({CLASSES: json.dumps(list(classes))} if classes else {})


def parse_list(text: str | None) -> list[Any]:
    """The JSON list in a file's metadata; [] if there is none."""
    try:
        value = json.loads(text or "[]")
    except ValueError:
        return []
    return value if isinstance(value, list) else []


def parse_grid(text: str) -> tuple[int, int] | None:
    """Parses rows and columns of patches, '14x10' -> (14, 10); None for other text."""
    match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text)
    return (int(match[1]), int(match[2])) if match else None


def grid_of_flag(name: str, text: str | None) -> tuple[int, int] | None:
    """The grid that flag `name` of a command gives; None if it is left out.

    Raises:
      ValueError: it is no grid.
    """
    grid = None if text is None else parse_grid(text.strip().lower())
    if grid is None and text is not None:
        raise ValueError(
            f"--config.{name}={text}: expected rows and columns of patches, as 14x10"
        )
    return grid


def square_grid(count: int) -> tuple[int, int] | None:
    """The square grid of `count` patches, or None if there is none."""
    side = math.isqrt(count)
    return (side, side) if count and side * side == count else None


def shape_from_timm(name: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape that `array_from_timm` would give; None if the rank is another."""
    if name == "encoder/patch_embed/kernel":
        rank4 = len(shape) == 4
        return (shape[1] * shape[2] * shape[3], shape[0]) if rank4 else None
    if name.endswith("/kernel"):
        return shape[::-1] if len(shape) == 2 else None
    return shape
