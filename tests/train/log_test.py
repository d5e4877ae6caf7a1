"""What a run says, on a terminal and in files, and when its guard stops it."""

import io
import json
import logging
import os

import numpy as np
import pytest

from litevit_jax import terminal
from litevit_jax.train import log

ROW = {
    "epoch": 1.5,
    "loss": 0.25,
    "lr": 1e-3,
    "grad_norm": 2.0,
    "images_per_s": 123.4,
    "data_wait": 50.0,
    "step_s": 2.0,
}


def test_the_progress_line_tells_how_far_how_fast_and_how_long():
    text = log.progress_text(ROW, 100, 2000)
    assert text == (
        "step 100/2000  epoch 1.50  loss 0.2500  lr 1.00e-03  grad 2.000  "
        "123 images/s  data wait 50%  ETA 1:03:20"
    )
    skipped = log.progress_text(ROW | {"skipped_steps": 2}, 100, 2000)
    assert skipped.endswith("ETA 1:03:20  skipped 2")


def test_the_clock_measures_since_the_last_reset(monkeypatch):
    now = iter([100.0, 104.0, 200.0, 201.0])
    monkeypatch.setattr(log.time, "perf_counter", lambda: next(now))
    throughput = log.Throughput()
    for wait in (0.5, 0.5):
        throughput.tick(wait)
    want = {"images_per_s": 16.0, "data_wait": 25.0, "step_s": 2.0}
    assert throughput.read(32) == want
    throughput.reset()
    throughput.tick(0.0)
    assert throughput.read(32)["images_per_s"] == 32.0


def test_the_first_interval_starts_after_compilation(monkeypatch):
    now = iter([0.0, 90.0, 94.0])
    monkeypatch.setattr(log.time, "perf_counter", lambda: next(now))
    throughput = log.Throughput()
    throughput.begin()  # after 90 s of reading, tracing and compiling
    throughput.tick(60.0)  # the first batch came before that
    assert throughput.read(32) == {"images_per_s": 8.0, "data_wait": 0.0, "step_s": 4.0}


def shown(monkeypatch, step_s, steps, every=10**6, first=1, **kwargs):
    """Which steps are shown if each takes `step_s`."""
    now = [5000.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    pace, found = log.Pace(**({"live": False} | kwargs)), []
    for step in range(first, first + steps):
        now[0] += step_s
        if pace.due(step, logged=step % every == 0):
            found.append(step)
    return found


def test_steps_at_powers_of_two_and_one_a_minute_are_shown(monkeypatch):
    assert shown(monkeypatch, 0.01, 200) == [1, 2, 4, 8, 16, 32, 64, 128]
    assert shown(monkeypatch, 0.01, 100, every=50)[-3:] == [50, 64, 100]
    assert shown(monkeypatch, 0.01, 40, first=1001) == [1001, 1024]  # a resumed run
    # 25 s a step: never more than a minute between two lines.
    slow = shown(monkeypatch, 25.0, 40)
    assert slow[:4] == [1, 2, 4, 6] and max(np.diff(slow)) == 2
    assert shown(monkeypatch, 61.0, 9) == list(range(1, 10))
    assert len(shown(monkeypatch, 0.05, 200, live=True)) > 40  # a terminal


class Lowered:
    """Stands for jax.jit's function and for what it lowers to."""

    def __init__(self, now):
        self.now = now

    def lower(self, state, batch):
        self.now[0] += 2.0
        return self

    def compile(self):
        self.now[0] += 30.0
        return lambda state, batch: (state + batch, {})


def test_the_step_is_compiled_once_with_a_word_before_and_its_time_after(monkeypatch):
    now, stream = [0.0], io.StringIO()
    monkeypatch.setattr(log.time, "perf_counter", lambda: now[0])
    throughput = log.Throughput()
    step = log.Program(Lowered(now), terminal.ConsoleLine(stream), throughput)
    assert step(1, 2) == (3, {})
    assert stream.getvalue() == (
        "tracing the step ...\n"
        "compiling the step (first time: about 24 s; a few seconds from the cache) "
        "...\n"
    )
    now[0] += 4.0
    throughput.tick(0.0)
    assert throughput.read(8)["images_per_s"] == 2.0  # without the 32 s
    assert step.compile_note() == "  (compiled in 32.0 s)"
    assert step(2, 2) == (4, {}) and step.compile_note() == ""
    assert stream.getvalue().count("compiling") == 1


INDEX = np.array([5, 7, 9])


def test_the_guard_counts_skipped_steps_and_names_their_examples(caplog):
    guard = log.NonFiniteGuard(max_in_a_row=2, skipped=4)
    assert guard.check(1, False, INDEX) is None
    row = {"event": "nonfinite", "skipped_steps": 5, "examples": [5, 7, 9]}
    with caplog.at_level(logging.WARNING):
        assert guard.check(2, True, INDEX) == row
    assert "step 2" in caplog.text and "[5, 7, 9]" in caplog.text
    assert json.dumps(row)


def test_the_guard_stops_after_too_many_in_a_row_but_not_in_all():
    guard = log.NonFiniteGuard(max_in_a_row=2)
    for step, bad in enumerate([True, False, True, False, True]):
        guard.check(step, bad, INDEX)
    assert guard.skipped == 3
    message = r"2 updates in a row .* step 6 \(examples \[5, 7, 9\].*lower --config.lr"
    with pytest.raises(FloatingPointError, match=message):
        guard.check(6, True, INDEX)


DATA = {
    "source": "folder",
    "decoder": "fast",
    "cache": "off",
    "workers": None,
    "threads": None,
}


def _waiting(monkeypatch, wait_s, **data):
    """Warnings of 200 steps of a second each, that waited `wait_s` for data."""
    now = [0.0]
    monkeypatch.setattr(log.time, "perf_counter", lambda: now[0])
    said = []
    monkeypatch.setattr(log.logging, "warning", lambda _, text: said.append(text))
    throughput = log.Throughput(DATA | data)
    for step in range(200):
        now[0] += 1
        throughput.tick(40.0 if step == 0 else wait_s)  # the first waits for the start
        if step % 7 == 0:
            throughput.reset()  # as after a logged row
    return said


def test_waiting_for_data_is_told_once_with_what_to_change(monkeypatch):
    assert _waiting(monkeypatch, 0.05) == []
    [said] = _waiting(monkeypatch, 0.25)
    assert "waited for data 25% of the last minute" in said
    assert "litevit_jax.data.pack" in said and "data.cache=device" in said
    [said] = _waiting(monkeypatch, 0.25, decoder="pillow")
    assert "pip install simplejpeg" in said
    monkeypatch.setattr(log.os, "cpu_count", lambda: 8)
    [said] = _waiting(monkeypatch, 0.25, threads=2)
    assert "--config.data.threads to the 8 cores" in said
    [said] = _waiting(monkeypatch, 0.25, source="packed")
    assert "more cores" in said


def test_lines_that_nobody_reads_do_not_end_the_run():
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as stream:
        line = terminal.ConsoleLine(stream)
        for _ in range(3):
            line.say("x" * 10_000)
        assert os.path.samestat(os.fstat(write), os.stat(os.devnull))  # muted
