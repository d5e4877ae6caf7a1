"""The contract between an objective and the training loop.

A training step knows an objective only by these methods. All of them are pure: random
numbers come from the key, and whatever changes is returned.
"""

from __future__ import annotations

import abc
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from litevit_jax import choices, registry, trees

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Tree = Any


class Variables(NamedTuple):
    """The arrays of an objective.

    Attributes:
      params: the arrays that the optimizer updates.
      model_state: running statistics; {} without any.
      teacher: arrays that the loss reads and no gradient reaches; {} without any.
    """

    params: Tree
    model_state: Tree
    teacher: Tree


class FromRun(NamedTuple):
    """A default in the signature of `make` whose value comes from the run.

    Attributes:
      name: the field of `config.derived` that holds the value.
    """

    name: str


NUM_CLASSES: Any = FromRun("num_classes")  # of the images, which then need labels
CLASS_COUNTS: Any = FromRun("class_counts")  # images of each class, or None
TOTAL_STEPS: Any = FromRun("total_steps")  # the run's number of updates
IMAGE_SIZE: Any = FromRun("image_size")  # rows and columns of its images


def complete(block: dict[str, Any], derived: Any) -> dict[str, Any]:
    """Returns the config block of an objective with the values taken from the run.

    Args:
      block: `config.objective` without the fields that are None.
      derived: `config.derived` of the run.

    Raises:
      ValueError: no such objective.
    """
    from_run = _from_run(block["name"]).items()
    return {k: derived.get(v.name) for k, v in from_run if k not in block} | block


def classes_field(name: str) -> str | None:
    """The field of objective `name` that counts classes; None if it needs no labels.

    Raises:
      ValueError: no such objective.
    """
    fields = _from_run(name).items()
    return next((k for k, v in fields if v == NUM_CLASSES), None)


def _from_run(name: str) -> dict[str, FromRun]:
    keywords = registry.defaults("objectives", name).items()
    return {key: value for key, value in keywords if isinstance(value, FromRun)}


# Former name of a property -> (its name now, what it says).
_WHOLE = "the reason why slices of a batch cannot stand for the whole ('' if they can)"
_RENAMED = {
    "accumulates": ("needs_whole_batch", _WHOLE),
    "whole_batch": ("needs_whole_batch", _WHOLE),
    "reads_bytes": ("takes_pixels", "whether `image` comes as models.pixels.Pixels"),
}


class Objective(abc.ABC):
    """A learning method; subclasses are frozen dataclasses of modules and scalars.

    Defining a subclass raises a TypeError if it has a former name of a property or
    misspells a member with a default, which nothing reads, or if it has a method where
    a property is expected.

    >>> class Mean(litevit_jax.Objective):
    ...     def init(self, key, batch):
    ...         return {"mean": jnp.zeros(())}, {}, {}
    ...     def loss(self, params, model_state, teacher, batch, key):
    ...         loss = jnp.square(batch["image"] - params["mean"]).mean()
    ...         return loss, ({"loss": loss}, model_state)
    ...     def predict(self, params, model_state, batch):
    ...         return {"features": batch["image"].mean(axis=(1, 2))}
    >>> Mean().num_views
    1
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for owner in cls.__mro__:
            for name in {**inspect.get_annotations(owner), **vars(owner)}:
                _check_member(cls, name, vars(owner).get(name))

    @property
    def needs_whole_batch(self) -> str | bool:
        """Why slices of a batch cannot stand for the whole; '' if they can.

        They can if the mean over equal slices is the loss of the whole batch, as when
        examples do not see each other. Statistics over the batch (BatchNorm,
        contrastive negatives) forbid it; a user who asks for slices reads the reason.
        """
        return ""

    @property
    def encoded_share(self) -> float:
        """The share of an image's patches that the encoder computes: 1 without masks.

        It decides how many images a device computes at once by default.
        """
        return 1.0

    @property
    def takes_pixels(self) -> bool:
        """Whether `loss` and `health` take `image` as `models.pixels.Pixels`.

        The objective then normalises the bytes that it reads, and no normalised copy
        of the images is written.
        """
        return False

    @property
    def annotations(self) -> tuple[str, ...]:
        """Names of what the loss reads beside images and labels, as the source does.

        `label_map` comes as uint8 `[B, H, W]`, 255 where nothing is labelled, and with
        it `size [B, 2]`, the rows and columns that are image; `objects`, or `boxes`
        alone, as `objectives.detect` lists them.
        """
        return ()

    @property
    def multi_label(self) -> bool:
        """Whether the loss reads `labels [B, K]`, 1 for each class of an image."""
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

        Gradients of slices are summed product by product: the sums stay the same, and
        the sum over devices can wait until after the last slice.
        """
        return {"qkv": 3}

    @property
    def frozen_teacher(self) -> bool:
        """Whether the teacher is another run's encoder, read once and never changed.

        `init` then gives only the teacher's shapes: its arrays come from
        `config.teacher`, and no checkpoint holds them.
        """
        return False

    @abc.abstractmethod
    def init(self, key: jax.Array, batch: Batch) -> Variables:
        """Initial values; of `batch` only the shapes matter."""

    @abc.abstractmethod
    def loss(
        self, params: Tree, model_state: Tree, teacher: Tree, batch: Batch, key: Any
    ) -> tuple[jax.Array, tuple[Metrics, Tree]]:
        """Returns the scalar to minimise, and (scalar metrics, the new model state).

        A metric 'loss' is logged instead of the scalar. Accuracies are in percent.
        """

    def update_teacher(self, teacher: Tree, params: Tree, step: jax.Array) -> Tree:
        """The teacher after an update of `params`; unchanged by default."""
        del params, step
        return teacher

    def health(
        self, params: Tree, model_state: Tree, teacher: Tree, batch: Batch, key: Any
    ) -> Metrics:
        """Scalars that tell collapse from learning, computed at logged steps only.

        They never change the loss; `objectives.health` defines the usual ones.
        """
        del params, model_state, teacher, batch, key
        return {}

    @abc.abstractmethod
    def predict(
        self, params: Tree, model_state: Tree, batch: Batch
    ) -> dict[str, jax.Array]:
        """Returns named arrays, one row per example; jit drops those nobody reads."""


def _check_member(cls: type, name: str, value: Any) -> None:
    """Raises a TypeError if a member of `cls` would be misread."""
    if name in _RENAMED:
        new, meaning = _RENAMED[name]
        raise TypeError(
            f"objective {cls.__name__} defines {name}, which nothing reads: define "
            f"{new} instead, {meaning}"
        )
    known = {k for k in vars(Objective) if k[0] != "_"}
    optional = known - Objective.__abstractmethods__
    meant = choices.near(name, optional, cutoff=0.87)
    if meant and name not in known and name[0] != "_":
        raise TypeError(
            f"objective {cls.__name__} defines {name}, which nothing reads: did you "
            f"mean {meant[0]}? If not, give it a name that is less alike"
        )
    if isinstance(vars(Objective).get(name), property) and inspect.isfunction(value):
        raise TypeError(
            f"objective {cls.__name__}: {name} is a method, expected a property; put "
            "@property above it"
        )


def batch_size(batch: Batch) -> int:
    """Examples in a batch of `image [B, H, W, C]` or `views [V, B, H, W, C]`.

    Before images are cropped there are only their `slot [B]`.
    """
    if "views" in batch:
        return batch["views"].shape[1]
    return batch["image" if "image" in batch else "slot"].shape[0]


def example_keys(key: jax.Array, batch: Batch) -> jax.Array:
    """One typed key per example `[B]`, from its position in the global batch.

    `slot [B]` holds that position, so an example draws the same numbers on any mesh
    and in any slice of gradient accumulation. Without `slot` the rows are counted.
    """
    slot = batch.get("slot")
    if slot is None:
        slot = jnp.arange(batch_size(batch))
    return jax.vmap(jax.random.fold_in, (None, 0))(key, slot)


def compute_dtype(dtype: str) -> str:
    """Resolves 'auto': bfloat16 on accelerators, float32 on CPUs.

    Raises:
      ValueError: `dtype` is neither 'auto' nor a float type that models compute in.
    """
    if dtype == "auto":
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"
    known = ("auto", "bfloat16", "float16", "float32")
    return choices.check("dtype", dtype, known)


def cast_teacher_kernels(teacher: Tree, dtype: str) -> Tree:
    """Casts a frozen teacher's kernels to the type they are multiplied in.

    The teacher's outputs stay the same: every step would round the kernels so. In half
    precision they take half the memory, and a step reads half as many bytes.
    """

    def one(path: Any, leaf: jax.Array) -> jax.Array:
        return leaf.astype(dtype) if trees.path_of(path).endswith("kernel") else leaf

    return jax.tree_util.tree_map_with_path(one, teacher)
