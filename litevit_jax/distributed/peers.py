"""This process among the others of its job: starting, agreeing, ending together.

With a single process everything here is a plain call that waits for nobody.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from litevit_jax.distributed import detect, jax_private, meeting
from litevit_jax.distributed.watch import Limits, Watch

_log = logging.getLogger(__name__)

_SKEW_S = 10.0  # more than a network's delay
_AGREE_S = 24 * 3600  # the watch ends a process that waits in vain much earlier
_END_S = 600

_numbers = itertools.count()  # of agreements; the same in all processes
_watch: Watch | None = None
_beats = 0


class Doing(NamedTuple):
    """An activity, and the time.monotonic at which it began."""

    text: str
    since: float


_doing: Doing | None = None


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    join_s: float = 300.0,
    limits: Limits | None = None,
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
    limits = limits or Limits()
    # JAX's own watch aborts after half of its time-out at the earliest: ours is first.
    _initialize(place, join_s, 100 + 4 * int(limits.peer_s))
    hosts = [row["host"] for row in there]
    if primary():
        _report_skew(there)
    global _watch
    _watch = Watch(_client(), hosts, place.index, limits)
    _watch.start()


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


def _client() -> Any:
    return jax_private.state().client


def index() -> int:
    """Returns the number of this process."""
    return jax_private.state().process_id


def count() -> int:
    """Returns the number of processes."""
    return jax_private.state().num_processes


def alone() -> bool:
    """Whether this process has joined no others; asks nothing of JAX."""
    return _watch is None


def primary() -> bool:
    """Whether this process writes what is written once."""
    return index() == 0


def check_joined() -> None:
    """Raises RuntimeError if JAX sees processes that were never joined."""
    import jax

    if jax.process_count() != count():
        raise RuntimeError(
            f"JAX sees {jax.process_count()} processes, but {count()} joined: this "
            "host has no more than a part of an accelerator. Start with main.py, or "
            "call litevit_jax.distributed.start() before anything of JAX"
        )


def beat(doing: str, *, grace: bool = False, begun: bool = True) -> None:
    """Says what this process does from now on; `grace` if it may take long.

    Not `begun`: the job is only checked yet, and what fails is the user's mistake.
    """
    global _beats, _doing
    _beats += begun
    _doing = Doing(doing, time.monotonic())
    if _watch is not None:
        _watch.beat(doing, grace=grace)


def beats() -> int:
    """Counts the calls of `beat` since the job began; checks of it do not count."""
    return _beats


def doing() -> Doing | None:
    """Returns the activity that this process announced last; None before any."""
    return _doing


def gather(value: Any) -> list[Any]:
    """The JSON `value` of every process, by number. All of them must call it."""
    if count() == 1:
        return [value]
    number, client = next(_numbers), _client()
    client.key_value_set(f"litevit_jax/agree/{number}/{index()}", json.dumps(value))
    return [
        json.loads(
            client.blocking_key_value_get(
                f"litevit_jax/agree/{number}/{i}", 1000 * _AGREE_S
            )
        )
        for i in range(count())
    ]


# What a mistake of the user's is raised as; it is the same in all processes.
_SHARED = {
    kind.__name__: kind
    for kind in (
        FileNotFoundError,
        FloatingPointError,
        KeyError,
        NotADirectoryError,
        OSError,
        PermissionError,
        RuntimeError,
        ValueError,
    )
}


def from_primary(call: Callable[[], Any]) -> Any:
    """Returns, in all processes, what `call` returns (JSON) or raises on the first."""
    if count() == 1:
        return call()
    number, client = next(_numbers), _client()
    place = f"litevit_jax/agree/{number}"
    if primary():
        try:
            value = call()
        except tuple(_SHARED.values()) as error:
            kinds = (k for k in type(error).__mro__ if k.__name__ in _SHARED)
            row = {"kind": next(kinds).__name__, "text": _text(error)}
            client.key_value_set(place, json.dumps(row))
            raise
        client.key_value_set(place, json.dumps({"value": value}))
        return value
    row = json.loads(client.blocking_key_value_get(place, 1000 * _AGREE_S))
    if "kind" in row:
        raise _SHARED[row["kind"]](row["text"])
    return row["value"]


def _text(error: BaseException) -> str:
    return str(error.args[0] if isinstance(error, KeyError) else error)


def together(error: BaseException | None) -> bool:
    """Whether all processes come to this point: after no error, or one of all.

    Numbers that are not finite are seen by all; what data or disks do is not.
    """
    return count() == 1 or error is None or isinstance(error, FloatingPointError)


def leave(code: int, why: BaseException | None = None) -> int:
    """Ends this process's part in the job; returns the exit code.

    After an error the others end as well, with the same code; then this call does not
    return.
    """
    global _watch
    if _watch is None:
        return code
    if why is None:
        beat("waiting for the others to end", grace=True)
        _client().wait_at_barrier("litevit_jax/end", 1000 * _END_S)
        _watch.finish()
        _watch.stop()
        _watch = None
        import jax

        jax.distributed.shutdown()
        return code
    with contextlib.suppress(Exception):  # process 0 may be gone already
        _watch.fail(code, _text(why) or type(why).__name__)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wait_for_verdict(error: BaseException) -> None:
    """Waits for the watch's verdict if `error` may mean that another process is gone.

    Then the watch ends this process, with the other's exit code; whoever goes on after
    this call has an error of its own.
    """
    if _watch is not None and _communication(error):
        _watch.wait_for_verdict()


def _communication(error: BaseException) -> bool:
    """Whether `error` may come from another process that is gone."""
    import jax

    ours = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED", "NOT_FOUND")
    return isinstance(error, jax.errors.JaxRuntimeError) and not _text(
        error
    ).startswith(ours)
