"""The finished parts of a job of several runs, in one file.

A stopped job reads the file and continues with the parts that are missing.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

from litevit_jax import distributed, paths, terminal
from litevit_jax.train import workdir as workdirs


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
            known = {"points", *about}
            self.rest = {k: v for k, v in content.items() if k not in known}

    def __contains__(self, name: str) -> bool:
        return name in self.rows

    def unfinished(self, planned: Sequence[P], noun: str) -> Iterator[P]:
        """Yields the parts that are missing and prints which one begins."""
        line = terminal.ConsoleLine()
        for number, part in enumerate(planned, start=1):
            if part.name not in self:
                line.say(f"{noun} {number} of {len(planned)}: {part.name}")
                yield part

    def add(self, name: str, **row: Any) -> None:
        """Records a finished part."""
        self.rows[name] = {"name": name, **row}
        self._write()

    def close(self, **rest: Any) -> None:
        """Records what follows from all parts."""
        self.rest = rest
        self._write()

    def _read(self) -> Any:
        again = "move it away; the same command again reads what the runs recorded"
        return paths.read_json(self._path, again) if self._path.exists() else None

    def _write(self) -> None:
        rows = list(self.rows.values())
        content = {**self._about, "points": rows, **self.rest}
        write = functools.partial(workdirs.write_json, self._path, content)
        distributed.run_on_primary(write)
