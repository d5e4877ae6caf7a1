"""Layout of arrays on devices: one Mesh(data, fsdp) for batches and states.

The batch is split over both axes. A large parameter is split over `fsdp` along
its largest divisible dimension; everything else is replicated. Programs are
written for the global batch and jit inserts the collectives.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# Below this many elements a parameter costs less to keep than to gather.
_MIN_SHARDED_SIZE = 2**14
_AXES = ("data", "fsdp")


def make_mesh(data: int = -1, fsdp: int = 1, devices: Any = None) -> Mesh:
    """Makes a mesh with axes ('data', 'fsdp') over all devices; -1 takes the rest.

    The devices of each process are contiguous, processes in order: each process has
    one contiguous piece of a batch, so data do not depend on the topology.

    Raises:
      ValueError: data x fsdp is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if data < 0 and fsdp < 0:
        raise ValueError("mesh: at most one of data and fsdp can be -1 (the rest)")
    data = count // max(fsdp, 1) if data < 0 else data
    fsdp = count // max(data, 1) if fsdp < 0 else fsdp
    if data * fsdp != count or data < 1:
        raise ValueError(
            f"mesh data={data} x fsdp={fsdp} needs {data * fsdp} devices, "
            f"found {count}; set --config.mesh.data and --config.mesh.fsdp so that "
            "their product is the device count (-1 takes the rest)"
        )
    auto = (AxisType.Auto,) * 2
    mesh = jax.make_mesh((data, fsdp), _AXES, axis_types=auto, devices=devices)
    owners = [device.process_index for device in mesh.devices.flat]
    if owners == sorted(owners):
        return mesh
    order = np.argsort(owners, kind="stable")
    grid = mesh.devices.reshape(-1)[order].reshape(data, fsdp)
    return Mesh(grid, _AXES, axis_types=auto)


def check_fsdp(mesh: Mesh, tree: Any) -> None:
    """Raises ValueError if `fsdp` divides no array of `tree`, as it is too large."""
    sizes = [n for leaf in jax.tree.leaves(tree) for n in leaf.shape]
    ways, largest = mesh.shape["fsdp"], max(sizes, default=1)
    if ways > largest:
        raise ValueError(
            f"mesh.fsdp={ways} is larger than any dimension of the state (at most "
            f"{largest}): nothing could be divided; set --config.mesh.fsdp={largest} "
            "or less, --config.mesh.data=-1 takes the rest"
        )


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """Raises ValueError unless every device gets the same number of examples."""
    shape = "mesh " + " x ".join(f"{k}={v}" for k, v in mesh.shape.items())
    if batch_size < 1:
        raise ValueError(f"{batch_size=} must be at least 1")
    if batch_size % mesh.size:
        near = max(batch_size // mesh.size, 1) * mesh.size
        raise ValueError(
            f"batch_size={batch_size} is not a multiple of {mesh.size} devices "
            f"({shape}); try --config.batch_size={near}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the layout with the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the layout with axis 0 split over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def slice_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the layout with axis 1 split over all devices: microbatches."""
    return NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp")))


def tree_sharding(mesh: Mesh, tree: Any) -> Any:
    """Returns a NamedSharding for each array (or ShapeDtypeStruct) of `tree`."""
    return jax.tree.map(lambda leaf: _leaf_sharding(mesh, leaf.shape), tree)


def _leaf_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    ways = mesh.shape["fsdp"]
    axes = [i for i, n in enumerate(shape) if n % ways == 0]
    if ways == 1 or not axes or np.prod(shape) < _MIN_SHARDED_SIZE:
        return replicated(mesh)
    largest = max(axes, key=lambda i: shape[i])
    spec = ("fsdp" if i == largest else None for i in range(len(shape)))
    return NamedSharding(mesh, PartitionSpec(*spec))


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Turns this process's rows of a batch into global arrays over all devices."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows)
        for name, rows in batch.items()
    }


def put(tree: Any, shardings: Any) -> Any:
    """Puts host arrays, which every process has whole, on devices by `shardings`.

    Each process copies the parts of its own devices; nothing is compared or sent.
    """

    def one(x: Any, target: NamedSharding) -> jax.Array:
        on_mesh = isinstance(x, jax.Array) and not x.is_fully_addressable
        if on_mesh or target.is_fully_addressable:
            return jax.device_put(x, target)
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, target, lambda index: x[index])

    return jax.tree.map(one, tree, shardings)


def replace(state: Any, parts: dict[str, Any], abstract: Any) -> Any:
    """Returns `state` with `parts` (host arrays) in the layout of `abstract`."""
    shardings = {
        name: jax.tree.map(lambda x: x.sharding, getattr(abstract, name))
        for name in parts
    }
    return state.replace(**put(parts, shardings))


def most(mesh: Mesh, number: int) -> jax.Array:
    """Returns the largest of the processes' numbers, on all of them."""
    mine = np.full(len(mesh.local_devices), number, np.int32)
    flags = jax.make_array_from_process_local_data(batch_sharding(mesh), mine)
    return _largest(mesh)(flags)


@functools.cache
def _largest(mesh: Mesh) -> Any:
    return jax.jit(jnp.max, out_shardings=replicated(mesh))
