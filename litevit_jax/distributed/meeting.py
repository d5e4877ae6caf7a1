"""All processes of a job meet at the coordinator's port before JAX takes it over.

If a process does not come in time, JAX ends the others without naming it. Here process
0 waits for the others and sends all of them the same answer: who is present, or who is
missing. Each process sends its number, the number of processes, its host and its time.
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
    """An error of processes that did not come in time."""


def meet(address: str, count: int, index: int, timeout_s: float) -> list[dict]:
    """Waits for all processes; returns `host`, `pid` and `skew` of each by number.

    `skew` is a process's clock minus that of process 0, in seconds.

    Args:
      address: 'host:port' of process 0.
      count: number of processes.
      index: number of this process.
      timeout_s: how long to wait for all of them.

    Raises:
      ValueError: the port is in use, or two processes disagree about the job.
      Absent: a process did not come in time.
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
        return _wait_for_all(address, me, deadline, timeout_s)
    return _register(address, me, deadline, timeout_s)


def _wait_for_all(
    address: str, me: dict, deadline: float, timeout_s: float
) -> list[dict]:
    """Waits for the other processes, then answers them: the part of process 0."""
    present, connections = {0: {**me, "skew": 0.0}}, {}
    answer: dict[str, Any]
    with contextlib.ExitStack() as stack, _listen(address) as server:
        while len(present) < me["count"]:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                missing = sorted(set(range(me["count"])) - set(present))
                answer = {"absent": _absent(missing, present, address, timeout_s)}
                break
            stack.enter_context(connection)
            peer = _read(connection, 5.0)
            if peer is None or peer.get("greeting") != _GREETING:
                continue  # another program that scans ports
            _drop_closed(present, connections)  # a restarted one may replace them
            wrong = _contradiction(peer, me["count"], present)
            if wrong:
                answer = {"wrong": wrong}
                connections[-1] = connection
                break
            present[peer["index"]] = {
                **peer,
                "skew": peer["time"] - time.time(),
            }
            connections[peer["index"]] = connection
            _drop_closed(present, connections)  # wait for their restart as well
        else:
            answer = {"present": [present[i] for i in range(me["count"])]}
        for connection in connections.values():
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(answer).encode() + b"\n")
        # The others close first: the port must be free for JAX.
        for connection in connections.values():
            with contextlib.suppress(OSError):
                connection.settimeout(5.0)
                connection.recv(1)
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


def _register(address: str, me: dict, deadline: float, timeout_s: float) -> list[dict]:
    """Registers at process 0 and waits for its answer: the part of the others."""
    host, _, port = address.rpartition(":")
    last: Any = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(
                (host.strip("[]"), int(port)), left
            ) as connection:
                greeting = json.dumps({**me, "time": time.time()})
                connection.sendall(greeting.encode() + b"\n")
                # Process 0 answers at its own deadline, which may be a little later.
                answer = _read(connection, left + 5.0)
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


def _read(connection: socket.socket, timeout_s: float) -> dict | None:
    """Reads one line with a JSON object; returns None for anything else."""
    connection.settimeout(timeout_s)
    data = b""
    try:
        while not data.endswith(b"\n") and len(data) < _LINE:
            part = connection.recv(65536)
            if not part:
                return None
            data += part
        message = json.loads(data)
    except (TimeoutError, ValueError):
        return None
    return message if isinstance(message, dict) else None


def _drop_closed(present: dict[int, Any], connections: dict[int, Any]) -> None:
    """Removes processes that ended while they waited for the others."""
    for index in [i for i, connection in connections.items() if _closed(connection)]:
        del present[index], connections[index]


def _closed(connection: socket.socket) -> bool:
    connection.settimeout(0.0)
    try:
        return not connection.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(5.0)


def _contradiction(peer: dict, count: int, present: dict[int, dict]) -> str | None:
    who = f"process {peer['index']} on {peer['host']} (pid {peer['pid']})"
    if peer["count"] != count:
        return (
            f"{who} was started with --num_processes={peer['count']}, process 0 with "
            f"{count}; give all the same number"
        )
    if peer["index"] in present:
        first = present[peer["index"]]
        return (
            f"{who} and the one on {first['host']} (pid {first['pid']}) have the same "
            "--process_id; give every process its own, from 0 on"
        )
    return None


def _absent(
    missing: list[int], present: dict[int, dict], address: str, timeout_s: float
) -> str:
    several = "es" if len(missing) > 1 else ""
    shown = ", ".join(map(str, missing[:20])) + ", ..." * (len(missing) > 20)
    came = ", ".join(f"{i} ({present[i]['host']})" for i in sorted(present)[:20])
    return (
        f"process{several} {shown} of {len(missing) + len(present)} did not come to "
        f"{address} within {timeout_s:g} s; there are: {came}. Look at their logs, "
        "and whether they can reach that address; --join_timeout_s waits longer"
    )


def _result(answer: dict) -> list[dict]:
    if "absent" in answer:
        raise Absent(answer["absent"])
    if "wrong" in answer:
        raise ValueError(answer["wrong"])
    return answer["present"]
