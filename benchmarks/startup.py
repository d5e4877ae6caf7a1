"""Seconds from the command to the first update, without and with compiled programs.

    python benchmarks/startup.py --rounds=5
    python benchmarks/startup.py --recipe=configs/mae_tiny.py:digits --rounds=5

Each round starts `python main.py --config=RECIPE` twice, for two updates: with an empty
compilation cache (JAX_COMPILATION_CACHE_DIR), then with the one that this left. Told
are the seconds until the announcement (Python, imports, data listed, model designed)
and until the first update is logged (state created, step compiled or loaded, update
done), as somebody at the terminal sees them. Everything else on the machine should be
quiet: at a start most of the time is one thread's.
"""

from __future__ import annotations

import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags

RECIPE = flags.DEFINE_string("recipe", "configs/mae_tiny.py:digits", "What is started.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Starts without and with a cache.")

ROOT = pathlib.Path(__file__).resolve().parents[1]
MARKS = {"announcement": "training images", "first update": r"step 1/"}
QUIET = ["--config.steps=2", "--config.log.every_steps=1", "--config.log.report=False"]


def start(cache: str) -> dict[str, float]:
    """Seconds until each of MARKS was printed; ends the run after it."""
    found: dict[str, float] = {}
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONUNBUFFERED": "1",
    }
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "main.py", f"--config={RECIPE.value}", *QUIET]
        begin, said = time.perf_counter(), []
        process = subprocess.Popen(
            [*command, f"--workdir={workdir}"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            for name, mark in MARKS.items():
                if name not in found and re.search(mark, line):
                    found[name] = time.perf_counter() - begin
            if len(found) == len(MARKS):
                break
        process.kill()
        process.wait()
    if len(found) < len(MARKS):
        raise SystemExit(f"{' '.join(command)} did not train:\n{''.join(said[-30:])}")
    return found


def told(seconds: list[float]) -> str:
    """Median (smallest..largest)."""
    low, high = min(seconds), max(seconds)
    return f"{statistics.median(seconds):.1f} ({low:.1f}..{high:.1f})"


def main(argv: list[str]) -> None:
    """Prints the table."""
    rows: dict[str, list[dict[str, float]]] = {"empty": [], "warm": []}
    del argv
    for _ in range(ROUNDS.value):
        with tempfile.TemporaryDirectory() as cache:
            for row in rows.values():
                row.append(start(cache))
    print(f"{RECIPE.value}, {os.cpu_count()} cores of {platform.machine()}, seconds")
    print("| compilation cache | " + " | ".join(MARKS) + " |\n|---|---|---|")
    for name, row in rows.items():
        cells = (told([seconds[mark] for seconds in row]) for mark in MARKS)
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    app.run(main)
