"""mmsegmentation's names of backbones <-> timm's.

`VisionTransformer` is a plain encoder; `MAE` is one with tables of relative positions
and layer scale, whose attention has other names.
"""

from __future__ import annotations

import re

_ATTENTION = "attn.relative_position_bias_table"  # that a block of `MAE` has
# timm's names -> those of both, one after the other; and back.
_NAMES = (
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
    (r"^norm\.", "ln1."),
    (r"^blocks\.(\d+)\.", r"layers.\1."),
    (r"\.norm([12])\.", r".ln\1."),
    (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
    (r"\.mlp\.fc2\.", ".ffn.layers.1."),
)
_BACK = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^ln1\.", "norm."),
    (r"^layers\.(\d+)\.", r"blocks.\1."),
    (r"\.ln([12])\.", r".norm\1."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
    (r"\.attn\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.attn\.out_proj\.", ".attn.proj."),
)
# Of a `VisionTransformer` alone.
_PLAIN = (
    (r"\.attn\.qkv\.", ".attn.attn.in_proj_"),
    (r"\.attn\.proj\.", ".attn.attn.out_proj."),
)
_PREFIX = "backbone."  # of a whole segmentor's file
_OTHERS = r"(neck|decode_head|auxiliary_head)\..*"


def has_tables(keys: set[str]) -> bool:
    """Whether arrays of these names, timm's, are those of an `MAE` backbone."""
    return any(key.endswith(_ATTENTION) for key in keys)


def from_timm(key: str, *, tables: bool) -> str:
    """Turns blocks.3.norm1.bias into layers.3.ln1.bias.

    Args:
      key: timm's name.
      tables: whether the backbone is an `MAE`.
    """
    for pattern, replacement in (*_NAMES, *(() if tables else _PLAIN)):
        key = re.sub(pattern, replacement, key)
    return key


def to_timm(key: str) -> str:
    """Turns layers.3.ln1.bias into blocks.3.norm1.bias, of either backbone."""
    key = key.removeprefix(_PREFIX)
    for pattern, replacement in _BACK:
        key = re.sub(pattern, replacement, key)
    return key


def is_one(keys: set[str]) -> bool:
    """Whether a file with entries of these names holds such a backbone."""
    return bool({"layers.0.ln1.weight", f"{_PREFIX}layers.0.ln1.weight"} & keys)


def split(keys: set[str]) -> tuple[list[str], list[str]]:
    """Returns the names of a backbone's entries, and those of necks and heads."""
    others = sorted(key for key in keys if re.fullmatch(_OTHERS, key))
    return sorted(keys - set(others)), others
