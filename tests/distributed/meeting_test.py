"""Processes meet before JAX starts: all are there, or all hear who is not."""

import concurrent.futures
import os
import socket
import time

import pytest

from litevit_jax.distributed import meeting
from tests import processes


def meet(address, members, timeout_s=600.0):
    """(count, index) of each that comes -> what each was told, or what it raised."""
    with concurrent.futures.ThreadPoolExecutor(len(members)) as pool:
        futures = [pool.submit(meeting.meet, address, *m, timeout_s) for m in members]
        return [future.exception() or future.result() for future in futures]


@pytest.fixture
def address():
    return f"127.0.0.1:{processes.free_port()}"


def test_all_hear_who_the_others_are_in_whatever_order_they_come(address):
    answers = meet(address, [(4, 2), (4, 0), (4, 3), (4, 1)])
    assert all(one == answers[0] for one in answers)
    assert [row["index"] for row in answers[0]] == [0, 1, 2, 3]
    assert {row["host"] for row in answers[0]} == {socket.gethostname()}
    assert {row["pid"] for row in answers[0]} == {os.getpid()}
    assert all(abs(row["skew"]) < 60 for row in answers[0])
    with socket.create_server(("", int(address[10:]))):
        pass  # the port is free again for JAX


def test_a_process_that_does_not_come_is_named_to_all(address):
    start = time.monotonic()
    answers = meet(address, [(4, 0), (4, 2)], timeout_s=3.0)
    assert time.monotonic() - start < 300
    for error in answers:
        assert isinstance(error, meeting.Absent)
        assert f"processes 1, 3 of 4 did not come to {address} within 3 s" in str(error)
        assert f"there are: 0 ({socket.gethostname()}), 2 (" in str(error)


def test_a_coordinator_that_does_not_come_is_named(address):
    (error,) = meet(address, [(2, 1)], timeout_s=0.7)
    assert isinstance(error, meeting.Absent)
    assert f"process 0 did not come: {address} could not be reached" in str(error)
    assert "Connection refused" in str(error)


def test_a_port_in_use_is_refused_at_once(address):
    match = r"port \d+ is in use on .*another port"
    server = socket.create_server(("", int(address[10:])))
    with server, pytest.raises(ValueError, match=match):
        meeting.meet(address, 2, 0, 30.0)


def test_processes_that_disagree_all_hear_it(address):
    answers = meet(address, [(3, 0), (4, 1)])
    assert all("--num_processes=4, process 0 with 3" in str(error) for error in answers)
    answers = meet(address, [(3, 0), (3, 1), (3, 1)])
    assert all("have the same --process_id" in str(error) for error in answers[:1])
    assert sum("same --process_id" in str(error) for error in answers) >= 2


def test_one_that_was_started_again_takes_its_place(address):
    port = int(address[10:])
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        first = pool.submit(meeting.meet, address, 3, 0, 600.0)
        while True:
            try:
                line = socket.create_connection(("127.0.0.1", port))
                break
            except OSError:
                time.sleep(0.05)
        line.sendall(
            b'{"greeting": "litevit_jax", "index": 1, "count": 3, "host": "gone", '
            b'"pid": 1, "time": 0}\n'
        )
        line.close()
        second = pool.submit(meeting.meet, address, 3, 2, 600.0)
        time.sleep(0.3)  # all three have come, and one of them is gone
        third = pool.submit(meeting.meet, address, 3, 1, 600.0)
        answers = [future.result() for future in (first, second, third)]
    assert "gone" not in {row["host"] for row in answers[0]}


def test_others_who_look_at_the_port_are_ignored(address):
    port = int(address[10:])
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(meeting.meet, address, 2, 0, 600.0)
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port)) as line:
                    line.sendall(b"GET / HTTP/1.1\n")
                break
            except OSError:
                time.sleep(0.05)
        second = pool.submit(meeting.meet, address, 2, 1, 600.0)
        assert first.result() == second.result()
