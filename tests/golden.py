"""Deterministic parameters and images behind the golden values of the tests.

The recorded numbers come from the reference PyTorch models filled by the same
rule (recipes 13). Every tensor is filled in PyTorch's layout under its
PyTorch name and then converted to ours.
"""

from __future__ import annotations

import re

import jax
import numpy as np

RTOL, ATOL = 1e-4, 1e-5

_SCALE_SUFFIXES = ("norm.weight", "norm1.weight", "norm2.weight")
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def noise(count: int, phase: float) -> np.ndarray:
    """`count` numbers in [-1, 1), float64."""
    i = np.arange(1, count + 1, dtype=np.float64)
    s = np.sin(12.9898 * i + phase) * 43758.5453
    return 2 * (s - np.floor(s)) - 1


def fill(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of PyTorch name `key`, in PyTorch's layout, float32."""
    phase = 2 * np.pi * (sum(map(ord, key)) % 97) / 97
    values = noise(int(np.prod(shape)), phase).reshape(shape)
    is_scale = key.endswith(_SCALE_SUFFIXES)
    return (1 + 0.1 * values if is_scale else 0.05 * values).astype(np.float32)


def images(count: int, phase: float = 0.5, side: int = 224) -> np.ndarray:
    """Images `[B, H, W, 3]`, filled in PyTorch's order `[B, 3, H, W]`."""
    values = 1.5 * noise(count * 3 * side * side, phase)
    nchw = values.reshape(count, 3, side, side)
    return nchw.transpose(0, 2, 3, 1).astype(np.float32)


def ids_shuffle(count: int, num_patches: int = 196) -> np.ndarray:
    """Fixed permutations of the patches `[B, N]`."""
    n, k = np.ogrid[:count, :num_patches]
    return ((37 * k + 11 * n) % num_patches).astype(np.int32)


def torch_key(path: str) -> str:
    """'encoder/blocks_3/attn/qkv/kernel' -> 'blocks.3.attn.qkv.weight'."""
    part, rest = path.split("/", 1)
    rest = rest.replace("patch_embed/", "patch_embed/proj/")
    rest = rest.replace("fc/kernel", "head/weight").replace("fc/bias", "head/bias")
    if part == "decoder" and rest != "mask_token":
        rest = f"decoder_{rest}"
    names = re.sub(r"blocks_(\d+)", r"blocks/\1", rest).split("/")
    return ".".join([*names[:-1], _LEAVES.get(names[-1], names[-1])])


def from_torch(path: str, tensor: np.ndarray) -> np.ndarray:
    """A PyTorch tensor in the layout of our parameter at `path`."""
    if tensor.ndim == 4:  # [D, C, P, P] -> [P*P*C, D]
        tensor = tensor.transpose(2, 3, 1, 0)
        return tensor.reshape(-1, tensor.shape[-1])
    return tensor.T if path.endswith("kernel") else tensor


def torch_shape(path: str, shape: tuple[int, ...], channels: int = 3):
    """The shape in PyTorch's layout of our parameter at `path`."""
    if path.endswith("patch_embed/kernel"):
        side = round((shape[0] / channels) ** 0.5)
        return (shape[1], channels, side, side)
    return shape[::-1] if path.endswith("kernel") else shape


def params_like(tree):
    """Filled parameters for a tree of shapes such as `{'encoder': ..., ...}`.

    Learned position embeddings keep the values they start from.
    """

    def filled(path, leaf):
        name = "/".join(entry.key for entry in path)
        if name.endswith("pos_embed"):
            return leaf
        tensor = fill(torch_key(name), torch_shape(name, leaf.shape))
        return np.ascontiguousarray(from_torch(name, tensor))

    return jax.tree_util.tree_map_with_path(filled, tree)


def assert_close(actual, expected):
    """Asserts agreement with recorded values to the tolerance of float32."""
    np.testing.assert_allclose(actual, expected, rtol=RTOL, atol=ATOL)
