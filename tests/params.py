"""Parameters for tests: drawn by NumPy, or counted by their shapes.

A program that draws a model's initial values takes longer to compile than the model.
"""

import functools
import math

import jax
import numpy as np


def drawn(shapes, seed=0):
    """Random arrays for a tree of shapes: scales and variances near 1, others near 0.

    A norm or a bias that is not as it starts shows what would be lost of it.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        centre = 1.0 if path[-1].key in ("scale", "var") else 0.0
        return np.float32(centre + 0.2 * rng.normal(size=leaf.shape))

    return jax.tree_util.tree_map_with_path(draw, shapes)


def shapes_of(module, *args, **kwargs):
    """Shapes of what a module or an objective starts from; nothing is computed."""
    init = functools.partial(module.init, **kwargs)
    return jax.eval_shape(init, jax.eval_shape(jax.random.key, 0), *args)


def start(module, *args, seed=0, **kwargs):
    """Random parameters and state in place of a module's or objective's own start."""
    return drawn(shapes_of(module, *args, **kwargs), seed)


def size(tree):
    """Number of values in a tree of shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def size_at(depth, tree_at):
    """Size of a model of `depth` equal blocks, by those of one and of two blocks.

    `tree_at`: depth -> shapes. tests/models/vit_test.py holds it to whole models.
    """
    one, two = (size(tree_at(blocks)) for blocks in (1, 2))
    return one + (depth - 1) * (two - one)
