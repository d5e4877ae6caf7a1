"""Values of mmsegmentation and detectron2, and the former's parameters by our names.

Inputs, parameters and results were recorded with mmsegmentation, the authors' neck,
detectron2, torchvision and PyTorch on CPU, in float32. Arrays are in PyTorch's layouts.
"""

import functools
import json
import pathlib
import re

import numpy as np

from litevit_jax import trees

RTOL = ATOL = 1e-4
_FILES = ("dense_goldens.npz", "detect_goldens.npz")


@functools.cache
def group(name):
    """The arrays of one group by their names in it; JSON texts are decoded."""
    arrays = {}
    for path in _FILES:
        with np.load(pathlib.Path(__file__).with_name(path)) as file:
            names = [key for key in file.files if key.startswith(f"{name}/")]
            arrays |= {key.removeprefix(f"{name}/"): file[key] for key in names}
    return {
        key: json.loads(str(x)) if x.dtype.kind == "U" else x
        for key, x in arrays.items()
    }


_NAMES = (
    (r"backbone\.layers\.(\d+)\.", r"encoder/blocks_\1/"),
    (r"backbone\.", "encoder/"),
    (r"patch_embed\.projection\.", "patch_embed/"),
    (r"/ln([12])\.weight", r"/norm\1/scale"),
    (r"/ln([12])\.", r"/norm\1/"),
    (r"attn\.", "attn/"),
    (r"(qkv|proj)\.", r"\1/"),
    (r"ffn\.layers\.0\.0\.", "mlp/fc1/"),
    (r"ffn\.layers\.1\.", "mlp/fc2/"),
    (r"neck\.upsample_4x\.0\.", "neck/up4_first/"),
    (r"neck\.upsample_4x\.1\.weight", "neck/up4_norm/scale"),
    (r"neck\.upsample_4x\.1\.running_", "neck/up4_norm/"),
    (r"neck\.upsample_4x\.1\.", "neck/up4_norm/"),
    (r"neck\.upsample_4x\.3\.", "neck/up4_last/"),
    (r"neck\.upsample_2x\.0\.", "neck/up2/"),
    (r"neck\.identity\.", "neck/same/"),
    (r"neck\.downsample_2x\.0\.", "neck/down2/"),
    (r"decode_head\.conv_seg\.", "decode_head/fc/"),
    (r"decode_head\.scale_heads\.(\d)\.(\d)\.", r"decode_head/\1_\2_"),
    (r"(\d)_(\d)_conv\.", r"conv_\1_\2/"),
    (r"(\d)_(\d)_bn\.weight", r"norm_\1_\2/scale"),
    (r"(\d)_(\d)_bn\.(running_)?", r"norm_\1_\2/"),
    (r"weight$", "kernel"),
)


def our_name(key):
    """'backbone.layers.0.ln1.bias' -> 'encoder/blocks_0/norm1/bias'."""
    for pattern, replacement in _NAMES:
        key = re.sub(pattern, replacement, key)
    # Of scale_heads only every second module has parameters.
    return re.sub(r"_(\d)_([24])/", lambda m: f"_{m[1]}_{int(m[2]) // 2}/", key)


def our_array(key, array):
    """An array of mmsegmentation in our layout."""
    if "upsample" in key and array.ndim == 4:  # [I, O, h, w]
        return array.transpose(0, 2, 3, 1)
    if "projection" in key and array.ndim == 4:  # [O, I, h, w] of a patch
        return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
        return array[0, 0] if array.shape[:2] == (1, 1) else array
    return array.T if key.endswith("weight") and array.ndim == 2 else array


def variables():
    """Parameters and running statistics of the recorded model, by our names."""
    params, state = {}, {}
    for key, array in group("semfpn").items():
        if key.startswith("w/"):
            key = key.removeprefix("w/")
            part = state if "running_" in key else params
            part[our_name(key)] = our_array(key, array)
    return trees.nest(params), trees.nest(state)


def maps(array):
    """Maps `[B, C, h, w]` of PyTorch as `[B, h, w, C]`."""
    return array.transpose(0, 2, 3, 1)


def close(actual, expected, **kwargs):
    """Asserts agreement with recorded values to the tolerance of float32."""
    given = {"rtol": RTOL, "atol": ATOL} | kwargs
    np.testing.assert_allclose(actual, expected, **given)
