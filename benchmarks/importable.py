"""Finds the libraries that a benchmark can compare with on this machine.

A broken library can end the process that imports it, so another process tries.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence

_PATIENCE_S = 600


def missing(*modules: str, python: str = sys.executable) -> str | None:
    """Why `modules` cannot be imported by a Python, in a line; None if they can."""
    code = f"import {', '.join(modules)}"
    try:
        done = subprocess.run(
            [python, "-c", code],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
        )
    except OSError as error:
        return f"{python} cannot be run: {error.strerror}"
    except subprocess.TimeoutExpired:
        return f"{code!r} takes more than {_PATIENCE_S} s"
    if done.returncode == 0:
        return None
    last = ["", *done.stderr.strip().splitlines()][-1]
    return last[:300] or f"{code!r} ended with exit code {done.returncode}"


def usable(peers: Mapping[str, Sequence[str]]) -> list[str]:
    """Names of `peers` whose modules can be imported; prints why others cannot."""
    reasons = {name: missing(*modules) for name, modules in peers.items()}
    for name, why in reasons.items():
        if why is not None:
            print(f"{name} is left out: {why}", flush=True)
    return [name for name, why in reasons.items() if why is None]
