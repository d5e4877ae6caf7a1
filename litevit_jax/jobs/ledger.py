"""The finished parts of a job of several runs, in one file.

A stopped job reads the file and continues with the parts that are missing. Processes
that work on one job add to the same file.
"""

from __future__ import annotations

import contextlib
import fcntl
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from litevit_jax import distributed, paths, terminal
from litevit_jax.train import lock
from litevit_jax.train import workdir as workdirs

PLANNED = "planned"  # entry of the file: how many parts a command has asked for
_LOOK_S = 5.0  # between looks at what other processes have finished


class Part(Protocol):
    """A part of a job, whose name is that of its row."""

    @property
    def name(self) -> str: ...


P = TypeVar("P", bound=Part)


class Parts:
    """Finished parts by name, each a row of JSON, and what stands beside them.

    Attributes:
      rows: name -> row, in the order in which they were finished. Parts that a job no
        longer asks for stay, as they are costly.
      rest: the other entries of the file.
    """

    def __init__(self, path: pathlib.Path, **about: Any) -> None:
        self._path, self._about = path, about
        self.rows: dict[str, dict[str, Any]] = {}
        self.rest: dict[str, Any] = {}
        content = distributed.run_on_primary(self._read)
        if content is not None:
            self.rows = {row["name"]: row for row in content["points"]}
            known = {"points", PLANNED, *about}
            self.rest = {k: v for k, v in content.items() if k not in known}

    def __contains__(self, name: str) -> bool:
        return name in self.rows

    def finish(
        self,
        planned: Sequence[P],
        noun: str,
        work: Callable[[P], int | None],
        *,
        wait: bool = True,
    ) -> int | None:
        """Has the missing parts worked on; returns the signal that stopped it, or None.

        A part that another process works on is left to it.

        Args:
          planned: all parts.
          noun: what a part is called in the lines that are printed.
          work: runs and adds a part; it returns the signal that stopped it, or None.
          wait: whether to wait until other processes have finished theirs. A part that
            they give up is taken over.
        """
        say, waited_for = terminal.ConsoleLine().say, 0
        self._about[PLANNED] = len(planned)
        while True:
            others = 0
            for number, part in enumerate(planned, start=1):
                if part.name in self:
                    continue
                if not waited_for:
                    say(f"{noun} {number} of {len(planned)}: {part.name}")
                try:
                    signal = work(part)
                except lock.TakenError as error:
                    if not waited_for:
                        say(f"left to another process: {error}")
                    others += 1
                    continue
                if signal is not None:
                    return signal
            if not others or not wait:
                return None
            if others != waited_for:
                say(f"waiting for {others} {noun}(s) that other processes work on")
            waited_for = others
            time.sleep(_LOOK_S)
            self.reread()

    def add(self, name: str, **row: Any) -> None:
        """Records a finished part."""
        self.rows[name] = {"name": name, **row}
        self._write()

    def close(self, **rest: Any) -> None:
        """Records what follows from all parts."""
        self.rest = rest
        self._write()

    def reread(self) -> None:
        """Takes over what other processes have added meanwhile."""
        content = distributed.run_on_primary(self._read)
        if content is not None:
            self.rows = {row["name"]: row for row in content["points"]} | self.rows

    def _read(self) -> Any:
        again = "move it away; the same command again reads what the runs recorded"
        return paths.read_json(self._path, again) if self._path.exists() else None

    def _write(self) -> None:
        self.rows = distributed.run_on_primary(self._merge)

    def _merge(self) -> dict[str, dict[str, Any]]:
        """Writes the rows of this process and of others; returns them."""
        with _alone(self._path):
            content = self._read() or {"points": []}
            rows = {row["name"]: row for row in content["points"]} | self.rows
            content = {**self._about, "points": list(rows.values()), **self.rest}
            workdirs.write_json(self._path, content)
        return rows


@contextlib.contextmanager
def _alone(path: pathlib.Path) -> Iterator[None]:
    """Keeps other processes of this file system from writing `path` meanwhile."""
    if not paths.is_local(path):
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as file:
        with contextlib.suppress(OSError):  # some file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
