"""TrainState and its creation, born sharded."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from litevit_jax import sharding
from litevit_jax.train import optimizer as optimizers


@flax.struct.dataclass
class TrainState:
    """All that a run needs to go on: `step` counts the updates done."""

    step: jax.Array
    params: Any
    model_state: Any
    teacher: Any
    opt_state: Any


def abstract_key() -> Any:
    """A key's shape: even a small one would be compiled to be made."""
    return jax.eval_shape(jax.random.key, 0)


def jitted(objective: Any, method: str) -> Any:
    """A method of an objective under jit: equal objectives share what is traced."""
    try:
        return _shared(objective, method)
    except TypeError:  # it cannot be hashed, and is traced each time
        return jax.jit(getattr(objective, method))


@functools.lru_cache(maxsize=8)  # a program keeps its memory as long as it is known
def _shared(objective: Any, method: str) -> Any:
    return jax.jit(getattr(objective, method))


def abstract_variables(objective: Any, batch: Any) -> Any:
    """Shapes of the objective's Variables for an (abstract) batch; no compute."""
    return jax.eval_shape(jitted(objective, "init"), abstract_key(), batch)


def creator(objective: Any, optimizer: optimizers.Optimizer, batch: Any, mesh: Mesh):
    """(create(key) -> TrainState on the mesh, its shardings).

    `batch` is abstract (ShapeDtypeStructs); the model sees zeros of its shape.
    """

    def init(key: jax.Array) -> TrainState:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch)
        # An array made from a Python number is weakly typed and would recompile.
        variables = jax.tree.map(
            lambda x: jax.lax.convert_element_type(x, x.dtype),
            jitted(objective, "init")(key, zeros),
        )
        teacher = variables.teacher
        if objective.frozen_teacher:  # its arrays are another run's: a place for them
            teacher = jax.tree.map(jnp.zeros_like, teacher)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables.params,
            model_state=variables.model_state,
            teacher=teacher,
            opt_state=optimizer.init(variables.params),
        )

    abstract = jax.eval_shape(init, abstract_key())
    shardings = sharding.tree_sharding(mesh, abstract)
    return jax.jit(init, out_shardings=shardings), shardings


def restart_optimizer(state: TrainState, optimizer: optimizers.Optimizer) -> TrainState:
    """`state` with the optimizer at its start, for parameters that were put in."""
    shardings = jax.tree.map(lambda x: x.sharding, state.opt_state)
    init = jax.jit(optimizer.init, out_shardings=shardings)
    return dataclasses.replace(state, opt_state=init(state.params))


def abstract_of(state: TrainState) -> TrainState:
    """ShapeDtypeStructs (with shardings) of a state."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
