"""A worker process that is killed ends the stream, with the file it was reading."""

import dataclasses
import os
import signal
import subprocess
import time

import numpy as np
import pytest

from litevit_jax.data import pipeline, transforms, worker_journal
from litevit_jax.data.sources import base


@dataclasses.dataclass(frozen=True)
class Deadly(base.Source):
    """Images, of which one kills the process that reads it."""

    deadly: int
    classes: tuple = ()

    def __len__(self):
        return 16

    def __getitem__(self, index):
        if index == self.deadly:
            time.sleep(0.3)  # as decoding would; the others are read meanwhile
            os.kill(os.getpid(), signal.SIGKILL)
        return {"image": np.zeros((8, 8, 3), np.uint8), "label": index}

    def name_of(self, index):
        return f"image-{index}.jpg"

    def fingerprint(self):
        return "deadly"


def test_a_killed_worker_is_an_error_that_names_its_file():
    stream = pipeline.eval_batches(
        Deadly(6),
        transforms.eval_ops(image_size=(8, 8)),
        batch_size=4,
        workers=2,
        threads=2,
    )
    start = time.monotonic()
    with pytest.raises(pipeline.WorkerError, match=r"reading image-6\.jpg\. If") as e:
        list(stream)
    assert "exit code -9" in str(e.value) and "data.workers" in str(e.value)
    assert time.monotonic() - start < 300  # it does not hang
    with pytest.raises(StopIteration):
        next(stream)


def test_the_journal_lists_what_dead_processes_were_reading():
    kept = worker_journal.Journal.make()
    try:
        with kept.reading(7):
            assert kept.unfinished() == []  # this process lives
            [file] = os.listdir(kept.folder)
            dead = subprocess.Popen(["true"])
            dead.wait()
            os.rename(f"{kept.folder}/{file}", f"{kept.folder}/{dead.pid}-1")
            assert kept.unfinished() == [7]
        assert kept.unfinished() == []  # it finished
    finally:
        kept.remove()
    assert not os.path.exists(kept.folder)


def test_counts_follow_from_the_cores(monkeypatch):
    source = Deadly(0)
    for cores, expected in ((1, (0, 2)), (8, (0, 8)), (96, (24, 96))):
        monkeypatch.setattr(
            os, "sched_getaffinity", lambda _, n=cores: set(range(n)), raising=False
        )
        assert pipeline.reading_counts(source, None, None) == expected
    assert pipeline.reading_counts(source, 3, None) == (3, 96)
    assert pipeline.reading_counts(source, None, 5) == (24, 5)

    class Kept(Deadly):
        in_memory = True

    assert pipeline.reading_counts(Kept(0), None, None) == (0, 96)
