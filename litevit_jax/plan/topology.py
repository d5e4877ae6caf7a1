"""Targets of a plan: their names, the resources of their chips, their devices."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from typing import Any

from litevit_jax import cpu

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """The resources of one chip; rates are peaks, used only for estimates.

    TPUs: Google's pages of each generation (docs.cloud.google.com/tpu/docs/v5e and so
    on). `link_rate` is half of the bidirectional bandwidth on those pages: what a chip
    can send. `hbm` is the part of the nominal memory that a program may use.
    H100 (SXM): NVIDIA's data sheet; JAX takes three quarters of its memory by default.
    """

    name: str
    hbm: float  # bytes
    flops: float  # bfloat16, per second
    hbm_rate: float  # bytes per second
    link_rate: float  # bytes per second that a chip can send to its neighbours


CHIPS = {
    "v4": Chip("TPU v4", 31.75 * GIB, 275e12, 1228e9, 300e9),
    "v5e": Chip("TPU v5e", 15.75 * GIB, 197e12, 819e9, 200e9),
    "v5p": Chip("TPU v5p", 95.74 * GIB, 459e12, 2765e9, 600e9),
    "v6e": Chip("TPU v6e", 31.25 * GIB, 918e12, 1640e9, 400e9),
    "h100": Chip("H100", 0.75 * 79.1 * GIB, 989e12, 3352e9, 450e9),
}
# The number in a target's name -> chips along each axis. For v4 and v5p the number
# counts TensorCores, two in each chip; for v5e and v6e it counts chips.
_FLAT = {
    1: (1, 1),
    4: (2, 2),
    8: (2, 4),
    16: (4, 4),
    32: (4, 8),
    64: (8, 8),
    128: (8, 16),
    256: (16, 16),
}
_CUBES = {
    8: (2, 2, 1),
    16: (2, 2, 2),
    32: (2, 2, 4),
    64: (2, 4, 4),
    128: (4, 4, 4),
    256: (4, 4, 8),
    512: (4, 8, 8),
    1024: (8, 8, 8),
}
_ONE_HOST = {count: (1, 1, count) for count in (1, 2, 4, 8)}  # slices, hosts, GPUs
_SLICES = {
    "v4": _CUBES,
    "v5e": _FLAT,
    "v5p": _CUBES,
    "v6e": _FLAT,
    "h100": _ONE_HOST,
}
# A GPU's description, which XLA compiles for: limits of compute capability 9.0.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
_MOST_CPUS = 64


@dataclasses.dataclass(frozen=True)
class Target:
    """The target of a plan: `chips` of one kind, in a `grid` (empty for CPUs)."""

    name: str
    chip: Chip
    kind: str = "cpu"
    grid: tuple[int, ...] = ()
    cpus: int = 0

    @property
    def chips(self) -> int:
        """The number of chips; each is one device of JAX."""
        count = self.cpus or 1
        for side in self.grid:
            count *= side
        return count

    @property
    def on_cpu(self) -> bool:
        """Whether the target is this machine's processors."""
        return self.cpus > 0


def known() -> list[str]:
    """The names that `find` takes."""
    slices = [f"{kind}-{count}" for kind in _SLICES for count in _SLICES[kind]]
    return ["cpu", "cpu-N", *slices]


def find(name: str) -> Target:
    """Finds the target called `name`: `v5e-8`, `v4-8`, `cpu`, `cpu-8`...

    Raises:
      ValueError: no such target; the message lists the known ones.
    """
    kind, _, number = name.lower().replace("v5litepod", "v5e").partition("-")
    if kind == "cpu" and re.fullmatch("[0-9]*", number):
        count = int(number or 1)
        if 1 <= count <= _MOST_CPUS:
            return Target(name, _this_machine(count), cpus=count)
    if number.isdigit() and int(number) in _SLICES.get(kind, {}):
        return Target(name, CHIPS[kind], kind, _SLICES[kind][int(number)])
    text = f"cpu, cpu-N (N devices, up to {_MOST_CPUS})"
    for kind, slices in _SLICES.items():
        counts = ", ".join(map(str, slices))
        text += f"; {kind}- and one of {counts}"
    raise ValueError(
        f"--plan={name}: no such topology; choose from {text}. The number of v4 and "
        "v5p counts TensorCores (two a chip), that of v5e and v6e chips"
    )


def _this_machine(count: int) -> Chip:
    """One of `count` equal shares of this machine, whose speed is not known."""
    return Chip("CPU", cpu.memory() / count, 0.0, 0.0, 0.0)


def prepare(target: Target) -> None:
    """Sets the environment that JAX needs before it starts; checks for the compiler.

    Raises:
      ValueError: the compiler of the target is not installed.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"  # a plan never touches an accelerator
    if target.on_cpu:
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(target.cpus))
        return
    if target.kind == "h100":
        return _find_cuda(target)
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"--plan={target.name}: the compiler for TPUs is not installed; no TPU is "
            "needed, but libtpu is: pip install -e '.[plan]'"
        )
    # This machine has no TPU to query or lock, which libtpu would warn about.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    # Any type will do: the program is compiled for the described topology.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")


def _find_cuda(target: Target) -> None:
    plugins = ("jax_cuda13_plugin", "jax_cuda12_plugin")
    if not any(map(importlib.util.find_spec, plugins)):
        raise ValueError(
            f"--plan={target.name}: the compiler for GPUs is not installed; no GPU is "
            "needed, but the plugin is: pip install -e '.[cuda13]'"
        )


def compiler_options(target: Target) -> dict[str, Any]:
    """Compiler options that replace choices which need the device.

    XLA picks kernels by timing them on a GPU; without one its defaults and cuBLAS are
    used.
    """
    if target.kind != "h100":
        return {}
    untimed = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
    return {**cpu.xla_flags(), **untimed}


def devices(target: Target) -> list[Any]:
    """The target's devices, real for CPUs and described for others.

    Raises:
      ValueError: this process has fewer CPU devices than the target asks for.
    """
    import jax
    from jax.experimental import topologies

    if target.on_cpu:
        available = jax.devices("cpu")
        if len(available) < target.cpus:
            raise ValueError(
                f"--plan={target.name}: JAX has {len(available)} CPU device(s) here; "
                f"set JAX_NUM_CPU_DEVICES={target.cpus}"
            )
        return available[: target.cpus]
    kind, grid = target.kind, "x".join(map(str, target.grid))
    if kind == "h100":
        described = topologies.get_topology_desc(
            platform="cuda", target_config=_H100, topology=grid
        )
        return list(described.devices)
    options: dict[str, Any] = {}
    if kind in ("v4", "v5p"):  # its two cores are one device
        options.update(chip_config_name="megacore", chips_per_host_bounds=(2, 2, 1))
    if target.grid == (1, 1):
        options.update(chips_per_host_bounds=(1, 1, 1))
    described = topologies.get_topology_desc(
        platform="tpu", topology_name=f"{kind}:{grid}", **options
    )
    return list(described.devices)
