"""Writers of a run's numbers: metrics.jsonl, and services that show them.

metrics.jsonl is always written: reports and resumed runs read it, and without it a run
ends. The others (`services`) work aside, in threads of their own: the run does not
wait for a network, and one that fails is named once and left out.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import pathlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from absl import logging

from litevit_jax import distributed, paths
from litevit_jax.train import services
from litevit_jax.train import workdir as workdirs

RECORD = "writers.json"  # service -> the names of this run there
_CLOSING_S = 60.0  # seconds that a service has for its last rows
_MOST_CALLS = 10_000  # that wait for a service


class Service(Protocol):
    """Shows a run's numbers elsewhere, as the classes of `services` do."""

    def write(self, step: int, numbers: dict[str, float]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class Aside:
    """Calls a service in a thread; after its first error no more.

    Args:
      name: of the service.
      service: gets rows in their order, from that thread alone.
    """

    def __init__(self, name: str, service: Service) -> None:
        self._name, self._service = name, service
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(_MOST_CALLS)
        self._failed = False
        self._thread = threading.Thread(target=self._work, daemon=True, name=name)
        self._thread.start()

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Hands on the numbers of a row."""
        self._put(functools.partial(self._service.write, step, numbers))

    def flush(self) -> None:
        """Asks for all rows so far to be written."""
        self._put(self._service.flush)

    def close(self) -> None:
        """Waits for the last rows, but not for ever."""
        self._put(self._service.close)
        self._put(None)
        self._thread.join(_CLOSING_S)
        if self._thread.is_alive():
            self._fail(f"is not done with its last rows after {_CLOSING_S:.0f} s")

    def _work(self) -> None:
        try:
            while (call := self._calls.get()) is not None:
                call()
        except Exception as error:  # libraries and networks may raise any
            self._fail(f"failed ({_one_line(error)})")
            with contextlib.suppress(Exception):
                self._service.close()

    def _put(self, call: Callable[[], None] | None) -> None:
        if self._failed:
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._fail("does not keep up with the run")

    def _fail(self, what: str) -> None:
        if not self._failed:
            self._failed = True
            logging.warning(
                "log.writers: %s %s; the run goes on without it, and metrics.jsonl has "
                "every row", self._name, what,
            )  # fmt: skip


class Writer:
    """Appends rows to metrics.jsonl, and hands their numbers to services.

    Object stores cannot append: the file is rewritten there, every half minute.
    """

    _STORE_EVERY_S = 30.0

    def __init__(self, workdir: pathlib.Path, others: Sequence[Aside] = ()) -> None:
        self._path = workdir / "metrics.jsonl"
        self._local = paths.is_local(workdir)
        self._rows: list[dict[str, Any]] = []  # not yet in the store
        self._written = time.monotonic()
        self._others = tuple(others)

    def write(self, step: int, row: dict[str, Any]) -> None:
        """Appends one row at `step`; its numbers also go to the services.

        Raises:
          OSError: it could not be written to metrics.jsonl.
        """
        # JSON has no NaN: a value that is not finite is written as its name.
        safe = {k: _json_value(v) for k, v in row.items()}
        if self._local:
            paths.append_line(self._path, {"step": step, **safe})
        else:
            self._rows.append({"step": step, **safe})
            if time.monotonic() - self._written > self._STORE_EVERY_S:
                self.flush()
        numbers = {k: v for k, v in row.items() if k != "time" and _is_number(v)}
        if numbers:
            for other in self._others:
                other.write(step, numbers)

    def flush(self) -> None:
        """Writes the rows that an object store or a service lacks."""
        if self._rows:
            lines = (json.dumps(row) + "\n" for row in self._rows)
            paths.append(self._path, "".join(lines).encode())
            self._rows.clear()
        for other in self._others:
            other.flush()
        self._written = time.monotonic()

    def close(self) -> None:
        """Writes all that is left and closes the services."""
        self.flush()
        for other in self._others:
            other.close()


def _json_value(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def open_writer(workdir: pathlib.Path, config: dict[str, Any]) -> Writer:
    """Opens the writers of a run; on other processes than the first there are none.

    Args:
      workdir: of the run, which records its names at the services: a resumed run goes
        on in the same one there.
      config: of the run, as it is saved.

    Raises:
      ValueError: a service did not start, and nothing is logged yet. Later it would be
        left out.
    """
    opened: list[Aside] = []

    def start() -> None:
        begun = (workdir / "metrics.jsonl").exists()
        for name in services.asked(config["log"]["writers"]):
            try:
                service, names = services.start(
                    name, workdir, config, _recorded(workdir).get(name)
                )
                if names is not None:
                    record = {**_recorded(workdir), name: names}
                    workdirs.write_json(workdir / RECORD, record)
            except Exception as error:  # libraries and networks may raise any
                text = f"log.writers: {name} did not start ({_one_line(error)})"
                if not begun:
                    raise ValueError(f"{text}; {services.advice(name)}") from error
                logging.warning("%s; the run goes on without it", text)
            else:
                opened.append(Aside(name, service))

    try:
        distributed.run_on_primary(start)
    except BaseException:
        for other in opened:
            other.close()
        workdirs.close_run(workdir)  # there will be no run
        raise
    return Writer(workdir, opened)


def _recorded(workdir: pathlib.Path) -> dict[str, Any]:
    """Reads service -> names of the run there; {} if there are none yet."""
    path = workdir / RECORD
    again = "move it away; the services then show what follows as another run"
    return paths.read_json(path, again) if path.exists() else {}
