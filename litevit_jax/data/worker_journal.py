"""Records what each thread of a worker process reads, in case it is killed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Iterator

_open = threading.local()  # this thread's file


@dataclasses.dataclass(frozen=True)
class Journal:
    """A folder with a file for each thread: `PROCESS-THREAD`, 8 bytes.

    They hold the index of the example that the thread is busy with, plus 1; 0: none.
    """

    folder: str

    @staticmethod
    def make() -> Journal:
        """Makes a journal, in memory where the system offers that."""
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        return Journal(tempfile.mkdtemp(prefix="litevit-", dir=memory))

    @contextlib.contextmanager
    def reading(self, index: int) -> Iterator[None]:
        """Records that this thread is busy with example `index`."""
        file = self._file()
        os.pwrite(file, (index + 1).to_bytes(8, "little"), 0)
        yield
        os.pwrite(file, bytes(8), 0)

    def unfinished(self) -> list[int]:
        """Returns the indices that ended processes were busy with."""
        indices = []
        for path in sorted(pathlib.Path(self.folder).iterdir()):
            index = int.from_bytes(path.read_bytes(), "little") - 1
            if index >= 0 and not _lives(int(path.name.partition("-")[0])):
                indices.append(index)
        return indices

    def remove(self) -> None:
        """Deletes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self) -> int:
        opened = getattr(_open, "file", None)
        if opened is None or opened[0] != self.folder:
            name = f"{os.getpid()}-{threading.get_native_id()}"
            path = os.path.join(self.folder, name)
            opened = (self.folder, os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            _open.file = opened
        return opened[1]


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is there, and somebody else's
        return True
    return True
