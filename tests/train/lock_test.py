"""A directory is one run's at a time, and free again when its process is dead."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

import pytest

from litevit_jax import paths
from litevit_jax.train import lock, workdir
from tests import bucket

ROOT = pathlib.Path(__file__).parents[2]
HOLD = """
import pathlib, sys
from litevit_jax.train import lock
lock.take(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""
OTHER = {"host": "elsewhere", "pid": 7, "start": "2026-01-01 10:00:00 UTC", "count": 3}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lock, "_LOOK_S", 0.02)
    monkeypatch.setattr(lock, "_EVERY_S", 0.05)
    monkeypatch.setattr(lock, "_SILENT_S", 0.6)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_run_is_refused_and_the_first_named(holder, tmp_path):
    with pytest.raises(ValueError) as caught:
        workdir.open_run(tmp_path, {"seed": 0})
    text = str(caught.value)
    assert f"the run of process {holder.pid} on {socket.gethostname()}" in text
    assert f"started {time.strftime('%Y-')}" in text and "another --workdir" in text
    assert not (tmp_path / "config.json").exists()


def test_the_lock_of_a_dead_process_is_taken_over_at_once(
    holder, tmp_path, monkeypatch
):
    monkeypatch.setattr(lock, "_SILENT_S", 600.0)
    holder.kill()
    holder.wait()
    assert (tmp_path / lock.NAME).read_text()
    assert workdir.open_run(tmp_path, {"seed": 0}) is False
    assert workdir.open_run(tmp_path, {"seed": 0}) is True  # its own
    assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()
    workdir.close_run(tmp_path)


def test_a_run_that_ended_leaves_nothing(holder, tmp_path):
    holder.communicate()
    assert holder.returncode == 0 and not (tmp_path / lock.NAME).exists()


def test_a_refused_directory_is_left_as_it_is(tmp_path):
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(ValueError, match="not a run of this program"):
        workdir.open_run(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_silent_process_of_another_host_is_dead(tmp_path, caplog):
    (tmp_path / lock.NAME).write_text(json.dumps(OTHER))
    lock.take(tmp_path)
    assert "was left by the run of process 7 on elsewhere" in caplog.text
    assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()
    lock.release(tmp_path)
    (tmp_path / lock.NAME).write_text('{"host": "cut sh')
    lock.take(tmp_path)
    lock.release(tmp_path)


def test_one_of_another_host_that_counts_is_alive(tmp_path):
    path = tmp_path / lock.NAME
    path.write_text(json.dumps(OTHER))
    later = threading.Timer(0.2, path.write_text, [json.dumps(OTHER | {"count": 4})])
    later.start()
    with pytest.raises(ValueError, match="process 7 on elsewhere, started 2026-01-01"):
        lock.take(tmp_path)
    later.join()


def test_in_a_store_the_count_alone_tells():
    with bucket.served():
        place = paths.path("gs://bucket/run")
        first = lock._Lock(place)
        with pytest.raises(ValueError, match=f"process {os.getpid()} on"):
            lock._Lock(place)
        first.release()
        assert not (place / lock.NAME).exists()
        second = lock._Lock(place)
        second._ended.set()  # as if killed
        second._thread.join()
        lock._Lock(place).release()


def test_who_lost_its_directory_ends(tmp_path, monkeypatch, capfd):
    ended = threading.Event()

    def leave(code):
        assert code == 1
        ended.set()

    monkeypatch.setattr(os, "_exit", leave)
    lock.take(tmp_path)
    (tmp_path / lock.NAME).write_text(json.dumps(OTHER))
    assert ended.wait(60)
    assert "process 7 on elsewhere" in capfd.readouterr().err
    lock.release(tmp_path)
    assert (tmp_path / lock.NAME).exists()  # the other's
