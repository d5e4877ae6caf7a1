"""Joins the processes of a job: finds out who they are, and waits for them."""

from __future__ import annotations

import faulthandler
import logging
import signal
import threading
from typing import Any

from litevit_jax.distributed import (
    detect,
    jax_private,
    meeting,
    processes,
    watchdog,
)

_log = logging.getLogger(__name__)

_SKEW_S = 10.0  # more than a network's delay


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    join_s: float = 300.0,
    limits: watchdog.Limits | None = None,
) -> None:
    """Joins the processes that flags, variables or a scheduler announce, if any.

    Call it before JAX initializes its devices.

    Raises:
      ValueError: the announcement is incomplete, or the port is in use.
      RuntimeError: a process did not come in time.
    """
    launch = detect.find(coordinator, num_processes, process_id)
    if launch is None:
        return
    launch = _completed(launch, join_s)
    assert launch.coordinator and launch.count and launch.index is not None
    if launch.count == 1:
        return
    faulthandler.enable()  # JAX aborts when process 0 is gone: show the stacks then
    present = meeting.meet(launch.coordinator, launch.count, launch.index, join_s)
    limits = limits or watchdog.Limits()
    # JAX's own watch aborts after half of its time-out at the earliest: ours is first.
    _initialize(launch, join_s, 100 + 4 * int(limits.peer_s))
    hosts = [row["host"] for row in present]
    if processes.is_primary():
        _report_skew(present)
    client = jax_private.state().client
    processes.attach(watchdog.Watch(client, hosts, launch.index, limits))


def _completed(launch: detect.Launch, join_s: float) -> detect.Launch:
    """Completes `launch` by JAX's support for the scheduler that announced it."""
    if None not in (launch.coordinator, launch.count, launch.index):
        return launch
    known = jax_private.ask_scheduler(
        launch.coordinator, launch.count, launch.index, launch.devices, int(join_s)
    )
    if None in known[:3]:
        raise ValueError(
            f"{launch.source} announces several processes, but JAX cannot tell which "
            "one this is; give --coordinator=HOST:PORT, --num_processes and "
            f"--process_id; {detect.ALONE}"
        )
    devices = tuple(known[3]) if known[3] else None
    launch = detect.Launch(launch.source, *known[:3], devices)
    detect.check(launch)
    return launch


def _initialize(launch: detect.Launch, join_s: float, heartbeat_s: int) -> None:
    import jax

    jax.distributed.initialize(
        launch.coordinator,
        launch.count,
        launch.index,
        local_device_ids=launch.devices,
        cluster_detection_method="deactivate",
        initialization_timeout=int(join_s),
        heartbeat_timeout_seconds=heartbeat_s,
    )
    # JAX has replaced Python's handler by one that only records the signal.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _report_skew(present: list[dict[str, Any]]) -> None:
    for index, row in enumerate(present):
        if abs(row["skew"]) > _SKEW_S:
            _log.warning(
                "the clock of process %d (%s) is %+.0f s off that of process 0 (%s): "
                "times in the logs cannot be compared, and stores such as gs:// refuse "
                "requests that are minutes off; results do not depend on it",
                index,
                row["host"],
                row["skew"],
                present[0]["host"],
            )
