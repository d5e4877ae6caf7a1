"""Output for people: lines of text, and a sign of life at least once a minute.

A terminal gets one line that is redrawn; elsewhere every text is a line of its own. A
thread shows the last activity that `distributed.heartbeat` announced.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

from litevit_jax import distributed, preemption

QUIET_S = 60.0  # at most, between two lines
_EVERY_S = 1.0  # how often the thread looks, and redraws a terminal's line

_lock = threading.RLock()
_spoke = time.monotonic()  # when a line of any kind was shown last
_CLEAR = "\x1b[K"  # from here to the end of the terminal's line


class ConsoleLine:
    """One line that is redrawn on a terminal, plain lines elsewhere.

    Of several processes only the first one prints.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self.live = self._stream.isatty()

    def show(self, text: str, *, keep: bool = False) -> None:
        """Shows `text` in place of the last line; `keep` leaves it standing."""
        global _spoke
        if not distributed.is_primary():
            return
        with _lock:
            _spoke = time.monotonic()
            if not self.live:
                text = f"{text}\n"
            elif keep:
                text = f"\r{_CLEAR}{text}\n"
            else:  # a longer one would wrap, and could not be redrawn
                width = shutil.get_terminal_size().columns - 1
                text = f"\r{_CLEAR}{text[:width]}"
            preemption.say(text, self._stream, end="")

    def say(self, text: str) -> None:
        """Prints `text` on lines of its own."""
        self.show(text, keep=True)

    def begin(self, text: str, *, quiet: bool = False, begun: bool = True) -> None:
        """Announces a slow activity; with `quiet` on a terminal alone.

        `begun`: see `distributed.heartbeat`.
        """
        distributed.heartbeat(text, grace=True, begun=begun)
        if self.live or not quiet:
            self.show(f"{text} ...")


@contextlib.contextmanager
def alive(line: ConsoleLine | None = None) -> Iterator[None]:
    """Shows the current activity inside the block whenever nothing else is printed."""
    line, stop = line or ConsoleLine(), threading.Event()
    thread = threading.Thread(
        target=_speak, args=(line, stop), name="alive", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _speak(line: ConsoleLine, stop: threading.Event) -> None:
    while not stop.wait(_EVERY_S):
        doing = distributed.doing()
        if doing is None:
            continue
        with _lock:
            spent = time.monotonic() - doing.since
            quiet = time.monotonic() - _spoke
            # A terminal counts the seconds of what takes longer than a moment.
            counts = line.live and min(quiet, spent / 2) >= _EVERY_S
            if counts or quiet >= QUIET_S - 2 * _EVERY_S:
                line.show(f"{doing.text}: {spent:.0f} s so far")


def counted(number: int, noun: str) -> str:
    """Returns `number` with its noun: '1 step', '1,200 steps'."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
