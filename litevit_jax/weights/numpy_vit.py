"""A vision transformer in plain NumPy that reads arrays by PyTorch's names.

It shares no code with `models`, so that an exported file is checked independently of
the code that wrote it. It computes in float64 throughout.
"""

from __future__ import annotations

import numpy as np
import scipy.special

# Names of the modules in timm, which MAE and ViTDet share, and in mmsegmentation.
_TIMM = {
    "patch": "patch_embed.proj.",
    "block": "blocks.{}.",
    "norm1": "norm1.",
    "qkv": "attn.qkv.",
    "proj": "attn.proj.",
    "norm2": "norm2.",
    "fc1": "mlp.fc1.",
    "fc2": "mlp.fc2.",
    "norm": "norm.",
}
_MMSEG = {
    "patch": "patch_embed.projection.",
    "block": "layers.{}.",
    "norm1": "ln1.",
    "qkv": "attn.attn.in_proj_",
    "proj": "attn.attn.out_proj.",
    "norm2": "ln2.",
    "fc1": "ffn.layers.0.0.",
    "fc2": "ffn.layers.1.",
    "norm": "ln1.",
}
# Of attention in mmsegmentation's backbones with tables of relative positions.
_WITH_TABLES = {"qkv": "attn.qkv.", "proj": "attn.proj."}
_TABLE = "attn.relative_position_bias_table"
NAMES = {"timm": _TIMM, "mae": _TIMM, "vitdet": _TIMM, "mmseg": _MMSEG}
_EPSILON = 1e-6


def forward(
    arrays: dict[str, np.ndarray],
    image: np.ndarray,
    *,
    num_heads: int,
    layout: str = "timm",
    pool: str | None = None,
) -> np.ndarray:
    """Tokens `[B, T, D]`, or pooled features `[B, D]`, or logits `[B, K]`.

    Args:
      arrays: the file's, without a prefix.
      image: normalised images `[B, H, W, C]`.
      num_heads: A.
      layout: the program whose names the arrays have, one of `NAMES`.
      pool: None for tokens; else 'avg' or 'cls', followed by 'head.' if it exists.
    """
    names = NAMES[layout]
    if names["block"].format(0) + _TABLE in arrays:
        names = {**names, **_WITH_TABLES}
    kernel = arrays[names["patch"] + "weight"].astype(np.float64)
    height, width = (n // kernel.shape[-1] for n in image.shape[1:3])
    windows = image.astype(np.float64).reshape(
        image.shape[0], height, kernel.shape[-2], width, kernel.shape[-1], -1
    )
    x = np.einsum("bhpwqc,dcpq->bhwd", windows, kernel, optimize=True)
    x = x.reshape(image.shape[0], height * width, -1) + arrays[names["patch"] + "bias"]
    cls = np.broadcast_to(arrays["cls_token"], (len(x), 1, x.shape[-1]))
    x = np.concatenate([cls, x], axis=1) + arrays["pos_embed"]
    depth = 0
    while (prefix := names["block"].format(depth)) + names["norm1"] + "bias" in arrays:
        block = {k: v for k, v in arrays.items() if k.startswith(prefix)}
        block = {k.removeprefix(prefix): v for k, v in block.items()}
        normed = _norm(block, names["norm1"], x)
        branch = _attention(block, names, normed, num_heads, (height, width))
        x = x + branch * block.get("gamma_1", 1.0)
        y = _linear(block, names["fc1"], _norm(block, names["norm2"], x))
        y = y * 0.5 * (1 + scipy.special.erf(y / np.sqrt(2)))
        x = x + _linear(block, names["fc2"], y) * block.get("gamma_2", 1.0)
        depth += 1
    x = _norm(arrays, names["norm"], x) if names["norm"] + "weight" in arrays else x
    if pool is None:
        return x
    x = x[:, 1:].mean(axis=1) if pool == "avg" else x[:, 0]
    x = _norm(arrays, "fc_norm.", x) if "fc_norm.weight" in arrays else x
    return _linear(arrays, "head.", x) if "head.weight" in arrays else x


def _attention(block, names, x, num_heads, grid):
    batch, tokens, width = x.shape
    qkv = x @ block[names["qkv"] + "weight"].T.astype(np.float64)
    if "attn.q_bias" in block:  # the keys have none
        zeros = np.zeros(width)
        qkv += np.concatenate([block["attn.q_bias"], zeros, block["attn.v_bias"]])
    else:
        qkv += block[names["qkv"] + "bias"]
    qkv = qkv.reshape(batch, tokens, 3, num_heads, width // num_heads)
    q, k, v = np.moveaxis(qkv, (2, 3), (0, 2))  # each [B, A, T, D/A]
    logits = q @ k.swapaxes(-1, -2) / np.sqrt(width // num_heads)
    if _TABLE in block:
        logits = logits + _bias(block[_TABLE], grid)
    out = scipy.special.softmax(logits, axis=-1) @ v
    return _linear(block, names["proj"], out.swapaxes(1, 2).reshape(x.shape))


def _bias(table, grid):
    """Reads the bias `[A, T, T]` of a table, pair by pair of tokens."""
    rows, cols = grid
    bias = np.empty((table.shape[1], 1 + rows * cols, 1 + rows * cols))
    bias[:, 0, 1:], bias[:, 1:, 0] = table[-3][:, None], table[-2][:, None]
    bias[:, 0, 0] = table[-1]
    for i, j in np.ndindex(rows * cols, rows * cols):
        down = i // cols - j // cols + rows - 1
        right = i % cols - j % cols + cols - 1
        bias[:, 1 + i, 1 + j] = table[down * (2 * cols - 1) + right]
    return bias


def _linear(arrays, name, x):
    return x @ arrays[name + "weight"].T.astype(np.float64) + arrays[name + "bias"]


def _norm(arrays, name, x):
    centred = x - x.mean(axis=-1, keepdims=True)
    scale = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + _EPSILON)
    return centred / scale * arrays[name + "weight"] + arrays[name + "bias"]
