"""The contract between an objective and the training loop.

A step of training knows an objective only by these methods. All of them are pure:
what is random comes from the key, what changes is returned.
"""

from __future__ import annotations

import abc
import inspect
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from litevit_jax import choices, registry

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Tree = Any

# Examples that suffice for `Objective.health`: a rank of features of up to 256
# dimensions can show.
HEALTH_EXAMPLES = 256


class Variables(NamedTuple):
    """All arrays of an objective.

    Attributes:
      params: what the optimizer sees.
      model_state: running statistics; {} if there are none.
      teacher: what the loss reads and no gradient reaches; {} if there is none.
    """

    params: Tree
    model_state: Tree
    teacher: Tree


class FromRun(NamedTuple):
    """A default in the signature of `make`: the run says what the value is.

    Attributes:
      name: of the field of `config.derived` that has it.
    """

    name: str


NUM_CLASSES: Any = FromRun("num_classes")  # of the images, which then need labels
TOTAL_STEPS: Any = FromRun("total_steps")  # updates of the run


def complete(block: dict[str, Any], derived: Any) -> dict[str, Any]:
    """The block of an objective with the values that it takes from the run.

    Args:
      block: `config.objective` without the fields that are None.
      derived: `config.derived` of the run.

    Raises:
      ValueError: no such objective.
    """
    left = {k: v for k, v in _from_run(block["name"]).items() if k not in block}
    return {**{k: derived[v.name] for k, v in left.items()}, **block}


def classes_field(name: str) -> str | None:
    """The field of objective `name` that counts the classes; None: it needs no labels.

    Raises:
      ValueError: no such objective.
    """
    fields = _from_run(name).items()
    return next((k for k, v in fields if v == NUM_CLASSES), None)


def _from_run(name: str) -> dict[str, FromRun]:
    keywords = registry.defaults("objectives", name).items()
    return {key: value for key, value in keywords if isinstance(value, FromRun)}


# Names that properties of an objective once had -> those that are read.
_RENAMED = {"accumulates": "needs_whole_batch", "whole_batch": "needs_whole_batch"}


class Objective(abc.ABC):
    """A learning method; subclasses are frozen dataclasses of modules and scalars.

    Defining one raises a TypeError if it has an old name of a property, which nothing
    reads, or a method in place of a property.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for owner in cls.__mro__:
            for name in {**inspect.get_annotations(owner), **vars(owner)}:
                _check_member(cls, name, vars(owner).get(name))

    @property
    def needs_whole_batch(self) -> str | bool:
        """Why slices of a batch cannot stand for the whole; '' if they can.

        They can if the mean over equal slices is the loss of the whole batch, as it
        is where every example counts alike. Statistics over the batch (BatchNorm,
        contrastive negatives) are a reason, which a user who asks for slices reads.
        """
        return ""

    @property
    def encoded_share(self) -> float:
        """Share of an image's patches that what is trained computes: 1 without masks.

        From it follows how many images a device computes at once by default.
        """
        return 1.0

    @property
    def reads_bytes(self) -> bool:
        """Whether `loss` and `health` take `image` as `models.pixels.Pixels`.

        Then bytes are normalised where they are read, and no normalised copy of the
        images is ever written.
        """
        return False

    @property
    def num_views(self) -> int:
        """V: 1 reads `image [B, H, W, C]`, more read `views [V, B, H, W, C]`."""
        return 1

    @property
    def min_batch_per_device(self) -> int:
        """The fewest examples of a batch that a device can learn from."""
        return 1

    @property
    def packed_layers(self) -> dict[str, int]:
        """Name of a layer -> how many products its parameters hold side by side.

        Gradients of slices are added up product by product: the sums are the same,
        and the devices' parts of them can be added after the last slice.
        """
        return {"qkv": 3}

    @property
    def frozen_teacher(self) -> bool:
        """Whether the teacher is another run's encoder, read once and never changed.

        Then `init` gives no more than the teacher's shapes: its arrays come from
        `config.teacher`, and no checkpoint holds them.
        """
        return False

    @abc.abstractmethod
    def init(self, key: jax.Array, batch: Batch) -> Variables:
        """Initial values; `batch` matters by its shapes alone."""

    @abc.abstractmethod
    def loss(
        self, params: Tree, model_state: Tree, teacher: Tree, batch: Batch, key: Any
    ) -> tuple[jax.Array, tuple[Metrics, Tree]]:
        """The scalar to minimise, then scalar metrics and the new model state.

        A metric 'loss' is logged in place of the scalar. Accuracies are in percent.
        """

    def update_teacher(self, teacher: Tree, params: Tree, step: jax.Array) -> Tree:
        """The teacher after an update of `params`; unchanged by default."""
        del params, step
        return teacher

    def health(
        self, params: Tree, model_state: Tree, teacher: Tree, batch: Batch, key: Any
    ) -> Metrics:
        """Scalars that tell collapse from learning; computed at logged steps only.

        They are computed beside the loss and never change it; see
        `objectives.health` for what they are made of.
        """
        del params, model_state, teacher, batch, key
        return {}

    @abc.abstractmethod
    def predict(
        self, params: Tree, model_state: Tree, batch: Batch
    ) -> dict[str, jax.Array]:
        """Named arrays, one row per example; jit drops those nobody reads."""


def _check_member(cls: type, name: str, value: Any) -> None:
    """Raises a TypeError if a member of `cls` would be misread."""
    if name in _RENAMED:
        raise TypeError(
            f"objective {cls.__name__} defines {name}, which nothing reads: define "
            f"{_RENAMED[name]} instead, the reason why slices of a batch cannot stand "
            "for the whole ('' if they can)"
        )
    if isinstance(vars(Objective).get(name), property) and inspect.isfunction(value):
        raise TypeError(
            f"objective {cls.__name__}: {name} is a method, expected a property; put "
            "@property above it"
        )


def batch_size(batch: Batch) -> int:
    """Examples in a batch of `image [B, H, W, C]` or `views [V, B, H, W, C]`."""
    return batch["image"].shape[0] if "image" in batch else batch["views"].shape[1]


def some_examples(batch: Batch, most: int = HEALTH_EXAMPLES) -> Batch:
    """Selects evenly spaced examples of a batch, at most `most`; all arrays alike.

    Every n-th row, so that each device looks at its own.
    """
    every = math.ceil(batch_size(batch) / most)

    def take(x: jax.Array) -> jax.Array:
        count = x.shape[0] // every
        return x[: count * every].reshape(count, every, *x.shape[1:])[:, 0]

    def take_views(x: jax.Array) -> jax.Array:
        return jnp.swapaxes(take(jnp.swapaxes(x, 0, 1)), 0, 1)

    return {
        k: jax.tree.map(take_views if k == "views" else take, x)
        for k, x in batch.items()
    }


def example_keys(key: jax.Array, batch: Batch) -> jax.Array:
    """One typed key per example `[B]`, from its place in the global batch.

    `slot [B]` holds that place, so an example draws the same numbers on any mesh
    and in any slice of gradient accumulation; without it the rows are counted.
    """
    slot = batch.get("slot")
    if slot is None:
        slot = jnp.arange(batch_size(batch))
    return jax.vmap(jax.random.fold_in, (None, 0))(key, slot)


def compute_dtype(dtype: str) -> str:
    """Resolves 'auto': bfloat16 on accelerators, float32 on CPUs.

    Raises:
      ValueError: neither 'auto' nor a float type that models compute in.
    """
    if dtype == "auto":
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"
    known = ("auto", "bfloat16", "float16", "float32")
    return choices.check("dtype", dtype, known)


def held(teacher: Tree, dtype: str) -> Tree:
    """Casts a frozen teacher's kernels to the type they are multiplied in.

    What it computes stays: they would be rounded so at every step. On accelerators
    that is half the memory, and half of what a step reads of it.
    """

    def one(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return leaf.astype(dtype) if name.endswith("kernel") else leaf

    return jax.tree_util.tree_map_with_path(one, teacher)
