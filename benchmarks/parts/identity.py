"""The device, its software, and the two ceilings for all other figures."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import shutil
import subprocess
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.parts import common

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_PLUGINS = (
    "jax-cuda13-plugin",
    "jax-cuda12-plugin",
    "nvidia-cudnn-cu13",
    "nvidia-cudnn-cu12",
    "libtpu",
)  # those that are installed


def run(part: common.Part) -> None:
    part.row("device", _device)
    part.row("software", _software)
    part.row("copy", functools.partial(_copy, part.small))
    part.row("product bfloat16", functools.partial(_product, jnp.bfloat16, part.small))
    part.row("product float32", functools.partial(_product, jnp.float32, part.small))


def ceilings(part: common.Part) -> tuple[float, float]:
    """Bytes/s of a copy and FLOP/s of a bfloat16 product; NaN if not measured."""
    rows = part.other("identity")
    copy = rows.get("copy", {}).get("GB/s", {}).get("median", float("nan"))
    product = rows.get("product bfloat16", {}).get("TFLOP/s", {})
    return copy * 1e9, product.get("median", float("nan")) * 1e12


def _device() -> dict[str, Any]:
    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    row = {
        "platform": jax.default_backend(),
        "kind": device.device_kind,
        "devices": jax.device_count(),
        "memory for JAX, GiB": stats.get("bytes_limit", 0) / 2**30,
    }
    query = "name,driver_version,memory.total,power.limit,clocks.max.sm"
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
        row["nvidia-smi"] = answer.stdout.strip() or answer.stderr.strip()
    return row


def _software() -> dict[str, Any]:
    row: dict[str, Any] = {"python": platform.python_version()}
    for name in _PACKAGES:
        row[name] = importlib.metadata.version(name)
    for name in _PLUGINS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            row[name] = importlib.metadata.version(name)
    kept = ("XLA_", "JAX_", "NVIDIA_", "TF_", "LIBTPU")
    flags = {k: v for k, v in os.environ.items() if k.startswith(kept)}
    row["flags"] = " ".join(f"{k}={v}" for k, v in sorted(flags.items())) or "none"
    row["host"] = f"{os.cpu_count()} cores, {platform.machine()}"
    return row


def _copy(small: bool) -> dict[str, Any]:
    """Bytes read and written by an addition to a large array, a second."""
    count = 2**22 if small else 2**30
    x = jnp.ones(count, jnp.bfloat16)
    add = jax.jit(lambda x: x + jnp.bfloat16(1))
    seconds = common.timed(functools.partial(add, x), **_short(small))
    return {
        "GB/s": common.rate(4 * count / 1e9, seconds),
        "size": f"{2 * count:,} bytes",
    }


def _product(dtype: Any, small: bool) -> dict[str, Any]:
    """FLOP/s of a square product of random numbers; float32 at JAX's default."""
    side = 256 if small else 8192
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (side, side), dtype) for key in keys)
    multiply = jax.jit(jnp.matmul)
    seconds = common.timed(functools.partial(multiply, a, b), **_short(small))
    return {
        "TFLOP/s": common.rate(2 * side**3 / 1e12, seconds),
        "size": f"{side} squared",
    }


def _short(small: bool) -> dict[str, Any]:
    return {"repetitions": 3, "at_least_s": 0.01} if small else {}
