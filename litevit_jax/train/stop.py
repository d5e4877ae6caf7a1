"""Signals that ask a run to stop: remembered, so that it can save first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Stop:
    """The first SIGTERM or SIGINT, if one came."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def _note(self, number: int, _: Any) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C does not wait
        self.signal = number

    @contextlib.contextmanager
    def listening(self) -> Iterator[Stop]:
        """Handles both signals inside the block (main thread only)."""
        numbers = (signal.SIGTERM, signal.SIGINT)
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        old = [signal.signal(n, self._note) for n in numbers]
        try:
            yield self
        finally:
            for number, handler in zip(numbers, old, strict=True):
                signal.signal(number, handler)
