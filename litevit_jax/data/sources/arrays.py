"""Images in NumPy files: numbers [N, H, W] or [N, H, W, C].

    FILE.npz      `image` and maybe `label`: all of it 'train'
    FILE.npz      `train_image`, `train_label`, `test_image`...: splits
    FILE.npy      images alone
    DIR           train.npz (or .npy), and maybe test.npz or val.npz

Also accepted: `images`, `x` for `image`; `labels`, `y` for `label`; the prefix may
follow instead (`x_train`), in any case, and may be any name that a split asks for.
Labels are numbers [N], or one-hot [N, K]; rows with several ones, or none, in any split
are multi-hot: several labels an image. Without a split to test on, `holdout` keeps a
share of the examples as 'test'. `data.range` says how numbers of more than 8 bits
become bytes. Only names, numbers and shapes are read: no pickled objects.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from litevit_jax import paths
from litevit_jax.data import labelled, local_copy, rasters, split_names
from litevit_jax.data.sources import base

_IMAGE = ("image", "images", "x")
_LABEL = ("label", "labels", "y")
_MOST_CLASSES = 1_000_000
_AS_OTHERS = "several labels an image in other splits, one here"

_Key = tuple[pathlib.Path, str]  # a file, and an array's name in it
_Layout = dict[str | None, tuple[_Key, _Key | None]]  # split -> images, labels


class Arrays(base.Source):
    """Rows `rows` of one array of images, and their labels."""

    def __init__(
        self,
        images: _Key,
        labels: np.ndarray,
        *,
        rows: np.ndarray,
        classes: list[str],
        notes: Sequence[str] = (),
        other_splits: Sequence[str] = (),
    ):
        self._key = images
        self._images = _load(*images)
        self._labels = labels
        self._rows = rows
        self._classes = classes
        self.notes = notes
        self.other_splits = other_splits

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes read the file again; it may be large.
        return {k: v for k, v in self.__dict__.items() if k != "_images"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._images = _load(*self._key)

    @property
    def classes(self) -> list[str]:
        return list(self._classes)

    @property
    def labelled(self) -> bool:
        return bool((self._labels[self._rows] >= 0).any())

    @property
    def label_advice(self) -> str:
        return "save them beside the images, as train_label for train_image"

    @property
    def channels(self) -> int:
        return 1 if self._images.ndim == 3 else self._images.shape[3]

    @property
    def in_memory(self) -> bool:
        return True

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._rows[index]
        return {"image": np.array(self._images[row]), "label": int(self._labels[row])}

    def label_of(self, index: int) -> int:
        return int(self._labels[self._rows[index]])

    def name_of(self, index: int) -> str:
        path, name = self._key
        return f"{path.name}{':' * bool(name)}{name}[{self._rows[index]}]"

    def fingerprint(self) -> str:
        """Returns a digest of shapes and content; reads all of it."""
        shape = str((len(self), *self._images.shape[1:])).encode()
        rows = (np.ascontiguousarray(self._images[row]).data for row in self._rows)
        labels = self._labels[self._rows].astype("<i4").tobytes()
        return base.digest([shape, labels, *(bytes(row) for row in rows)])


def make(
    *,
    split: str,
    dir: str | None = None,
    name: str | None = None,
    holdout: float = 0.0,
) -> base.Source:
    """One split of the file or folder `dir`; see the module for the layouts.

    Args:
      split: 'train', 'test' (also 'val', 'validation'...), or a name that is there.
      dir: a .npz or .npy file, or a folder with train.npz or train.npy.
      name: ignored.
      holdout: share of the examples kept as 'test', by their number, where there
        is no test split.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a damaged file, other types or shapes than above, or no such split.
    """
    del name
    path = _check_path(dir)
    layout = _layout(path)
    kinds = {s: split_names.read(s).kind or "other" for s in layout if s}
    where = f"arrays {path}"
    chosen, part = split_names.resolve(split, kinds, holdout=holdout, where=where)
    images, key = layout[chosen]
    count = _check_images(images)
    labels = _read_labels(key, count)
    keep = base.part_of((b"%d" % row for row in range(count)), part, holdout, where)
    every = _every(layout, [s for s in kinds if kinds[s] != "other"], chosen)
    several = any(each.several for each in every)
    kind = labels.notes if labels.several or not several else [_AS_OTHERS]
    notes = [f"from {path}", *kind]
    notes += [*_unused(path, layout), *split_names.unused_holdout(kinds, holdout)]
    about = {
        "classes": [str(k) for k in range(max((x.classes for x in every), default=0))],
        "notes": notes,
        "other_splits": [s for s in kinds if s != chosen],
    }
    rows = np.flatnonzero(keep)
    if not several:
        return Arrays(images, labels.numbers, rows=rows, **about)
    none = np.full(count, -1, np.int32)
    plain = Arrays(images, none, rows=rows, classes=[])
    return labelled.Labelled(plain, _hot(labels, every, key)[rows], **about)


def _check_path(dir: str | None) -> pathlib.Path:
    if not dir:
        raise ValueError("source 'arrays' needs data.dir: a .npz or .npy file")
    if not paths.is_local(dir):
        if not dir.endswith((".npz", ".npy")):
            raise ValueError(
                f"data.dir={dir!r}: in a store, source 'arrays' reads one file; give "
                "the .npz or .npy file itself"
            )
        return local_copy.local_file(dir)
    path = pathlib.Path(dir).expanduser().absolute()
    expected = "a .npz or .npy file, or a folder with train.npz"
    base.check_exists(path, dir, expected)
    if not (path.is_file() or path.is_dir()):
        raise ValueError(
            f"data.dir={dir!r} is neither a regular file nor a folder; expected "
            f"{expected}"
        )
    return path


def _layout(path: pathlib.Path) -> _Layout:
    """Returns split (None: undivided) -> where its images and labels (or None) are."""
    if not path.is_dir():
        return {None: ((path, ""), None)} if path.suffix == ".npy" else _in_file(path)
    files: dict[str, pathlib.Path] = {}
    for suffix in (".npy", ".npz"):  # of two files the one that may have labels
        present = sorted(path.glob(f"[!.]*{suffix}"))
        files |= {file.stem: file for file in present if file.is_file()}
    splits = split_names.recognise(files)
    if not splits:
        raise ValueError(
            f"{path} has no 'train' split: its .npz and .npy files are "
            f"{base.first(sorted(files)) or 'none'}; expected train.npz or train.npy, "
            "or give the file itself (a folder of images: data=folder)"
        )
    layouts = {split: _layout(files[split]) for split in splits}
    divided = [files[split] for split in splits if None not in layouts[split]]
    if divided:
        raise ValueError(
            f"{divided[0]} is divided into splits itself; give the file alone as "
            "data.dir, or name its arrays image and label"
        )
    return {split: layout[None] for split, layout in layouts.items()}


def _in_file(path: pathlib.Path) -> _Layout:
    """Returns `_layout` by the names of a .npz file's arrays."""
    names = _names_in(path)
    images, labels = (_by_split(names, words) for words in (_IMAGE, _LABEL))
    divided = split_names.recognise(filter(None, images)) or None not in images
    if not images:
        raise ValueError(
            f"{path} has no images: its arrays are {', '.join(names) or 'none'}; "
            "expected image (and label), or train_image, test_image and so on"
        )
    return {
        split: ((path, name), (path, labels[split]) if split in labels else None)
        for split, name in images.items()
        if (split is not None) == bool(divided)
    }


def _by_split(names: Sequence[str], words: Sequence[str]) -> dict[str | None, str]:
    """Returns split -> the first array whose name joins it with one of `words`."""
    chosen: dict[str | None, str] = {}
    for word in words:
        pattern = re.compile(rf"(?:(.+)_)?{word}(?:_(.+))?", re.IGNORECASE)
        for name in names:
            match = pattern.fullmatch(name)
            if match and not (match[1] and match[2]):
                chosen.setdefault(match[1] or match[2], name)
    return chosen


def _unused(path: pathlib.Path, layout: _Layout) -> list[str]:
    """Returns a note on arrays of a file, or files of a folder, of no split."""
    if path.is_dir():
        read = {images[0].name for images, _ in layout.values()}
        files = sorted(file.name for file in path.glob("[!.]*.np[yz]"))
        unread = [name for name in files if name not in read]
        return [f"files not read: {base.first(unread)}"] * bool(unread)
    used = {key[1] for keys in layout.values() for key in keys if key}
    names = _names_in(path) if path.suffix == ".npz" and path.is_file() else []
    unused = [name for name in names if name not in used]
    return [f"arrays not read: {base.first(unused)}"] * bool(unused)


def _names_in(path: pathlib.Path) -> list[str]:
    if path.suffix != ".npz":
        raise ValueError(f"{path} is not a .npz or .npy file")
    with _explained(path), _opened(path) as file:
        return list(file.files)


def _load(path: pathlib.Path, name: str) -> np.ndarray:
    """Loads one array; a .npy file is memory-mapped."""
    with _explained(path, name):
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        with _opened(path) as file:
            return file[name]


def _opened(path: pathlib.Path) -> Any:
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):  # NumPy would take it for a pickle
            raise ValueError("damaged, or no .npz file")
    return np.load(path, allow_pickle=False)


@contextlib.contextmanager
def _explained(path: pathlib.Path, name: str = "") -> Iterator[None]:
    """Turns NumPy's read errors into a ValueError that names the file."""
    try:
        yield
    except PermissionError as error:
        raise PermissionError(f"{path}: {error.strerror}") from error
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path} {name}".rstrip()
            + f": {error}; expected an array of numbers, saved by np.save "
            "or np.savez"
        ) from error


def _check_images(key: _Key) -> int:
    """Returns the number of images; raises unless [N, H, W] or [N, H, W, C]."""
    images = _load(*key)
    what = f"images {_position(key)} are {images.dtype} {images.shape}"
    numbers = images.dtype.kind in "iuf"
    if not numbers or images.ndim not in (3, 4) or images.size == 0:
        raise ValueError(
            f"{what}; expected numbers [N, H, W] or [N, H, W, C]: bytes, or others "
            "with --config.data.range=LOW,HIGH"
        )
    if images.ndim == 4 and rasters.channels_first(images.shape[1:]):
        raise ValueError(
            f"{what}, which looks like channels first [N, C, H, W]; expected "
            "[N, H, W, C]: save np.moveaxis(x, 1, -1)"
        )
    return len(images)


def _position(key: _Key) -> str:
    """Names an array's file for messages: 'train_image of FILE'."""
    return f"{key[1]} of {key[0]}" if key[1] else f"of {key[0]}"


@dataclasses.dataclass(frozen=True)
class _Labels:
    """Labels int32 [N], -1 for none, of `classes` classes.

    Attributes:
      hot: uint8 [N, K] as they are in the file, if they are one-hot or multi-hot.
      several: whether an image has several labels, or none of the classes.
    """

    numbers: np.ndarray
    classes: int = 0
    notes: Sequence[str] = ()
    hot: np.ndarray | None = None
    several: bool = False


def _read_labels(key: _Key | None, count: int | None = None) -> _Labels:
    """Reads the labels of `count` images (None: of any number)."""
    if key is None:
        return _Labels(np.full(count or 0, -1, np.int32))
    labels = _load(*key)
    what = f"labels {_position(key)} are {labels.dtype} {labels.shape}"
    size = len(labels) if labels.ndim and count is None else count
    expected = f"expected integers [{size}], one for each image"
    if labels.ndim == 0 or len(labels) != size:
        raise ValueError(f"{what}; {expected}")
    if labels.ndim == 2 and labels.shape[1] > 1:
        if not _is_binary(labels):
            raise ValueError(
                f"{what}, and their rows are neither one-hot nor multi-hot (0 and 1, "
                f"some 1); {expected}, or such rows"
            )
        hot, classes = labels.astype(np.uint8), labels.shape[1]
        if (hot.sum(1) != 1).any():
            note = f"several labels an image, {hot.sum(1).mean():.2g} on average"
            none = np.full(len(hot), -1, np.int32)
            return _Labels(none, classes, [note], hot, several=True)
        note = f"one-hot labels read as numbers of {classes} classes"
        return _Labels(hot.argmax(1).astype(np.int32), classes, [note], hot)
    if labels.dtype.kind not in "iu" or labels.size != size or not size:
        raise ValueError(
            f"{what}; {expected} (names: np.unique(y, return_inverse=True))"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < -1 or high >= _MOST_CLASSES:
        raise ValueError(
            f"{what} from {low} to {high}; expected class numbers from 0 on, -1 for an "
            "image without label: np.unique(y, return_inverse=True)[1] makes them so"
        )
    return _Labels(labels.reshape(-1).astype(np.int32), high + 1)


def _is_binary(labels: np.ndarray) -> bool:
    """Whether labels are 0 and 1, and some are 1."""
    if labels.dtype.kind not in "biuf":
        return False
    return bool(((labels == 0) | (labels == 1)).all() and labels.any())


def _every(
    layout: _Layout, splits: Sequence[str | None], chosen: str | None
) -> list[_Labels]:
    """Reads the labels of all splits: their classes go up to the largest of any."""
    keys = [layout[s][1] for s in ({*splits, chosen} if splits else layout)]
    return [_read_labels(key) for key in keys if key]


def _hot(labels: _Labels, every: list[_Labels], key: _Key | None) -> np.ndarray:
    """Returns the labels uint8 [N, K] of a split, where some split has several.

    Raises:
      ValueError: other splits have labels of other kinds or of other classes.
    """
    widths = {None if x.hot is None else x.hot.shape[1] for x in [labels, *every]}
    if labels.hot is None or len(widths) > 1:
        raise ValueError(
            f"labels {'missing' if key is None else _position(key)}: some splits have "
            "several labels an image, others not, or of other classes; expected "
            "multi-hot labels [N, K] with the same K in all"
        )
    return labels.hot
