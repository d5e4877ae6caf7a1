"""A TFDS data set stored as ArrayRecord; TensorFlow is not imported.

Images stay encoded: decoding is the transform's. `prepare.py` makes such a copy,
from the original archives or from a TFRecord copy.
"""

from __future__ import annotations

import functools
import json
import os
from typing import Any

from etils import epath

from litevit_jax.data.sources import base

FORMAT = "array_record"
# Where prepare.py puts converted copies, below the data directory.
CONVERTED = "array_record"
_DEFAULT_DIR = "~/tensorflow_datasets"
_INFO = "dataset_info.json"


class Tfds(base.Source):
    """Split `split` of the prepared data set in folder `path`."""

    def __init__(self, path: str, split: str):
        self._path = path
        self._split = split
        self._length = len(self._records)

    @functools.cached_property
    def _builder(self) -> Any:
        import tensorflow_datasets  # slow to import; not every run reads TFDS

        return tensorflow_datasets.builder_from_directory(self._path)

    @functools.cached_property
    def _records(self) -> Any:
        from tensorflow_datasets import decode, features

        named = self._builder.info.features.items()
        images = [key for key, kind in named if isinstance(kind, features.Image)]
        decoders = {key: decode.SkipDecoding() for key in images}
        return self._builder.as_data_source(self._split, decoders=decoders)

    def __getstate__(self) -> dict[str, Any]:
        # Open files do not travel to worker processes: those open their own.
        return {key: self.__dict__[key] for key in ("_path", "_split", "_length")}

    @property
    def classes(self) -> list[str]:
        label = dict(self._builder.info.features.items()).get("label")
        return list(label.names) if hasattr(label, "names") else []

    @functools.cached_property
    def _labelled(self) -> bool:
        return bool(self.classes)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._records[index]
        label = int(record["label"]) if self._labelled else -1
        return {"image": record["image"], "label": label}

    def name_of(self, index: int) -> str:
        place = f"{self._builder.info.name}/{self._split}[{index}]"
        try:
            return f"{place} {self._records[index]['file_name'].decode()}"
        except Exception:  # no such feature, or the record is what cannot be read
            return place

    def fingerprint(self) -> str:
        info = self._builder.info
        identity = (info.full_name, self._split, len(self), info.dataset_size)
        return base.digest(str(part).encode() for part in identity)


def make(
    *,
    split: str,
    dir: str | None = None,
    name: str | None = None,
    holdout: float = 0.0,
) -> Tfds:
    """One split of data set `name`, as TFDS names them.

    Args:
      split: for example 'train', 'validation', or a part: 'train[:90%]'.
      dir: the TFDS data directory, or the folder of the data set or of one
        version; None means $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      name: for example 'imagenet2012', 'imagenet2012:5.1.0', 'NAME/CONFIG'.
      holdout: ignored; write parts of a split instead.

    Raises:
      FileNotFoundError: the data set is not there, or not all of its files.
      ValueError: no such split, no images, or stored as TFRecord.
    """
    del holdout
    if not name:
        raise ValueError("source 'tfds' needs data.name, for example imagenet2012")
    path = locate(name, dir)
    if path is None:
        raise FileNotFoundError(_ways_on(name, _data_dir(dir)))
    info = _read_info(path)
    if info.get("fileFormat") != FORMAT:
        raise ValueError(_convert_first(name, dir, path, info.get("fileFormat")))
    _check_splits(split, info, path)
    _check_features(path)
    _check_files(split, info, path)
    return Tfds(os.fspath(path), split)


def locate(name: str, dir: str | None = None) -> epath.Path | None:
    """The folder of the prepared data set `name`, or None.

    Of several versions, those in ArrayRecord are preferred, then the newest.
    """
    found = [
        folder
        for parent in _parents(name.partition(":")[0], _data_dir(dir))
        for folder in (parent, *_below(parent), *_below(parent, depth=2))
        if _matches(folder, name)
    ]
    return max(found, key=_preference, default=None)


def _data_dir(dir: str | None) -> epath.Path:
    chosen = dir or os.environ.get("TFDS_DATA_DIR") or _DEFAULT_DIR
    return epath.Path(chosen).expanduser()


def _parents(name: str, data_dir: epath.Path) -> list[epath.Path]:
    """Folders in which versions of `name` may lie, if `data_dir` is what it says."""
    candidates = [data_dir / name, data_dir / CONVERTED / name]
    if (data_dir / _INFO).exists() or data_dir.name == name.partition("/")[0]:
        candidates.append(data_dir)
    return [path for path in candidates if path.is_dir()]


def _below(folder: epath.Path, depth: int = 1) -> list[epath.Path]:
    children = [path for path in folder.iterdir() if path.is_dir()]
    if depth == 1:
        return children
    return [path for child in children for path in _below(child, depth - 1)]


def _matches(folder: epath.Path, name: str) -> bool:
    """Whether `folder` is a prepared version of `name`."""
    if not (folder / _INFO).exists() or folder.name.startswith("incomplete"):
        return False
    info = _read_info(folder)
    name, _, version = name.partition(":")
    name, _, config = name.partition("/")
    wanted = {"name": name, "version": version, "configName": config}
    return all(info.get(key) == value for key, value in wanted.items() if value)


def _preference(folder: epath.Path) -> tuple[bool, list[int]]:
    info = _read_info(folder)
    numbers = [int(n) for n in info.get("version", "0").split(".") if n.isdigit()]
    return info.get("fileFormat") == FORMAT, numbers


def _read_info(folder: epath.Path) -> dict[str, Any]:
    return json.loads((folder / _INFO).read_text())


def _check_splits(split: str, info: dict[str, Any], path: epath.Path) -> None:
    known = [entry["name"] for entry in info.get("splits", [])]
    for part in split.split("+"):
        base.check_split(part.partition("[")[0], known, f"data set {path}")


def _check_features(path: epath.Path) -> None:
    features = json.loads((path / "features.json").read_text())
    features = features.get("featuresDict", {}).get("features", {})
    if "image" not in features.get("image", {}):
        raise ValueError(
            f"data set {path} has no feature 'image' that is an image; its features "
            f"are {', '.join(sorted(features)) or 'unnamed'}. Export its images as a "
            "folder or arrays (data.source=folder, arrays)"
        )


def _check_files(split: str, info: dict[str, Any], path: epath.Path) -> None:
    """Raises if a file of the splits in `split` is missing (a copy cut short)."""
    there = {file.name for file in path.iterdir()}
    names = {part.partition("[")[0] for part in split.split("+")}
    for entry in info["splits"]:
        if entry["name"] not in names:
            continue
        count = len(entry["shardLengths"])
        stem = f"{info['name']}-{entry['name']}.{FORMAT}"
        files = [f"{stem}-{shard:05d}-of-{count:05d}" for shard in range(count)]
        missing = [file for file in files if file not in there]
        if missing:
            raise FileNotFoundError(
                f"data set {path} lacks {len(missing)} of the {count} files of split "
                f"{entry['name']!r}, the first {missing[0]}; copy it again"
            )


def _convert_first(
    name: str, dir: str | None, path: epath.Path, file_format: str | None
) -> str:
    return (
        f"data set {path} is stored as {file_format}; expected {FORMAT}, which can be "
        "read in any order and without TensorFlow. Convert it once (the original "
        "stays as it is):\n"
        f"  python -m litevit_jax.data.prepare --name={name} "
        f"--data_dir={dir or _data_dir(dir)} --convert"
    )


def _ways_on(name: str, data_dir: epath.Path) -> str:
    manual = " --manual_dir=DIR_WITH_THE_TARS" if "imagenet2012" in name else ""
    tars = "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar"
    needs = f" (needs {tars} in that folder)" if manual else ""
    return (
        f"data set {name!r} is not in {data_dir}. Ways on:\n"
        f"  prepare it{needs}:\n"
        f"    python -m litevit_jax.data.prepare --name={name} "
        f"--data_dir={data_dir}{manual}\n"
        "  say where it is: --config.data.dir=DIR, or set TFDS_DATA_DIR\n"
        "  use a folder of images: --config=configs/mae_tiny.py:data=folder,path=DIR\n"
        "  try the embedded set: --config=configs/mae_tiny.py:digits"
    )
