"""Signals that ask the program to stop: SIGTERM, SIGHUP and Ctrl-C.

Outside training a signal raises `Stopped` in the main thread at once. Training reacts
at the end of a step, so that it can save first; while it waits for data or evaluates,
it reacts at once. A thread answers the signal, and ends the program where the main
thread cannot: in the compiler, or in a read that never returns.

Any one of several processes may get the signal; all stop after the same step.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from jax.sharding import Mesh

PREEMPTED = 42  # SIGTERM, SIGHUP: saved, start the same command again to go on
INTERRUPTED = 130  # Ctrl-C: saved as well

_NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PATIENCE_S = 5.0  # until the main thread counts as unable to stop by itself
_AGAIN_S = 2.0  # the same after a second Ctrl-C
_GRACE_S = 10.0  # of several processes, for data that one of them waits for
_LAST_S = 120.0  # for what is being written at the end
_LOOK_S = 0.1
_IMPORT = "<frozen importlib._bootstrap>"


class Stopped(KeyboardInterrupt):
    """A signal asked the program to stop."""

    def __init__(self, number: int) -> None:
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        super().__init__(f"stopped by {name}")
        self.signal = number


def exit_code(number: int) -> int:
    """Returns the program's exit code after signal `number`."""
    return INTERRUPTED if number == signal.SIGINT else PREEMPTED


class Preemption:
    """The first request to stop, from a signal here or in another process.

    Attributes:
      signal: number of the signal, or None.
      urgent: whether Ctrl-C came again: nothing more is saved.
      unsaved: whether training has made a step that is not saved.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.urgent = False
        self._owner = False  # whether this may end the program
        self.unsaved = False
        self._training = False
        self._last: Callable[[], Any] | None = None  # before the program is ended
        self._block, self._blocks = 0, 0  # which `at_once` this is inside of; 0: none
        self._overdue = self._agreed = False
        self._vote: Any = None
        self._heard_s: float | None = None  # when the first signal was heard
        self._left_s: float | None = None  # since when the program ends by itself
        self._code: int | None = None  # with which it does
        self._put_off = False  # whether `Stopped` is due after an import
        self._raised = False  # whether it was raised outside training

    def requested(self, mesh: Mesh) -> bool:
        """Whether all processes stop now; each calls it before every step.

        Several processes ask one another on the devices, and read the answer of the
        step before: so nobody waits, and all of them read the same.
        """
        if _alone():
            return self.signal is not None
        from litevit_jax import sharding

        last, self._vote = self._vote, sharding.most(mesh, self.signal or 0)
        if last is None or not int(last):
            return False
        self.signal, self._agreed = int(last), True
        return True

    def vote(self, mesh: Mesh) -> None:
        """Raises `Stopped` in all training processes if one got a signal.

        All of them call it.
        """
        if self._training and not _alone() and self.requested(mesh):
            assert self.signal is not None
            raise Stopped(self.signal)

    def caught(self, error: Stopped) -> None:
        """Lets training go on to save after `error`.

        Raises:
          Stopped: the other processes do not stop here: one cannot save alone.
        """
        self._block = 0
        if not _alone() and not self._agreed:
            raise error

    @contextlib.contextmanager
    def training(self, last: Callable[[], Any]) -> Iterator[None]:
        """Records signals inside the block; they raise inside `at_once` alone.

        `last` is called in another thread before that thread ends the program.
        """
        self.unsaved, self._training, self._last = False, True, last
        try:
            yield
        finally:
            self.unsaved, self._training, self._last = False, False, None

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Lets a signal raise `Stopped` inside the block, an earlier one as well.

        One of several processes raises only after a long wait inside the block.
        """
        self._blocks += 1
        old, self._block = self._block, self._blocks
        try:
            self._raise_if_asked()
            yield
        finally:
            self._block = old

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._note(number)
        # An exception in the middle of an import breaks extension modules. The thread
        # that listens sends the signal again.
        self._put_off = self._owner and _importing(frame)
        if not self._put_off:
            self._raise_if_asked()

    def _note(self, number: int) -> None:
        if self.signal is None:
            self.signal = number

    def _raise_if_asked(self) -> None:
        over = self._left_s is not None or (self._raised and not self._training)
        if self.signal is None or over:
            return
        now = _alone() or self._overdue or self.urgent
        if not self._training or (self._block and now):
            self._block, self._overdue = 0, False
            self._raised = self._owner and not self._training
            raise Stopped(self.signal)

    def _hear(self, number: int) -> None:
        """Answers a signal; called by the thread that listens."""
        again = number == signal.SIGINT and self._heard_s is not None
        if again and self.urgent and self._owner:
            os._exit(exit_code(self.signal or number))  # waits for nothing
        if again:
            self.urgent, self._heard_s = True, time.monotonic()
            say("stopping without saving")
        elif self._heard_s is None:
            self._note(number)
            if number == signal.SIGHUP:
                _leave_terminal()
            what = "stopping after this step" if self._training else "stopping"
            again = number == signal.SIGINT and self._training
            say(what + "; again to stop without saving" * again)
            self._heard_s = time.monotonic()
            if self._owner:
                threading.Thread(target=self._oversee, daemon=True).start()

    def _oversee(self) -> None:
        """Ends the program after a signal if the main thread does not."""
        block, since = 0, 0.0
        while True:
            time.sleep(_LOOK_S)
            now = time.monotonic()
            assert self._heard_s is not None
            waited = now - self._heard_s
            patience = _PATIENCE_S if _alone() else _GRACE_S
            if block != self._block:
                block, since = self._block, now
            elif block and now - since > patience:  # a library may have caught it
                since, self._overdue = now, True
                _interrupt_main()
            elif self._put_off:
                _interrupt_main()
            if self._left_s is not None:
                stuck = now - self._left_s > _PATIENCE_S  # a thread that reads for ever
            else:
                stuck = (self.urgent and waited > _AGAIN_S) or (
                    not self.unsaved and waited > _PATIENCE_S
                )
            if stuck:
                self._end()

    def _end(self) -> None:
        """Ends the program from another thread; what is being written is finished."""
        assert self.signal is not None
        if self._last is not None:
            last = threading.Thread(target=self._last, daemon=True)
            last.start()
            last.join(_LAST_S)
        error, code = Stopped(self.signal), exit_code(self.signal)
        if self._left_s is None:
            say(str(error))
            if not _alone():
                from litevit_jax import distributed

                distributed.shutdown(code, error)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(code if self._code is None else self._code)

    @contextlib.contextmanager
    def handlers(self) -> Iterator[Preemption]:
        """Handles the signals inside the block (main thread only)."""
        main = threading.current_thread() is threading.main_thread()
        if signal.getsignal(signal.SIGTERM) == self._handle or not main:
            yield self
            return
        self.__init__()
        old, wakeup, write = self._begin()
        try:
            yield self
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(wakeup)
            os.close(write)  # which ends the thread

    def program(self, main: Callable[[], Any]) -> None:
        """Runs `main`, the whole program; a signal ends it with its exit code."""
        self._owner = True
        # The last thing done: freeing what a signal left half built can crash Python.
        atexit.register(lambda: self._code is not None and self.signal and self._end())
        try:
            try:
                self._begin()
                main()
            finally:
                self._left_s = time.monotonic()  # from here on nothing is raised
                for number in _NUMBERS:
                    # Python puts default handlers back as it ends: these would kill it.
                    signal.signal(number, signal.SIG_IGN)
        except Stopped as error:
            say(str(error))
            self._code = exit_code(error.signal)
            raise SystemExit(self._code) from None
        except SystemExit as error:
            self._code = error.code if isinstance(error.code, int) else None
            raise

    def _begin(self) -> tuple[dict[int, Any], int, int]:
        """Installs handlers; returns (old handlers, old wake-up file, new one)."""
        old: dict[int, Any] = {n: signal.getsignal(n) for n in _NUMBERS}
        if old[signal.SIGHUP] == signal.SIG_IGN:  # nohup: it outlives the terminal
            del old[signal.SIGHUP]
        read, write = os.pipe()
        os.set_blocking(write, False)
        wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(
            target=self._listen, args=(read,), name="signals", daemon=True
        ).start()
        for number in old:
            signal.signal(number, self._handle)
        return old, wakeup, write

    def _listen(self, read: int) -> None:
        """Hears a signal also while the main thread computes."""
        with open(read, "rb", buffering=0) as pipe:
            while data := pipe.read(64):
                for number in data:
                    if number in _NUMBERS:
                        self._hear(number)


def _importing(frame: FrameType | None) -> bool:
    """Whether `frame` belongs to an import."""
    while frame is not None and frame.f_code.co_filename != _IMPORT:
        frame = frame.f_back
    return frame is not None


def _interrupt_main() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def _alone() -> bool:
    """Whether no other processes were joined.

    It imports nothing, since a signal may come in the middle of an import.
    """
    joined = sys.modules.get("litevit_jax.distributed")
    return not hasattr(joined, "alone") or joined.alone()


def say(text: str, stream: TextIO | None = None, *, end: str = "\n") -> None:
    """Prints `text`; mutes a stream without reader: Ctrl-C ends `tee` as well."""
    stream = sys.stderr if stream is None else stream
    try:
        print(text + end, end="", file=stream, flush=True)
    except OSError:
        mute(stream)


def mute(stream: TextIO) -> None:
    """Redirects `stream` to the null device."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def _leave_terminal() -> None:
    """Mutes the streams of a terminal that is gone."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            device = stat.S_ISCHR(os.fstat(stream.fileno()).st_mode)
            if device and not stream.isatty():
                mute(stream)


_preemption = Preemption()
handlers, program = _preemption.handlers, _preemption.program
at_once, vote = _preemption.at_once, _preemption.vote
