"""Exit codes, and which of them an error ends the program with.

A mistake in the command, its data or its config ends with 2, whatever the exception:
the same command would fail again, so schedulers must not retry it. A machine's failure
(a full disk, a lost network, a killed worker) ends with 1, and so does a bug. Two facts
tell them apart: whether work had begun when the error came, and whether our code
raised it on purpose.
"""

from __future__ import annotations

import dis
import errno
import os
import pathlib
import sys
import traceback
from types import TracebackType

from litevit_jax import plugins

OK, FAILED, USAGE = 0, 1, 2
# `preemption` has the codes after a signal (42, 130), `distributed.watchdog` that of a
# job whose process is gone or stuck (43).

# Errors of disks and networks, whatever they are asked.
_MACHINE = (
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EDQUOT,
    errno.EHOSTUNREACH,
    errno.EIO,
    errno.EMFILE,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOSPC,
    errno.ESTALE,
    errno.ETIMEDOUT,
)
# Errors of a path that cannot be used; in the middle of a run a disk has them too.
_PATH = (
    errno.EACCES,
    errno.EEXIST,
    errno.EINVAL,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENODEV,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ENXIO,
    errno.EPERM,
    errno.EROFS,
)
_PACKAGE = pathlib.Path(__file__).parent
_RECIPES = _PACKAGE.parent / "configs"


def report(error: Exception, *, begun: bool) -> int:
    """Prints what went wrong and returns the exit code.

    An error meant for the user is printed as a message, any other as a traceback, on
    standard error; LITEVIT_TRACEBACK=1 shows the traceback of both.

    Args:
      error: the exception that ended the job.
      begun: whether work had begun; False while the job is still being checked.
    """
    code, is_message = classify(error, begun=begun)
    if _out_of_memory(error) and "LITEVIT_TRACEBACK" not in os.environ:
        print(
            f"error: a device ran out of memory ({str(error).splitlines()[0][:200]}); "
            "compute fewer images at once with --config.microbatch=N (how many a "
            "device takes), or keep less of each with --config.remat=True",
            file=sys.stderr,
        )
    elif is_message and "LITEVIT_TRACEBACK" not in os.environ:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        if _lacks_field(error):
            name = str(text).strip("\"'")
            text = f"the config has no field {name!r}; see what configs/common.py sets"
        print(f"error: {text}", file=sys.stderr)
    else:
        traceback.print_exception(error)
    return code


def classify(error: Exception, *, begun: bool) -> tuple[int, bool]:
    """Returns (exit code, whether the error's text is all that a user needs)."""
    own, deliberate = _origin(error.__traceback__)
    if type(error).__module__.startswith("litevit_jax."):  # whoever raises it
        own = deliberate = True
    if _lacks_field(error) and not begun:
        return USAGE, True
    if isinstance(error, OSError):
        machine = _is_machine(error)
        known = error.errno in (*_MACHINE, *_PATH)
        # A file's name is enough to act on, whatever library raised it.
        is_message = own or (known and (machine or error.filename is not None))
        return (FAILED if machine or begun else USAGE), is_message
    if _out_of_memory(error):
        return USAGE, True  # the same command would run out of it again
    if isinstance(error, ValueError | KeyError):
        mistake = deliberate or (own and not begun)
        return (USAGE if mistake else FAILED), mistake
    if isinstance(error, ImportError | TypeError) and deliberate:
        return USAGE, True  # a package to be installed, an extension to be mended
    named = isinstance(error, RuntimeError | FloatingPointError)
    return FAILED, named and own


def _out_of_memory(error: BaseException) -> bool:
    """Whether XLA found no room on a device."""
    of_jax = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    return of_jax and "RESOURCE_EXHAUSTED" in str(error)[:200]


def _lacks_field(error: BaseException) -> bool:
    """Whether the error comes from a field that a config lacks."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    asked = "" if trace is None else trace.tb_frame.f_globals.get("__name__", "")
    of_a_field = isinstance(error, AttributeError | KeyError)
    return of_a_field and asked.startswith("ml_collections.config_dict")


def _origin(trace: TracebackType | None) -> tuple[bool, bool]:
    """Returns whether our code raised the error, and whether by a `raise`."""
    if trace is None:
        return False, False
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    file = pathlib.Path(code.co_filename)
    folders = (_PACKAGE, _RECIPES, *plugins.folders())
    own = any(file.is_relative_to(folder) for folder in folders)
    raised = dis.opname[code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"
    return own, own and raised


def _is_machine(error: BaseException | None) -> bool:
    """Whether a disk or a network caused the error, also where we reworded it."""
    while error is not None:
        if isinstance(error, ConnectionError | TimeoutError):
            return True
        if isinstance(error, OSError) and error.errno in _MACHINE:
            return True
        error = error.__cause__ or error.__context__
    return False
