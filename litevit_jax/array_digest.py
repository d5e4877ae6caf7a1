"""A digest of arrays in the host's memory, by which runs tell weights apart."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from litevit_jax import trees


def digest(arrays: Any) -> str:
    """Returns a hash of names, shapes and bits of host arrays, on any machine alike."""
    digest = hashlib.sha256()
    for name, x in trees.flatten(arrays).items():
        digest.update(f"{name} {x.dtype} {x.shape};".encode())
        digest.update(np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()[:16]
