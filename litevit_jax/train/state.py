"""Creates a TrainState as sharded arrays on a mesh, and finds out its shapes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from litevit_jax import checkpoint, sharding
from litevit_jax.train import optimizer as optimizers
from litevit_jax.train.job import TrainState
from litevit_jax.trees import PyTree

if TYPE_CHECKING:
    from litevit_jax.objectives.base import Objective, Variables

Shapes = dict[str, jax.ShapeDtypeStruct]
Arrays = Mapping[str, jax.Array | jax.ShapeDtypeStruct]


class Predictor(Protocol):
    """The part of an objective that evaluations use."""

    @property
    def num_views(self) -> int: ...

    @property
    def multi_label(self) -> bool: ...

    def init(self, key: jax.Array, batch: dict[str, jax.Array]) -> Variables: ...

    def predict(
        self, params: PyTree, model_state: PyTree, batch: dict[str, jax.Array]
    ) -> dict[str, jax.Array]: ...


def abstract_key() -> jax.ShapeDtypeStruct:
    """Returns the shape of a random key; to create one takes a compile."""
    return jax.eval_shape(jax.random.key, 0)


def jitted(objective: Any, method: str) -> jax.stages.Wrapped:
    """Jits a method of an objective; equal objectives share its traces."""
    try:
        return _shared(objective, method)
    except TypeError:  # it cannot be hashed, and is traced each time
        return jax.jit(getattr(objective, method))


@functools.lru_cache(maxsize=8)  # a program keeps its memory as long as it is known
def _shared(objective: Any, method: str) -> jax.stages.Wrapped:
    return jax.jit(getattr(objective, method))


def abstract_variables(objective: Predictor, batch: Arrays) -> Variables:
    """Returns the shapes of an objective's Variables; nothing is computed."""
    return jax.eval_shape(jitted(objective, "init"), abstract_key(), batch)


def creator(
    objective: Objective,
    optimizer: optimizers.Optimizer,
    batch: Arrays,
    mesh: Mesh,
    shapes: TrainState | None = None,
) -> tuple[jax.stages.Wrapped, TrainState]:
    """Returns create(key) -> TrainState on the mesh, and the state by shapes.

    The model sees zeros of the shapes in `batch`. The state has shardings; `shapes` is
    the state without, if it is known.
    """

    def init(key: jax.Array) -> TrainState:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch)
        # An array made from a Python number is weakly typed and would recompile.
        variables = jax.tree.map(
            lambda x: jax.lax.convert_element_type(x, x.dtype),
            jitted(objective, "init")(key, zeros),
        )
        teacher = variables.teacher
        if objective.frozen_teacher:  # another run's arrays replace these
            teacher = jax.tree.map(jnp.zeros_like, teacher)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables.params,
            model_state=variables.model_state,
            teacher=teacher,
            opt_state=optimizer.init(variables.params),
        )

    if shapes is None:
        shapes = jax.eval_shape(init, abstract_key())
    shardings = sharding.tree_sharding(mesh, shapes)
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        shardings,
    )
    return jax.jit(init, out_shardings=shardings), state


def laid_out(shapes: PyTree, layout: NamedSharding) -> PyTree:
    """Returns ShapeDtypeStructs of `shapes` whose arrays all have one layout."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), shapes
    )


def saved_bytes(state: TrainState, fixed: Iterable[str]) -> int:
    """Counts the bytes of a checkpoint of `state` without its parts `fixed`."""
    parts = [getattr(state, part) for part in checkpoint.PARTS if part not in fixed]
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(parts))


class Design(NamedTuple):
    """The shapes of a run, for which its parts are traced.

    Attributes:
      variables: abstract Variables of the objective.
      state: abstract TrainState without shardings.
      slices: parts in which a device computes its examples.
    """

    variables: PyTree
    state: TrainState
    slices: int


class Tracing:
    """Finds out the shapes and programs of a run by tracing them, and keeps nothing.

    Attributes:
      design: the shapes of the run if they are known before it is traced, or None.
    """

    design: Design | None = None

    def keep_design(self, design: Design) -> None:
        """Takes note of the shapes that tracing has found out."""

    def wrap(self, name: str, jitted: jax.stages.Wrapped) -> jax.stages.Wrapped:
        """Returns the function "create" or "step" for the run to call."""
        del name
        return jitted

    def eval_shape(self, function: Callable[..., Shapes], *arguments: PyTree) -> Shapes:
        """Returns the shapes of a result, as `jax.eval_shape`."""
        return jax.eval_shape(function, *arguments)
