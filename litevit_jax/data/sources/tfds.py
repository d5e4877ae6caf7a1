"""A TFDS data set stored as ArrayRecord; TensorFlow is not imported.

Images stay encoded: decoding is the transform's. Labels are whole numbers in the
feature `label`, with names or without; those below 0 are none. `prepare.py` makes such
a copy, from the original archives or from a TFRecord copy.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from litevit_jax import choices, paths
from litevit_jax.data.sources import base

FORMAT = "array_record"
# Where prepare.py puts converted copies, below the data directory.
CONVERTED = "array_record"
_DEFAULT_DIR = "~/tensorflow_datasets"
_INFO = "dataset_info.json"
_SEVERAL = 20  # copies named in a message


class Tfds(base.Source):
    """Split `split` of the prepared data set in folder `path`."""

    def __init__(
        self,
        path: str,
        split: str,
        *,
        notes: tuple[str, ...] = (),
        other_splits: tuple[str, ...] = (),
    ):
        self._path = path
        self._split = split
        self._length = len(self._records)
        self.notes = notes
        self.other_splits = other_splits

    @functools.cached_property
    def _builder(self) -> Any:
        import tensorflow_datasets  # slow to import; not every run reads TFDS

        return tensorflow_datasets.builder_from_directory(self._path)

    @functools.cached_property
    def _records(self) -> Any:
        return self._open(self._split)

    def _open(self, split: str) -> Any:
        from tensorflow_datasets import decode, features

        named = self._builder.info.features.items()
        images = [key for key, kind in named if isinstance(kind, features.Image)]
        decoders = {key: decode.SkipDecoding() for key in images}
        return self._builder.as_data_source(split, decoders=decoders)

    def __getstate__(self) -> dict[str, Any]:
        # Open files do not travel to worker processes: those open their own.
        kept = ("_path", "_split", "_length", "notes", "other_splits", "_classes")
        return {key: self.__dict__[key] for key in kept if key in self.__dict__}

    @property
    def classes(self) -> list[str]:
        return list(self._classes)

    @functools.cached_property
    def _classes(self) -> list[str]:
        """Class names; without names '0', '1', ... up to the largest label."""
        label = self._label_feature
        if label is None or hasattr(label, "names"):
            return list(label.names) if label is not None else []
        every = (self._open(split) for split in self._builder.info.splits)
        labels = (int(record["label"]) for records in every for record in records)
        return [str(number) for number in range(max(labels, default=-1) + 1)]

    @functools.cached_property
    def _label_feature(self) -> Any:
        """Returns the feature `label` if it is a scalar integer, else None."""
        label = dict(self._builder.info.features.items()).get("label")
        if label is None or label.shape != ():
            return None
        return label if np.issubdtype(label.np_dtype, np.integer) else None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._records[index]
        label = -1 if self._label_feature is None else int(record["label"])
        return {"image": record["image"], "label": max(label, -1)}

    def name_of(self, index: int) -> str:
        name = f"{self._builder.info.name}/{self._split}[{index}]"
        try:
            return f"{name} {self._records[index]['file_name'].decode()}"
        except Exception:  # no such feature, or the record is what cannot be read
            return name

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
      ValueError: several are meant, no such split, no images, a damaged file, or
        stored as TFRecord.
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
    check(path, split)
    names = {part.partition("[")[0].strip() for part in split.split("+")}
    rest = [s["name"] for s in info["splits"] if s["name"] not in names]
    notes = [f"TFDS {full_name(info)} in {path}"]
    others = sorted({full_name(_read_info(p)) for p in _copies_of(name, dir)})
    others.remove(full_name(info))
    notes += [f"not taken: {', '.join(others[:_SEVERAL])}"] * bool(others)
    return Tfds(os.fspath(path), split, notes=tuple(notes), other_splits=tuple(rest))


def locate(name: str, dir: str | None = None) -> epath.Path | None:
    """Returns the folder of the prepared data set `name`, or None.

    Of several versions, those in ArrayRecord are preferred, then the newest.

    Raises:
      ValueError: there are several configs, and `name` says none.
    """
    copies = _copies_of(name, dir)
    configs = sorted({_read_info(path).get("configName") or "" for path in copies})
    if len(configs) > 1:
        named = [f"{name.partition(':')[0]}/{config}" for config in configs if config]
        raise ValueError(
            f"data set {name!r} in {_data_dir(dir)} has {len(named)} configs, which "
            f"hold other data: {', '.join(named[:_SEVERAL])}; name one, for example "
            f"--config.data.name={named[0]}"
        )
    return max(copies, key=_preference, default=None)


def full_name(info: dict[str, Any]) -> str:
    """Returns NAME:VERSION or NAME/CONFIG:VERSION of a dataset_info.json."""
    config = info.get("configName") or ""
    return f"{info['name']}{'/' * bool(config)}{config}:{info['version']}"


def _copies_of(name: str, dir: str | None) -> list[epath.Path]:
    """Lists the folders of all prepared versions of `name`, sorted."""
    copies = {
        os.fspath(folder): folder
        for parent in _parents(name.partition(":")[0], _data_dir(dir))
        for folder in (parent, *_below(parent), *_below(parent, depth=2))
        if _matches(folder, name)
    }
    return [copies[path] for path in sorted(copies)]


def _listed(data_dir: epath.Path) -> Iterator[str]:
    """Lists the prepared data sets below `data_dir`; marks those in TFRecord."""
    for root in (data_dir, data_dir / CONVERTED):
        depths = (1, 2, 3) if root.is_dir() else ()
        for folder in (path for depth in depths for path in _below(root, depth)):
            try:
                if _is_copy(folder):
                    info = _read_info(folder)
                    kind = info.get("fileFormat", "tfrecord")
                    yield full_name(info) + f" (as {kind})" * (kind != FORMAT)
            except (OSError, ValueError, KeyError):  # not a copy that can be used
                continue


def _data_dir(dir: str | None) -> epath.Path:
    chosen = dir or os.environ.get("TFDS_DATA_DIR") or _DEFAULT_DIR
    return epath.Path(chosen).expanduser()


def _parents(name: str, data_dir: epath.Path) -> list[epath.Path]:
    """Lists the folders that may hold versions of `name`, given `data_dir`."""
    candidates = [data_dir / name, data_dir / CONVERTED / name]
    if (data_dir / _INFO).exists() or data_dir.name == name.partition("/")[0]:
        candidates.append(data_dir)
    return [path for path in candidates if path.is_dir()]


def _below(folder: epath.Path, depth: int = 1) -> list[epath.Path]:
    children = [path for path in folder.iterdir() if path.is_dir()]
    if depth == 1:
        return children
    return [path for child in children for path in _below(child, depth - 1)]


def _is_copy(folder: epath.Path) -> bool:
    return not folder.name.startswith("incomplete") and (folder / _INFO).exists()


def _matches(folder: epath.Path, name: str) -> bool:
    """Whether `folder` is a prepared version of `name`."""
    if not _is_copy(folder):
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
    return paths.read_json(
        folder / _INFO, f"remove {folder} and prepare or copy the data set again"
    )


def _check_splits(split: str, info: dict[str, Any], path: epath.Path) -> None:
    known = [entry["name"] for entry in info.get("splits", [])]
    for part in split.split("+"):
        base.check_split(part.partition("[")[0], known, f"data set {path}")


def check(path: epath.Path, split: str | None = None) -> dict[str, Any]:
    """Checks that an ArrayRecord copy can be read; returns its dataset_info.

    All of `split` must be there and complete; None: of every split.

    Raises:
      FileNotFoundError: a file is missing (an interrupted copy or preparation).
      ValueError: a file is damaged, or the data set has no images.
    """
    for file in (_INFO, "features.json"):
        if not (path / file).exists():
            raise FileNotFoundError(
                f"{path} has no {file}: it was not prepared to its end; remove that "
                "folder and prepare or copy the data set again"
            )
    info = _read_info(path)
    _check_features(path)
    names = split and {part.partition("[")[0].strip() for part in split.split("+")}
    present = {file.name for file in path.iterdir()}
    for entry in info["splits"]:
        if names is None or entry["name"] in names:
            _check_files(path, info["name"], entry, present)
    return info


def _check_features(path: epath.Path) -> None:
    again = f"remove {path} and prepare or copy the data set again"
    features = paths.read_json(path / "features.json", again)
    features = features.get("featuresDict", {}).get("features", {})
    if "image" not in features.get("image", {}):
        raise ValueError(
            f"data set {path} has no feature 'image' that is an image; its features "
            f"are {', '.join(sorted(features)) or 'unnamed'}. Export its images as a "
            "folder or arrays (data.source=folder, arrays)"
        )


def _check_files(
    path: epath.Path, name: str, entry: dict[str, Any], present: set[str]
) -> None:
    """Raises if a file of a split is missing or truncated."""
    counts = [int(count) for count in entry["shardLengths"]]
    total, stem = len(counts), f"{name}-{entry['name']}.{FORMAT}"
    files = [f"{stem}-{shard:05d}-of-{total:05d}" for shard in range(total)]
    missing = [file for file in files if file not in present]
    if missing:
        raise FileNotFoundError(
            f"data set {path} lacks {len(missing)} of the {total} files of split "
            f"{entry['name']!r}, the first {missing[0]}; copy it again"
        )
    if not paths.is_local(os.fspath(path)):
        return  # a request for each file
    for file, count in zip(files, counts, strict=True):
        held = _count_records(os.fspath(path / file))
        if held != count:
            raise ValueError(
                f"{path / file} is damaged or cut short: it holds {held} of the "
                f"{count} examples that {_INFO} says; copy or prepare it again"
            )


def _count_records(file: str) -> int:
    """Counts the examples in an ArrayRecord file; 0 if its end is damaged."""
    from array_record.python import array_record_module

    try:
        reader = array_record_module.ArrayRecordReader(file)
        try:
            return reader.num_records()
        finally:
            reader.close()
    except (RuntimeError, ValueError):
        return 0


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
        f"data set {name!r} is not in {data_dir}. {what_is_there(name, data_dir)}Ways "
        "on:\n"
        f"  prepare it{needs}:\n"
        f"    python -m litevit_jax.data.prepare --name={name} "
        f"--data_dir={data_dir}{manual}\n"
        "  say where it is: --config.data.dir=DIR, or set TFDS_DATA_DIR\n"
        "  use a folder of images: --config=configs/mae_tiny.py:data=folder,path=DIR\n"
        "  try the embedded set: --config=configs/mae_tiny.py:digits"
    )


def what_is_there(name: str, data_dir: epath.Path) -> str:
    """Describes the data sets in `data_dir`: those with a similar name, else all."""
    if not data_dir.is_dir():
        return "There is no such folder. "
    everything = sorted(set(_listed(data_dir)))
    if not everything:
        return "No prepared data set is there. "
    own = name.partition(":")[0].partition("/")[0]
    short = sorted({full.partition(":")[0].partition("/")[0] for full in everything})
    near = choices.near(own, short)
    shown = [full for full in everything if full.startswith(tuple(near))] or everything
    dots = ", ..." if len(shown) > _SEVERAL else ""
    return f"There are: {', '.join(shown[:_SEVERAL])}{dots}. "
