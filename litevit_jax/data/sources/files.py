"""Pictures that are named, without labels.

    a.jpg          a picture
    DIR            all images below a folder, whatever its subfolders are called
    'DIR/**/*.png' the files that a pattern matches, in the order of their paths
    LIST.txt       a path a line, relative to the folder of the list, in its order

Names are as they are given: relative to the folder, as the pattern or the line has
them. A file of a list that does not exist is an example that cannot be read.
"""

from __future__ import annotations

import glob
import itertools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from litevit_jax.data import filetree, layout, split_names
from litevit_jax.data.listing import Listed, Listing
from litevit_jax.data.sources import base
from litevit_jax.data.sources.folder import PackedNames

_EXPECTED = "a picture, a folder, a pattern as 'DIR/*.jpg' or a list as LIST.txt"


class Files(Listed):
    """Files called `names`, relative to the folder `root` unless they are absolute."""

    def __init__(self, root: str, names: list[str], notes: Sequence[str]):
        labels = np.full(len(names), -1, np.int32)
        super().__init__(labels=labels, classes=[], notes=notes)
        self._root, self._names = root, PackedNames(names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = os.path.join(self._root, self._names[index])
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe may never end
            raise filetree.NoRegularFile(f"{path} is no regular file")
        with open(path, "rb") as file:
            return {"image": file.read(), "label": -1}

    def name_of(self, index: int) -> str:
        return self._names[index]

    def fingerprint(self) -> str:
        """Returns a digest of names and file sizes; asks for every size."""
        sizes = np.full(len(self), -1, np.int64)
        for index in range(len(self)):
            path = os.path.join(self._root, self._names[index])
            if os.path.isfile(path):
                sizes[index] = os.path.getsize(path)
        return base.digest([self._names.blob, sizes.astype("<i8").tobytes()])


def make(
    *,
    split: str,
    dir: str | None = None,
    name: str | None = None,
    holdout: float = 0.0,
    among: str | None = None,
) -> Files:
    """One split of the pictures that `dir` names; see the module.

    Args:
      split: '.' for all of them; 'train' and 'test' as `holdout` divides them; 'among'
        for those that `among` names.
      dir: a picture, a folder, a pattern or a list.
      name: ignored.
      holdout: share of the images kept as 'test', chosen by a hash of their names.
      among: other pictures, named in the same way.

    Raises:
      FileNotFoundError: nothing has that name.
      ValueError: no image there, or no such split.
    """
    del name
    if split == "among":
        dir = among
    if not dir:
        raise ValueError(f"no images are named; expected {_EXPECTED}")
    root, names, notes = _list(os.path.expanduser(dir), dir)
    if split in (".", "among"):
        return Files(root, names, notes)
    where = f"pictures of {dir}"
    _, part = split_names.resolve(split, {}, holdout=holdout, where=where)
    keys = map(os.fsencode, names)
    kept = list(itertools.compress(names, base.part_of(keys, part, holdout, where)))
    return Files(root, kept, notes)


def _list(text: str, given: str) -> tuple[str, list[str], list[str]]:
    """Returns the folder that names start from, the names, and notes on them."""
    if os.path.isdir(text):
        tree = filetree.open_tree(pathlib.Path(text))
        listing = Listing.read(tree, "", layout.Layout(""), None)
        return text, listing.names, listing.notes
    if os.path.exists(text):
        if not text.endswith(".txt"):
            return "", [text], [f"from {given}"]
        return os.path.dirname(text), _lines(text), [f"from {given}"]
    if not glob.has_magic(text):
        base.check_exists(pathlib.Path(text), given, _EXPECTED)
    names = sorted(x for x in glob.glob(text, recursive=True) if os.path.isfile(x))
    if not names:
        raise FileNotFoundError(
            f"the pattern {given!r} matches no file; expected {_EXPECTED} ('**' "
            "matches folders of any depth)"
        )
    return "", names, [f"from {given}"]


def _lines(path: str) -> list[str]:
    """Reads the names in a list."""
    data = pathlib.Path(path).read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        got = data[error.start : error.start + 1]
        raise ValueError(f"{path}, line {line}: got {got}; expected UTF-8") from None
    lines = (line.strip() for line in text.splitlines())
    names = [line for line in lines if line]
    if not names:
        raise ValueError(f"{path}: got no line; expected the path of an image on each")
    if "\0" in text:
        raise ValueError(
            f"{path} is no text; expected the path of an image on each line"
        )
    return names
