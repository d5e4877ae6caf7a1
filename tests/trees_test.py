"""Leaves have names, and files keep the names that they always had."""

import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax import trees

TREE = {"encoder": {"blocks_0": {"w": np.ones(2)}, "norm": {"scale": np.ones(3)}}}
PATHS = {"encoder/blocks_0/w", "encoder/norm/scale"}


def test_a_tree_is_named_by_paths_and_built_again():
    flat = trees.flatten(TREE)
    assert flat.keys() == PATHS
    again = trees.nest(flat)
    assert again == TREE  # the same arrays, not copies
    assert trees.flatten(np.ones(2)).keys() == {"value"}


def test_checkpoints_name_arrays_with_dots():
    saved = trees.saved(TREE)
    assert saved.keys() == {"encoder.blocks_0.w", "encoder.norm.scale"}
    assert {trees.from_dotted(name) for name in saved} == PATHS
    assert trees.describe({"params": saved}) == {
        "params.encoder.blocks_0.w": [[2], "float64"],
        "params.encoder.norm.scale": [[3], "float64"],
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_the_host_computes_the_fingerprint_of_a_program(dtype):
    values = np.random.default_rng(0).normal(size=(5, 3, 4)) * 100
    x = jnp.asarray(values).astype(dtype)
    assert trees._hash(np.asarray(x), np) == int(trees._fingerprint(x))
    assert trees._hash(np.asarray(x[:1, 0, 0]), np) == int(
        trees._fingerprint(x[0, 0, 0])
    )
    assert trees._hash(np.asarray(x[:0]), np) == 0


def test_parts_are_inspected_alike_on_the_host_and_by_a_program(monkeypatch):
    parts = {"params": {"w": jnp.arange(5.0), "n": jnp.arange(3)}}
    parts["teacher"] = {"v": jnp.asarray([1.0, np.nan], jnp.bfloat16)}
    host = trees.inspect_parts(parts)
    monkeypatch.setattr(trees, "_is_on_host", lambda _: False)
    assert trees.inspect_parts(parts) == host
    assert host[1] == ["teacher.v"] and host[0].keys() == {
        "params.w",
        "params.n",
        "teacher.v",
    }
