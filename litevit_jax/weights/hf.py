"""Renames entries of Hugging Face's ViTMAE to timm's; joins query, key and value."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import numpy as np

from litevit_jax.weights.base import Entry, WeightsError, short

_TOP = {
    "vit.embeddings.cls_token": "cls_token",
    "vit.embeddings.position_embeddings": "pos_embed",
    "vit.embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "vit.embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "vit.layernorm.weight": "norm.weight",
    "vit.layernorm.bias": "norm.bias",
    "decoder.mask_token": "mask_token",
    "decoder.decoder_pos_embed": "decoder_pos_embed",
    "decoder.decoder_embed.weight": "decoder_embed.weight",
    "decoder.decoder_embed.bias": "decoder_embed.bias",
    "decoder.decoder_norm.weight": "decoder_norm.weight",
    "decoder.decoder_norm.bias": "decoder_norm.bias",
    "decoder.decoder_pred.weight": "decoder_pred.weight",
    "decoder.decoder_pred.bias": "decoder_pred.bias",
}
_LAYERS = {
    "layernorm_before": "norm1",
    "attention.output.dense": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_QKV = ("query", "key", "value")
_LAYER = re.compile(
    r"(vit\.encoder\.layer|decoder\.decoder_layers)\.(\d{1,4})\.(.+)\.(weight|bias)"
)


def to_timm(entries: dict[str, Entry]) -> dict[str, Entry]:
    """The entries under timm keys; unknown names stay."""
    renamed: dict[str, Entry] = {}
    parts: dict[str, dict[str, Entry]] = {}
    for key, entry in entries.items():
        layer = _LAYER.fullmatch(key)
        if not layer:
            renamed[_TOP.get(key, key)] = entry
            continue
        blocks = "blocks" if layer[1].startswith("vit") else "decoder_blocks"
        prefix = f"{blocks}.{layer[2]}"
        kind = layer[3].removeprefix("attention.attention.")
        if kind in _QKV:
            name = f"{prefix}.attn.qkv.{layer[4]}"
            parts.setdefault(name, {})[kind] = entry
        elif kind in _LAYERS:
            renamed[f"{prefix}.{_LAYERS[kind]}.{layer[4]}"] = entry
        else:
            renamed[key] = entry
    return renamed | {name: _merge(name, three) for name, three in parts.items()}


def _merge(name: str, three: dict[str, Entry]) -> Entry:
    """One entry of q, k and v, in this order along the first axis (recipes 11.2)."""
    missing = [kind for kind in _QKV if kind not in three]
    if missing:
        raise WeightsError(f"{name}: {', '.join(missing)} missing")
    query, key, value = (three[kind] for kind in _QKV)
    same = query.shape == key.shape == value.shape and query.shape
    if not same or not query.dtype == key.dtype == value.dtype:
        shapes = [list(entry.shape) for entry in (query, key, value)]
        raise WeightsError(f"{name}: query, key and value differ: {shapes}")
    return Entry(
        (3 * query.shape[0], *query.shape[1:]),
        query.dtype,
        lambda: np.concatenate([query.read(), key.read(), value.read()]),
    )


def config_beside(path: pathlib.Path) -> dict[str, Any]:
    """Reads the `config.json` of a ViTMAE in the file's folder; {} without one.

    Raises:
      WeightsError: it is damaged, or describes a model that differs from ours.
    """
    file = path.parent / "config.json"
    if not file.is_file() or file.stat().st_size > 1 << 20:
        return {}
    try:
        config = json.loads(file.read_text())
    except (ValueError, RecursionError):
        raise WeightsError(f"{file} beside it is no JSON") from None
    if not isinstance(config, dict) or config.get("model_type") != "vit_mae":
        return {}
    if config.get("hidden_act", "gelu") != "gelu":
        raise WeightsError(
            f"{file} says hidden_act={short(config['hidden_act'])}, expected 'gelu'"
        )
    return config


def notes(config: dict[str, Any]) -> tuple[str, ...]:
    """Lists the differences between Hugging Face's model and this package's."""
    eps = config.get("layer_norm_eps", 1e-12)
    pixel_notes = (
        ""
        if config.get("norm_pix_loss")
        else ("norm_pix_loss is off in its config: the decoder predicts raw pixels",)
    )
    return (
        f"LayerNorm's epsilon was {short(eps)}, here it is 1e-6: features differ "
        "slightly",
        *pixel_notes,
    )
