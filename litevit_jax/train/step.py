"""One update: augment -> loss -> gradient -> update -> teacher, in one jit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from litevit_jax import augment, sharding
from litevit_jax.objectives import base as objectives
from litevit_jax.train import optimizer as optimizers
from litevit_jax.train.state import TrainState


def make_train_step(
    objective: Any,
    optimizer: optimizers.Optimizer,
    ops: tuple[augment.Op, ...],
    *,
    seed: int,
    mesh: Mesh,
    state_sharding: Any,
    slices: int = 1,
    health_every: int | None = None,
    total_steps: int | None = None,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict]]:
    """Jitted (state, batch) -> (state, metrics); the old state is donated.

    All randomness derives from (seed, step, place in the batch). A step with a loss or
    gradient that is not finite changes only the count; metrics['nonfinite'] says so.
    With `slices` each device computes its examples in so many equal parts, one after
    the other: the mean over all examples, to rounding, in less memory.
    Health metrics are NaN but at every `health_every`-th step and at `total_steps`.
    """
    augmentation = _Augmentation(ops, objective)

    def train_step(state: TrainState, batch: dict[str, jax.Array]):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        augment_key, loss_key = jax.random.split(key)
        batch = augmentation.of_batch(augment_key, _arrange(batch, mesh))
        teacher = objective.update_teacher(state.teacher, state.params, state.step)
        trained, frozen = optimizer.split(state.params)

        def loss_fn(trained: Any, model_state: Any, part: dict[str, jax.Array]):
            params = optimizers.merge(trained, frozen)
            part = augmentation.of_part(augment_key, part)
            return objective.loss(params, model_state, teacher, part, loss_key)

        value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (metrics, model_state)), grads = _accumulate(
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
            part = functools.partial(augmentation.of_part, augment_key)
            seen = (state.params, state.model_state, teacher)
            few = objectives.some_examples(batch)
            metrics |= _health(objective, due, seen, part, few, loss_key)
        return new, metrics

    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(state_sharding, sharding.batch_sharding(mesh)),
        out_shardings=(state_sharding, sharding.replicated(mesh)),
    )


def _arrange(batch: dict[str, jax.Array], mesh: Mesh) -> dict[str, jax.Array]:
    """The host's batch with slots, and `views [B, V, H, W, C]` as `[V, B, H, W, C]`."""
    slot = jnp.arange(batch["index"].shape[0], dtype=jnp.int32)
    batch = {**batch, "slot": slot}
    if "views" not in batch:
        return batch
    views = jnp.swapaxes(batch["views"], 0, 1)
    views = jax.lax.with_sharding_constraint(views, sharding.slice_sharding(mesh))
    return {**batch, "views": views}


class _Augmentation:
    """Ops in two parts: of the whole batch, and of a slice of it when its turn comes.

    A final normalisation is left to an objective that takes `Pixels`.
    """

    def __init__(self, ops: tuple[augment.Op, ...], objective: Any) -> None:
        affine = getattr(ops[-1], "affine", None) if ops else None  # a normalisation
        as_pixels = objective.takes_pixels and affine is not None
        self._affine = affine() if as_pixels else None
        self._whole, self._rest = augment.split(ops[:-1] if as_pixels else ops)

    def of_batch(self, key: jax.Array, batch: dict[str, Any]) -> dict[str, Any]:
        return augment.apply(self._whole, key, batch)

    def of_part(self, key: jax.Array, part: dict[str, Any]) -> dict[str, Any]:
        part = augment.apply(self._rest, key, part, first=len(self._whole))
        if self._affine is None:
            return part
        from litevit_jax.models import pixels

        image = pixels.Pixels(part["image"], *self._affine)
        return {**part, "image": image}


def _health(
    objective: Any, due: Any, seen: Any, part: Any, few: Any, key: jax.Array
) -> Any:
    """The health metrics of `few` examples if they are `due`, else NaN in their place.

    `seen` are parameters, model state and teacher; `part` augments examples.
    """

    def look(few: dict[str, jax.Array]) -> Any:
        return objective.health(*seen, part(few), key)

    shapes = jax.eval_shape(look, few)
    if not shapes:
        return {}

    def skip(_: Any) -> Any:
        return jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), shapes)

    return jax.lax.cond(due, look, skip, few)


def _norm(tree: Any) -> jax.Array:
    """Euclidean norm of all leaves together."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)))


def _keep_if_finite(finite: jax.Array, new: TrainState, old: TrainState) -> TrainState:
    def keep(n: jax.Array, o: jax.Array) -> jax.Array:
        return o if n is o else jax.lax.select(finite, n, o)

    kept = jax.tree.map(keep, new, old)
    return kept.replace(step=new.step)


def _accumulate(
    value_and_grad: Callable[..., Any],
    trained: Any,
    model_state: Any,
    batch: dict[str, jax.Array],
    slices: int,
    mesh: Mesh,
    objective: Any,
) -> Any:
    """Mean loss, metrics and gradient over `slices` equal parts of the batch.

    Sums are float32. The state goes through the parts in their order.
    """
    if slices == 1:
        return value_and_grad(trained, model_state, batch)
    axes = {k: int(k == "views") for k in batch}
    apart = functools.partial(_apart, packed=objective.packed_layers)
    parts = {k: _cut(x, slices, mesh, axis=axes[k]) for k, x in batch.items()}

    def part_of(flat: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {k: _whole(x, batch[k].shape, axes[k]) for k, x in flat.items()}

    def body(carry: Any, flat: dict[str, jax.Array]):
        total, model_state = carry
        (loss, (metrics, model_state)), grads = value_and_grad(
            trained, model_state, part_of(flat)
        )
        total = jax.tree.map(jnp.add, total, (loss, metrics, apart(grads)))
        return (total, model_state), None

    first = part_of({k: x[0] for k, x in parts.items()})
    (loss, (metrics, _)), grads = jax.eval_shape(
        value_and_grad, trained, model_state, first
    )
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)),
        (loss, metrics, jax.eval_shape(apart, grads)),
    )
    (total, model_state), _ = jax.lax.scan(body, (zeros, model_state), parts)
    loss, metrics, grads = jax.tree.map(lambda x: x / slices, total)
    return (loss, (metrics, model_state)), _together(grads)


def _apart(grads: Any, packed: dict[str, int]) -> Any:
    """Each gradient as a tuple: of the products of a packed layer, or of itself alone.

    Queries, keys and values are products of their own on accelerators, and stored
    together. XLA adds up the devices' products behind the loop only if nothing but an
    addition follows them in it.
    """

    def cut(path: Any, x: jax.Array) -> tuple[jax.Array, ...]:
        layers = optimizers.path_of(path).split("/")
        count = max(packed.get(layer, 1) for layer in layers)
        return tuple(jnp.split(x, count, axis=-1)) if count > 1 else (x,)

    return jax.tree_util.tree_map_with_path(cut, grads)


def _together(parts: Any) -> Any:
    """What `_apart` took apart."""
    return jax.tree.map(
        lambda part: jnp.concatenate(part, axis=-1) if len(part) > 1 else part[0],
        parts,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def _cut(x: jax.Array, slices: int, mesh: Mesh, *, axis: int = 0) -> jax.Array:
    """Cuts `axis`, the examples, into equal slices: `[slices, B / slices, values]`.

    Each device cuts the rows that it has, so nothing moves between devices: slice i
    is the i-th part of every device's rows. An example is one row of values, since the
    loop keeps its operands as they lie: of `[H, W, 3]` a TPU would fill 3 of 128 lanes.
    """
    size, x = mesh.size, jnp.moveaxis(x, axis, 0)
    rows = x.reshape(size, slices, x.shape[0] // (size * slices), -1)
    rows = jax.lax.with_sharding_constraint(rows, sharding.batch_sharding(mesh))
    parts = jnp.swapaxes(rows, 0, 1).reshape(slices, -1, rows.shape[-1])
    return jax.lax.with_sharding_constraint(parts, sharding.slice_sharding(mesh))


def _whole(rows: jax.Array, shape: tuple[int, ...], axis: int) -> jax.Array:
    """A slice `[B, values]` as part of a batch of `shape`, whose `axis` is B."""
    rest = [n for i, n in enumerate(shape) if i != axis]
    return jnp.moveaxis(rows.reshape(-1, *rest), 0, axis)
