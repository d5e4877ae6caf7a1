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
        x = x + _attention(block, names, _norm(block, names["norm1"], x), num_heads)
        y = _linear(block, names["fc1"], _norm(block, names["norm2"], x))
        y = y * 0.5 * (1 + scipy.special.erf(y / np.sqrt(2)))
        x = x + _linear(block, names["fc2"], y)
        depth += 1
    x = _norm(arrays, names["norm"], x) if names["norm"] + "weight" in arrays else x
    if pool is None:
        return x
    x = x[:, 1:].mean(axis=1) if pool == "avg" else x[:, 0]
    x = _norm(arrays, "fc_norm.", x) if "fc_norm.weight" in arrays else x
    return _linear(arrays, "head.", x) if "head.weight" in arrays else x


def _attention(block, names, x, num_heads):
    batch, tokens, width = x.shape
    qkv = _linear(block, names["qkv"], x)
    qkv = qkv.reshape(batch, tokens, 3, num_heads, width // num_heads)
    q, k, v = np.moveaxis(qkv, (2, 3), (0, 2))  # each [B, A, T, D/A]
    logits = q @ k.swapaxes(-1, -2) / np.sqrt(width // num_heads)
    out = scipy.special.softmax(logits, axis=-1) @ v
    return _linear(block, names["proj"], out.swapaxes(1, 2).reshape(x.shape))


def _linear(arrays, name, x):
    return x @ arrays[name + "weight"].T.astype(np.float64) + arrays[name + "bias"]


def _norm(arrays, name, x):
    centred = x - x.mean(axis=-1, keepdims=True)
    scale = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + _EPSILON)
    return centred / scale * arrays[name + "weight"] + arrays[name + "bias"]
