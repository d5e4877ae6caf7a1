"""Trees of arrays by name: flat and nested forms, shapes, and fingerprints of bits.

A parameter is named by its path, 'encoder/norm/scale'. Checkpoints (and ONNX files)
have dots instead of slashes; `to_dotted` and `from_dotted` alone translate.
"""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any  # dicts, tuples and dataclasses, at any depth, of arrays or shapes


def flatten(tree: Any) -> dict[str, Any]:
    """Returns the leaves by path, 'encoder/norm/scale'; a bare array is 'value'."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(keys, simple=True, separator="/") or "value": leaf
        for keys, leaf in leaves
    }


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """Returns the nested dict of leaves by path; undoes `flatten` of nested dicts."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *blocks, last = path.split("/")
        parent = tree
        for block in blocks:
            parent = parent.setdefault(block, {})
        parent[last] = leaf
    return tree


def to_dotted(path: str) -> str:
    """Turns 'encoder/norm/scale' into 'encoder.norm.scale', a name inside a file."""
    return path.replace("/", ".")


def from_dotted(name: str) -> str:
    """Turns 'encoder.norm.scale', a name inside a file, into 'encoder/norm/scale'."""
    return name.replace(".", "/")


def saved(tree: Any) -> dict[str, Any]:
    """Returns the leaves by their names in a checkpoint, 'encoder.norm.scale'."""
    return {to_dotted(path): leaf for path, leaf in flatten(tree).items()}


# Words are mixed with their positions, times the first of these, and by the finalizer
# of MurmurHash3, so that changes of two words cannot cancel.
_SPREAD = 0x9E3779B9
_ROUNDS = ((16, 0x85EBCA6B), (13, 0xC2B2AE35))
_LAST_SHIFT = 16
_CHUNK = 2**18  # words that are hashed at once on the host


@jax.jit  # inside another: arrays of one shape are traced once
def _fingerprint(x: jax.Array) -> jax.Array:
    """Returns the uint32 sum of a hash for each word and its position in the array.

    Integer arithmetic modulo 2^32: the same on any mesh and in any order.
    """
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
    position = jnp.arange(x.size, dtype=jnp.uint32).reshape(x.shape)
    mixed = words.astype(jnp.uint32) ^ (position * jnp.uint32(_SPREAD))
    for shift, factor in _ROUNDS:
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    return jnp.sum(mixed ^ (mixed >> _LAST_SHIFT), dtype=jnp.uint32)


def _host_fingerprint(x: np.ndarray) -> int:
    """Computes `_fingerprint` without a program."""
    words = np.ascontiguousarray(x).reshape(-1).view(f"uint{8 * x.dtype.itemsize}")
    total = 0
    for start in range(0, words.size, _CHUNK):
        mixed = words[start : start + _CHUNK].astype(np.uint32)
        position = np.arange(start, start + mixed.size, dtype=np.uint32)
        position *= np.uint32(_SPREAD)
        mixed ^= position
        for shift, factor in _ROUNDS:
            mixed ^= mixed >> np.uint32(shift)
            mixed *= np.uint32(factor)
        mixed ^= mixed >> np.uint32(_LAST_SHIFT)
        total += int(mixed.sum(dtype=np.uint64))
    return total % 2**32


def _is_finite(x: np.ndarray) -> bool:
    return not jnp.issubdtype(x.dtype, jnp.floating) or bool(np.isfinite(x).all())


@jax.jit
def _inspect(flat: dict[str, jax.Array]) -> tuple[dict[str, Any], dict[str, Any]]:
    def finite(x: jax.Array) -> Any:
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        return jnp.all(jnp.isfinite(x)) if floating else jnp.bool_(True)

    prints = {name: _fingerprint(x) for name, x in flat.items()}
    return prints, {name: finite(x) for name, x in flat.items()}


def describe(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns 'part.name' -> [shape, dtype] of each array."""
    return {
        f"{part}.{name}": [list(x.shape), str(x.dtype)]
        for part, flat in parts.items()
        for name, x in flat.items()
    }


def inspect_parts(parts: dict[str, dict[str, Any]]) -> tuple[Any, list[str]]:
    """Returns fingerprints by 'part.name', and the names of arrays not finite."""
    flat = {f"{p}.{name}": x for p, part in parts.items() for name, x in part.items()}
    if all(_is_on_host(x) for x in flat.values()):
        arrays = {name: np.asarray(x) for name, x in flat.items()}
        prints = {name: _host_fingerprint(x) for name, x in arrays.items()}
        finite = {name: _is_finite(x) for name, x in arrays.items()}
    else:
        prints, finite = jax.device_get(_inspect(flat))
    bad = [name for name, ok in finite.items() if not ok]
    return {name: int(value) for name, value in prints.items()}, bad


def _is_on_host(x: Any) -> bool:
    """Whether this process has the array in the host's memory."""
    if not isinstance(x, jax.Array):
        return True
    on_cpu = all(device.platform == "cpu" for device in x.devices())
    return on_cpu and x.is_fully_addressable


def fingerprint(state: Any) -> str:
    """Returns 16 hex digits for parameters and model state, the same on any mesh.

    They are equal for equal bits, in training and in a restored step.
    """
    parts = {name: saved(getattr(state, name)) for name in ("params", "model_state")}
    prints, _ = inspect_parts(parts)
    lines = "".join(f"{name} {value};" for name, value in sorted(prints.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def hash_arrays(arrays: Any) -> str:
    """Returns a hash of names, shapes and bits of host arrays, on any machine alike."""
    digest = hashlib.sha256()
    for name, x in flatten(arrays).items():
        digest.update(f"{name} {x.dtype} {x.shape};".encode())
        digest.update(np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()[:16]
