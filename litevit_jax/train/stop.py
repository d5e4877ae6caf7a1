"""Signals that ask a run to stop: remembered, so that it can save first.

Of several processes any one may get the signal; all stop after the same step.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from jax.sharding import Mesh

from litevit_jax import distributed, sharding


class Stop:
    """The first SIGTERM or SIGINT, if one came; here, or at another process."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._vote: Any = None

    def agreed(self, mesh: Mesh) -> bool:
        """Whether all processes stop now; each calls it before every step.

        Several processes ask one another on the devices, and read the answer of the
        step before: so nobody waits, and all of them read the same.
        """
        if distributed.count() == 1:
            return self.signal is not None
        last, self._vote = self._vote, sharding.most(mesh, self.signal or 0)
        if last is None or not int(last):
            return False
        self.signal = int(last)
        return True

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
