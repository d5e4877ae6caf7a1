"""Splits the batch of a step into slices that are computed one after the other.

Gradients of the slices are added up in float32 within the one jitted step, so the
update is that of the whole batch, to rounding, in less memory for activations.
`config.microbatch` says how many images a device computes at once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from litevit_jax import choices, distributed, sharding
from litevit_jax.trees import KeyPath, PyTree, path_of

if TYPE_CHECKING:
    from litevit_jax.data.sources.base import Source
    from litevit_jax.objectives.base import Objective

Batch = dict[str, jax.Array]
# ((loss, (metrics, model_state)), gradients)
LossAndGrads = tuple[tuple[jax.Array, tuple[Batch, PyTree]], PyTree]

# Whole images at once on a TPU, or as many parts of images as make up so many: the
# compiler for v5e keeps their activations in fast memory, and those of more it does
# not. Of MAE, which encodes a quarter, these are 128 images (docs/performance.md).
WHOLE_AT_ONCE = 32
# Values (H * W * C) at once on a device of a CPU, of whole images: 8 of 224 x 224 x 3,
# or 32 that MAE encodes. As fast as more, in less memory (docs/performance.md).
VALUES_AT_ONCE = 8 * 224 * 224 * 3
# 'auto' takes no divisor below this share of the number that it looks for.
_LEAST_SHARE = 0.5


def make_mesh(
    block: ConfigDict,
    batch_size: int | None,
    auto_batch: ConfigDict,
    source: Callable[[str], Source],
) -> Mesh:
    """Builds the mesh of a run, on as many devices as divide an automatic batch size.

    A mesh that the config gives, or one of several processes, takes all devices.

    Args:
      block: `config.mesh`.
      batch_size: None chooses one, as `choose_batch_size` does.
      auto_batch: the block that bounds what is chosen.
      source: split -> its examples; of 'train', their number is used.
    """
    devices = jax.devices()
    free = block.data < 0 and distributed.process_count() == 1
    if batch_size is None and free:
        size = choose_batch_size(len(source("train")), auto_batch.at_most)
        devices = devices[: math.gcd(size, len(devices))]
    return sharding.make_mesh(**block.to_dict(), devices=devices)


def choose_batch_size(images: int, at_most: int) -> int:
    """Chooses a power of two that leaves at least 16 updates an epoch.

    It depends on the number of training images alone, not on the devices.
    """
    most = min(at_most, images // 16)
    return 2 ** max(most.bit_length() - 1, 0)


def check(setting: int | str, batch_size: int, mesh: Mesh) -> None:
    """Checks `config.microbatch` and the batch size, before there is an objective.

    Raises:
      ValueError: the devices do not divide the batch, or the setting has no meaning.
    """
    sharding.check_batch(batch_size, mesh)
    _parse(setting)


def count_microbatches(
    setting: int | str,
    batch_size: int,
    data: ConfigDict,
    mesh: Mesh,
    objective: Objective,
    fitting: Callable[[], int] | None = None,
    *,
    name: str,
) -> int:
    """Returns how many slices the batch of a device is split into; 1 leaves it whole.

    'auto' splits where the objective allows it: into slices of at most as many images
    as the constants above give for the platform, if a number not much smaller divides
    the batch. On a GPU `fitting` returns how many images its memory holds; see
    `gpu_memory`. `setting` is `config.microbatch`, `name` the objective's.

    Raises:
      ValueError: a slice that does not divide the batch of a device, or that the
        objective forbids.
    """
    size, per_device = _parse(setting), batch_size // mesh.size
    whole = objective.needs_whole_batch
    if whole and isinstance(size, int):
        reason = f": {whole}" if isinstance(whole, str) else ""
        raise ValueError(
            f"microbatch={size}: objective {name!r} uses statistics "
            f"of the whole batch, which slices would change{reason}; set "
            "--config.microbatch=off"
        )
    if whole or size == "off":
        return 1
    if isinstance(size, str):  # auto
        if fitting and _platform(mesh) not in ("cpu", "tpu"):
            fit = fitting()  # more would not: a small divisor is better than the whole
            return per_device // max(n for n in _divisors(per_device) if n <= fit)
        wanted = _at_once(data, mesh, objective)
        return per_device // _chosen(per_device, wanted)
    if per_device % size:
        near = min(_divisors(per_device), key=lambda divisor: abs(divisor - size))
        raise ValueError(
            f"microbatch={size} does not divide the {per_device} images of a device "
            f"({batch_size=} over {mesh.size}); the nearest that does "
            f"is {near}: set --config.microbatch={near}"
        )
    return per_device // size


def _parse(value: int | str) -> int | str:
    """Returns 'auto', 'off' or a number of images, from 1."""
    text = str(value)
    if text in ("auto", "off"):
        return text
    if text.isascii() and text.isdigit() and int(text):
        return int(text)
    hint = choices.hint(text, ("auto", "off"))
    raise ValueError(
        f"microbatch={text}: {hint}expected auto, off, or the number of images that a "
        "device computes at once, from 1"
    )


def _platform(mesh: Mesh) -> str:
    return mesh.devices.flat[0].platform


def _at_once(data: ConfigDict, mesh: Mesh, objective: Objective) -> int:
    """Returns how many images 'auto' computes at once on a CPU or TPU device."""
    whole = WHOLE_AT_ONCE
    if _platform(mesh) == "cpu":
        sides = data.image_size * (data.image_width or data.image_size)
        whole = VALUES_AT_ONCE / (sides * data.channels)
    return max(int(whole / objective.encoded_share + 1e-6), 1)


def _chosen(per_device: int, wanted: int) -> int:
    """Returns the largest divisor up to `wanted`, or all if that would be too small."""
    largest = max(size for size in _divisors(per_device) if size <= wanted)
    return per_device if largest < wanted * _LEAST_SHARE else largest


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def accumulate(
    value_and_grad: Callable[..., LossAndGrads],
    trained: PyTree,
    model_state: PyTree,
    batch: Batch,
    slices: int,
    mesh: Mesh,
    objective: Objective,
) -> LossAndGrads:
    """Averages loss, metrics and gradient over `slices` equal parts of the batch.

    Sums are float32. The model state goes through the parts in their order.

    Args:
      value_and_grad: (trained, model_state, part of the batch) -> LossAndGrads.
      trained: parameters that get a gradient.
      model_state: running statistics.
      batch: named arrays, examples on the first axis ('views': on the second).
      slices: number of parts; 1 leaves the batch whole.
      mesh: of the batch.
      objective: says which layers are packed.
    """
    if slices == 1:
        return value_and_grad(trained, model_state, batch)
    axes = {k: int(k == "views") for k in batch}
    split = functools.partial(_split_packed, packed=objective.packed_layers)
    parts = {k: split_batch(x, slices, mesh, axis=axes[k]) for k, x in batch.items()}

    def part_of(rows: Batch) -> Batch:
        return {k: _unflatten(x, batch[k].shape, axes[k]) for k, x in rows.items()}

    def body(carry: tuple[PyTree, PyTree], rows: Batch):
        total, model_state = carry
        (loss, (metrics, model_state)), grads = value_and_grad(
            trained, model_state, part_of(rows)
        )
        total = jax.tree.map(jnp.add, total, (loss, metrics, split(grads)))
        return (total, model_state), None

    first = part_of({k: x[0] for k, x in parts.items()})
    (loss, (metrics, _)), grads = jax.eval_shape(
        value_and_grad, trained, model_state, first
    )
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)),
        (loss, metrics, jax.eval_shape(split, grads)),
    )
    (total, model_state), _ = jax.lax.scan(body, (zeros, model_state), parts)
    loss, metrics, grads = jax.tree.map(lambda x: x / slices, total)
    return (loss, (metrics, model_state)), _join_packed(grads)


def _split_packed(grads: PyTree, packed: dict[str, int]) -> PyTree:
    """Turns each gradient into a tuple: one array per product of a packed layer.

    Accelerators compute queries, keys and values as separate products, stored side by
    side. XLA adds up the devices' products after the loop only if nothing but an
    addition follows them inside it.
    """

    def split(path: KeyPath, x: jax.Array) -> tuple[jax.Array, ...]:
        layers = path_of(path).split("/")
        count = max(packed.get(layer, 1) for layer in layers)
        return tuple(jnp.split(x, count, axis=-1)) if count > 1 else (x,)

    return jax.tree_util.tree_map_with_path(split, grads)


def _join_packed(parts: PyTree) -> PyTree:
    """Undoes `_split_packed`."""
    return jax.tree.map(
        lambda part: jnp.concatenate(part, axis=-1) if len(part) > 1 else part[0],
        parts,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def split_batch(x: jax.Array, slices: int, mesh: Mesh, *, axis: int = 0) -> jax.Array:
    """Splits `axis`, the examples, into equal slices: `[slices, B / slices, values]`.

    Each device splits its own rows, so nothing moves between devices: slice i is the
    i-th part of every device's rows. An example becomes one row of values, since the
    loop keeps the layout of its operands: of `[H, W, 3]` a TPU would fill 3 of 128
    lanes.
    """
    size, x = mesh.size, jnp.moveaxis(x, axis, 0)
    rows = x.reshape(size, slices, x.shape[0] // (size * slices), -1)
    rows = jax.lax.with_sharding_constraint(rows, sharding.batch_sharding(mesh))
    parts = jnp.swapaxes(rows, 0, 1).reshape(slices, -1, rows.shape[-1])
    return jax.lax.with_sharding_constraint(parts, sharding.slice_sharding(mesh))


def _unflatten(rows: jax.Array, shape: tuple[int, ...], axis: int) -> jax.Array:
    """Reshapes a slice `[B, values]` to a batch of `shape`, whose `axis` is B."""
    rest = [n for i, n in enumerate(shape) if i != axis]
    return jnp.moveaxis(rows.reshape(-1, *rest), 0, axis)
