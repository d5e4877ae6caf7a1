"""Into how many slices a step cuts its batch: one is computed after the other.

Gradients of the slices are added up in float32 within the one jitted step, so the
update is that of the whole batch, to rounding; what grows with the images at once
(activations) shrinks. `microbatch` says how many images a device computes at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from litevit_jax import choices, distributed, sharding

# Whole images at once on a TPU, or as many parts of images as make up so many: the
# compiler for v5e keeps their activations in fast memory, and those of more it does
# not. Of MAE, which encodes a quarter, these are 128 images (docs/performance.md).
WHOLE_AT_ONCE = 32
# On a GPU the whole batch is fastest (1.6 times slices of 128 on an H200), so that is
# computed at once which fits: of the memory that JAX may use this share, each image
# taking so many times what autodiff keeps of it by shapes. Compiled steps took 1.4
# times as much for MAE and 1.9 times for fine-tuning, before attention was fused.
_GPU_SHARE, _KEPT_TWICE = 0.9, 2.0
_SMALL_GPU = 11 * 2**30  # bytes, of a GPU that does not say how many it has
# Values (H * W * C) at once on a device of a CPU, of whole images: 8 of 224 x 224 x 3,
# or 32 that MAE encodes. As fast as more, in less memory (docs/performance.md).
VALUES_AT_ONCE = 8 * 224 * 224 * 3
# 'auto' takes no divisor that is below this share of what it looks for.
_LEAST_SHARE = 0.5


def make_mesh(config: ConfigDict, source: Callable[[str], Any]) -> Mesh:
    """The mesh of a run, on as many devices as a batch that is chosen divides among.

    A mesh that is given, or spans several processes, takes all of them.
    """
    devices, free = (
        jax.devices(),
        config.mesh.data < 0 and distributed.process_count() == 1,
    )
    if config.batch_size is None and free:
        devices = devices[: math.gcd(batch_size(config, source), len(devices))]
    return sharding.make_mesh(**config.mesh, devices=devices)


def batch_size(config: ConfigDict, source: Callable[[str], Any]) -> int:
    """A power of two that leaves at least 16 updates an epoch, whatever the devices."""
    most = min(config.auto_batch.at_most, len(source("train")) // 16)
    return 2 ** max(most.bit_length() - 1, 0)


def check(config: ConfigDict, mesh: Mesh) -> None:
    """Checks what needs no objective: batch, devices and what the settings say.

    Raises:
      ValueError: a batch that does not divide, or a microbatch that is none.
    """
    sharding.check_batch(config.batch_size, mesh)
    _read(config.microbatch)


def count(
    config: ConfigDict,
    mesh: Mesh,
    objective: Any,
    fitting: Callable[[], int] | None = None,
) -> int:
    """How many slices the batch of a device is cut into; 1 leaves it whole.

    'auto' cuts where the objective allows it: into slices of at most so many images as
    stands above for the platform, if a number not much smaller divides the batch. On a
    GPU `fitting` says how many images its memory holds; see `images_that_fit`.

    Raises:
      ValueError: a slice that does not divide the batch of a device, or that the
        objective forbids.
    """
    said, per_device = _read(config.microbatch), config.batch_size // mesh.size
    whole = objective.needs_whole_batch
    if whole and isinstance(said, int):
        reason = f": {whole}" if isinstance(whole, str) else ""
        raise ValueError(
            f"microbatch={said}: objective {config.objective.name!r} uses statistics "
            f"of the whole batch, which slices would change{reason}; set "
            "--config.microbatch=off"
        )
    if whole or said == "off":
        return 1
    if isinstance(said, str):  # auto
        if fitting and _platform(mesh) not in ("cpu", "tpu"):
            fit = fitting()  # more would not: a small divisor is better than the whole
            return per_device // max(n for n in _divisors(per_device) if n <= fit)
        wanted = _at_once(config, mesh, objective)
        return per_device // _chosen(per_device, wanted)
    if per_device % said:
        near = min(_divisors(per_device), key=lambda size: abs(size - said))
        raise ValueError(
            f"microbatch={said} does not divide the {per_device} images of a device "
            f"(batch_size={config.batch_size} over {mesh.size}); the nearest that does "
            f"is {near}: set --config.microbatch={near}"
        )
    return per_device // said


def _read(said: Any) -> int | str:
    """'auto', 'off' or a number of images, from 1."""
    text = str(said)
    if text in ("auto", "off"):
        return text
    if text.isascii() and text.isdigit() and int(text):
        return int(text)
    hint = choices.hint(text, ("auto", "off"))
    raise ValueError(
        f"microbatch={text}: {hint}expected auto, off, or the number of images that a "
        "device computes at once, from 1"
    )


def images_that_fit(
    mesh: Mesh,
    objective: Any,
    variables: Any,
    batch: Any,
    state: Any,
    memory: float | None = None,
) -> int:
    """How many images a step can compute at once in a device's memory, at least 1.

    Nothing is compiled: what autodiff keeps of an image for the backward pass is
    counted by shapes, beside the state and its gradient.

    Args:
      mesh: its first device is asked for its memory.
      objective, variables, batch: by shape, as `setup.Design` has them.
      state: abstract TrainState.
      memory: bytes that JAX may use of each device; None asks the device.
    """
    params = jax.tree.leaves(variables.params)
    fixed = sum(_bytes(x) for x in [*jax.tree.leaves(state), *params])
    left = _GPU_SHARE * (memory or _memory(mesh)) - fixed
    one, two = (_kept(objective, variables, batch, images) for images in (1, 2))
    return max(int(left / (_KEPT_TWICE * max(two - one, 1))), 1)


def _kept(objective: Any, variables: Any, batch: Any, images: int) -> int:
    """Bytes that autodiff keeps for the backward pass of `images` images."""

    def some(name: str, x: Any) -> jax.ShapeDtypeStruct:
        axis = int(name == "views")
        shape = (*x.shape[:axis], images, *x.shape[axis + 1 :])
        return jax.ShapeDtypeStruct(shape, x.dtype)

    def backward(params: Any, state: Any, teacher: Any, batch: Any, key: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            return objective.loss(params, state, teacher, batch, key)[0]

        return jax.vjp(loss, params)[1]

    few = {name: some(name, x) for name, x in batch.items()}
    key = jax.eval_shape(lambda: jax.random.key(0))
    kept = jax.eval_shape(backward, *variables, few, key)
    return sum(_bytes(x) for x in jax.tree.leaves(kept))


def _bytes(x: Any) -> int:
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended):  # keys of random numbers
        return 0
    return x.size * x.dtype.itemsize


def _memory(mesh: Mesh) -> int:
    """Bytes that JAX may use of the memory of a device."""
    try:
        stats = mesh.devices.flat[0].memory_stats() or {}
    except (AttributeError, NotImplementedError, RuntimeError):
        stats = {}  # a device that is only described
    return stats.get("bytes_limit", _SMALL_GPU)


def _platform(mesh: Mesh) -> str:
    return mesh.devices.flat[0].platform


def _at_once(config: ConfigDict, mesh: Mesh, objective: Any) -> int:
    whole = WHOLE_AT_ONCE
    if _platform(mesh) == "cpu":
        data = config.data
        sides = data.image_size * (data.image_width or data.image_size)
        whole = VALUES_AT_ONCE / (sides * data.channels)
    return max(int(whole / objective.encoded_share + 1e-6), 1)


def _chosen(per_device: int, wanted: int) -> int:
    """The largest divisor up to `wanted`; the whole where that would be too small."""
    largest = max(size for size in _divisors(per_device) if size <= wanted)
    return per_device if largest < wanted * _LEAST_SHARE else largest


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})
