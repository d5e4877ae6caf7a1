"""The finished parts of a job of several runs, in one file.

A stopped job reads the file and continues with the parts that are missing. Processes
that work on one job add to the same file.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from litevit_jax import distributed, paths, terminal
from litevit_jax.train import lock
from litevit_jax.train import workdir as workdirs

PLANNED = "planned"  # entry of the file: how many parts a command has asked for
FAILED = "failed"  # entry of a row: why a part has no results
_LOOK_S = 5.0  # between looks at what other processes have finished
_TRIES = 20  # to see a config that another process looks at, a second apart


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
        self._added: dict[str, dict[str, Any]] = {}  # by this process
        self._closed: dict[str, Any] | None = None  # by this process
        self.rows: dict[str, dict[str, Any]] = {}
        self.rest: dict[str, Any] = {}
        self.reread()

    def __contains__(self, name: str) -> bool:
        return name in self.rows

    def finish(
        self,
        planned: Sequence[P],
        noun: str,
        work: Callable[[P], int | None],
        *,
        wait: bool = True,
        done: Callable[[P], bool] | None = None,
        row: Callable[[P], dict[str, Any]] | None = None,
    ) -> int | None:
        """Has the missing parts worked on; returns the signal that stopped it, or None.

        A part that another process works on is left to it. One that failed in an
        earlier call is tried again.

        Args:
          planned: all parts.
          noun: what a part is called in the lines that are printed.
          work: runs and adds a part; it returns the signal that stopped it, or None.
          wait: whether to wait until other processes have finished theirs. A part that
            they give up is taken over.
          done: whether a part is finished; None: if it has a row with results.
          row: what the row of a part tells beside its results. With it, a part that
            diverges gets a row that says so, and the others go on.

        Raises:
          FloatingPointError: a part diverged, and there is no `row`.
        """
        say, waited_for = terminal.ConsoleLine().say, 0
        failed: set[str] = set()
        if done is None:
            self._about[PLANNED] = len(planned)
            done = self.has_results
        while True:
            others = 0
            for number, part in enumerate(planned, start=1):
                if done(part) or part.name in failed:
                    continue
                if not waited_for:
                    say(f"{noun} {number} of {len(planned)}: {part.name}")
                try:
                    if (signal := work(part)) is not None:
                        return signal
                except lock.TakenError as error:
                    if not waited_for:
                        say(f"left to another process: {error}")
                    others += 1
                except FloatingPointError as error:
                    if row is None:
                        raise
                    self.add(part.name, **row(part), **{FAILED: str(error)})
                    failed.add(part.name)
                    say(f"{noun} {part.name} failed, the others go on: {error}")
            if not others or not wait:
                return None
            if others != waited_for:
                say(f"waiting for {others} {noun}(s) that other processes work on")
            waited_for = others
            time.sleep(_LOOK_S)
            self.reread()

    def has_results(self, part: Part) -> bool:
        """Tells whether a part is finished and did not fail."""
        return FAILED not in self.rows.get(part.name, {FAILED: ""})

    def add(self, name: str, **row: Any) -> None:
        """Records a finished part."""
        self._added[name] = {"name": name, **row}
        self._write()

    def close(self, **rest: Any) -> None:
        """Records what follows from all parts."""
        self._closed = rest
        self._write()

    def reread(self) -> None:
        """Takes over what other processes have added meanwhile."""
        self._take(distributed.run_on_primary(self._read))

    def _take(self, content: dict[str, Any] | None) -> None:
        """Takes over what the file says, but for what this process added."""
        content = content or {"points": []}
        known = {"points", PLANNED, *self._about}
        rest = {k: v for k, v in content.items() if k not in known}
        self.rows = {row["name"]: row for row in content["points"]} | self._added
        self.rest = rest if self._closed is None else self._closed

    def _read(self) -> Any:
        again = "move it away; the same command again reads what the runs recorded"
        return paths.read_json(self._path, again) if self._path.exists() else None

    def _write(self) -> None:
        self._take(distributed.run_on_primary(self._merge))

    def _merge(self) -> dict[str, Any]:
        """Writes what this process and others added; returns it."""
        with _alone(self._path):
            self._take(self._read())
            points = list(self.rows.values())
            content = {**self._about, "points": points, **self.rest}
            workdirs.write_json(self._path, content)
        return content


def check_config(
    workdir: pathlib.Path, config: dict[str, Any], *, free: tuple[str, ...]
) -> None:
    """Checks that the directory is this job's; other processes may work in it.

    Args:
      workdir: of the job.
      config: as it will be saved.
      free: patterns of keys that may differ from the saved config's.

    Raises:
      ValueError, OSError: as `workdir.open_run`.
    """
    for tries_left in reversed(range(_TRIES)):
        try:
            workdirs.open_run(workdir, config, free=free)
            workdirs.close_run(workdir)
            return
        except lock.TakenError:  # by one that has just begun
            if not tries_left:
                raise
            time.sleep(1)


def check_finite(results: dict[str, dict[str, Any]]) -> None:
    """Raises FloatingPointError if the last number of an evaluation is not finite.

    `results` are those of a run: title -> its `metric` and the `last` numbers.
    """
    for title, result in results.items():
        number = result["last"].get(result.get("metric", "top1"))
        if isinstance(number, float) and not math.isfinite(number):
            raise FloatingPointError(f"the last {title} is {number}")


@contextlib.contextmanager
def working_in(directory: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from the directory of a part.

    Raises:
      lock.TakenError: one of them is at work there.
    """
    paths.make_folder(directory)
    # Before anything is read: another process may be at it.
    distributed.run_on_primary(lambda: lock.take(directory))
    try:
        yield
    finally:
        workdirs.close_run(directory)


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
