"""What stalls a run is told from a trace, and from times of steps and saves."""

import types

import pytest

from benchmarks.parts import profile, stalls

US = 1_000.0  # nanoseconds


def spans(*pairs):
    return [(US * begin, US * end) for begin, end in pairs]


def test_a_device_that_computes_on_is_not_idle():
    # Operations overlap on two streams, and a copy goes on beside them.
    found = stalls.of_trace(spans((0, 60), (50, 100)), spans((10, 40)))
    assert found == {"idle %": 0, "copies %": 0, "longest gap us": 0}


def test_a_gap_is_told_and_what_of_it_is_a_copy():
    found = stalls.of_trace(
        spans((0, 40), (45, 50), (90, 100)), spans((30, 42), (60, 80))
    )
    assert found["idle %"] == pytest.approx(45)
    assert found["copies %"] == pytest.approx(22)  # 2 of the first gap, 20 of the other
    assert found["longest gap us"] == pytest.approx(40)


def test_a_trace_without_operations_is_an_error():
    with pytest.raises(ValueError, match="no operations"):
        stalls.of_trace([], [])


def line(name, *events):
    """A thread or a stream; a name in capitals is no operation of a program."""
    shown = [
        types.SimpleNamespace(
            name=n,
            start_ns=begin,
            duration_ns=length,
            stats=[] if n.isupper() else [("hlo_op", n)],
        )
        for n, begin, length in events
    ]
    return types.SimpleNamespace(name=name, events=shown)


def plane(name, *lines):
    return types.SimpleNamespace(name=name, lines=lines)


def test_operations_and_copies_are_those_of_one_device():
    gpu = plane(
        "/device:GPU:0",
        line("Stream #13(Compute,MemcpyD2H)", ("fusion", 0, 10), ("MemcpyD2H", 10, 5)),
        line("Stream #14(MemcpyH2D)", ("MemcpyH2D", 2, 3)),
        line("XLA Ops", ("fusion", 0, 12)),  # the same once more
    )
    other = plane("/device:GPU:1", line("Stream #1", ("fusion", 0, 99)))
    host = plane("/host:CPU", line("tf_XLAEigen", ("fusion", 0, 77)))
    data = types.SimpleNamespace(planes=[host, gpu, other])
    assert stalls.spans_of(data) == ([(0, 10)], [(2, 5)])
    assert stalls.spans_of(types.SimpleNamespace(planes=[host])) == ([(0, 77)], [])


@pytest.mark.parametrize(
    ("blocked", "beside", "lost"),
    [
        (0.0, [0.1] * 10, 0.0),
        (0.5, [0.1] * 10, 0.5),  # the call itself
        (0.0, [0.1] * 9 + [2.1], 2.0),  # a step that waited for the write
    ],
)
def test_a_save_costs_its_call_and_the_steps_that_wait(blocked, beside, lost):
    row = stalls.saving([0.1, 0.1, 0.3], blocked, beside, every=1000)
    assert row["lost %"] == pytest.approx(100 * lost / (1000 * 0.1), abs=1e-9)
    assert row["ok"] is (row["lost %"] <= 1.0)


def test_a_plane_of_a_library_is_no_device():
    """Once libtpu is loaded, to plan for TPUs, traces of a CPU have its plane."""
    library = plane("/device:CUSTOM:Megascale Trace")
    host = plane("/host:CPU", line("tf_XLAEigen", ("dot.7", 0, 77)))
    gpu = plane("/device:GPU:0", line("Stream #1", ("dot.7", 0, 9)))
    for planes, end in (([library, host], 77), ([library, gpu, host], 9)):
        data = types.SimpleNamespace(planes=planes)
        assert stalls.spans_of(data) == ([(0, end)], [])
        assert profile.operations(data) == {"dot": (end, 1)}


def test_operations_are_found_where_dispatch_is_synchronous():
    """Then they run on Python's thread, whose name says nothing of XLA."""
    host = plane(
        "/host:CPU",
        line("python", ("CALL", 0, 90), ("dot", 20, 30)),
        line("another", ("WAIT", 0, 90)),
    )
    assert stalls.spans_of(types.SimpleNamespace(planes=[host])) == ([(20, 50)], [])
