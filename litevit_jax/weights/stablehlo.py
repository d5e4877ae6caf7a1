"""A vision transformer as StableHLO, with its parameters inside (`jax.export`).

The file is called without this package: `jax.export.deserialize(bytes).call(image)`
with 'image' `[B, H, W, C]`, normalised float32, any B, on a CPU, GPU or TPU.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from litevit_jax.weights import exportable as models

PLATFORMS = ("cpu", "cuda", "tpu")


def write(model: models.Model) -> bytes:
    """The file's contents.

    Raises:
      RuntimeError: the package that serialises is not installed.
    """
    models.require("flatbuffers")
    (batch,) = export.symbolic_shape("B")
    shape = (batch, *model.image_size, model.channels)
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    exported = export.export(jax.jit(model.apply), platforms=PLATFORMS)(image)
    return bytes(exported.serialize())


def read(data: bytes) -> Any:
    """image `[B, H, W, C]` -> output, computed on JAX's default device."""
    models.require("flatbuffers")
    exported = export.deserialize(bytearray(data))
    return lambda image: np.asarray(exported.call(image))
