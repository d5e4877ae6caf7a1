"""The platform that JAX computes on, and memory settings for large steps on CPUs.

A missing accelerator that you asked for is an error: JAX alone would go on with CPUs,
and with JAX_PLATFORMS=cuda,cpu silently. On GPUs, XLA gets the flags that JAX's guide
advises, as far as they are safe (docs/accelerators.md).

On CPUs, XLA allocates one block for each step (1 GB for ViT-Tiny at batch 64) and
frees it: touching it anew costs 280,000 page faults, a quarter of the step and more on
a busy machine. Here the C library keeps freed memory. Measured by
benchmarks/train_step.py. The blocks of small steps fit into the caches: there the
library gives each freed block back and has one heap for all threads, which falls to
pieces less: a run that evaluates and saves often keeps its size (benchmarks/memory.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import importlib.metadata
import importlib.util
import os
import pathlib
import pkgutil
import sys
from collections.abc import Iterable
from typing import Any

# A step is large from this many input values on: 224 x 224 x 3 at batch 8. Digits and
# CIFAR-10 stay below, and would run slower with these settings.
LARGE = 1_200_000

_MOST_DEVICES = 8
_TPU_FILES = ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*")
# Google's network cards have its vendor number too: the devices are TPU v3 to TPU7x.
_PCI_VENDORS, _GOOGLE = "/sys/bus/pci/devices/*/vendor", "0x1ae0"
_TPUS = ("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")
# Without one of these JAX does not try CUDA at all.
_NVIDIA_FILES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")
_DRIVER = "libcuda.so.1"
_PLUGINS = {"xla_cuda": "cuda", "xla_rocm": "rocm"}  # names begin so -> JAX's platform
# Flags for GPUs, and the releases of JAX that know them: XLA aborts on unknown flags.
_XLA_FLAGS = {"xla_gpu_enable_latency_hiding_scheduler": True}
_KNOWN_BY = ((0, 10), (0, 12))
_SWITCH = "LITEVIT_XLA_FLAGS"
# Of a container's memory, in either version of Linux' control groups.
_MEMORY_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)
_ON_CPUS = "JAX_PLATFORMS=cpu runs on CPUs all the same"
# Parameters of mallopt(3): of the arenas only the main one has room for large
# blocks; they come from its heap, whose top is never given back (-1; a number would
# end at 2 GiB, which a step of 32 images in full exceeds).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8
_KEEP = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))
# Blocks from 1 MiB on lie outside of the heaps, of which 32 MiB may stay free.
_GIVE_BACK = ((_M_MMAP_THRESHOLD, 2**20), (_M_TRIM_THRESHOLD, 2**25))
_ONE_HEAP = ((_M_ARENA_MAX, 1),)  # before there are threads with heaps of their own


def prepare(batch_size: int, values: int) -> None:
    """Sets memory, dispatch and devices for steps of `batch_size` images.

    One device per core is faster than one device that splits its operations over
    cores: there are as many devices as cores (a power of two, at most 8) that divide
    the batch, or JAX_NUM_CPU_DEVICES if that is set. Dispatch is synchronous, or the
    memory blocks of two steps would be alive at once.

    Args:
      batch_size: images computed at once.
      values: number of values in one image, H * W * C.
    """
    if not _on_cpu():
        return
    if batch_size * values < LARGE:
        _set_malloc(_GIVE_BACK)
        return
    _set_malloc(_KEEP)
    import jax  # here, because --help must not wait for it

    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", count_devices(batch_size))


def choose() -> None:
    """Chooses JAX's platform; call it before JAX starts.

    JAX_PLATFORMS comes first. Otherwise an installed plugin, or libtpu beside a TPU,
    decides. libtpu without a TPU is installed for its compiler alone; JAX would search
    for a TPU and log at length that there is none.

    Raises:
      ValueError: this machine cannot use the platform that was asked for.
    """
    platforms = os.environ.get("JAX_PLATFORMS", "")
    asked, why = platforms.partition(",")[0], f"JAX_PLATFORMS={platforms}"
    if not asked and _on_cpu():
        asked = os.environ["JAX_PLATFORMS"] = "cpu"
        _note_idle()
    elif not asked and (asked := _expected()):
        os.environ["JAX_PLATFORMS"] = f"{asked},cpu"
        why = "JAX's plugin for it is installed"
    if asked == "cuda":
        _check_cuda(why)
        own = [f"--{name}={str(on).lower()}" for name, on in xla_flags().items()]
        given = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = " ".join([given, *own] if given else own)
    if asked == "tpu" and not importlib.util.find_spec("libtpu"):
        raise ValueError(
            "a TPU is asked for (JAX_PLATFORMS=tpu), but its library is not installed: "
            f"pip install -e '.[tpu]'; {_ON_CPUS}"
        )
    if asked == "cpu":
        _set_malloc(_ONE_HEAP)


def xla_flags() -> dict[str, bool]:
    """Returns the XLA flags that we set for GPUs: name -> value.

    Your own XLA_FLAGS win; if they name a file, we set none. There are none either
    with LITEVIT_XLA_FLAGS=off, or with a JAX for which they are not known.

    Raises:
      ValueError: LITEVIT_XLA_FLAGS is neither auto nor off.
    """
    switch, given = os.environ.get(_SWITCH, "auto"), os.environ.get("XLA_FLAGS", "")
    if switch not in ("auto", "off"):
        raise ValueError(f"{_SWITCH}={switch}: expected auto (the default) or off")
    names = [flag.partition("=")[0] for flag in given.split()]
    in_file = any(not name.startswith("--") for name in names)
    release = importlib.metadata.version("jaxlib").split(".")[:2]
    known = _KNOWN_BY[0] <= tuple(map(int, release)) <= _KNOWN_BY[1]
    if switch == "off" or in_file or not known:
        return {}
    return {k: value for k, value in _XLA_FLAGS.items() if f"--{k}" not in names}


def devices() -> list[Any]:
    """Returns all devices of the job; starts JAX.

    Raises:
      RuntimeError: the platform that was asked for has no devices.
    """
    import jax

    platforms = os.environ.get("JAX_PLATFORMS", "")
    asked = platforms.partition(",")[0].upper() or " or ".join(_plugins())
    if asked in ("", "CPU"):
        return jax.devices()
    try:
        visible = jax.devices()
        why = f"JAX has {visible[0].platform.upper()} devices only"
    except (AssertionError, RuntimeError) as error:  # the former without a message
        why = str(error).partition(" (set JAX_PLATFORMS")[0] or "JAX does not see it"
        visible = []
    if not visible or visible[0].platform == "cpu":
        raise RuntimeError(
            f"{asked} is asked for (JAX_PLATFORMS={platforms}), but cannot be used: "
            f"{why}. Is it free, and its driver in order? {_ON_CPUS}"
        )
    return visible


def has_accelerator() -> bool:
    """Whether this machine has an NVIDIA GPU or a TPU, usable or not."""
    return any(map(os.path.exists, _NVIDIA_FILES)) or _tpu_is_here()


def count_devices(batch_size: int) -> int:
    """Returns the largest power of two, up to this process's cores, that divides."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on every system
        cores = len(os.sched_getaffinity(0))
    count = 1
    while 2 * count <= min(cores, _MOST_DEVICES) and batch_size % (2 * count) == 0:
        count *= 2
    return count


def memory() -> int:
    """Returns the bytes of memory that this machine, or its container, has."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _MEMORY_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # not there, or 'max'
            sizes.append(int(pathlib.Path(path).read_text()))
    return min(sizes)


def _on_cpu() -> bool:
    """Whether JAX uses CPUs, by JAX_PLATFORMS or for lack of anything else.

    libtpu without a TPU is installed for its compiler (litevit_jax/plan).
    """
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        return platforms == "cpu"
    if _plugins():
        return False
    return not (importlib.util.find_spec("libtpu") and _tpu_is_here())


def _plugins() -> list[str]:
    """Returns the names of JAX's installed plugins, for accelerators besides TPUs."""
    spec = importlib.util.find_spec("jax_plugins")
    if spec is None:
        return []
    return [m.name for m in pkgutil.iter_modules(spec.submodule_search_locations)]


def _expected() -> str:
    """Returns the installed platform; '' for a plugin that only JAX knows."""
    if importlib.util.find_spec("libtpu") and _tpu_is_here():
        return "tpu"
    named = (
        p for name in _plugins() for k, p in _PLUGINS.items() if name.startswith(k)
    )
    return next(named, "")


def _check_cuda(because: str) -> None:
    """Raises ValueError unless a GPU, asked for `because`, can be looked for."""
    why = f"a GPU is asked for ({because}), but "
    if not any(name.startswith("xla_cuda") for name in _plugins()):
        raise ValueError(
            f"{why}JAX's plugin for it is not installed: pip install -e '.[cuda13]', "
            f"or '.[cuda12]' with a driver before 580; {_ON_CPUS}"
        )
    if not any(map(os.path.exists, _NVIDIA_FILES)):
        raise ValueError(
            f"{why}none is visible here ({' and '.join(_NVIDIA_FILES)} are missing). "
            "Does `nvidia-smi` see one, was the container given any (docker run "
            f"--gpus=all), or the job (sbatch --gpus-per-node=8)? {_ON_CPUS}"
        )
    try:
        ctypes.CDLL(_DRIVER)
    except OSError as error:
        raise ValueError(
            f"{why}the driver's library cannot be loaded ({error}). In a pod of GKE it "
            "is in /usr/local/nvidia/lib64: set LD_LIBRARY_PATH to that; elsewhere "
            f"install NVIDIA's driver; {_ON_CPUS}"
        ) from None


def _note_idle() -> None:
    """Prints a note about an accelerator that JAX has no library for.

    Raises:
      ValueError: CUDA_VISIBLE_DEVICES gives this process GPUs that it cannot use.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "-1")
    if given not in ("", "-1", "NoDevFiles"):
        _check_cuda(f"CUDA_VISIBLE_DEVICES={given}")
    gpu = any(map(os.path.exists, _NVIDIA_FILES))
    if gpu or (_tpu_on_bus() and not importlib.util.find_spec("libtpu")):
        what, extra = ("an NVIDIA GPU", "cuda13") if gpu else ("a TPU", "tpu")
        print(
            f"note: this machine has {what}, but JAX's library for it is not "
            f"installed, so this runs on CPUs: pip install -e '.[{extra}]' "
            "(JAX_PLATFORMS=cpu leaves this note out)",
            file=sys.stderr,
            flush=True,
        )


def _tpu_is_here() -> bool:
    """Whether this machine has a chip that libtpu could open."""
    return any(glob.glob(pattern) for pattern in _TPU_FILES) or _tpu_on_bus()


def _tpu_on_bus() -> bool:
    vendors = map(pathlib.Path, glob.glob(_PCI_VENDORS))
    return any(
        path.read_text().strip() == _GOOGLE
        and path.with_name("device").read_text().strip() in _TPUS
        for path in vendors
    )


def _set_malloc(parameters: Iterable[tuple[int, int]]) -> None:
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library than glibc
        return
    for name, value in parameters:
        mallopt(name, value)


def give_back_memory() -> None:
    """Returns freed memory from the C library (glibc) to the system.

    An evaluation reads with threads of its own, whose heaps outlive them and grow from
    one evaluation to the next.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
