"""The sides of a comparison: a peer that waits costs the other nothing."""

import io
import json
import sys
import textwrap
import time

import pytest

from benchmarks import sides

# Speaks as `benchmarks.sides` does; one of its threads never stops computing.
SPINNING = """
    #!{python}
    import json, sys, threading

    def spin():
        while True:
            pass

    threading.Thread(target=spin, daemon=True).start()
    print(json.dumps({{"versions": "1", "loss": 0.0, "ready_s": 0.0}}), flush=True)
    for line in sys.stdin:
        row = {{"seconds": 0.1, "cpu_seconds": 0.2, "peak_mib": 1.0}}
        print(json.dumps(row), flush=True)
"""


@pytest.fixture
def start(tmp_path):
    """() -> a side whose threads spin, ready."""
    script = tmp_path / "spinning"
    script.write_text(textwrap.dedent(SPINNING).strip().format(python=sys.executable))
    script.chmod(0o755)
    started = []

    def make():
        started.append(sides.Side("torch", sides.Spec(batch=4), python=str(script)))
        started[-1].wait_ready()
        return started[-1]

    yield make
    for side in started:
        side.close()


def used_while_waiting(side, least=0.0):
    """CPU seconds that it uses while nobody asks it for anything."""
    before, end = side.cpu_seconds(), time.monotonic() + 60
    time.sleep(0.2)
    while side.cpu_seconds() - before < least and time.monotonic() < end:
        time.sleep(0.1)
    return side.cpu_seconds() - before


def test_a_side_that_waits_has_no_thread_that_runs(start):
    side = start()
    assert used_while_waiting(side) == 0
    side.measure(2)
    assert used_while_waiting(side) == 0
    assert side.rates == [4 * 2 / 0.1] and side.cpu == [0.1]
    side.go_on()
    assert used_while_waiting(side, least=0.05) >= 0.05
    side.halt()
    assert used_while_waiting(side) == 0


def test_what_a_waiting_peer_costs_is_measured_in_turn(start):
    figures = sides.beside(start(), start(), rounds=2, steps=1)
    assert list(figures) == ["peer stopped", "peer waiting"]
    assert figures["peer stopped"]["images_per_s"]["median"] == 40
    assert figures["peer waiting"]["% of a core that it uses"]["min"] >= 0


def test_the_first_step_after_a_stop_is_not_timed(monkeypatch, capsys):
    calls = []

    def run(steps):
        calls.append(steps)
        if len(calls) == 3:  # the first after the stop
            time.sleep(0.5)
        return 1.0

    monkeypatch.setattr(sides, "jax_side", lambda spec: (run, "1"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("5\n"))
    sides.serve("jax", sides.Spec())
    _, row = map(json.loads, capsys.readouterr().out.splitlines())
    assert calls == [1, 1, 1, 5] and row["seconds"] < 0.4
