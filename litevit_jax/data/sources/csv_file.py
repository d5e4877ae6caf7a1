"""Images that a CSV file lists, a line `path,label` each.

    a.csv                     all of it 'train'; `holdout` keeps a share as 'test'
    DIR/train.csv, val.csv    a file per split, named as `split_names` reads it; others
                              are not used unless a split names them

Paths are relative to the folder of the file and stay inside it. An empty label is none,
empty lines and a first line `path,label` are passed over, and a field with a comma is
quoted. The order is that of the lines; classes are those of the training file, in the
order of their names, or of the numbers if all are numbers.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

import numpy as np

from litevit_jax import paths
from litevit_jax.data import filetree, layout, split_names, tables
from litevit_jax.data.listing import in_order
from litevit_jax.data.sources import base, folder

_EXPECTED = "expected path,label"


class CsvFile(folder.Folder):
    """Image files of one split with the labels of its lines."""

    @property
    def label_advice(self) -> str:
        return "write a class behind the comma of every line"


def make(
    *,
    split: str,
    dir: str | None = None,
    name: str | None = None,
    holdout: float = 0.0,
) -> CsvFile:
    """One split of a CSV file, or of a folder of them; see the module.

    Args:
      split: 'train', 'test' (also 'val', 'validation'...), or the name of a file.
      dir: the file, or the folder that holds one for each split.
      name: ignored.
      holdout: share of the images kept as 'test', chosen by a hash of the path in
        the file, where there is no split for testing.

    Raises:
      FileNotFoundError: no such file or folder, or no CSV file in it.
      ValueError: no such split, a line that is none, or a class that the training
        file has not.
    """
    del name
    tree, files = _open(dir)
    where = tree.path_of("" if len(files) > 1 else next(iter(files.values())))
    kinds = split_names.recognise(files) if len(files) > 1 else {}
    if len(files) > 1 and not kinds and split not in files:
        raise ValueError(
            f"{where} holds several CSV files, and none has the name of a split: "
            f"{base.first(sorted(files.values()))}. Call them train.csv and test.csv, "
            "give the file to read as data.dir, or name it, as in "
            f"--config.data.train_split={min(files)}"
        )
    chosen, part = split_names.resolve(
        split, kinds, holdout=holdout, where=where, also=sorted(files)
    )
    file = files[chosen] if chosen else next(iter(files.values()))
    rows = _read(tree, file)
    training = next((files[k] for k, kind in kinds.items() if kind == "train"), file)
    classes = _classes(rows if training == file else _read(tree, training))
    number = {"": -1, **{label: i for i, label in enumerate(classes)}}
    _check_classes(rows, classes, tree.path_of(file), tree.path_of(training))
    unused = sorted(f for k, f in files.items() if k not in kinds and f != file)
    if part:
        keys = (path.encode() for _, path, _ in rows)
        keep = base.part_of(keys, part, holdout, where)
        rows = [row for row, kept in zip(rows, keep, strict=True) if kept]
    return CsvFile(
        tree,
        [path for _, path, _ in rows],
        labels=np.array([number[label] for _, _, label in rows], np.int32),
        classes=classes,
        notes=[
            f"from {tree.path_of(file)}",
            *[f"not used: {base.first(unused)}"] * bool(unused),
            *split_names.unused_holdout(kinds, holdout),
        ],
        other_splits=[other for other in kinds if files[other] != file],
    )


def _check_classes(
    rows: list[tuple[int, str, str]], classes: list[str], file: str, training: str
) -> None:
    """Raises ValueError for a class in `file` that the `training` file has not."""
    known = {"", *classes}
    for line, _, label in rows:
        if label not in known:
            raise ValueError(
                f"{file}, line {line}: got class {label!r}, expected one of "
                f"{training}: {base.first(classes, 10)}"
            )


def _open(dir: str | None) -> tuple[filetree.Tree, dict[str, str]]:
    """Returns the folder of the images, and split -> CSV file in it."""
    if not dir:
        raise ValueError(
            "source 'csv_file' needs the list of images: "
            "--config=configs/mae_tiny.py:data=csv_file,path=FILE.csv"
        )
    root = paths.path(dir)
    root = root.expanduser() if paths.is_local(root) else root
    expected = "a CSV file, or a folder with one for each split"
    base.check_exists(root, dir, expected)
    if not (root.is_dir() or root.is_file()):
        raise ValueError(
            f"data.dir={dir!r} is neither a regular file nor a folder; expected "
            f"{expected}"
        )
    if not root.is_dir():
        return filetree.open_tree(root.parent), {root.stem: root.name}
    tree = filetree.open_tree(root)
    names = sorted(x for x in tree.files("") if layout.extension(x) == "csv")
    if not names:
        raise FileNotFoundError(
            f"data.dir={dir!r} holds no CSV file; expected train.csv, and test.csv or "
            "val.csv if there is one"
        )
    return tree, {posixpath.splitext(name)[0]: name for name in names}


def _read(tree: filetree.Tree, file: str) -> list[tuple[int, str, str]]:
    """Reads (line, path, label) of every image of a CSV file, and checks them."""
    where = tree.path_of(file)
    lines_of: dict[str, int] = {}
    rows = []
    for line, fields in _fields(where, tree.read(file)):
        if len(fields) != 2:
            got = f"{len(fields)} fields, {','.join(fields)[:60]!r}"
            raise ValueError(
                f"{where}, line {line}: got {got}; {_EXPECTED} (quote a field that "
                "has a comma)"
            )
        path = posixpath.normpath(fields[0].strip())
        wrong = _wrong(tree, path)
        if path in lines_of:
            wrong = f"the image of line {lines_of[path]} once more; expected it once"
        if wrong:
            raise ValueError(f"{where}, line {line}: got {fields[0]!r}, {wrong}")
        lines_of[path] = line
        rows.append((line, path, fields[1].strip()))
    if not rows:
        raise ValueError(f"{where}: got no image; {_EXPECTED} on every line")
    return rows


def _fields(where: str, data: bytes) -> Iterator[tuple[int, list[str]]]:
    """Yields (line, fields) of all lines but empty ones and the header."""
    first = True
    for line, fields in tables.fields(where, data, expected=_EXPECTED):
        header = first and [x.strip().lower() for x in fields] == ["path", "label"]
        if not header:
            yield line, fields
        first = False


def _wrong(tree: filetree.Tree, path: str) -> str:
    """Tells what is wrong with the path of an image; '' if it can be read."""
    if posixpath.isabs(path) or path.split("/")[0] == "..":
        return f"outside {tree}; expected a path relative to that folder"
    return layout.why_no_image(tree, path)


def _classes(rows: list[tuple[int, str, str]]) -> list[str]:
    """Sorts the classes by name, or by number if all are numbers."""
    return in_order({label for _, _, label in rows} - {""})
