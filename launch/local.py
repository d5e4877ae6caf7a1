"""Runs several processes of main.py on this machine, as several hosts would.

    python -m launch.local --processes=2 -- --config=configs/mae_tiny.py:smoke \\
        --workdir=runs/two

Each process gets its own CPU devices; they meet at a port of this machine. The number
of the process precedes its output. If one fails, the others are stopped and its exit
code is this program's. SIGTERM, SIGHUP and Ctrl-C are passed on to all.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
_LOOK_S = 0.1


def commands(processes: int, port: int, arguments: Sequence[str]) -> list[list[str]]:
    """The command line of each process."""
    meet = [f"--coordinator=localhost:{port}", f"--num_processes={processes}"]
    return [
        [sys.executable, str(ROOT / "main.py"), *arguments, *meet, f"--process_id={i}"]
        for i in range(processes)
    ]


def free_port() -> int:
    """Returns a port that is free."""
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def run(lines: list[list[str]], *, devices: int, grace_s: float) -> int:
    """Runs the command lines at once; returns the first exit code but 0, or 0.

    Args:
      lines: the command lines.
      devices: CPU devices of each process.
      grace_s: seconds that the others have to save after one failed, before they are
        killed.
    """
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONUNBUFFERED": "1",
    }
    running = [
        subprocess.Popen(
            line,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,  # the terminal's Ctrl-C reaches them once, through us
        )
        for line in lines
    ]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda got, _: _tell(running, got))
    readers = [
        threading.Thread(target=_copy, args=(i, process), daemon=True)
        for i, process in enumerate(running)
    ]
    for reader in readers:
        reader.start()
    code = _wait(running, grace_s)
    for reader in readers:
        reader.join()
    return code


def _wait(running: list[subprocess.Popen], grace_s: float) -> int:
    """Waits for all; after a failure stops the others, and kills them if they stay."""
    failed, since = 0, 0.0
    while None in (codes := [process.poll() for process in running]):
        bad = [code for code in codes if code]
        if bad and not failed:
            failed, since = bad[0], time.monotonic()
            _tell(running, signal.SIGTERM)
        if failed and time.monotonic() - since > grace_s:
            _tell(running, signal.SIGKILL)
        time.sleep(_LOOK_S)
    failed = failed or next((p.returncode for p in running if p.returncode), 0)
    return failed if failed >= 0 else 128 - failed  # a signal, as shells count it


def _tell(running: list[subprocess.Popen], number: int) -> None:
    for process in running:
        if process.poll() is None:
            process.send_signal(number)


def _copy(index: int, process: subprocess.Popen) -> None:
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            text = line.decode("utf-8", "replace")
            sys.stdout.write(f"[{index}] {text}")
            sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and runs it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m launch.local")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=1, help="CPUs of each")
    parser.add_argument("--grace", type=float, default=60.0, help="seconds to save in")
    parser.add_argument("arguments", nargs="+", help="of main.py, behind --")
    given = parser.parse_args(argv)
    if given.processes < 1 or given.devices < 1:
        parser.error("--processes and --devices must be at least 1")
    lines = commands(given.processes, free_port(), given.arguments)
    return run(lines, devices=given.devices, grace_s=given.grace)


if __name__ == "__main__":
    sys.exit(main())
