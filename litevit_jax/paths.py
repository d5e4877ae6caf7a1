"""Files here and in stores such as gs://, through one kind of path.

A local path is a pathlib.Path. One in a store is an epath.Path, which reads and
writes through fsspec (gs:// needs the package gcsfs) and never imports TensorFlow: the
package says so to epath as soon as it is imported.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import importlib.util
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

_NEEDS = {"gs": "gcsfs", "s3": "s3fs"}


def path(text: str | os.PathLike[str]) -> Any:
    """Returns the path that a flag names.

    Raises:
      ValueError: the store is unknown, or the package that reaches it is missing.
    """
    text = os.fspath(text)
    store, separator, _ = text.partition("://")
    if not separator:
        return pathlib.Path(text)
    if store not in _NEEDS:
        raise ValueError(
            f"{text}: stores of kind {store!r} are not known; expected a local path, "
            + " or ".join(f"{name}://..." for name in _NEEDS)
        )
    _check_package(text, store)
    from etils import epath  # slow to import

    return epath.Path(text)


def _check_package(text: str, store: str) -> None:
    from fsspec.registry import registry

    if store in registry:  # you registered a file system of your own
        return
    if importlib.util.find_spec(_NEEDS[store]) is None:
        raise ValueError(
            f"{text}: {store}:// needs a package that is not installed: pip install "
            f"{_NEEDS[store]}"
        )


def is_local(path: str | os.PathLike[str]) -> bool:
    """Whether `path` lies in a file system of this host (which others may share)."""
    return "://" not in os.fspath(path)


def absolute(path: Any) -> Any:
    """Returns `path` from the root on; a path in a store is absolute already."""
    return path.absolute() if is_local(path) else path


def make_folder(folder: Any) -> None:
    """Makes a folder and those above it; a store needs none."""
    if is_local(folder):
        folder.mkdir(parents=True, exist_ok=True)


def replace_text(path: Any, text: str) -> None:
    """Writes a file so that a reader sees the old one or the new one, whole."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Any, data: bytes) -> None:
    """Writes a file as `replace_text` does."""
    make_folder(path.parent)
    if not is_local(path):
        path.write_bytes(data)  # an object appears when it is complete
        return
    temporary = path.with_name(f".{path.name}.tmp")  # hidden, should a kill leave it
    with named(path):
        temporary.write_bytes(data)
        rename(temporary, path)


def rename(written: pathlib.Path, target: pathlib.Path) -> None:
    """Gives a local file or folder, just written, its final name.

    The content reaches the disk first, the name after it: if the machine stops at any
    moment, `target` is the old one or the new one, whole.
    """
    files = (p for p in written.rglob("*")) if written.is_dir() else ()
    for path in (*files, written):
        _sync(path)
    written.replace(target)
    _sync(target.parent)


def _sync(path: pathlib.Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        # Some file systems cannot sync.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(number)


def read_json(path: Any, otherwise: str) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
      ValueError: it is damaged; the message names the file and ends with `otherwise`,
        what to do about it.
    """
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError(f"expected an object, got {json.dumps(content)[:40]}")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); a crash or a full disk may have cut it "
            f"short: {otherwise}"
        ) from None
    return content


# Errors of a disk that may come in the middle of a run, whatever is written.
DISK_ERRORS = (errno.EACCES, errno.EDQUOT, errno.EIO, errno.ENOSPC, errno.EROFS)


@contextlib.contextmanager
def named(path: Any) -> Iterator[None]:
    """Adds the file's name to disk errors: those of write() lack it."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = os.fspath(path)
        raise


def reason(error: BaseException) -> str:
    """Returns why a write failed, in one line: the system's message if there is one."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for one in chain:
        if isinstance(one, OSError) and one.strerror:
            return one.strerror
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


def append(path: Any, data: bytes) -> None:
    """Adds whole lines to a file; a line cut by an earlier kill is closed first.

    In a store the file is written anew: do it seldom.
    """
    if not is_local(path):
        old = path.read_bytes() if path.exists() else b""
        path.write_bytes(old + b"\n" * bool(old and old[-1:] != b"\n") + data)
        return
    with named(path), open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(data)


@functools.cache
def copies() -> pathlib.Path:
    """Makes a directory that is removed when the program ends."""
    directory = tempfile.mkdtemp(prefix="litevit_jax-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return pathlib.Path(directory)


class Mirror:
    """A local folder whose files are copied into a store now and then."""

    def __init__(self, target: Any) -> None:
        self._target = target
        self.folder = pathlib.Path(tempfile.mkdtemp(dir=copies()))
        self._copied: dict[pathlib.Path, int] = {}

    def copy(self) -> None:
        """Copies the files that grew."""
        for file in sorted(p for p in self.folder.rglob("*") if p.is_file()):
            data = file.read_bytes()
            if self._copied.get(file) != len(data):
                self._target.joinpath(file.relative_to(self.folder)).write_bytes(data)
                self._copied[file] = len(data)


def append_line(path: pathlib.Path, row: dict[str, Any]) -> None:
    """Adds one JSON line; a line cut by an earlier kill is closed first."""
    append(path, json.dumps(row).encode() + b"\n")
