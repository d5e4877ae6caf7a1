"""Trees of arrays by name: flat and nested forms, shapes, and fingerprints of bits.

A parameter is named by its path, 'encoder/norm/scale'. Checkpoints (and ONNX files)
have dots instead of slashes; `to_dotted` and `from_dotted` alone translate.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any  # dicts, tuples and dataclasses, at any depth, of arrays or shapes
KeyPath = jax.tree_util.KeyPath


def path_of(keys: KeyPath) -> str:
    """Turns a key path of jax.tree_util into 'encoder/norm/scale'."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def flatten(tree: Any) -> dict[str, Any]:
    """Returns the leaves by path, 'encoder/norm/scale'; a bare array is 'value'."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_of(keys) or "value": leaf for keys, leaf in leaves}


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


def _hash(x: Any, xp: Any = jnp) -> Any:
    """Returns the uint32 sum of a hash for each word and its position in the array.

    Integer arithmetic modulo 2^32, alike on any mesh, in any order, by JAX and NumPy.
    """
    words = x.view(f"uint{8 * x.dtype.itemsize}").astype(xp.uint32)
    position = xp.arange(x.size, dtype=xp.uint32).reshape(x.shape)
    mixed = words ^ (position * xp.uint32(0x9E3779B9))
    # The finalizer of MurmurHash3, so that changes of two words cannot cancel.
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> shift)) * xp.uint32(factor)
    return xp.sum(mixed ^ (mixed >> 16), dtype=xp.uint32)


_fingerprint = jax.jit(_hash)  # inside another: arrays of one shape are traced once


def _look(flat: dict[str, Any], xp: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    digest = functools.partial(_hash, xp=np) if xp is np else _fingerprint
    prints = {name: digest(x) for name, x in flat.items()}
    return prints, {name: xp.isfinite(x).all() for name, x in flat.items()}


_inspect = jax.jit(functools.partial(_look, xp=jnp))


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
        look = _look({k: np.atleast_1d(np.asarray(x)) for k, x in flat.items()}, np)
    else:
        look = jax.device_get(_inspect(flat))
    bad = [name for name, ok in look[1].items() if not ok]
    return {name: int(value) for name, value in look[0].items()}, bad


def _is_on_host(x: Any) -> bool:
    """Whether this process has the array in the host's memory."""
    if isinstance(x, jax.Array):
        return x.is_fully_addressable and {d.platform for d in x.devices()} == {"cpu"}
    return True


def fingerprint(state: Any) -> str:
    """Returns 16 hex digits for parameters and model state, the same on any mesh.

    They are equal for equal bits, in training and in a restored step.
    """
    parts = {name: saved(getattr(state, name)) for name in ("params", "model_state")}
    prints = sorted(inspect_parts(parts)[0].items())
    lines = "".join(f"{name} {value};" for name, value in prints)
    return hashlib.sha256(lines.encode()).hexdigest()[:16]
