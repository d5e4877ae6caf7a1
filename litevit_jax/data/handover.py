"""Worker processes that read data: their signals, and the memory they share.

An image that such a process has read lies in /dev/shm until its batch is put together.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Sequence

_SHM = pathlib.Path("/dev/shm")  # Linux
# Measured: runs of examples that wait for each process, at most; and examples whose
# memory is not given back yet.
_RUNS, _LATE = 6, 50
_MORE = (
    "Give it more: docker run --shm-size=8g; in a pod a volume with emptyDir: {medium: "
    "Memory} at /dev/shm, as in launch/gke"
)


def settle(index: int, count: int) -> None:
    """Readies process `index` of `count`; Grain calls it there.

    A terminal or a scheduler sends its signals to these processes too. It is for the
    process that they read for to obey, which then ends them; should it be killed, they
    end by themselves.
    """
    del index, count
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_follow, name="follow", daemon=True).start()


def _follow() -> None:
    reader = multiprocessing.parent_process()
    assert reader is not None
    reader.join()
    os._exit(1)


def check_memory(workers: int, run: int, size: int, streams: int) -> None:
    """Raises ValueError if the waiting images do not fit into shared memory.

    Args:
      workers: processes.
      run: images that are handed over together.
      size: of an image, in bytes.
      streams: that read at the same time: 2 for training, which is evaluated meanwhile
        and asks for both, so that no evaluation ends a run.
    """
    if not workers or not _SHM.is_dir():
        return
    free, late = _free(), _LATE * (streams > 1)
    need = size * (_RUNS * run * workers * streams + late)
    if need <= free:
        return
    fit = max(0, (free // size - late) // (_RUNS * run * streams))
    threads = "" if fit else " (threads of one process)"
    raise ValueError(
        f"data.workers={workers}: as many processes hand images over in {_SHM}, up to "
        f"{need / 1e6:.0f} MB of them, but {free / 1e6:.0f} MB are free there. "
        f"{_MORE}. Or use less: --config.data.workers={fit}{threads}"
    )


def is_killed(error: BaseException) -> bool:
    """Whether a reading `error` means that a worker process was killed."""
    return "terminated unexpectedly" in str(error)


def explain(error: BaseException, names: Sequence[str]) -> str:
    """Describes the death of a process that was killed while it read files `names`."""
    text = (
        f"a worker process that reads data ended ({error}). It was reading "
        f"{', '.join(names) or 'nothing yet'}. "
    )
    if f"exit code {-signal.SIGBUS:d}." in str(error):
        return text + (
            f"It found no room in {_SHM}, where images are handed over and "
            f"{_free() / 1e6:.0f} MB are free now. {_MORE}; or lower "
            "--config.data.workers"
        )
    return text + (
        "If the machine ran out of memory, lower --config.data.workers or "
        "data.threads; if it happens with the same file again, remove that file"
    )


def _free() -> int:
    """Returns the free bytes of shared memory."""
    try:
        status = os.statvfs(_SHM)
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize


def drain(timeout_s: float = 10.0) -> None:
    """Waits until Grain has freed the shared memory of dropped images.

    It does so in a thread, which the end of the program would cut off: Python then
    warns of leaks.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith("grain.") and name.endswith(".shared_memory_array"):
            pool = getattr(module.SharedMemoryArray, "_del_thread_pool", None)
            if pool is not None:  # of one thread: what comes last is done last
                with contextlib.suppress(ValueError):  # the program is at its end
                    pool.apply_async(int).wait(timeout_s)
