"""The files below a folder, here or in a store such as gs://.

Names are relative to the folder, with '/' between their parts; '' is the folder
itself. What is hidden is left out.
"""

from __future__ import annotations

import abc
import functools
import os
from collections.abc import Iterator
from typing import Any

from litevit_jax import paths


class Tree(abc.ABC):
    """What is below a folder."""

    def __init__(self, root: str) -> None:
        self._root = root

    def __str__(self) -> str:
        return self._root

    def place(self, name: str) -> str:
        """The path of `name`, for messages."""
        return f"{self._root.rstrip('/')}/{name}" if name else self._root

    @abc.abstractmethod
    def folders(self, top: str) -> list[str]:
        """Names of the folders directly in `top`, sorted."""

    @abc.abstractmethod
    def files(self, top: str) -> Iterator[str]:
        """Names of the files directly in `top`."""

    @abc.abstractmethod
    def walk(self, top: str) -> Iterator[str]:
        """Names of all files below `top`, relative to it."""

    @abc.abstractmethod
    def read(self, name: str) -> bytes:
        """A file, whole."""

    @abc.abstractmethod
    def size(self, name: str) -> int:
        """Bytes of a file."""


def open_tree(root: Any) -> Tree:
    """The tree below a path of `paths.path`."""
    return LocalTree(str(root)) if paths.is_local(root) else StoredTree(str(root))


class LocalTree(Tree):
    """In a file system. Links are followed, but not back to a folder above."""

    def folders(self, top: str) -> list[str]:
        with os.scandir(self.place(top)) as entries:
            return sorted(e.name for e in entries if _visible(e.name) and e.is_dir())

    def files(self, top: str) -> Iterator[str]:
        with os.scandir(self.place(top)) as entries:
            yield from (e.name for e in entries if _visible(e.name) and e.is_file())

    def walk(self, top: str) -> Iterator[str]:
        pending = [("", self.place(top), frozenset())]
        while pending:
            prefix, path, above = pending.pop()
            with os.scandir(path) as entries:
                visible = [entry for entry in entries if _visible(entry.name)]
            above = above | {_identity(path)}
            for entry in visible:
                name = prefix + entry.name
                if not entry.is_dir():
                    yield name
                elif not entry.is_symlink() or _identity(entry.path) not in above:
                    pending.append((name + "/", entry.path, above))

    def read(self, name: str) -> bytes:
        with open(self.place(name), "rb") as file:
            return file.read()

    def size(self, name: str) -> int:
        return os.stat(self.place(name)).st_size


class StoredTree(Tree):
    """In a store, which is asked once for the names and sizes of all its files."""

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes read, they do not list.
        return {k: v for k, v in self.__dict__.items() if k not in ("_sizes", "_store")}

    @functools.cached_property
    def _store(self) -> tuple[Any, str]:
        return paths.store(self._root)

    @functools.cached_property
    def _sizes(self) -> dict[str, int]:
        store, prefix = self._store
        found = store.find(prefix, detail=True)
        named = ((path[len(prefix) :].strip("/"), row) for path, row in found.items())
        return {n: row["size"] for n, row in named if all(map(_visible, n.split("/")))}

    def folders(self, top: str) -> list[str]:
        return sorted(
            {name.partition("/")[0] for name in self.walk(top) if "/" in name}
        )

    def files(self, top: str) -> Iterator[str]:
        return (name for name in self.walk(top) if "/" not in name)

    def walk(self, top: str) -> Iterator[str]:
        prefix = f"{top}/" if top else ""
        return (n[len(prefix) :] for n in self._sizes if n.startswith(prefix))

    def read(self, name: str) -> bytes:
        store, prefix = self._store
        return store.cat_file(f"{prefix}/{name}")

    def size(self, name: str) -> int:
        return self._sizes[name]


def _visible(name: str) -> bool:
    return not name.startswith(".")


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino
