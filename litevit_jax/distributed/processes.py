"""This process among the others of its job: numbers, agreement, a common end.

With a single process every function here returns at once.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from litevit_jax.distributed import jax_private

Watch = Any  # a watchdog.Watch: this module does not import it

_AGREE_S = 24 * 3600  # the watch ends a process that waits in vain much earlier
_END_S = 600

_numbers = itertools.count()  # number the agreements, alike in all processes
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
    """Whether this process has joined no others; needs no JAX."""
    return _watch is None


def is_primary() -> bool:
    """Whether this is process 0, which writes shared files."""
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
    """Announces what this process does from now on; `grace` if it may take long.

    `begun` is False while the job is only being checked: errors are then mistakes of
    the user.
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
    """Returns the JSON `value` of every process, by number; all must call it."""
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


# Types of errors that the first process hands on to the others.
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
    """Calls `call` on the first process; all return its JSON result, or raise."""
    if process_count() == 1:
        return call()
    number, client = next(_numbers), _client()
    key = f"litevit_jax/agree/{number}"
    if is_primary():
        try:
            value = call()
        except tuple(_SHARED.values()) as error:
            kinds = (k for k in type(error).__mro__ if k.__name__ in _SHARED)
            row = {"kind": next(kinds).__name__, "text": _text(error)}
            client.key_value_set(key, json.dumps(row))
            raise
        client.key_value_set(key, json.dumps({"value": value}))
        return value
    row = json.loads(client.blocking_key_value_get(key, 1000 * _AGREE_S))
    if "kind" in row:
        raise _SHARED[row["kind"]](row["text"])
    return row["value"]


def _text(error: BaseException) -> str:
    return str(error.args[0] if isinstance(error, KeyError) else error)


def all_reach_here(error: BaseException | None) -> bool:
    """Whether all processes reach this point after `error` (None: no error).

    All see numbers that are not finite; an error of data or disks may be one's own.
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

    If so, the watch ends this process with the other's exit code; if this call
    returns, the error is this process's own.
    """
    if _watch is not None and _communication(error):
        _watch.wait_for_verdict()


def _communication(error: BaseException) -> bool:
    """Whether `error` may come from another process that is gone."""
    import jax

    own = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED", "NOT_FOUND")
    return isinstance(error, jax.errors.JaxRuntimeError) and not _text(
        error
    ).startswith(own)
