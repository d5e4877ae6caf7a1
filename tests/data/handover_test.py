"""Reading processes obey the one they read for, and their memory is looked after."""

import os
import pathlib
import re
import subprocess
import sys
import time

import pytest

from litevit_jax.data import handover, pipeline, transforms
from litevit_jax.data.sources import digits
from tests import processes

ROOT = pathlib.Path(__file__).parents[2]
CONTAINER = 64 << 20  # what a container has in /dev/shm unless told otherwise
IMAGE = 224 * 224 * 3

# The thread that gives memory back is slow here, as it is on a busy machine.
PROGRAM = """
import itertools, multiprocessing, os, signal, sys, time

from litevit_jax.data import pipeline, transforms
from litevit_jax.data.sources import digits

if __name__ == "__main__":
    (module,) = [m for n, m in sys.modules.items()
                 if n.startswith("grain.") and n.endswith(".shared_memory_array")]
    fast = module._del_shm
    module._del_shm = lambda *shm, **how: (time.sleep(0.1), fast(*shm, **how))
    stream = pipeline.train_batches(
        digits.make(split="train"), transforms.train_ops(image_size=(8, 8), channels=1),
        batch_size=32, seed=0, workers=2,
    )
    list(itertools.islice(stream, 2))
    pids = [child.pid for child in multiprocessing.active_children()]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        for pid in pids:
            os.kill(pid, number)
    list(itertools.islice(stream, 8))
    print(*pids, flush=True)
    if sys.argv[1] == "stay":
        time.sleep(3600)
    stream.close()
"""


@pytest.fixture
def start(tmp_path):
    """('end' or 'stay') -> a program that reads with two processes."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    started = []

    def run(how):
        command = [sys.executable, str(program), how]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        pipe = subprocess.PIPE
        started.append(
            subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True)
        )
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def test_signals_that_all_get_are_left_to_the_one_they_read_for(start):
    """They go on reading, and nothing of them is left at the end, nor told of."""
    process = start("end")
    out, errors = process.communicate(timeout=processes.PATIENCE_S)
    assert (process.returncode, errors) == (0, "")
    assert len(out.split()) == 2


def test_they_end_with_the_one_they_read_for(start):
    process = start("stay")
    pids = process.stdout.readline().split()
    assert len(pids) == 2
    process.kill()
    process.wait()
    for pid in pids:
        while is_alive(pid):
            time.sleep(0.05)


def is_alive(pid):
    try:
        return "\nState:\tZ" not in pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize(
    ("workers", "streams", "fit"), [(8, 2, 4), (28, 2, 4), (28, 1, 9)]
)
def test_more_processes_than_memory_holds_are_refused(
    workers, streams, fit, monkeypatch
):
    """Training asks for what its evaluations need, too."""
    monkeypatch.setattr(handover, "_free", lambda: CONTAINER)
    wanted = rf"data\.workers={workers}: .* 67 MB"
    with pytest.raises(ValueError, match=wanted) as error:
        handover.check_memory(workers, 8, IMAGE, streams)
    for hint in ("/dev/shm", "--shm-size=8g", "emptyDir", f"data.workers={fit}"):
        assert hint in str(error.value)
    handover.check_memory(fit, 8, IMAGE, streams)


def test_threads_need_no_shared_memory(monkeypatch):
    monkeypatch.setattr(handover, "_free", lambda: 1 << 20)
    handover.check_memory(0, 8, IMAGE, 2)
    with pytest.raises(ValueError, match=r"workers=0 \(threads of one process\)"):
        handover.check_memory(1, 8, IMAGE, 2)


def test_a_run_is_refused_before_it_reads(monkeypatch):
    monkeypatch.setattr(handover, "_free", lambda: 1000)
    transform = transforms.train_ops(image_size=(8, 8), channels=1)
    with pytest.raises(ValueError, match=r"data\.workers=1: .* /dev/shm"):
        pipeline.train_batches(
            digits.make(split="train"), transform, batch_size=8, seed=0, workers=1
        )


def test_what_is_measured_is_what_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr(handover, "_SHM", tmp_path)
    before = handover._free()
    assert before > 0
    monkeypatch.setattr(handover, "_SHM", tmp_path / "nowhere")
    assert handover._free() == 0
    handover.check_memory(1000, 8, IMAGE, 2)  # another system, which has none


@pytest.mark.parametrize(
    ("code", "words"),
    [(-7, "found no room in /dev/shm"), (-9, "If the machine ran out of memory")],
)
def test_a_killed_process_is_explained_by_its_exit_code(code, words):
    error = RuntimeError(
        f"process was terminated unexpectedly with exit code {code}. S"
    )
    assert handover.is_killed(error)
    text = handover.explain(error, ["a.jpg"])
    assert words in text and "reading a.jpg" in text
    assert re.search(r"--config\.data\.workers", text)
