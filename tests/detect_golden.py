"""Values of detectron2, torchvision and fvcore for object detection.

They were recorded on CPU in float32, in PyTorch's layouts. Parameters of the small
detector `tiny` follow a rule, and only those that do not are stored.
"""

import functools
import json
import pathlib

import numpy as np

from tests import golden

RTOL = ATOL = 1e-4
_FILE = pathlib.Path(__file__).with_name("detect_goldens.npz")


@functools.cache
def group(name):
    """The arrays of one group by their names in it; JSON texts are decoded."""
    with np.load(_FILE) as file:
        names = [key for key in file.files if key.startswith(f"{name}/")]
        arrays = {key.removeprefix(f"{name}/"): file[key] for key in names}
    return {
        key: json.loads(str(x)) if x.dtype.kind == "U" else x
        for key, x in arrays.items()
    }


@functools.cache
def weights():
    """The parameters of `tiny` by detectron2's names, in PyTorch's layouts."""
    values = group("tiny")
    return {
        key: values.get(f"w/{key}", _filled(key, shape))
        for key, shape in values["shapes"].items()
    }


def _filled(key, shape):
    phase = 2 * np.pi * (sum(map(ord, key)) % 97) / 97
    noise = golden.noise(int(np.prod(shape)), phase).reshape(shape)
    if len(shape) > 1:
        noise *= np.sqrt(3 / np.prod(shape[1:]))
    else:
        noise = 1 + 0.1 * noise if key.endswith("weight") else 0.05 * noise
    return noise.astype(np.float32)


def maps(array):
    """Maps `[B, C, h, w]` of PyTorch as `[B, h, w, C]`."""
    return array.transpose(0, 2, 3, 1)


def close(actual, expected, **kwargs):
    """Asserts agreement with recorded values to the tolerance of float32."""
    given = {"rtol": RTOL, "atol": ATOL} | kwargs
    np.testing.assert_allclose(actual, expected, **given)
