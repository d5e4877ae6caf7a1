"""All processes of a job meet at the coordinator's port before JAX takes it over.

JAX ends a process without saying who is missing, when one does not come in time.
Here process 0 waits for the others, and tells all of them the same: who is there, or
who is not. Each says its number, of how many, its host and its time.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from typing import Any

_RETRY_S = 0.2
_LINE = 1 << 20  # bytes; the list of 1,000 hosts has 50,000
_GREETING = "litevit_jax"


class Absent(RuntimeError):
    """Processes that did not come in time, or came twice."""


def meet(address: str, count: int, index: int, timeout_s: float) -> list[dict]:
    """Waits for all processes; returns `host`, `pid` and `skew` of each by number.

    Args:
      address: 'host:port' of process 0.
      count: of processes.
      index: of this one.
      timeout_s: how long all of them have to come.

    Raises:
      ValueError: the port is in use, or two processes disagree about the job.
      Absent: somebody did not come in time.
    """
    me = {
        "greeting": _GREETING,
        "index": index,
        "count": count,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "time": time.time(),
    }
    deadline = time.monotonic() + timeout_s
    if index == 0:
        return _receive(address, me, deadline, timeout_s)
    return _come(address, me, deadline, timeout_s)


def _receive(address: str, me: dict, deadline: float, timeout_s: float) -> list[dict]:
    """Process 0: waits for all others, then answers them."""
    there, lines = {0: {**me, "skew": 0.0}}, {}
    answer: dict[str, Any]
    with contextlib.ExitStack() as stack, _listen(address) as server:
        while len(there) < me["count"]:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                line, _ = server.accept()
            except TimeoutError:
                missing = sorted(set(range(me["count"])) - set(there))
                answer = {"absent": _absent(missing, there, address, timeout_s)}
                break
            stack.enter_context(line)
            said = _read(line, 5.0)
            if said is None or said.get("greeting") != _GREETING:
                continue  # some program that looks which ports are open
            _leave_out_the_gone(there, lines)  # to be started again
            wrong = _contradiction(said, me["count"], there)
            if wrong:
                answer = {"wrong": wrong}
                lines[-1] = line
                break
            there[said["index"]] = {**said, "skew": said["time"] - time.time()}
            lines[said["index"]] = line
            _leave_out_the_gone(there, lines)  # then there are more to come
        else:
            answer = {"there": [there[i] for i in range(me["count"])]}
        for line in lines.values():
            with contextlib.suppress(OSError):
                line.sendall(json.dumps(answer).encode() + b"\n")
        # The others close first: the port must be free for JAX.
        for line in lines.values():
            with contextlib.suppress(OSError):
                line.settimeout(5.0)
                line.recv(1)
    return _result(answer)


def _listen(address: str) -> socket.socket:
    port = int(address.rpartition(":")[2])
    both = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", port),
            family=socket.AF_INET6 if both else socket.AF_INET,
            dualstack_ipv6=both,
            backlog=1024,
        )
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise ValueError(
            f"--coordinator={address}: port {port} is in use on "
            f"{socket.gethostname()}, the host of process 0; give another port to all "
            "processes, or end the program that holds it (an earlier run of this job?)"
        ) from None


def _come(address: str, me: dict, deadline: float, timeout_s: float) -> list[dict]:
    """The others: tell process 0 who they are and wait for its answer."""
    host, _, port = address.rpartition(":")
    last: Any = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), left) as line:
                said = json.dumps({**me, "time": time.time()})
                line.sendall(said.encode() + b"\n")
                # Process 0 answers at its own deadline, which may be a little later.
                answer = _read(line, left + 5.0)
            if answer is not None:
                return _result(answer)
            last = "what answers there is not process 0 of this job"
        except OSError as error:
            last = error.strerror or error
        time.sleep(_RETRY_S)
    raise Absent(
        f"process 0 did not come: {address} could not be reached from process "
        f"{me['index']} ({me['host']}) within {timeout_s:g} s ({last}). Is process 0 "
        "running, and the address that of its host? --join_timeout_s waits longer"
    )


def _read(line: socket.socket, timeout_s: float) -> dict | None:
    """A line of JSON, or None if something else was said."""
    line.settimeout(timeout_s)
    data = b""
    try:
        while not data.endswith(b"\n") and len(data) < _LINE:
            part = line.recv(65536)
            if not part:
                return None
            data += part
        said = json.loads(data)
    except (TimeoutError, ValueError):
        return None
    return said if isinstance(said, dict) else None


def _leave_out_the_gone(there: dict[int, Any], lines: dict[int, Any]) -> None:
    """Forgets processes that ended while they waited for the others."""
    for index in [i for i, line in lines.items() if _gone(line)]:
        del there[index], lines[index]


def _gone(line: socket.socket) -> bool:
    line.settimeout(0.0)
    try:
        return not line.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        line.settimeout(5.0)


def _contradiction(said: dict, count: int, there: dict[int, dict]) -> str | None:
    who = f"process {said['index']} on {said['host']} (pid {said['pid']})"
    if said["count"] != count:
        return (
            f"{who} was started with --num_processes={said['count']}, process 0 with "
            f"{count}; give all the same number"
        )
    if said["index"] in there:
        first = there[said["index"]]
        return (
            f"{who} and the one on {first['host']} (pid {first['pid']}) have the same "
            "--process_id; give every process its own, from 0 on"
        )
    return None


def _absent(
    missing: list[int], there: dict[int, dict], address: str, timeout_s: float
) -> str:
    several = "es" if len(missing) > 1 else ""
    shown = ", ".join(map(str, missing[:20])) + ", ..." * (len(missing) > 20)
    came = ", ".join(f"{i} ({there[i]['host']})" for i in sorted(there)[:20])
    return (
        f"process{several} {shown} of {len(missing) + len(there)} did not come to "
        f"{address} within {timeout_s:g} s; there are: {came}. Look at their logs, "
        "and whether they can reach that address; --join_timeout_s waits longer"
    )


def _result(answer: dict) -> list[dict]:
    if "absent" in answer:
        raise Absent(answer["absent"])
    if "wrong" in answer:
        raise ValueError(answer["wrong"])
    return answer["there"]
