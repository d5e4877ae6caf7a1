"""The cache of compiled programs: no run compiles again what another one did.

JAX keys the programs by their source, its own version and the devices. This module
chooses the folder (in the user's cache, unless the config or JAX_COMPILATION_CACHE_DIR
names another), divides it by the processor's features, since programs for CPUs run on
no other, limits its size, and removes programs that a killed run left incomplete. A
plan never reads or writes the cache (litevit_jax/plan/program.py).
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

_bounded: list[pathlib.Path] = []  # the folder in use, if `use` chose it
_OFF = ("", "off", "no", "none", "false")
_BLOCK = 4096  # bytes; the smallest file takes as much on a disk
_STAMP = ".checked"  # programs older than this file are known to be whole
_ZSTD = b"\x28\xb5\x2f\xfd"  # first bytes of a file that zstandard compressed
# Keys of /proc/cpuinfo that compilers generate code for.
_CPU_KEYS = (
    *("vendor_id", "cpu family", "model", "model name", "flags"),  # x86
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"),
)


def use(where: str) -> str | None:
    """Turns the cache on (or off); call it before anything is compiled.

    Args:
      where: 'auto', 'off' or a directory (in a store too: gs://...).

    Returns:
      A note for the user if the folder of 'auto' cannot be written; None otherwise.

    Raises:
      OSError: the directory `where` cannot be written.
    """
    import jax  # slow to import

    _bounded.clear()
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
    cache_dir = f"{where.rstrip('/')}/{processor()}" if remote else str(folder)
    jax.config.update("jax_compilation_cache_dir", cache_dir)
    # Keep small programs too, unless you set a limit: starting compiles many of them.
    for name, value in (("min_compile_time_secs", 0), ("min_entry_size_bytes", -1)):
        if f"JAX_PERSISTENT_CACHE_{name.upper()}" not in os.environ:
            jax.config.update(f"jax_persistent_cache_{name}", value)
    if not remote:
        _bounded.append(folder)
        atexit.register(trim, root)
    return None


def bounded_folder() -> pathlib.Path | None:
    """Returns the folder of the cache if it is kept below LIMIT, or None.

    It is not in a store, in a folder that JAX's variable names, or with the cache off.
    """
    return _bounded[0] if _bounded else None


def default() -> pathlib.Path:
    """Returns the folder that 'auto' means.

    Raises:
      RuntimeError: this user has no home directory.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    home = pathlib.Path(base) if base else pathlib.Path.home() / ".cache"
    return home / "litevit_jax" / "compiled"


def processor() -> str:
    """Returns a name for this kind of processor: programs for CPUs run on no other."""
    about = [platform.system(), platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        about += _of_cpuinfo(pathlib.Path("/proc/cpuinfo").read_text())
    digest = hashlib.sha256("\n".join(about).encode()).hexdigest()
    return f"{platform.machine() or 'cpu'}-{digest[:16]}"


def _of_cpuinfo(text: str) -> list[str]:
    """Returns the first processor's lines that tell kinds of processors apart."""
    rows = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    fields = {key.strip(): value.split() for key, _, value in rows}
    return [
        f"{key} {' '.join(sorted(fields[key]))}" for key in _CPU_KEYS if key in fields
    ]


def _open(root: pathlib.Path, folder: pathlib.Path) -> None:
    """Makes `folder`, removes its incomplete files, and keeps `root` below LIMIT."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)  # its contents are run
    folder.mkdir(exist_ok=True, mode=0o700)
    stamp = folder / _STAMP
    checked = stamp.stat().st_mtime_ns if stamp.exists() else 0
    for path, about in list(_programs(folder)):
        if about.st_mtime_ns < checked:
            continue
        with contextlib.suppress(OSError):  # another run has removed it
            if _is_whole(path):  # checking must not count as use
                os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
            else:
                path.unlink()
    stamp.touch()
    trim(root)


def _programs(folder: pathlib.Path) -> Iterator[tuple[pathlib.Path, os.stat_result]]:
    """Yields the files of compiled programs in and below `folder`."""
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
        return True  # cannot be checked here; JAX itself recompiles incomplete ones
    except Exception:
        return False
    return True


def trim(root: pathlib.Path, limit: int | None = None) -> None:
    """Removes the least recently used programs until at most `limit` bytes are left.

    Several runs may do so at once. Files that cannot be removed stay.
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
    """Returns about how many bytes `files` take on a disk."""
    return sum(max(about.st_size, _BLOCK) for about in files)
