"""Lets one run at a time use a directory: a lock file that names its owner.

The owner holds the kernel's lock on the file (local and most shared file systems) and
counts up in it (any host, any store). The kernel releases the lock with its process.
Where only the file is left, its count shows whether the owner is alive; no clock of
another host is read.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import json
import os
import pathlib
import socket
import sys
import threading
import time
from typing import Any

from absl import logging

from litevit_jax import paths

NAME = ".lock"

_EVERY_S = 10.0  # between counts
_SILENT_S = 35.0  # without one, the owner is gone
_LOOK_S = 1.0

_held: dict[str, _Lock] = {}


class TakenError(ValueError):
    """Another process works in a directory."""


def take(workdir: pathlib.Path) -> bool:
    """Reserves `workdir` for this process until `release` or the process's end.

    Returns False if this process has it already. A dead process's file is taken over;
    for a process of another host this waits until its count stands still.

    Raises:
      TakenError: another process works there; it is named.
    """
    key = os.fspath(paths.absolute(workdir))
    if key in _held:
        return False
    _held[key] = _Lock(workdir)
    return True


def release(workdir: pathlib.Path) -> None:
    """Releases `workdir`, if this process holds it."""
    lock = _held.pop(os.fspath(paths.absolute(workdir)), None)
    if lock is not None:
        lock.release()


@atexit.register
def _release_all() -> None:
    for key in list(_held):
        _held.pop(key).release()


class _Lock:
    """The lock of one directory, and the thread that counts in its file."""

    def __init__(self, workdir: pathlib.Path) -> None:
        self._workdir, self._path = workdir, workdir / NAME
        self._file: int | None = None  # open while the kernel's lock on it is ours
        self._me = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "start": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            "count": 0,
        }
        try:
            certain = paths.is_local(workdir) and self._lock()
            self._take_over(certain)
            self._write()
        except BaseException:
            self._close()
            raise
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._count, name="lock", daemon=True)
        self._thread.start()

    def _lock(self) -> bool:
        """Takes the kernel's lock; False where the file system has none."""
        while True:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    raise TakenError(self._refusal(self._read())) from None
                return False
            try:
                if os.path.samestat(os.fstat(self._file), self._path.stat()):
                    return True
            except FileNotFoundError:
                pass
            self._close()  # its owner has just removed it: again

    def _take_over(self, certain: bool) -> None:
        """Returns once the owner that the file names, if any, is gone."""
        owner = self._read()
        if owner is None or (certain and owner.get("host") == self._me["host"]):
            return
        logging.warning(
            "--workdir=%s was left by %s: waiting %.0f s for a sign of it",
            self._workdir, _describe(owner), _SILENT_S,
        )  # fmt: skip
        until = time.monotonic() + _SILENT_S
        while time.monotonic() < until:
            time.sleep(_LOOK_S)
            now = self._read()
            if now is None:  # it has ended meanwhile
                return
            if now != owner:
                raise TakenError(self._refusal(now))
        logging.warning("no sign of it: its directory is taken over")

    def _read(self) -> dict[str, Any] | None:
        try:
            owner = json.loads(self._path.read_text())
        except (OSError, ValueError):  # none, or cut short by a kill
            return None
        return owner if isinstance(owner, dict) else None

    def _write(self) -> None:
        text = json.dumps(self._me) + "\n"
        if self._file is None:
            self._path.write_text(text)
            return
        # In place: another file under this name would not be the one that is locked.
        os.pwrite(self._file, text.encode(), 0)
        os.ftruncate(self._file, len(text))

    def _count(self) -> None:
        while not self._ended.wait(_EVERY_S):
            owner = self._read()
            if owner is not None and not self._is_mine(owner):
                self._lost(owner)
                return
            self._me["count"] += 1
            with contextlib.suppress(Exception):  # the run says what a disk refuses
                self._write()

    def _lost(self, owner: dict[str, Any]) -> None:
        """Ends the process, since another one has the directory now.

        It was suspended for long, or both began in the same second.
        """
        print(f"error: {self._refusal(owner)}", file=sys.stderr, flush=True)
        os._exit(1)

    def _is_mine(self, owner: dict[str, Any]) -> bool:
        return {**owner, "count": 0} == {**self._me, "count": 0}

    def release(self) -> None:
        """Removes the file, unless another process has taken it over."""
        self._ended.set()
        self._thread.join()
        owner = self._read()
        if owner is not None and self._is_mine(owner):
            with contextlib.suppress(Exception):  # what is left is taken over
                self._path.unlink()
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _refusal(self, owner: dict[str, Any] | None) -> str:
        return (
            f"--workdir={self._workdir}: {_describe(owner)} works there; wait until it "
            "has ended, stop it, or give another --workdir"
        )


def _describe(owner: dict[str, Any] | None) -> str:
    if owner is None:
        return "another run"
    return (
        f"the run of process {owner.get('pid')} on {owner.get('host')}, started "
        f"{owner.get('start')},"
    )
