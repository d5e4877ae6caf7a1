"""Seconds from the command to the first update, without and with compiled programs.

    python benchmarks/startup.py --rounds=5
    python benchmarks/startup.py --recipe=configs/mae_tiny.py:digits --rounds=5

Each round starts `python main.py --config=RECIPE` twice, for two updates: with an empty
compilation cache, then with the filled one. It prints the seconds that you would wait
at the terminal: until the first line (Python, JAX, devices), the announcement (other
imports, data listed, model designed) and the first update (state created, step
compiled or loaded, update done). Beside them are the CPU seconds of the process, which
a busy machine changes least: a start is mostly the work of one thread.
"""

from __future__ import annotations

import math
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

RECIPE = flags.DEFINE_string("recipe", "configs/mae_tiny.py:digits", "Recipe to run.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Starts without and with a cache.")

ROOT = pathlib.Path(__file__).resolve().parents[1]
MARKS = {
    "first line": ": train on ",
    "announcement": "training images",
    "first update": r"step 1/",
}
QUIET = ["--config.steps=2", "--config.log.every_steps=1", "--config.log.report=False"]


def start(cache: str) -> dict[str, float]:
    """Starts a run and returns the seconds until each of MARKS; then ends it."""
    seconds: dict[str, float] = {}
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "main.py", f"--config={RECIPE.value}", *QUIET]
        begin, lines = time.perf_counter(), []
        process = subprocess.Popen(
            [*command, f"--workdir={workdir}", f"--config.compilation_cache={cache}"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            for name, mark in MARKS.items():
                if name not in seconds and re.search(mark, line):
                    seconds[name] = time.perf_counter() - begin
                    seconds[f"{name}, CPU"] = cpu_seconds(process.pid)
            if len(seconds) == 2 * len(MARKS):
                break
        process.kill()
        process.wait()
    if len(seconds) < 2 * len(MARKS):
        raise SystemExit(f"{' '.join(command)} did not train:\n{''.join(lines[-30:])}")
    return seconds


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used, threads included; NaN without /proc."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return math.nan
    user, system = stat.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def spread(seconds: list[float]) -> str:
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
    columns = [f"{mark}{kind}" for mark in MARKS for kind in ("", ", CPU")]
    print("| compilation cache | " + " | ".join(columns) + " |")
    print("|---" * (1 + len(columns)) + "|")
    for name, row in rows.items():
        cells = (spread([seconds[mark] for seconds in row]) for mark in columns)
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    app.run(main)
