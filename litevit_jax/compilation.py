"""Where compiled programs are kept, so that no run compiles what another one did.

JAX keeps them in a folder, by what was compiled, its own version and the devices. Here
the folder is chosen (the user's cache, unless the config or JAX_COMPILATION_CACHE_DIR
says otherwise), divided by the features of this machine's processor, for which programs
for CPUs are made, and kept below a size. Programs that a killed run wrote in part are
removed. A plan never reads or writes it (litevit_jax/plan/program.py).
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib
import os
import pathlib
import platform
import sys
import zlib
from collections.abc import Iterable, Iterator

FIELD = "--config.compilation_cache"
LIMIT = 2**30  # bytes of all programs together; the least recently used go first

_OFF = ("", "off", "no", "none", "false")
_BLOCK = 4096  # the least that a file takes on a disk
_STAMP = ".checked"  # programs older than this file are known to be whole
_ZSTD = b"\x28\xb5\x2f\xfd"  # first bytes of what the better compressor writes
# What /proc/cpuinfo calls that for which a compiler makes its code.
_CPU_KEYS = (
    *("vendor_id", "cpu family", "model", "model name", "flags"),  # x86
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"),
)


def use(where: str) -> str | None:
    """Has JAX keep what it compiles from now on; call it before anything is compiled.

    Args:
      where: 'auto', 'off' or a directory (of a store too: gs://...).

    Returns:
      A line for the user if 'auto' has no folder that can be written; None otherwise.

    Raises:
      OSError: the directory `where` cannot be written.
    """
    import jax  # slow to import

    if where.lower() in _OFF:
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    auto = where == "auto"
    if auto and os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return None  # JAX reads it; the folder is the user's to look after
    remote = "://" in where
    try:
        root = default() if auto else pathlib.Path(where).expanduser().absolute()
        folder = root / processor()
        if not remote:
            _open(root, folder)
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or error
        if auto:
            return (
                f"compiled programs are not kept, the next run compiles again: {why}; "
                f"name a folder with {FIELD}=DIR, or say {FIELD}=off"
            )
        raise OSError(
            f"{FIELD}={where} cannot be written: {why}; name a directory that you may "
            f"write to, or say {FIELD}=off"
        ) from None
    place = f"{where.rstrip('/')}/{processor()}" if remote else str(folder)
    jax.config.update("jax_compilation_cache_dir", place)
    # Small programs as well, unless the user said which: a start has many of them.
    for name, value in (("min_compile_time_secs", 0), ("min_entry_size_bytes", -1)):
        if f"JAX_PERSISTENT_CACHE_{name.upper()}" not in os.environ:
            jax.config.update(f"jax_persistent_cache_{name}", value)
    if not remote:
        atexit.register(trim, root)
    return None


def default() -> pathlib.Path:
    """The folder of 'auto'.

    Raises:
      RuntimeError: this user has no home.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    home = pathlib.Path(base) if base else pathlib.Path.home() / ".cache"
    return home / "litevit_jax" / "compiled"


def processor() -> str:
    """A name for this kind of processor: programs for CPUs run on no other."""
    about = [platform.system(), platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        about += _of_cpuinfo(pathlib.Path("/proc/cpuinfo").read_text())
    digest = hashlib.sha256("\n".join(about).encode()).hexdigest()
    return f"{platform.machine() or 'cpu'}-{digest[:16]}"


def _of_cpuinfo(text: str) -> list[str]:
    """The lines that tell kinds of processors apart, of the first one."""
    rows = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    said = {key.strip(): value.split() for key, _, value in rows}
    return [f"{key} {' '.join(sorted(said[key]))}" for key in _CPU_KEYS if key in said]


def _open(root: pathlib.Path, folder: pathlib.Path) -> None:
    """Makes `folder`, removes from it what is cut, and keeps `root` below LIMIT."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)  # its contents are run
    folder.mkdir(exist_ok=True, mode=0o700)
    stamp = folder / _STAMP
    checked = stamp.stat().st_mtime_ns if stamp.exists() else 0
    for path, about in list(_programs(folder)):
        if about.st_mtime_ns < checked:
            continue
        with contextlib.suppress(OSError):  # another run has removed it
            if _is_whole(path):  # a look is no use
                os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
            else:
                path.unlink()
    stamp.touch()
    trim(root)


def _programs(folder: pathlib.Path) -> Iterator[tuple[pathlib.Path, os.stat_result]]:
    """Files of compiled programs in and below `folder`."""
    for path in folder.rglob("*-cache"):
        with contextlib.suppress(OSError):  # another run has removed it
            yield path, path.stat()


def _is_whole(path: pathlib.Path) -> bool:
    try:
        data = path.read_bytes()
        if data.startswith(_ZSTD):
            name = "compression.zstd" if sys.version_info >= (3, 14) else "zstandard"
            importlib.import_module(name).decompress(data)
        else:
            zlib.decompress(data)
    except ImportError:
        return True  # nobody here can tell; JAX itself compiles again what is cut
    except Exception:
        return False
    return True


def trim(root: pathlib.Path, limit: int | None = None) -> None:
    """Removes the programs that were not used for longest, until `limit` is kept.

    Several runs may do so at once. What cannot be removed stays.
    """
    most = LIMIT if limit is None else limit
    programs = sorted(
        _programs(root), key=lambda row: max(row[1].st_atime_ns, row[1].st_mtime_ns)
    )
    total = size_of(about for _, about in programs)
    for path, about in programs:
        if total <= most:
            return
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            total -= size_of([about])


def size_of(files: Iterable[os.stat_result]) -> int:
    """Bytes that `files` take on a disk, about."""
    return sum(max(about.st_size, _BLOCK) for about in files)
