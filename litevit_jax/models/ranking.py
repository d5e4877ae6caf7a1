"""The largest numbers of an array, with a static count."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def largest(values: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Returns the largest of `[N]` by falling value, and their indices, `[count]`.

    Of equal ones the first goes first. Beyond N values are -inf, and indices any.

    It sorts: each device sorts its own part of a batch, but of `lax.top_k` XLA makes
    every device compute that of the whole batch.
    """
    index = jnp.argsort(-values, stable=True)[:count].astype(jnp.int32)
    missing = (0, count - len(index))
    return (
        jnp.pad(values[index], missing, constant_values=-jnp.inf),
        jnp.pad(index, missing),
    )
