"""This process among the others of its job: agreeing, ending together.

With a single process everything here is a plain call that waits for nobody.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from litevit_jax.distributed import jax_private

if TYPE_CHECKING:
    from litevit_jax.distributed.watchdog import Watch

_AGREE_S = 24 * 3600  # the watch ends a process that waits in vain much earlier
_END_S = 600

_numbers = itertools.count()  # of agreements; the same in all processes
_watch: Watch | None = None
_heartbeats = 0


class Doing(NamedTuple):
    """An activity, and the time.monotonic at which it began."""

    text: str
    since: float


_doing: Doing | None = None


def attach(watch: Watch) -> None:
    """Starts the watch over the processes that this one has joined."""
    global _watch
    _watch = watch
    watch.start()


def _client() -> Any:
    return jax_private.state().client


def process_index() -> int:
    """Returns the number of this process."""
    return jax_private.state().process_id


def process_count() -> int:
    """Returns the number of processes."""
    return jax_private.state().num_processes


def alone() -> bool:
    """Whether this process has joined no others; asks nothing of JAX."""
    return _watch is None


def is_primary() -> bool:
    """Whether this process writes what is written once."""
    return process_index() == 0


def check_joined() -> None:
    """Raises RuntimeError if JAX sees processes that were never joined."""
    import jax

    if jax.process_count() != process_count():
        raise RuntimeError(
            f"JAX sees {jax.process_count()} processes, but {process_count()} joined: "
            "this host has no more than a part of an accelerator. Start with main.py, "
            "or call litevit_jax.distributed.start.join() before anything of JAX"
        )


def heartbeat(doing: str, *, grace: bool = False, begun: bool = True) -> None:
    """Says what this process does from now on; `grace` if it may take long.

    Not `begun`: the job is only checked yet, and what fails is the user's mistake.
    """
    global _heartbeats, _doing
    _heartbeats += begun
    _doing = Doing(doing, time.monotonic())
    if _watch is not None:
        _watch.heartbeat(doing, grace=grace)


def heartbeats() -> int:
    """Counts the heartbeats since the job began, without those of its checks."""
    return _heartbeats


def doing() -> Doing | None:
    """Returns the activity that this process announced last; None before any."""
    return _doing


def gather(value: Any) -> list[Any]:
    """The JSON `value` of every process, by number. All of them must call it."""
    if process_count() == 1:
        return [value]
    number, client = next(_numbers), _client()
    client.key_value_set(
        f"litevit_jax/agree/{number}/{process_index()}", json.dumps(value)
    )
    return [
        json.loads(
            client.blocking_key_value_get(
                f"litevit_jax/agree/{number}/{i}", 1000 * _AGREE_S
            )
        )
        for i in range(process_count())
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


def run_on_primary(call: Callable[[], Any]) -> Any:
    """Returns, in all processes, what `call` returns (JSON) or raises on the first."""
    if process_count() == 1:
        return call()
    number, client = next(_numbers), _client()
    place = f"litevit_jax/agree/{number}"
    if is_primary():
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


def all_reach_here(error: BaseException | None) -> bool:
    """Whether all processes come to this point: after no error, or one of all.

    Numbers that are not finite are seen by all; what data or disks do is not.
    """
    return (
        process_count() == 1 or error is None or isinstance(error, FloatingPointError)
    )


def shutdown(code: int, why: BaseException | None = None) -> int:
    """Ends this process's part in the job; returns the exit code.

    After an error the others end as well, with the same code; then this call does not
    return.
    """
    global _watch
    if _watch is None:
        return code
    if why is None:
        heartbeat("waiting for the others to end", grace=True)
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
