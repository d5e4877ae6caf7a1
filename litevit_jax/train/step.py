"""Builds the training step: augment, loss, gradient, update, teacher in one jit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from litevit_jax import augment, sharding
from litevit_jax.train import microbatch
from litevit_jax.train import optimizer as optimizers
from litevit_jax.train.job import TrainState
from litevit_jax.trees import PyTree

if TYPE_CHECKING:
    from litevit_jax.objectives.base import Batch, Metrics, Objective
    from litevit_jax.train.on_device import Held


def _as_it_is(batch: Batch) -> tuple[Batch, Callable[[Batch], Batch]]:
    """Returns a batch that has its images, and what adds none to a part of it."""
    return batch, lambda part: part


def make_train_step(
    objective: Objective,
    optimizer: optimizers.Optimizer,
    ops: tuple[augment.Op, ...],
    *,
    seed: int,
    mesh: Mesh,
    state_sharding: TrainState,
    slices: int = 1,
    health_every: int | None = None,
    total_steps: int | None = None,
    held: Held | None = None,
) -> jax.stages.Wrapped:
    """Builds the jitted (state, batch) -> (state, metrics); the old state is donated.

    All randomness derives from (seed, step, slot in the batch). A step with a loss or
    gradient that is not finite changes only the count; metrics['nonfinite'] is 1 then.
    With `slices` each device computes its examples in that many equal parts, one after
    the other: the mean over all examples, to rounding, in less memory.
    Health metrics are NaN but at every `health_every`-th step and at `total_steps`.
    With `held` images, it takes a call of several updates, see `on_device`.
    """
    read = _as_it_is if held is None else held.read

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.key(seed if held is None else batch["seed"])
        augment_key, loss_key = jax.random.split(jax.random.fold_in(key, state.step))
        batch, images = read(batch)
        augmentation = _Augmentation(ops, objective, images)
        batch = augmentation.on_batch(augment_key, _arrange(batch, mesh))
        teacher = objective.update_teacher(state.teacher, state.params, state.step)
        trained, frozen = optimizer.split(state.params)

        def loss_fn(trained: PyTree, model_state: PyTree, part: Batch):
            params = optimizers.merge(trained, frozen)
            part = augmentation.on_slice(augment_key, part)
            return objective.loss(params, model_state, teacher, part, loss_key)

        value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (metrics, model_state)), grads = microbatch.accumulate(
            value_and_grad, trained, state.model_state, batch, slices, mesh, objective
        )
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm := _norm(grads))
        updated = optimizer.update(grads, state.opt_state, trained, state.step)
        params = optimizers.merge(updated[0], frozen)
        new = TrainState(state.step + 1, params, model_state, teacher, updated[1])
        new = _keep_if_finite(finite, new, state)
        # An objective may log another loss than the scalar it descends.
        metrics = {"loss": loss, **metrics, "grad_norm": grad_norm}
        metrics |= {"lr": optimizer.schedule(state.step), "nonfinite": 1.0 - finite}
        if health_every is not None:
            due = (new.step % health_every == 0) | (new.step == total_steps)
            part = functools.partial(augmentation.on_slice, augment_key)
            arrays = (state.params, state.model_state, teacher)
            metrics |= _health(objective, due, arrays, part, batch, loss_key)
        return new, metrics

    if held is not None:
        return held.looped(train_step, state_sharding)
    return _jitted(train_step, mesh, state_sharding)


def _jitted(
    update: Callable[..., Any], mesh: Mesh, state_sharding: TrainState
) -> jax.stages.Wrapped:
    """Jits (state, batch) -> (state, metrics) in the layout of a run."""
    return jax.jit(
        update,
        donate_argnums=0,
        in_shardings=(state_sharding, sharding.batch_sharding(mesh)),
        out_shardings=(state_sharding, sharding.replicated(mesh)),
    )


def _arrange(batch: Batch, mesh: Mesh) -> Batch:
    """Adds slots to a host batch and moves its views first: `[V, B, H, W, C]`."""
    slot = jnp.arange(batch["index"].shape[0], dtype=jnp.int32)
    batch = {**batch, "slot": slot}
    if "views" not in batch:
        return batch
    views = jnp.swapaxes(batch["views"], 0, 1)
    views = jax.lax.with_sharding_constraint(views, sharding.slice_sharding(mesh))
    return {**batch, "views": views}


class _Augmentation:
    """Splits the ops into those of the whole batch and those of a slice.

    A final normalisation is left to an objective that takes `Pixels`.
    """

    def __init__(
        self,
        ops: tuple[augment.Op, ...],
        objective: Objective,
        images: Callable[[Batch], Batch] = lambda part: part,
    ) -> None:
        affine = getattr(ops[-1], "affine", None) if ops else None  # a normalisation
        as_pixels = objective.takes_pixels and affine is not None
        self._affine = affine() if as_pixels else None
        self._whole, self._rest = augment.split(ops[:-1] if as_pixels else ops)
        self._images = images

    def on_batch(self, key: jax.Array, batch: Batch) -> Batch:
        """Applies the ops that mix examples, and those before them."""
        return augment.apply(
            self._whole, key, self._images(batch) if self._whole else batch
        )

    def on_slice(self, key: jax.Array, part: Batch) -> Batch:
        """Applies the other ops to a slice of the batch."""
        part = part if self._whole else self._images(part)
        part = augment.apply(self._rest, key, part, first=len(self._whole))
        if self._affine is None:
            return part
        from litevit_jax.models import pixels

        image: Any = pixels.Pixels(part["image"], *self._affine)  # used as an array
        return {**part, "image": image}


def _health(
    objective: Objective,
    due: jax.Array,
    arrays: tuple[PyTree, PyTree, PyTree],
    augmented: Callable[[Batch], Batch],
    batch: Batch,
    key: jax.Array,
) -> Metrics:
    """Computes health metrics of a few examples if they are `due`, else NaN for each.

    `arrays` are parameters, model state and teacher.
    """
    from litevit_jax.objectives import health

    few = health.some_examples(batch)

    def compute(few: Batch) -> Metrics:
        return objective.health(*arrays, augmented(few), key)

    shapes = jax.eval_shape(compute, few)
    if not shapes:
        return {}

    def skip(_: Batch) -> Metrics:
        return jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), shapes)

    return jax.lax.cond(due, compute, skip, few)


def _norm(tree: PyTree) -> jax.Array:
    """Computes the Euclidean norm of all leaves together."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)))


def _keep_if_finite(finite: jax.Array, new: TrainState, old: TrainState) -> TrainState:
    """Returns `new`, or `old` with the new count of steps if not `finite`."""

    def keep(n: jax.Array, o: jax.Array) -> jax.Array:
        return o if n is o else jax.lax.select(finite, n, o)

    kept = jax.tree.map(keep, new, old)
    return kept.replace(step=new.step)
