"""One update: augment -> loss -> gradient -> update -> teacher, in one jit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from litevit_jax import augment, sharding
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
    accum_steps: int = 1,
    health_every: int | None = None,
    total_steps: int | None = None,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict]]:
    """Jitted (state, batch) -> (state, metrics); the old state is donated.

    All randomness derives from (seed, step, place in the batch). A step with a loss or
    gradient that is not finite changes only the count; metrics['nonfinite'] says so.
    Health metrics are NaN but at every `health_every`-th step and at `total_steps`.
    """

    def train_step(state: TrainState, batch: dict[str, jax.Array]):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        augment_key, loss_key = jax.random.split(key)
        batch = augment.apply(ops, augment_key, _arrange(batch, mesh))
        teacher = objective.update_teacher(state.teacher, state.params, state.step)
        trained, frozen = optimizer.split(state.params)

        def loss_fn(trained: Any, model_state: Any, part: dict[str, jax.Array]):
            params = optimizers.merge(trained, frozen)
            return objective.loss(params, model_state, teacher, part, loss_key)

        value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (metrics, model_state)), grads = _accumulate(
            value_and_grad, trained, state.model_state, batch, accum_steps, mesh
        )
        grad_norm = _norm(grads)
        updated = optimizer.update(grads, state.opt_state, trained, state.step)
        new = TrainState(
            step=state.step + 1,
            params=optimizers.merge(updated[0], frozen),
            model_state=model_state,
            teacher=teacher,
            opt_state=updated[1],
        )
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        new = _keep_if_finite(finite, new, state)
        metrics = {**metrics, "loss": loss, "grad_norm": grad_norm}
        metrics |= {"lr": optimizer.schedule(state.step), "nonfinite": 1.0 - finite}
        if health_every is not None:
            seen = (state.params, state.model_state, teacher, batch, loss_key)
            due = (new.step % health_every == 0) | (new.step == total_steps)
            metrics |= _health(objective, due, seen)
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


def _health(objective: Any, due: jax.Array, seen: tuple[Any, ...]) -> Any:
    """The objective's health metrics if they are `due`, else NaN in their place."""
    shapes = jax.eval_shape(objective.health, *seen)
    if not shapes:
        return {}

    def skip(*_: Any) -> Any:
        return jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), shapes)

    return jax.lax.cond(due, objective.health, skip, *seen)


def _norm(tree: Any) -> jax.Array:
    """Euclidean norm of all leaves together."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)))


def _keep_if_finite(finite: jax.Array, new: TrainState, old: TrainState) -> TrainState:
    def keep(n: jax.Array, o: jax.Array) -> jax.Array:
        return o if n is o else jnp.where(finite, n, o)

    kept = jax.tree.map(keep, new, old)
    return kept.replace(step=new.step)


def _accumulate(
    value_and_grad: Callable[..., Any],
    trained: Any,
    model_state: Any,
    batch: dict[str, jax.Array],
    accum_steps: int,
    mesh: Mesh,
) -> Any:
    """Mean loss, metrics and gradient over `accum_steps` equal slices of the batch."""
    if accum_steps == 1:
        return value_and_grad(trained, model_state, batch)

    def cut(x: jax.Array) -> jax.Array:  # [B, ...] -> [slices, B/slices, ...]
        # Strided, so that each device cuts its own rows and moves nothing.
        x = x.reshape(x.shape[0] // accum_steps, accum_steps, *x.shape[1:])
        x = jnp.swapaxes(x, 0, 1)
        return jax.lax.with_sharding_constraint(x, sharding.slice_sharding(mesh))

    def cut_views(x: jax.Array) -> jax.Array:  # [V, B, ...] -> [slices, V, B/slices..]
        return jnp.swapaxes(cut(jnp.swapaxes(x, 0, 1)), 1, 2)

    slices = {k: (cut_views if k == "views" else cut)(x) for k, x in batch.items()}

    def body(carry: Any, part: dict[str, jax.Array]):
        total, model_state = carry
        (loss, (metrics, model_state)), grads = value_and_grad(
            trained, model_state, part
        )
        total = jax.tree.map(jnp.add, total, (loss, metrics, grads))
        return (total, model_state), None

    first = jax.tree.map(lambda x: x[0], slices)
    (loss, (metrics, _)), grads = jax.eval_shape(
        value_and_grad, trained, model_state, first
    )
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (loss, metrics, grads))
    (total, model_state), _ = jax.lax.scan(body, (zeros, model_state), slices)
    loss, metrics, grads = jax.tree.map(lambda x: x / accum_steps, total)
    return (loss, (metrics, model_state)), grads
