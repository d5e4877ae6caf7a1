"""Images in NumPy files: uint8 [N, H, W] or [N, H, W, C].

    FILE.npz      `image` and maybe `label`: all of it 'train'
    FILE.npz      `train_image`, `train_label`, `test_image`...: splits
    FILE.npy      images alone
    DIR           train.npz (or .npy), and maybe test.npz or val.npz

Also accepted: `images`, `x` for `image`; `labels`, `y` for `label`; and the prefix
may follow instead (`x_train`). Without a test split, `holdout` keeps a share of the
examples as 'test'. Only names, numbers and shapes are read: no pickled objects.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from litevit_jax import paths
from litevit_jax.data.sources import base

_IMAGE = ("image", "images", "x")
_LABEL = ("label", "labels", "y")
_SPLITS = ("train", "test", "val", "validation")

_Key = tuple[pathlib.Path, str]  # a file, and an array's name in it


class Arrays(base.Source):
    """Rows `rows` of one array of images, and their labels."""

    def __init__(
        self,
        images: _Key,
        labels: np.ndarray,
        *,
        rows: np.ndarray,
        classes: list[str],
    ):
        self._key = images
        self._images = _load(*images)
        self._labels = labels
        self._rows = rows
        self._classes = classes

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
        """Digest of shapes and content; reads all of it."""
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
) -> Arrays:
    """One split of the file or folder `dir`; see the module for the layouts.

    Args:
      split: 'train', or 'test' (also 'val', 'validation').
      dir: a .npz or .npy file, or a folder with train.npz or train.npy.
      name: ignored.
      holdout: share of the examples kept as 'test', by their number, where there
        is no test split.

    Raises:
      FileNotFoundError: no such file.
      ValueError: other types or shapes than above, or no such split.
    """
    del name
    path = _check_path(dir)
    layout = _layout(path)
    has_test = any(known in layout for known in base.EVAL_SPLITS)
    if has_test:
        base.check_split(split, {*layout, *base.EVAL_SPLITS}, f"arrays {path}")
        if split not in layout:
            split = next(known for known in base.EVAL_SPLITS if known in layout)
    else:
        split = base.check_holdout_split(split, holdout, f"arrays {path}")
    images, labels = layout[split if has_test else "train"]
    count = _check_images(images)
    is_test = [base.in_holdout(str(row).encode(), holdout) for row in range(count)]
    keep = np.ones(count, bool) if has_test else np.array(is_test) == (split == "test")
    if not keep.any():
        raise ValueError(
            f"data.holdout={holdout} of the {count} examples of {path} leaves none in "
            f"split {split!r}; choose another share"
        )
    return Arrays(
        images,
        _read_labels(labels, count),
        rows=np.flatnonzero(keep),
        classes=_classes(layout),
    )


def _check_path(dir: str | None) -> pathlib.Path:
    if not dir:
        raise ValueError("source 'arrays' needs data.dir: a .npz or .npy file")
    if not paths.is_local(dir):
        if not dir.endswith((".npz", ".npy")):
            raise ValueError(
                f"data.dir={dir!r}: in a store, source 'arrays' reads one file; give "
                "the .npz or .npy file itself"
            )
        return paths.local_file(dir)
    path = pathlib.Path(dir).expanduser().absolute()
    if not path.exists():
        raise FileNotFoundError(
            f"data.dir={dir!r} does not exist; expected a .npz or .npy file, or a "
            "folder with train.npz"
        )
    return path


def _layout(path: pathlib.Path) -> dict[str, tuple[_Key, _Key | None]]:
    """Split -> where its images and its labels (or None) are."""
    if path.is_dir():
        files = {s: _file_of_split(path, s) for s in _SPLITS}
        layout = {s: _unsplit(file) for s, file in files.items() if file}
    else:
        layout = _split_arrays(path) or {"train": _unsplit(path)}
    if "train" not in layout:
        raise ValueError(
            f"{path} has no 'train' split; expected train.npz or train.npy in a "
            "folder, arrays such as train_image or x_train in a .npz file"
        )
    return layout


def _file_of_split(folder: pathlib.Path, split: str) -> pathlib.Path | None:
    files = [folder / f"{split}{suffix}" for suffix in (".npz", ".npy")]
    return next((file for file in files if file.exists()), None)


def _unsplit(path: pathlib.Path) -> tuple[_Key, _Key | None]:
    """Images and labels of a file that holds one split."""
    if path.suffix == ".npy":
        return (path, ""), None
    names = _names_in(path)
    image = next((name for name in _IMAGE if name in names), None)
    label = next((name for name in _LABEL if name in names), None)
    if image is None:
        raise ValueError(
            f"{path} has no images: its arrays are {', '.join(names) or 'none'}; "
            "expected image (and label), or train_image, test_image and so on"
        )
    return (path, image), (path, label) if label else None


def _split_arrays(path: pathlib.Path) -> dict[str, tuple[_Key, _Key | None]]:
    """The splits that the names of a .npz file's arrays tell apart; {} if none."""
    if path.suffix == ".npy":
        return {}
    names = _names_in(path)
    layout = {}
    for split in _SPLITS:
        image = _first_of(names, split, _IMAGE)
        label = _first_of(names, split, _LABEL)
        if image:
            layout[split] = (path, image), (path, label) if label else None
    return layout


def _first_of(names: list[str], split: str, kinds: tuple[str, ...]) -> str | None:
    wanted = [name for k in kinds for name in (f"{split}_{k}", f"{k}_{split}")]
    return next((name for name in wanted if name in names), None)


def _names_in(path: pathlib.Path) -> list[str]:
    if path.suffix != ".npz":
        raise ValueError(f"{path} is not a .npz or .npy file")
    with np.load(path, allow_pickle=False) as file:
        return list(file.files)


def _load(path: pathlib.Path, name: str) -> np.ndarray:
    """One array; a .npy file stays on disk."""
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        with np.load(path, allow_pickle=False) as file:
            return file[name]
    except ValueError as error:
        raise ValueError(
            f"{path} {name}: {error}; expected an array of numbers, saved by np.save "
            "or np.savez"
        ) from error


def _check_images(key: _Key) -> int:
    """Number of images; raises unless they are uint8 [N, H, W] or [N, H, W, C]."""
    images = _load(*key)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.size == 0:
        raise ValueError(
            f"images {key[1]} of {key[0]} are {images.dtype} {images.shape}; expected "
            "uint8 [N, H, W] or [N, H, W, C] in 0..255 (floats in [0, 1]: "
            "(255 * x).round().astype('uint8'))"
        )
    return len(images)


def _read_labels(key: _Key | None, count: int) -> np.ndarray:
    """Labels int32 [N]; -1 where there are none."""
    if key is None:
        return np.full(count, -1, np.int32)
    labels = _load(*key)
    if labels.dtype.kind not in "iu" or labels.size != count or len(labels) != count:
        raise ValueError(
            f"labels {key[1]} of {key[0]} are {labels.dtype} {labels.shape}; expected "
            f"integers [{count}], one for each image"
        )
    return labels.reshape(-1).astype(np.int32)


def _classes(layout: dict[str, tuple[_Key, _Key | None]]) -> list[str]:
    """'0', '1', ... up to the largest label of any split."""
    keys = [label for _, label in layout.values() if label]
    largest = max((int(_load(*key).max()) for key in keys), default=-1)
    return [str(label) for label in range(largest + 1)]
