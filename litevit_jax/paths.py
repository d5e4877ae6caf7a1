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
    """The path that a flag names.

    Raises:
      ValueError: a store that cannot be reached: unknown, or its package is missing.
    """
    text = os.fspath(text)
    store, found, _ = text.partition("://")
    if not found:
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

    if store in registry:  # somebody registered a file system of theirs
        return
    if importlib.util.find_spec(_NEEDS[store]) is None:
        raise ValueError(
            f"{text}: {store}:// needs a package that is not installed: pip install "
            f"{_NEEDS[store]}"
        )


def is_local(place: str | os.PathLike[str]) -> bool:
    """Whether `place` lies in a file system of this host (which others may share)."""
    return "://" not in os.fspath(place)


def store(text: str) -> tuple[Any, str]:
    """fsspec's file system of a path in a store, and the path as it names it."""
    import fsspec

    system, inside = fsspec.core.url_to_fs(text)
    return system, inside.rstrip("/")


def absolute(place: Any) -> Any:
    """`place` from the root on; in a store it is already."""
    return place.absolute() if is_local(place) else place


def make_folder(place: Any) -> None:
    """Makes a folder and those above it; a store needs none."""
    if is_local(place):
        place.mkdir(parents=True, exist_ok=True)


def replace_text(place: Any, text: str) -> None:
    """Writes a file so that a reader sees the old one or the new one, whole."""
    make_folder(place.parent)
    if not is_local(place):
        place.write_text(text)  # an object appears when it is complete
        return
    temporary = place.with_name(f".{place.name}.tmp")  # hidden, should a kill leave it
    with named(place):
        temporary.write_text(text)
        rename(temporary, place)


def rename(written: pathlib.Path, target: pathlib.Path) -> None:
    """Gives a local file or folder, just written, its final name.

    What is in it reaches the disk first, and the name after it: if the machine stops at
    any moment, `target` is the old one or the new one, whole.
    """
    files = (p for p in written.rglob("*")) if written.is_dir() else ()
    for path in (*files, written):
        _sync(path)
    written.replace(target)
    _sync(target.parent)


def _sync(place: pathlib.Path) -> None:
    number = os.open(place, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of some file systems
            raise
    finally:
        os.close(number)


def read_json(place: Any, otherwise: str) -> dict[str, Any]:
    """Reads a JSON file that holds an object, as all those of a run do.

    Raises:
      ValueError: it is damaged; the message names it and says what to do `otherwise`.
    """
    try:
        content = json.loads(place.read_text())
        if not isinstance(content, dict):
            raise ValueError(f"expected an object, got {json.dumps(content)[:40]}")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{place} is damaged ({error}); a crash or a full disk may have cut it "
            f"short: {otherwise}"
        ) from None
    return content


# What a disk may answer in the middle of a run, wherever it is written.
DISK_ERRORS = (errno.EACCES, errno.EDQUOT, errno.EIO, errno.ENOSPC, errno.EROFS)


@contextlib.contextmanager
def named(place: Any) -> Iterator[None]:
    """Gives an error of the disk the name of the file, which writing leaves out."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = os.fspath(place)
        raise


def reason(error: BaseException) -> str:
    """Why a write failed, in a line: the system's word, if it is among the causes."""
    chain: list[BaseException] = []
    there: BaseException | None = error
    while there is not None and there not in chain:
        chain.append(there)
        there = there.__cause__ or there.__context__
    for one in chain:
        if isinstance(one, OSError) and one.strerror:
            return one.strerror
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


def append(place: Any, data: bytes) -> None:
    """Adds whole lines to a file; a line cut by an earlier kill is closed first.

    In a store the file is written anew: do it seldom.
    """
    if not is_local(place):
        old = place.read_bytes() if place.exists() else b""
        place.write_bytes(old + b"\n" * bool(old and old[-1:] != b"\n") + data)
        return
    with named(place), open(place, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(data)


@functools.cache
def _copies() -> pathlib.Path:
    """A directory that is removed when the program ends."""
    place = tempfile.mkdtemp(prefix="litevit_jax-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return pathlib.Path(place)


@functools.cache
def local_file(text: str) -> pathlib.Path:
    """The file `text` itself, or a copy of it on this host if it is in a store.

    The copy, made once, has its name and lasts as long as the program.

    Raises:
      FileNotFoundError: no such file.
      OSError: it cannot be read, or there is no room for it.
    """
    place = path(text)
    if is_local(place):
        return place
    if not place.exists():
        raise FileNotFoundError(f"{text} does not exist")
    folder = _copies() / str(sum(1 for _ in _copies().iterdir()))
    folder.mkdir()
    with place.open("rb") as source, (folder / place.name).open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    return folder / place.name


class Mirror:
    """A local folder whose files are copied into a store now and then."""

    def __init__(self, place: Any) -> None:
        self._place = place
        self.folder = pathlib.Path(tempfile.mkdtemp(dir=_copies()))
        self._copied: dict[pathlib.Path, int] = {}

    def copy(self) -> None:
        """Copies the files that grew."""
        for file in sorted(p for p in self.folder.rglob("*") if p.is_file()):
            data = file.read_bytes()
            if self._copied.get(file) != len(data):
                self._place.joinpath(file.relative_to(self.folder)).write_bytes(data)
                self._copied[file] = len(data)


def append_line(path: pathlib.Path, row: dict[str, Any]) -> None:
    """Adds one JSON line; a line cut by an earlier kill is closed first."""
    append(path, json.dumps(row).encode() + b"\n")
