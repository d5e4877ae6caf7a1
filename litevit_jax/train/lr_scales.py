"""Learning rates that differ between parameters: by layer, or by model of a stack.

Fine-tuning scales them by layer (`optimizer.layer_decay`), and a stack of probes has
one for each of them (`optimizer.lr_factors`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import jax
import numpy as np
import optax

from litevit_jax import trees
from litevit_jax.trees import KeyPath, PyTree, path_of

Leaf = jax.Array | jax.ShapeDtypeStruct

# What comes before the first block, and block i, in the terms of layer decay.
_INPUT = re.compile(r"encoder/(cls_token|pos_embed|mask_token|patch_embed)\b")
_BLOCK = re.compile(r"encoder/blocks_(\d+)/")


def layer_scales(params: PyTree, decay: float) -> PyTree:
    """Returns a factor for each leaf's learning rate: decay^(depth + 1 - id).

    id 0: cls_token, pos_embed, mask_token and patch_embed of 'encoder'; id i + 1: its
    block i; id depth + 1: all else (recipes 5.1). The factor scales the schedule, so
    the last learning rate and the weight decay shrink with it.

    Raises:
      ValueError: `params` has no encoder with blocks.
    """
    matches = map(_BLOCK.match, trees.flatten(params))
    depth = 1 + max((int(match[1]) for match in matches if match), default=-1)
    if not depth:
        raise ValueError(
            f"optimizer.layer_decay={decay} needs an encoder with blocks, but there is "
            "no parameter encoder/blocks_0/...; set it to 1.0"
        )

    def scale(keys: KeyPath, _: Leaf) -> float:
        path = path_of(keys)
        block = _BLOCK.match(path)
        layer = depth + 1
        if block or _INPUT.match(path):
            layer = int(block[1]) + 1 if block else 0
        return decay ** (depth + 1 - layer)

    return jax.tree_util.tree_map_with_path(scale, params)


def row_scales(params: PyTree, factors: Sequence[float]) -> PyTree:
    """Shapes `factors` so that they scale the rows of each leaf.

    Raises:
      ValueError: a leaf has another number of rows.
    """

    def scale(keys: KeyPath, leaf: Leaf) -> np.ndarray:
        if leaf.shape[:1] != (len(factors),):
            raise ValueError(
                f"optimizer.lr_factors has {len(factors)} factors, but parameter "
                f"{path_of(keys)} is {list(leaf.shape)}; expected {len(factors)} on "
                "its first axis, or to find it in optimizer.freeze"
            )
        scales = np.asarray(factors, np.float32)
        return scales.reshape(-1, *[1] * (len(leaf.shape) - 1))

    return jax.tree_util.tree_map_with_path(scale, params)


def one_by_one(
    transformation: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """Applies `transformation` to each row of the leaves' first axis by itself.

    Norms over a leaf, as in LARS and clipping, are then those of a row, and a row of
    a stacked bias has one dimension, like a bias.
    """

    def update(
        updates: PyTree, state: optax.OptState, params: PyTree = None
    ) -> tuple[PyTree, optax.OptState]:
        return jax.vmap(transformation.update)(updates, state, params)

    return optax.GradientTransformation(jax.vmap(transformation.init), update)
