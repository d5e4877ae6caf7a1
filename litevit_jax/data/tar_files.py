"""Tar files by the splits that their names say."""

from __future__ import annotations

import fnmatch
import glob
import itertools
import os
import posixpath
import re

from litevit_jax.data import filetree, split_names
from litevit_jax.data.sources import base

_COMPRESSED = re.compile(r"\.(tar\.(bz2|gz|lz4|xz|z|zst)|tgz|tbz2|txz)$", re.IGNORECASE)


def find(dir: str | None) -> tuple[str, list[str], list[str]]:
    """Returns the common folder, the tar files, and notes on other files."""
    if not dir:
        raise ValueError("source 'tar' needs data.dir: a folder of .tar files")
    path = os.path.abspath(os.path.expanduser(dir))
    skipped: dict[str, str] = {}
    if os.path.isdir(path):
        root, listed = path, filetree.LocalTree(path).walk("", skipped)
        present = sorted(os.path.join(path, name) for name in listed)
    else:
        root = os.path.dirname(path)
        present = sorted(name for name in _matching(path) if os.path.isfile(name))
    files = [file for file in present if file.lower().endswith(".tar")]
    packed = [file for file in present if _COMPRESSED.search(file)]
    if packed:
        raise ValueError(
            f"{packed[0]} is compressed and cannot be read in any order (images gain "
            "nothing from it): unpack it to .tar"
        )
    if not files:
        raise FileNotFoundError(
            f"data.dir={dir!r}: no .tar file there; expected a folder of them, or a "
            "pattern (a folder of images is read by data=folder)"
        )
    return root, files, base.skipped_entries(skipped)


def _matching(pattern: str) -> list[str]:
    """Returns the files that match a pattern; `**` stands for folders at any depth."""
    if "**" not in pattern:
        return glob.glob(pattern)
    parts = pattern.split(os.sep)
    plain = list(itertools.takewhile(lambda part: not glob.has_magic(part), parts))
    top = os.sep.join(plain) or os.sep
    # Not by `glob`, which lists folders that link to each other again and again.
    listed = filetree.LocalTree(top).walk("") if os.path.isdir(top) else []
    wanted = parts[len(plain) :]
    names = [name for name in listed if _is_match(name.split("/"), wanted)]
    return [os.path.join(top, name) for name in names]


def _is_match(parts: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        starts = range(len(parts) + 1)
        return any(_is_match(parts[start:], pattern[1:]) for start in starts)
    here = bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0])
    return here and _is_match(parts[1:], pattern[1:])


def groups(
    root: str, files: list[str]
) -> tuple[dict[str | None, list[str]], list[str]]:
    """Returns (split -> its files, unused files); None: no split is named.

    The last part of a path that names a split says which it is. Beside files of a
    training split, those that name none are not used; else they are to train on.
    """
    groups: dict[str | None, list[str]] = {}
    for file in files:
        parts = os.path.splitext(os.path.relpath(file, root))[0].split(os.sep)
        words = [split_names.read(part).word for part in reversed(parts)]
        groups.setdefault(next(filter(None, words), None), []).append(file)
    if len(groups) == 1 or None not in groups:
        return groups, []
    unnamed = groups.pop(None)
    if "train" in (split_names.read(str(split)).kind for split in groups):
        return groups, unnamed
    return groups | {"train": unnamed}, []


def below(split: str, root: str, files: list[str]) -> list[str]:
    """Returns the files below a subfolder named like `split`."""
    top = posixpath.normpath(split)
    names = {file: os.path.relpath(file, root) for file in files}
    return [f for f in files if top == "." or names[f].startswith(f"{top}{os.sep}")]
