"""Optimizers, and which parameters they touch.

The gradient transformations here leave the learning rate out; the train step
multiplies their result by -lr(step), so a schedule depends on the step alone.
Parameters are chosen by patterns on their paths ('encoder/blocks_0/norm1/scale'):
full regular-expression matches, and one that matches nothing is an error.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from litevit_jax import choices, trees
from litevit_jax.trees import KeyPath, PyTree, path_of

Leaf = jax.Array | jax.ShapeDtypeStruct
Schedule = Callable[[int | jax.Array], jax.Array]  # step -> learning rate


def match(patterns: Sequence[str], tree: PyTree) -> PyTree:
    """Returns a tree of bool: which leaves' paths match one of `patterns`.

    Raises:
      ValueError: a pattern matches no leaf.
    """
    known = list(trees.flatten(tree))
    for pattern in patterns:
        if not any(re.fullmatch(pattern, path) for path in known):
            raise ValueError(
                f"pattern {pattern!r} matches no parameter; "
                f"{choices.suggest(pattern, known)}"
            )
    return jax.tree_util.tree_map_with_path(
        lambda keys, _: any(re.fullmatch(p, path_of(keys)) for p in patterns), tree
    )


def partition(tree: PyTree, chosen: PyTree) -> tuple[PyTree, PyTree]:
    """Splits `tree` into (chosen leaves, other leaves); None stands for the others."""
    return (
        jax.tree.map(lambda leaf, yes: leaf if yes else None, tree, chosen),
        jax.tree.map(lambda leaf, yes: None if yes else leaf, tree, chosen),
    )


def merge(chosen: PyTree, other: PyTree) -> PyTree:
    """Undoes `partition`."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, chosen, other, is_leaf=lambda x: x is None
    )


def adamw(
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decay: PyTree = None,
) -> optax.GradientTransformation:
    """Builds AdamW with decoupled decay, as in PyTorch: lr (adam + wd p)."""
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay, mask=decay),
    )


NAMES = ("adamw", "lars", "sgd")


def maker(name: str) -> Callable[..., optax.GradientTransformation]:
    """Returns what builds the gradient transformation `name`, one of `NAMES`."""
    if name == "adamw":
        return adamw
    from litevit_jax.train import momentum  # of probes

    return getattr(momentum, name)


def decay_mask(params: PyTree, *, decay_1d: bool, skip: Sequence[str]) -> PyTree:
    """Returns a tree of bool: leaves that decay. `decay_1d`: also 1-D and biases."""
    skipped = match(skip, params)

    def decays(keys: KeyPath, leaf: Leaf, skip_leaf: bool) -> bool:
        one_dim = leaf.ndim <= 1 or path_of(keys).endswith("bias")
        return not skip_leaf and (decay_1d or not one_dim)

    return jax.tree_util.tree_map_with_path(decays, params, skipped)


def clip_by_norm(limit: float) -> optax.GradientTransformation:
    """Scales all gradients by min(1, limit / (norm + 1e-6)), as PyTorch clips.

    The norm is that of all leaves together.
    """

    def clip(updates: PyTree, params: PyTree) -> PyTree:
        del params
        squares = [jnp.sum(jnp.square(g)) for g in jax.tree.leaves(updates)]
        scale = jnp.minimum(1.0, limit / (jnp.sqrt(sum(squares)) + 1e-6))
        return jax.tree.map(lambda g: g * scale, updates)

    return optax.stateless(clip)


class Averaged(NamedTuple):
    """State of an optimizer that also averages the parameters that it trains."""

    inner: optax.OptState
    ema: PyTree


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Updates the trainable parameters from their gradients.

    Attributes:
      transformation: of the gradients.
      schedule: step -> learning rate.
      trainable: tree of bool, the leaves that it trains.
      scales: factors of each trainable leaf's learning rate, a number or an array
        that broadcasts to the leaf; None: all are 1.
      ema_decay: d of the average e <- d e + (1 - d) p of the trained parameters,
        which starts from where they start; None: no average.
    """

    transformation: optax.GradientTransformation
    schedule: Schedule
    trainable: PyTree
    scales: PyTree = None
    ema_decay: float | None = None

    def split(self, params: PyTree) -> tuple[PyTree, PyTree]:
        """Splits `params` into (trainable, frozen) halves."""
        return partition(params, self.trainable)

    def init(self, params: PyTree) -> PyTree:
        """Creates the optimizer state, of the trainable leaves only."""
        trained = self.split(params)[0]
        inner = self.transformation.init(trained)
        if self.ema_decay is None:
            return inner
        return Averaged(inner, jax.tree.map(jnp.copy, trained))

    def update(
        self, grads: PyTree, opt_state: PyTree, params: PyTree, step: jax.Array
    ) -> tuple[PyTree, PyTree]:
        """Updates the trainable half `params` once: (parameters, optimizer state)."""
        if self.ema_decay is None:
            return self._move(grads, opt_state, params, step)
        moved, inner = self._move(grads, opt_state.inner, params, step)
        keep = self.ema_decay
        ema = jax.tree.map(lambda e, p: keep * e + (1 - keep) * p, opt_state.ema, moved)
        return moved, Averaged(inner, ema)

    def _move(
        self, grads: PyTree, opt_state: PyTree, params: PyTree, step: jax.Array
    ) -> tuple[PyTree, PyTree]:
        updates, opt_state = self.transformation.update(grads, opt_state, params)
        lr = self.schedule(step)
        if self.scales is None:
            return jax.tree.map(lambda p, u: p - lr * u, params, updates), opt_state
        moved = jax.tree.map(
            lambda p, u, s: p - (lr * s) * u, params, updates, self.scales
        )
        return moved, opt_state

    def average(self, opt_state: PyTree, params: PyTree) -> PyTree:
        """Returns `params` with the trained ones averaged, if there is an average."""
        if self.ema_decay is None:
            return params
        return merge(opt_state.ema, self.split(params)[1])


def make(
    params: PyTree,
    schedule: Schedule,
    *,
    name: str,
    freeze: Sequence[str] = (),
    no_decay: Sequence[str] = (),
    decay_1d: bool = False,
    layer_decay: float = 1.0,
    clip_norm: float | None = None,
    ema_decay: float | None = None,
    lr_factors: Sequence[float] = (),
    **kwargs: Any,
) -> Optimizer:
    """Builds the optimizer of a config block for (abstract) `params`.

    Args:
      params: tree of arrays or ShapeDtypeStructs.
      schedule: step -> learning rate.
      name: adamw, sgd or lars; `kwargs` are its own settings.
      freeze: patterns of leaves that get no gradient, update or decay.
      no_decay: patterns of leaves that are trained without weight decay.
      decay_1d: decay biases and norms too (MoCo-v3).
      layer_decay: factor of the learning rate from a layer to the one below it; from
        1 on it does nothing.
      clip_norm: largest norm of all gradients together; None: no limit.
      ema_decay: of an average of the trained parameters; None: no average.
      lr_factors: of the learning rates of models stacked on the first axis of every
        trained leaf, each of which moves as if it were alone; (): one model.

    Raises:
      ValueError: unknown name, setting or pattern, nothing left to train, or leaves
        that do not hold as many models as there are factors.
    """
    choices.check("optimizer", name, NAMES)
    trainable = jax.tree.map(lambda frozen: not frozen, match(freeze, params))
    if not any(jax.tree.leaves(trainable)):
        raise ValueError(f"optimizer.freeze={tuple(freeze)} leaves nothing to train")
    single = params
    if lr_factors:
        single = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), params
        )
    decay = decay_mask(single, decay_1d=decay_1d, skip=no_decay)
    decay = partition(decay, trainable)[0]
    try:
        transformation = maker(name)(decay=decay, **kwargs)
    except TypeError as error:
        hint = choices.about_keyword(kwargs, maker(name).__kwdefaults__)
        raise ValueError(f"optimizer {name!r}: {error}{hint}") from error
    if clip_norm is not None:
        _expect_positive("clip_norm", clip_norm)
        transformation = optax.chain(clip_by_norm(clip_norm), transformation)
    _check_decays(ema_decay, layer_decay, lr_factors)
    optimizer = Optimizer(transformation, schedule, trainable, None, ema_decay)
    return _scaled(optimizer, params, layer_decay, lr_factors)


def _scaled(
    optimizer: Optimizer, params: PyTree, layer_decay: float, lr_factors: Sequence
) -> Optimizer:
    """Scales the learning rates by layer or, of a stack, by model."""
    if not lr_factors and layer_decay >= 1:
        return optimizer
    from litevit_jax.train import lr_scales

    if not lr_factors:
        scales = optimizer.split(lr_scales.layer_scales(params, layer_decay))[0]
        return dataclasses.replace(optimizer, scales=scales)
    return dataclasses.replace(
        optimizer,
        transformation=lr_scales.one_by_one(optimizer.transformation),
        scales=lr_scales.row_scales(optimizer.split(params)[0], lr_factors),
    )


def _check_decays(ema: float | None, layer: float, lr_factors: Sequence) -> None:
    _expect_positive("layer_decay", layer)
    if layer < 1 and lr_factors:
        raise ValueError("optimizer.lr_factors and optimizer.layer_decay < 1: give one")
    if ema is not None and not 0 <= ema < 1:
        raise ValueError(f"optimizer.ema_decay={ema}; expected 0 <= decay < 1")


def _expect_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"optimizer.{name}={value}; expected a positive number")
