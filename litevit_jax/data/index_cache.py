"""Indices of large files, made once and kept until the file changes.

It lies beside the file, or below ~/.cache/litevit_jax where one cannot write there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from litevit_jax import paths

FOLDER = ".litevit-index"


def read(
    file: str, key: Sequence[Any], scan: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Returns the index of a file: what is kept, or else what `scan` returns.

    Args:
      file: its path.
      key: what the index depends on besides the file.
      scan: reads the file; its result can be written as JSON.
    """
    status = os.stat(file)
    stamp = [status.st_size, status.st_mtime_ns, *key]
    possible = candidates(file)
    for path in possible:
        try:
            kept = json.loads(path.read_text())
            if kept.pop("stamp") == stamp:
                return kept
        except (OSError, ValueError, KeyError, TypeError):  # not there, or cut short
            continue
    index = scan()
    for path in possible:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.{os.getpid()}.part")
            partial.write_text(json.dumps(index | {"stamp": stamp}))
            paths.rename(partial, path)
            break
        except OSError:  # read-only: try the next one
            continue
    return index


def candidates(file: str) -> list[pathlib.Path]:
    """Returns where the index of a file may be kept, the first choice first."""
    path = pathlib.Path(file)
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    unique = hashlib.sha256(os.fsencode(file)).hexdigest()[:16]
    return [
        path.parent / FOLDER / f"{path.name}.json",
        home / "litevit_jax" / f"{unique}.json",
    ]


def forget(file: str) -> None:
    """Removes the index of a file where that is allowed."""
    for path in candidates(file):
        with contextlib.suppress(OSError):
            path.unlink()
