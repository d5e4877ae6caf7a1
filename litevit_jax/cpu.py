"""Which platform JAX computes on, and what a large step on CPUs needs beforehand.

An accelerator that was asked for is an error where it is missing: JAX alone would go on
with CPUs, with JAX_PLATFORMS=cuda,cpu without a word. For GPUs XLA gets the flags that
JAX's guide advises, as far as they are safe (docs/accelerators.md).

XLA for CPUs asks the system for one block each step (1 GB for ViT-Tiny at batch 64)
and gives it back: touching it anew costs 280,000 page faults, a quarter of the step
and more on a busy machine. Here the C library keeps what was freed. Measured by
benchmarks/train_step.py; small steps, which fit into the caches, are left alone.
"""

from __future__ import annotations

import ctypes
import glob
import importlib.metadata
import importlib.util
import os
import pathlib
import pkgutil
import sys
from typing import Any

# Values of a batch of images from which on a step counts as large: 224 x 224 x 3
# at batch 8. Digits and CIFAR-10 stay below, and would run slower.
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
# Flags for GPUs, and releases of JAX that know them: with others XLA would end.
_XLA_FLAGS = {"xla_gpu_enable_latency_hiding_scheduler": True}
_KNOWN_BY = ((0, 10), (0, 12))
_SWITCH = "LITEVIT_XLA_FLAGS"
_ON_CPUS = "JAX_PLATFORMS=cpu runs on CPUs all the same"
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
    """Says which platform JAX is to use, before it starts.

    JAX_PLATFORMS, if set, is obeyed. Otherwise an installed plugin, or libtpu beside a
    TPU, asks for its accelerator. libtpu alone is here for its compiler, and would look
    for a TPU and say at length that there is none.

    Raises:
      ValueError: what is asked for cannot be used on this machine.
    """
    told = os.environ.get("JAX_PLATFORMS", "")
    asked, why = told.partition(",")[0], f"JAX_PLATFORMS={told}"
    if not asked and _on_cpu():
        asked = os.environ["JAX_PLATFORMS"] = "cpu"
        _note_idle()
    elif not asked and (asked := _expected()):
        os.environ["JAX_PLATFORMS"] = f"{asked},cpu"
        why = "JAX's plugin for it is installed"
    if asked == "cuda":
        _check_cuda(why)
        ours = [f"--{name}={str(on).lower()}" for name, on in xla_flags().items()]
        given = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = " ".join([given, *ours] if given else ours)
    if asked == "tpu" and not importlib.util.find_spec("libtpu"):
        raise ValueError(
            "a TPU is asked for (JAX_PLATFORMS=tpu), but its library is not installed: "
            f"pip install -e '.[tpu]'; {_ON_CPUS}"
        )


def xla_flags() -> dict[str, bool]:
    """The flags of XLA that we set for GPUs: name -> value.

    What XLA_FLAGS says stands; if it names a file, all is left to that. There are none
    with LITEVIT_XLA_FLAGS=off, or with a JAX of which they are not known.

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
    """All devices of the job; starts JAX.

    Raises:
      RuntimeError: there are none of the platform that was asked for.
    """
    import jax

    told = os.environ.get("JAX_PLATFORMS", "")
    asked = told.partition(",")[0].upper() or " or ".join(_plugins())
    if asked in ("", "CPU"):
        return jax.devices()
    try:
        there = jax.devices()
        why = f"JAX has {there[0].platform.upper()} devices only"
    except (AssertionError, RuntimeError) as error:  # the former without a message
        why = str(error).partition(" (set JAX_PLATFORMS")[0] or "JAX does not see it"
        there = []
    if not there or there[0].platform == "cpu":
        raise RuntimeError(
            f"{asked} is asked for (JAX_PLATFORMS={told}), but cannot be used: {why}. "
            f"Is it free, and its driver in order? {_ON_CPUS}"
        )
    return there


def has_accelerator() -> bool:
    """Whether this machine has an NVIDIA GPU or a TPU, usable or not."""
    return any(map(os.path.exists, _NVIDIA_FILES)) or _tpu_is_here()


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
    if _plugins():
        return False
    return not (importlib.util.find_spec("libtpu") and _tpu_is_here())


def _plugins() -> list[str]:
    """Names of JAX's installed plugins, for accelerators other than TPUs."""
    spec = importlib.util.find_spec("jax_plugins")
    if spec is None:
        return []
    return [m.name for m in pkgutil.iter_modules(spec.submodule_search_locations)]


def _expected() -> str:
    """The platform that is installed here; empty: one that only JAX knows."""
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
    """Tells of an accelerator that is here, but that JAX has no library for.

    Raises:
      ValueError: the scheduler, or the user, gave this process GPUs.
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
