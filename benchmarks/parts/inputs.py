"""Images per second that this host can decode, and the waiting of a real run."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.parts import common
from litevit_jax.data import pipeline, transforms
from litevit_jax.data.sources import folder, packed

_BATCH = 256
_SECONDS = 2.0  # of each measurement
_AHEAD = 6  # batches that may be read in advance: not counted


def run(part: common.Part) -> None:
    with tempfile.TemporaryDirectory() as root:
        images, small = pathlib.Path(root) / "images", pathlib.Path(root) / "packed"
        count, side = (8, (48, 32)) if part.small else (512, (500, 375))
        make_jpegs(images, count, side)
        command = [
            sys.executable,
            "-m",
            "litevit_jax.data.pack",
            str(images),
            str(small),
        ]
        subprocess.run(command, cwd=common.ROOT, check=True, stdout=subprocess.DEVNULL)
        for threads in _threads(part.small):
            for kind, path in (("packed", small), ("folder", images)):
                measure = functools.partial(_rate, part.small, kind, path, threads)
                part.row(f"{kind}, {threads} threads", measure)
        runs = (("packed", small), ("folder", images))[part.small :]
        for kind, path in runs:
            wait = functools.partial(_waiting, part, kind, path)
            part.row(f"a run of MAE from {kind}", wait)


def _threads(small: bool) -> list[int]:
    """1, 2, 4... up to the cores."""
    cores = 1 if small else os.cpu_count() or 1
    return [2**n for n in range(cores.bit_length()) if 2**n <= cores]


def make_jpegs(directory: pathlib.Path, count: int, side: tuple[int, int]) -> None:
    """Writes `count` JPEGs of smooth random colours, as large as ImageNet's."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.integers(256, size=(side[1] // 16, side[0] // 16, 3))
        picture = Image.fromarray(coarse.astype(np.uint8)).resize(side)
        noise = rng.integers(-12, 12, size=(side[1], side[0], 3))
        pixels = np.clip(np.asarray(picture, np.int16) + noise, 0, 255)
        path = directory / "ab"[number % 2] / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path, quality=90)


def _rate(small: bool, kind: str, path: pathlib.Path, threads: int) -> dict[str, Any]:
    """Images/s of our input alone, with `threads` threads of one process."""
    maker = {"packed": packed, "folder": folder}[kind]
    size = (32, 32) if small else (224, 224)
    batch = 4 if small else _BATCH
    transform = transforms.train_ops(image_size=size, decoder="auto")
    source = maker.make(split="train", dir=str(path))
    stream = pipeline.train_batches(
        source, transform, batch_size=batch, seed=0, workers=0, threads=threads
    )
    for _ in range(_AHEAD):
        next(stream)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < (0.05 if small else _SECONDS):
        next(stream)
        count += batch
    spent = time.perf_counter() - start
    stream.close()
    return {"images/s": count / spent}


def _waiting(part: common.Part, kind: str, path: pathlib.Path) -> dict[str, Any]:
    """Images/s and waiting for data of main.py, from its last logged rows."""
    with tempfile.TemporaryDirectory() as workdir:
        variant = f"data={kind},path={path}" + (",smoke" if part.small else "")
        steps = 6 if part.small else 200
        arguments = [
            f"--config=configs/mae_tiny.py:{variant}",
            f"--workdir={workdir}",
            f"--config.steps={steps}",
            f"--config.log.every_steps={steps // 6 or 1}",
            "--config.log.report=False",
            "--config.log.writers=('jsonl',)",
            "--config.evals.reconstruction.every_steps=0",
            "--config.checkpoint.every_steps=1000",
        ]
        arguments += common.SMALL_MODEL if part.small else ["--config.batch_size=512"]
        done = part.run_main(*arguments)
        if done.returncode:
            raise RuntimeError(f"exit code {done.returncode}: {done.stdout[-200:]}")
        lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "images_per_s" in row][2:]
    rates = sorted(row["images_per_s"] for row in rows)
    waits = sorted(row["data_wait"] for row in rows)
    middle = len(rows) // 2
    return {
        "images/s": {"median": rates[middle], "min": rates[0], "max": rates[-1]},
        "% waiting": waits[middle],
    }
