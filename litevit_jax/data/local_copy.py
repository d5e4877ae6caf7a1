"""A local file, or a local copy of one that lies in a store."""

from __future__ import annotations

import functools
import pathlib
import shutil

from litevit_jax import paths


@functools.cache
def local_file(text: str) -> pathlib.Path:
    """Returns the file `text` itself, or a local copy of it if it is in a store.

    The copy is made once, keeps the file's name and lasts as long as the program.

    Raises:
      FileNotFoundError: no such file.
      OSError: it cannot be read, or there is no room for it.
    """
    source = paths.path(text)
    if paths.is_local(source):
        return source
    if not source.exists():
        raise FileNotFoundError(f"{text} does not exist")
    folder = paths.copies() / str(sum(1 for _ in paths.copies().iterdir()))
    folder.mkdir()
    with source.open("rb") as file, (folder / source.name).open("wb") as target:
        shutil.copyfileobj(file, target, 1 << 20)
    return folder / source.name
