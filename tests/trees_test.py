"""Leaves have names, and files keep the names that they always had."""

import numpy as np

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
