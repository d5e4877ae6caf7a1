"""What a large step on CPUs needs set before JAX starts.

XLA for CPUs asks the system for one block each step (1 GB for ViT-Tiny at batch 64)
and gives it back: touching it anew costs 280,000 page faults, a quarter of the step
and more on a busy machine. Here the C library keeps what was freed. Measured by
benchmarks/train_step.py; small steps, which fit into the caches, are left alone.
"""

from __future__ import annotations

import ctypes
import glob
import importlib.util
import os
import pathlib
import sys

# Values of a batch of images from which on a step counts as large: 224 x 224 x 3
# at batch 8. Digits and CIFAR-10 stay below, and would run slower.
LARGE = 1_200_000

_MOST_DEVICES = 8
_TPU_FILES = ("/dev/accel*", "/dev/vfio/[0-9]*")
_PCI_VENDORS, _GOOGLE = "/sys/bus/pci/devices/*/vendor", "0x1ae0"
# Parameters of mallopt(3): of the arenas only the main one has room for large
# blocks; they come from its heap, whose top is never given back (-1; a number would
# end at 2 GiB, which a step of 32 images in full exceeds).
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_MALLOPT = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))


def prepare(batch_size: int, values: int) -> None:
    """Sets memory, dispatch and devices for steps of `batch_size` images.

    One device for each core is faster than a device whose operations are split over
    cores: there are as many as cores (a power of two, at most 8) that divide the
    batch. JAX_NUM_CPU_DEVICES, if set, says how many instead. Steps are dispatched
    one by one, or the blocks of two would be alive at once.

    Args:
      batch_size: images that are computed at once.
      values: of one image, H * W * C.
    """
    if batch_size * values < LARGE or not _on_cpu():
        return
    _keep_freed_memory()
    import jax  # here, because --help must not wait for it

    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", count_devices(batch_size))


def choose() -> None:
    """Has JAX use CPUs where it has nothing else, before it starts.

    libtpu, where it is installed for its compiler, would otherwise look for a TPU and
    say at length that there is none.
    """
    if _on_cpu():
        os.environ["JAX_PLATFORMS"] = "cpu"


def count_devices(batch_size: int) -> int:
    """The largest power of two of this process's cores that divides the batch."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on every system
        cores = len(os.sched_getaffinity(0))
    count = 1
    while 2 * count <= min(cores, _MOST_DEVICES) and batch_size % (2 * count) == 0:
        count *= 2
    return count


def _on_cpu() -> bool:
    """Whether JAX is told to use CPUs, or has nothing else to use.

    libtpu without a TPU is here for its compiler (litevit_jax/plan).
    """
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        return platforms == "cpu"
    if importlib.util.find_spec("jax_plugins"):
        return False
    return not (importlib.util.find_spec("libtpu") and _tpu_is_here())


def _tpu_is_here() -> bool:
    """Whether this machine has a chip that libtpu could open, or one of Google's."""
    if any(glob.glob(pattern) for pattern in _TPU_FILES):
        return True
    vendors = map(pathlib.Path, glob.glob(_PCI_VENDORS))
    return any(path.read_text().strip() == _GOOGLE for path in vendors)


def _keep_freed_memory() -> None:
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library than glibc
        return
    for name, value in _MALLOPT:
        mallopt(name, value)


def give_back_memory() -> None:
    """Hands freed memory back to the system, where the C library (glibc) keeps it.

    An evaluation reads with threads of its own. Their heaps stay when they end, and
    grow from one evaluation to the next.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
