"""What a run says, on a terminal and in files, and when its guard stops it."""

import io
import json
import logging
import math

import numpy as np
import pytest

from litevit_jax.train import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_redraws_one_line_and_clears_what_was_longer():
    stream = Terminal()
    line = progress.Line(stream)
    line.show("a long text")
    line.show("short")
    line.say("kept")
    line.show("next")
    assert stream.getvalue() == ("\ra long text\rshort      \rkept \n\rnext")


def test_elsewhere_every_text_is_a_line():
    stream = io.StringIO()
    line = progress.Line(stream)
    line.show("a long text")
    line.show("short")
    line.say("kept")
    assert stream.getvalue() == "a long text\nshort\nkept\n"


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
    text = progress.progress_text(ROW, 100, 2000)
    assert text == (
        "step 100/2000  epoch 1.50  loss 0.2500  lr 1.00e-03  grad 2.000  "
        "123 images/s  data wait 50%  ETA 1:03:20"
    )
    skipped = progress.progress_text(ROW | {"skipped_steps": 2}, 100, 2000)
    assert skipped.endswith("ETA 1:03:20  skipped 2")


def test_rows_are_appended_also_after_a_cut_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"st')
    writer = progress.Writer(tmp_path, tensorboard=False)
    writer.write(2, {"loss": 0.5, "grad_norm": math.nan, "event": "x"})
    writer.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines[1] == '{"st'
    row = {"step": 2, "loss": 0.5, "grad_norm": "nan", "event": "x"}
    assert json.loads(lines[2]) == row


def test_the_clock_measures_since_the_last_reset(monkeypatch):
    now = iter([100.0, 104.0, 200.0, 201.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(now))
    clock = progress.Clock()
    for wait in (0.5, 0.5):
        clock.tick(wait)
    want = {"images_per_s": 16.0, "data_wait": 25.0, "step_s": 2.0}
    assert clock.read(32) == want
    clock.reset()
    clock.tick(0.0)
    assert clock.read(32)["images_per_s"] == 32.0


INDEX = np.array([5, 7, 9])


def test_the_guard_counts_skipped_steps_and_names_their_examples(caplog):
    guard = progress.Guard(max_in_a_row=2, skipped=4)
    assert guard.check(1, False, INDEX) is None
    row = {"event": "nonfinite", "skipped_steps": 5, "examples": [5, 7, 9]}
    with caplog.at_level(logging.WARNING):
        assert guard.check(2, True, INDEX) == row
    assert "step 2" in caplog.text and "[5, 7, 9]" in caplog.text
    assert json.dumps(row)


def test_the_guard_stops_after_too_many_in_a_row_but_not_in_all():
    guard = progress.Guard(max_in_a_row=2)
    for step, bad in enumerate([True, False, True, False, True]):
        guard.check(step, bad, INDEX)
    assert guard.skipped == 3
    message = r"2 updates in a row .* step 6 \(examples \[5, 7, 9\].*lower --config.lr"
    with pytest.raises(FloatingPointError, match=message):
        guard.check(6, True, INDEX)


DATA = {
    "source": "folder",
    "decoder": "fast",
    "cache": False,
    "workers": None,
    "threads": None,
}


def _waiting(monkeypatch, wait_s, **data):
    """Warnings of 200 steps of a second each, that waited `wait_s` for data."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    said = []
    monkeypatch.setattr(progress.logging, "warning", lambda _, text: said.append(text))
    clock = progress.Clock(DATA | data)
    for step in range(200):
        now[0] += 1
        clock.tick(40.0 if step == 0 else wait_s)  # the first waits for the start
        if step % 7 == 0:
            clock.reset()  # as after a logged row
    return said


def test_waiting_for_data_is_told_once_with_what_to_change(monkeypatch):
    assert _waiting(monkeypatch, 0.05) == []
    [said] = _waiting(monkeypatch, 0.25)
    assert "waited for data 25% of the last minute" in said
    assert "litevit_jax.data.pack" in said and "data.cache=True" in said
    [said] = _waiting(monkeypatch, 0.25, decoder="pillow")
    assert "pip install simplejpeg" in said
    monkeypatch.setattr(progress.os, "cpu_count", lambda: 8)
    [said] = _waiting(monkeypatch, 0.25, threads=2)
    assert "--config.data.threads to the 8 cores" in said
    [said] = _waiting(monkeypatch, 0.25, source="packed")
    assert "more cores" in said
