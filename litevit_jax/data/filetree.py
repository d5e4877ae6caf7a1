"""The files below a folder, here or in a store such as gs://.

Names are relative to the folder, with '/' between their parts; '' is the folder
itself. Hidden entries are left out, and so is whatever is no regular file: reading
from a pipe or a device may never end.
"""

from __future__ import annotations

import abc
import errno
import functools
import heapq
import os
import pathlib
import stat
from collections.abc import Iterator, Sequence
from typing import Any

from litevit_jax import paths

# Folders that archivers and file managers leave beside the images.
_LEFTOVERS = frozenset(["$RECYCLE.BIN", "@eaDir", "__MACOSX", "lost+found"])

_FILE, _FOLDER = "file", "folder"
_LISTED = "link to a folder that is listed already"
_BARRED = "link into another split"
# Reasons to skip a name whose files are read by another name, or rightly not.
HARMLESS = (_LISTED, _BARRED)
_BROKEN = {
    errno.ENOENT: "broken link",
    errno.ENOTDIR: "broken link",
    errno.ELOOP: "link that refers to itself",
}
_SPECIAL = (
    (stat.S_ISDIR, "folder"),
    (stat.S_ISFIFO, "FIFO"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)


class NoRegularFile(OSError):
    """An error of a name that stands for a folder, a pipe or a device."""


class Tree(abc.ABC):
    """The files and folders below a folder."""

    def __init__(self, root: str) -> None:
        self._root = root

    def __str__(self) -> str:
        return self._root

    def path_of(self, name: str) -> str:
        """Returns the path of `name`, for messages."""
        return f"{self._root.rstrip('/')}/{name}" if name else self._root

    @abc.abstractmethod
    def folders(self, top: str) -> list[str]:
        """Returns the names of the folders directly in `top`, sorted."""

    @abc.abstractmethod
    def files(self, top: str) -> Iterator[str]:
        """Returns the names of the files directly in `top`."""

    @abc.abstractmethod
    def walk(
        self,
        top: str,
        skipped: dict[str, str] | None = None,
        barred: Sequence[str] = (),
    ) -> Iterator[str]:
        """Yields the names of all files below `top`, relative to it.

        Args:
          top: the folder to list.
          skipped: receives name -> reason for what is neither a file nor a folder,
            and for links to folders that are not followed.
          barred: folders of the tree that no link to a folder or a file may lead into.
        """

    @abc.abstractmethod
    def read(self, name: str) -> bytes:
        """Reads a whole file."""

    @abc.abstractmethod
    def size(self, name: str) -> int:
        """Returns the size of a file in bytes.

        Raises:
          OSError: no such file; a `NoRegularFile` says what it is instead.
        """


def open_tree(root: Any) -> Tree:
    """Returns the tree below a path of `paths.path`."""
    return LocalTree(str(root)) if paths.is_local(root) else StoredTree(str(root))


class LocalTree(Tree):
    """A tree in a local file system.

    Links are followed, and each real folder is listed once: by its own path if that
    is below `top`, else by the first link to it in the order of names.
    """

    def folders(self, top: str) -> list[str]:
        return sorted(e.name for e in self._entries(top) if _kind(e) == _FOLDER)

    def files(self, top: str) -> Iterator[str]:
        return (e.name for e in self._entries(top) if _kind(e) == _FILE)

    def walk(
        self,
        top: str,
        skipped: dict[str, str] | None = None,
        barred: Sequence[str] = (),
    ) -> Iterator[str]:
        skipped = {} if skipped is None else skipped
        closed = [os.path.realpath(self.path_of(name)) for name in barred]
        above = f"{top}/" if top else ""
        start = os.path.realpath(self.path_of(top))
        listed = {start, *_parents(start), *_parents(os.path.realpath(self._root))}
        pending = [("", start)]  # names so far, and the real path
        links: list[str] = []  # a heap, entered when no real folder is left
        while pending or links:
            if not pending:
                name = heapq.heappop(links)
                real = os.path.realpath(self.path_of(above + name))
                if real in listed or _inside(real, closed):
                    skipped[name] = _LISTED if real in listed else _BARRED
                    continue
                listed.add(real)
                pending.append((f"{name}/", real))
            prefix, path = pending.pop()
            for entry in self._entries(above + prefix):
                name, kind = prefix + entry.name, _kind(entry)
                real = os.path.join(path, entry.name)
                if kind == _FILE:
                    if entry.is_symlink() and _inside(os.path.realpath(real), closed):
                        skipped[name] = _BARRED
                    else:
                        yield name
                elif kind != _FOLDER:
                    skipped[name] = kind
                elif entry.is_symlink():
                    heapq.heappush(links, name)
                elif real in listed:
                    skipped[name] = _LISTED
                else:
                    listed.add(real)
                    pending.append((f"{name}/", real))

    def read(self, name: str) -> bytes:
        with open(self.path_of(name), "rb") as file:
            return file.read()

    def size(self, name: str) -> int:
        status = os.stat(self.path_of(name))
        if not stat.S_ISREG(status.st_mode):
            raise NoRegularFile(_special(status.st_mode))
        return status.st_size

    def _entries(self, top: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.path_of(top)) as entries:
                return [entry for entry in entries if _visible(entry.name)]
        except PermissionError as error:
            folder = self.path_of(top).rstrip("/")
            raise PermissionError(
                f"{folder}: you have no permission to list this folder; give yourself "
                "the right to read it, or move it elsewhere"
            ) from error


class StoredTree(Tree):
    """A tree in a store, listed once with the names and sizes of all files."""

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes read, they do not list.
        return {k: v for k, v in self.__dict__.items() if k not in ("_sizes", "_store")}

    @functools.cached_property
    def _store(self) -> tuple[Any, str]:
        return _store(self._root)

    @functools.cached_property
    def _sizes(self) -> dict[str, int]:
        store, prefix = self._store
        entries = store.find(prefix, detail=True)
        named = ((path[len(prefix) :].strip("/"), row) for path, row in entries.items())
        return {n: row["size"] for n, row in named if all(map(_visible, n.split("/")))}

    def folders(self, top: str) -> list[str]:
        return sorted(
            {name.partition("/")[0] for name in self.walk(top) if "/" in name}
        )

    def files(self, top: str) -> Iterator[str]:
        return (name for name in self.walk(top) if "/" not in name)

    def walk(
        self,
        top: str,
        skipped: dict[str, str] | None = None,
        barred: Sequence[str] = (),
    ) -> Iterator[str]:
        del skipped, barred  # a store holds neither links nor devices
        prefix = f"{top}/" if top else ""
        return (n[len(prefix) :] for n in self._sizes if n.startswith(prefix))

    def read(self, name: str) -> bytes:
        store, prefix = self._store
        return store.cat_file(f"{prefix}/{name}")

    def size(self, name: str) -> int:
        return self._sizes[name]


def _visible(name: str) -> bool:
    return not name.startswith(".") and name not in _LEFTOVERS


def _kind(entry: os.DirEntry[str]) -> str:
    """_FILE or _FOLDER, through links; else what the entry is, in words."""
    try:
        if entry.is_dir():
            return _FOLDER
        if entry.is_file():
            return _FILE
        mode = entry.stat().st_mode
    except OSError as error:
        return _BROKEN.get(error.errno or 0, error.strerror or "unreadable")
    return _special(mode)


def _special(mode: int) -> str:
    """Describes what is neither a regular file nor a link."""
    return next((name for test, name in _SPECIAL if test(mode)), "no regular file")


def _inside(path: str, folders: Sequence[str]) -> bool:
    return any(path == top or path.startswith(f"{top}/") for top in folders)


def _parents(path: str) -> list[str]:
    return [str(parent) for parent in pathlib.PurePath(path).parents]


def _store(text: str) -> tuple[Any, str]:
    """Returns the fsspec file system of a store, and the path inside it."""
    import fsspec

    system, inside = fsspec.core.url_to_fs(text)
    return system, inside.rstrip("/")
