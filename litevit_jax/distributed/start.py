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

    Call it before JAX looks for devices.

    Raises:
      ValueError: what announces them is incomplete, or the port is in use.
      RuntimeError: somebody did not come in time.
    """
    place = detect.find(coordinator, num_processes, process_id)
    if place is None:
        return
    place = _completed(place, join_s)
    assert place.coordinator and place.count and place.index is not None
    if place.count == 1:
        return
    faulthandler.enable()  # JAX aborts when process 0 is gone: say where we were
    there = meeting.meet(place.coordinator, place.count, place.index, join_s)
    limits = limits or watchdog.Limits()
    # JAX's own watch aborts after half of its time-out at the earliest: ours is first.
    _initialize(place, join_s, 100 + 4 * int(limits.peer_s))
    hosts = [row["host"] for row in there]
    if processes.is_primary():
        _report_skew(there)
    client = jax_private.state().client
    processes.attach(watchdog.Watch(client, hosts, place.index, limits))


def _completed(place: detect.Place, join_s: float) -> detect.Place:
    """Completes `place` by what JAX knows of the scheduler that announced it."""
    if None not in (place.coordinator, place.count, place.index):
        return place
    found = jax_private.ask_scheduler(
        place.coordinator, place.count, place.index, place.devices, int(join_s)
    )
    if None in found[:3]:
        raise ValueError(
            f"{place.told_by} announces several processes, but JAX cannot tell which "
            "one this is; give --coordinator=HOST:PORT, --num_processes and "
            f"--process_id; {detect.ALONE}"
        )
    devices = tuple(found[3]) if found[3] else None
    place = detect.Place(place.told_by, *found[:3], devices)
    detect.check(place)
    return place


def _initialize(place: detect.Place, join_s: float, heartbeat_s: int) -> None:
    import jax

    jax.distributed.initialize(
        place.coordinator,
        place.count,
        place.index,
        local_device_ids=place.devices,
        cluster_detection_method="deactivate",
        initialization_timeout=int(join_s),
        heartbeat_timeout_seconds=heartbeat_s,
    )
    # JAX has put a handler of its own in the place of Python's, which only notes it.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _report_skew(there: list[dict[str, Any]]) -> None:
    for index, row in enumerate(there):
        if abs(row["skew"]) > _SKEW_S:
            _log.warning(
                "the clock of process %d (%s) is %+.0f s off that of process 0 (%s): "
                "times in the logs cannot be compared, and stores such as gs:// refuse "
                "requests that are minutes off; results do not depend on it",
                index,
                row["host"],
                row["skew"],
                there[0]["host"],
            )
