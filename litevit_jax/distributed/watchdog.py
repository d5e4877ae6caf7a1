"""Threads that end this process when the job cannot go on.

Every second each process publishes its status and reads those of the others. The
process ends, with the stacks of all its threads, if another one has failed or fallen
silent, or if it makes no progress itself. No clock of another host is read: only
changes count. Time for which this process was suspended does not count.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

EXIT_STUCK = 43  # a process is gone or makes no progress: run the same command again

_EVERY_S = 1.0
# Others that failed at the same time report it themselves within a moment.
_PATIENCE_S = 3.0
_LAST_S = 1.5  # from the last status of a process to its end
_ANSWER_S = 3.0  # for process 0 to answer at the end
_NOTHING = {"done": False, "doing": "starting"}  # before a process's first status
ALIVE, FAILED = "litevit_jax/alive/", "litevit_jax/failed/"


@dataclasses.dataclass(frozen=True)
class Limits:
    """Seconds until a process counts as stuck or gone.

    Attributes:
      stuck_s: for one step or its data; ten times the longest step if that is more.
      grace_s: for slow activities: compiling, evaluating, saving, listing data.
      peer_s: without a new status of another process.
    """

    stuck_s: float = 600.0
    grace_s: float = 3600.0
    peer_s: float = 60.0

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value <= 0:
                raise ValueError(f"watchdog.{name}={value}; expected more than 0")


class Watch:
    """Watches this process and the others; `client` stores the status of all."""

    def __init__(
        self, client: Any, hosts: list[str], index: int, limits: Limits
    ) -> None:
        self._client, self._hosts, self._index = client, hosts, index
        self._limits = limits
        self._heartbeats, self._doing, self._grace = 0, "starting", True
        self._since, self._longest = 0.0, 0.0
        self._now = 0.0  # seconds for which this process has run, without suspension
        self._heard: dict[int, tuple[Any, float]] = {}
        self._failed: list[tuple[str, str]] = []
        self._trouble = ""  # why the last exchange failed
        self._done = False
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for target, name in ((self._run, "watch"), (self._talk, "messages"))
        ]

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def heartbeat(self, doing: str, *, grace: bool = False) -> None:
        """Announces what this process does from now on; `grace` if it may take long."""
        now = self._now
        if not self._grace:
            self._longest = max(self._longest, now - self._since)
        self._since, self._doing, self._grace = now, doing, grace
        self._heartbeats += 1

    def finish(self) -> None:
        """Announces a regular end; the others go on watching one another."""
        self._done = True
        _within(_ANSWER_S, self._publish)

    def stop(self) -> None:
        """Stops the threads."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=2 * _EVERY_S)

    def wait_for_verdict(self) -> None:
        """Waits until the watch must have noticed another process that is gone."""
        time.sleep(self._limits.peer_s + 5 * _EVERY_S)

    def fail(self, code: int, text: str, wait_s: float = 4 * _PATIENCE_S) -> None:
        """Tells the others that this process ends with an error; waits for their end.

        It waits `wait_s` at most: others notice that this process is gone anyway.
        """
        self._done = True
        _within(_ANSWER_S, lambda: self._tell(code, text[:2000]))
        self._linger(wait_s)

    def _tell(self, code: int, text: str) -> None:
        row = json.dumps({"code": code, "text": text})
        self._client.key_value_set(f"{FAILED}{self._index}", row, allow_overwrite=True)
        self._publish()

    def _run(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(_EVERY_S):
            now = time.monotonic()
            self._now += min(now - last, 2 * _EVERY_S)
            last = now
            if not self._done:
                self._judge()

    def _talk(self) -> None:
        while not self._stop.wait(_EVERY_S):
            try:
                self._exchange()
            except Exception as error:
                self._trouble = f": {error}"

    def _exchange(self) -> None:
        """Publishes this process's status and reads those of the others."""
        self._publish()
        self._heard = self._read()
        self._failed = self._client.key_value_dir_get(FAILED)
        self._trouble = ""

    def _publish(self) -> None:
        status = {
            "beats": self._heartbeats,
            "doing": self._doing,
            "for": round(self._now - self._since),
            "tick": self._now,
            "done": self._done,
        }
        key = f"{ALIVE}{self._index}"
        self._client.key_value_set(key, json.dumps(status), allow_overwrite=True)

    def _read(self) -> dict[int, tuple[Any, float]]:
        """Returns process -> (its last status, when it changed)."""
        heard = dict(self._heard)
        for key, text in self._client.key_value_dir_get(ALIVE):
            index, status = int(key.rpartition("/")[2]), json.loads(text)
            old = heard.get(index)
            if old is None or old[0] != status:
                heard[index] = status, self._now
        return heard

    def _judge(self) -> None:
        heard, failed = self._heard, self._failed
        for key, text in failed:
            index, row = int(key.rpartition("/")[2]), json.loads(text)
            if index != self._index:
                self._follow(index, row)
        # Without process 0 nobody is heard of: check it first, so that it is named.
        for index in range(len(self._hosts)):
            status, when = heard.get(index, (_NOTHING, 0.0))
            silent = self._now - when
            if index == self._index or status["done"] or silent <= self._limits.peer_s:
                continue
            self._end(
                f"{self._name(index)} was not heard of for {silent:.0f} s: it, or its "
                f"host, is gone or suspended; its last activity was: {status['doing']}"
                f"{self._trouble}"
            )
        spent, limit = self._now - self._since, self._limit()
        if spent > limit:
            name = "grace_s" if self._grace else "stuck_s"
            self._end(
                f"{self._name(self._index)} did not get on for {spent:.0f} s with: "
                f"{self._doing} (--config.watchdog.{name}=... waits longer). "
                f"{self._others(heard)}"
            )

    def _limit(self) -> float:
        if self._grace:
            return self._limits.grace_s
        return max(self._limits.stuck_s, 10 * self._longest)

    def _name(self, index: int) -> str:
        return f"process {index} ({self._hosts[index]})"

    def _others(self, heard: dict[int, tuple[Any, float]]) -> str:
        rows = (
            f"{self._name(i)}: {status['doing']} for {status['for']} s"
            for i, (status, _) in sorted(heard.items())
            if i != self._index
        )
        return "The others: " + "; ".join(rows)

    def _follow(self, index: int, row: dict[str, Any]) -> None:
        """Ends this process after another one failed, unless it fails by itself."""
        until = time.monotonic() + _PATIENCE_S
        while time.monotonic() < until:
            if self._done or self._stop.wait(0.1):
                return
        self._say(f"error: {self._name(index)} ended: {row['text']}")
        self._quit(row["code"], stacks=row["code"] == EXIT_STUCK)

    def _end(self, text: str) -> None:
        self._say(f"error: {text}")
        if not _within(_ANSWER_S, lambda: self._tell(EXIT_STUCK, text)):
            self._say("(the others could not be told: process 0 does not answer)")
        self._quit(EXIT_STUCK, stacks=True)

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def _quit(self, code: int, *, stacks: bool) -> None:
        if stacks:
            faulthandler.dump_traceback(file=2, all_threads=True)
        self._done = True
        try:
            _within(_ANSWER_S, self._publish)
            if self._index == 0:
                self._linger(_PATIENCE_S + 4 * _EVERY_S)
        finally:
            sys.stdout.flush()
            os._exit(code)

    def _linger(self, wait_s: float) -> None:
        """Waits until the others have ended too, `wait_s` at most.

        Process 0 stores every status, and JAX aborts those that outlive it: it ends
        last.
        """
        others = set(range(len(self._hosts))) - {self._index}
        until = time.monotonic() + wait_s
        while time.monotonic() < until:
            heard: dict[int, tuple[Any, float]] = {}
            if not _within(_ANSWER_S, lambda s=heard: s.update(self._read())):
                break
            if others <= {i for i, (row, _) in heard.items() if row["done"]}:
                break
            time.sleep(0.1)
        if self._index == 0 and wait_s:
            time.sleep(_LAST_S)


def _within(seconds: float, call: Callable[[], Any]) -> bool:
    """Whether `call` returns in time, without an error; it may go on for ever."""
    done = threading.Event()

    def run() -> None:
        with contextlib.suppress(Exception):
            call()
            done.set()

    threading.Thread(target=run, daemon=True).start()
    return done.wait(seconds)
