"""Prepares a TFDS data set as ArrayRecord, which training reads without TensorFlow.

    python -m litevit_jax.data.prepare --name=imagenet2012 --data_dir=DIR \\
        --manual_dir=DIR_WITH_THE_TARS
    python -m litevit_jax.data.prepare --name=imagenet2012 --data_dir=DIR --convert

The first form downloads, or reads the archives in --manual_dir, and writes
DIR/NAME/VERSION. The second reads a TFRecord copy in DIR and writes
DIR/array_record/NAME/VERSION (or below --out_dir); the copy stays as it is, and
training with data.dir=DIR finds the new one. Both can be repeated: what is there is
not done again, but checked: every file must be there and hold what it should. Both need
TensorFlow: pip install -e ".[tf]".
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import pathlib
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from litevit_jax import choices, paths
from litevit_jax.data.sources import tfds as tfds_source

# Data sets whose archives must be fetched by hand, behind a login.
_MANUAL_FILES = {
    "imagenet2012": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
}
# Prepared data over its archives: 144 GiB of ImageNet stay 144 GiB; some to spare.
_GROWTH = 1.1
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


def prepare(*, name: str, data_dir: pathlib.Path, manual_dir: str | None) -> str:
    """Downloads or reads the archives of `name`; returns the prepared folder.

    Raises:
      FileNotFoundError: archives that must be fetched by hand are not there.
      ValueError: there is a TFRecord copy, which is quicker to convert; or TFDS
        has no such data set, config or version.
      OSError: no room, or no right to write.
      ModuleNotFoundError: TensorFlow is not installed.
    """
    copy = tfds_source.locate(name, str(data_dir))
    if copy is not None and _format(copy) != tfds_source.FORMAT:
        raise ValueError(
            f"{copy} holds {name} as {_format(copy)}; convert it instead, with "
            f"--name={name} --data_dir={data_dir} --convert"
        )
    if copy is not None:
        print(f"already prepared: {copy}")
        return os.fspath(copy)
    _check_no_half(name, data_dir)
    _require_tensorflow()
    archives = _manual_archives(name, data_dir, manual_dir)
    size = sum(archive.stat().st_size for archive in archives)
    _check_target(data_dir, needed=int(size * _GROWTH))
    folder = archives[0].parent if archives else manual_dir
    return _download_and_prepare(name, data_dir, folder)


def convert(*, name: str, data_dir: pathlib.Path, out_dir: pathlib.Path) -> str:
    """Rewrites a TFRecord copy of `name` as ArrayRecord; returns the new folder.

    An interrupted conversion goes on with the shard where it stopped.

    Raises:
      FileNotFoundError: there is no copy in `data_dir`.
      ValueError: a shard does not hold as many examples as it should.
      OSError: no room, or no right to write.
      ModuleNotFoundError: TensorFlow is not installed.
    """
    source = tfds_source.locate(name, str(data_dir))
    if source is None:
        raise FileNotFoundError(
            f"no prepared copy of {name!r} in {data_dir}; expected "
            f"{data_dir}/{name.partition(':')[0]}/VERSION/dataset_info.json. "
            + tfds_source.what_is_there(name, epath.Path(data_dir)).strip()
        )
    if _format(source) == tfds_source.FORMAT:
        print(f"already {tfds_source.FORMAT}: {source}")
        return os.fspath(source)
    info = json.loads((source / "dataset_info.json").read_text())
    parts = (info["name"], info.get("configName", ""), info["version"])
    target = out_dir.joinpath(*(part for part in parts if part))
    if (target / "dataset_info.json").exists():
        print(f"already converted: {target}")
        return os.fspath(target)
    _require_tensorflow()
    size = sum(int(split["numBytes"]) for split in info["splits"])
    _check_target(out_dir, needed=int(size * _GROWTH))
    _convert_into(target, pathlib.Path(source), info)
    return os.fspath(target)


def _check_no_half(name: str, data_dir: pathlib.Path) -> None:
    """Raises if a folder of `name` is unfinished: TFDS would accept it."""
    dataset = name.partition(":")[0].partition("/")[0]
    for file in sorted((data_dir / dataset).glob(f"**/{dataset}-*-of-*")):
        if not any(part.startswith("incomplete") for part in file.parts):
            tfds_source.check(epath.Path(file.parent))


def _format(folder: Any) -> str:
    info = json.loads((folder / "dataset_info.json").read_text())
    return info.get("fileFormat", "tfrecord")  # what it was before it was written


def _require_tensorflow() -> None:
    if importlib.util.find_spec("tensorflow") is None:
        raise ModuleNotFoundError(
            "preparing a data set needs TensorFlow (training does not): "
            'pip install -e ".[tf]"'
        )


def _manual_archives(
    name: str, data_dir: pathlib.Path, manual_dir: str | None
) -> list[pathlib.Path]:
    """Returns the archives of `name` that you have to download yourself.

    Raises:
      FileNotFoundError: some are missing; the message lists them.
    """
    dataset = name.partition(":")[0].partition("/")[0]
    names = _MANUAL_FILES.get(dataset, ())
    # Where TFDS itself would look.
    folder = pathlib.Path(manual_dir or data_dir / "downloads" / "manual")
    folder = folder.expanduser()
    missing = [file for file in names if not (folder / file).is_file()]
    if missing:
        present = sorted(path.name for path in folder.glob("*.tar"))
        raise FileNotFoundError(
            f"{dataset} is made from {' and '.join(names)}; missing in {folder}: "
            f"{', '.join(missing)} (tar files there: {', '.join(present) or 'none'}). "
            "Download them from https://image-net.org, leave them packed, and name "
            "their folder with --manual_dir"
        )
    return [folder / file for file in names]


def _check_target(folder: pathlib.Path, *, needed: int) -> None:
    """Raises unless `needed` bytes can be written below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"no right to write into {folder}")
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"{folder} has {free / 2**30:.1f} GiB free; about {needed / 2**30:.1f} "
            "GiB are needed"
        )


def _download_and_prepare(name: str, data_dir: pathlib.Path, manual_dir: Any) -> str:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(
            name, data_dir=os.fspath(data_dir), file_format=tfds_source.FORMAT
        )
    except (AssertionError, ValueError) as error:  # unknown name, config or version
        raise ValueError(_unknown(tfds, name)) from error
    config = tfds.download.DownloadConfig(manual_dir=manual_dir)
    builder.download_and_prepare(download_config=config)
    return os.fspath(builder.data_path)


def _unknown(tfds: Any, name: str) -> str:
    """Describes a name, config or version that TFDS does not have."""
    own = name.partition(":")[0].partition("/")[0]
    try:
        kind = tfds.builder_cls(own)
    except ValueError:
        known = tfds.list_builders(with_community_datasets=False)
        hint = choices.suggest(own, known)
        return f"--name={name}: TFDS has no data set {own!r}; {hint}"
    versions = [kind.VERSION, *(kind.SUPPORTED_VERSIONS or ())]
    for config in kind.BUILDER_CONFIGS or ():
        versions += [config.version, *(config.supported_versions or ())]
    listed = ", ".join(sorted({str(version) for version in versions if version}))
    configs = ", ".join(config.name for config in kind.BUILDER_CONFIGS or ())
    return (
        f"--name={name}: no such version or config in TFDS; {own} has versions "
        f"{listed}{'; configs ' * bool(configs)}{configs}"
    )


def _convert_into(
    target: pathlib.Path, source: pathlib.Path, info: dict[str, Any]
) -> None:
    """Writes a folder beside `target` and renames it when complete."""
    partial = target.with_name(f"incomplete.{target.name}")
    partial.mkdir(parents=True, exist_ok=True)
    for old, new, count in _shards(info):
        _convert_shard(source / old, partial / new, count)
    for file in source.iterdir():
        if "tfrecord" not in file.name and file.is_file():
            shutil.copyfile(file, partial / file.name)
    for split in info["splits"]:
        split["filepathTemplate"] = _TEMPLATE
    info["fileFormat"] = tfds_source.FORMAT
    (partial / "dataset_info.json").write_text(json.dumps(info, indent=2))
    paths.rename(partial, target)


def _shards(info: dict[str, Any]) -> Iterator[tuple[str, str, int]]:
    """Yields old name, new name and number of examples of every file."""
    for split in info["splits"]:
        total = len(split["shardLengths"])
        for shard, count in enumerate(split["shardLengths"]):
            names = {
                "DATASET": info["name"],
                "SPLIT": split["name"],
                "SHARD_X_OF_Y": f"{shard:05d}-of-{total:05d}",
            }
            old = split.get("filepathTemplate", _TEMPLATE)
            yield (
                old.format(FILEFORMAT="tfrecord", **names),
                _TEMPLATE.format(FILEFORMAT=tfds_source.FORMAT, **names),
                int(count),
            )


def _convert_shard(old: pathlib.Path, new: pathlib.Path, count: int) -> None:
    """Copies the records of one file; skips a file that is already complete."""
    import tensorflow as tf
    from array_record.python import array_record_module

    if new.exists():
        return
    print(f"{old.name} -> {new.name}", flush=True)
    partial = new.with_name(f"{new.name}.part")
    # group_size 1, as TFDS writes: records are read one at a time.
    writer = array_record_module.ArrayRecordWriter(os.fspath(partial), "group_size:1")
    written = 0
    try:
        for record in tf.data.TFRecordDataset(os.fspath(old)).as_numpy_iterator():
            writer.write(record)
            written += 1
    except tf.errors.OpError as error:
        raise ValueError(f"{old} is damaged: {error.message}") from error
    finally:
        writer.close()
    if written != count:
        raise ValueError(
            f"{old} holds {written} examples; dataset_info.json says {count}. The "
            "copy is damaged: fetch it again"
        )
    paths.rename(partial, new)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m litevit_jax.data.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--name", required=True, help="TFDS name: imagenet2012")
    parser.add_argument("--data_dir", required=True, help="TFDS data directory")
    parser.add_argument(
        "--manual_dir", help="archives; default DATA_DIR/downloads/manual"
    )
    parser.add_argument(
        "--convert", action="store_true", help="rewrite a TFRecord copy in DATA_DIR"
    )
    parser.add_argument(
        "--out_dir", help="with --convert; default DATA_DIR/array_record"
    )
    args = parser.parse_args(argv)
    if args.out_dir and not args.convert:
        parser.error("--out_dir goes with --convert")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    args = _parse(argv)
    data_dir = pathlib.Path(args.data_dir).expanduser().absolute()
    out_dir = pathlib.Path(args.out_dir or data_dir / tfds_source.CONVERTED)
    out_dir = out_dir.expanduser().absolute()
    try:
        if args.convert:
            path = convert(name=args.name, data_dir=data_dir, out_dir=out_dir)
        else:
            path = prepare(
                name=args.name, data_dir=data_dir, manual_dir=args.manual_dir
            )
        info = tfds_source.check(epath.Path(path))
        command = _command(args.name, out_dir if args.out_dir else data_dir, path, info)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    counts = ", ".join(f"{split} {count:,}" for split, count in _counts(info).items())
    name = tfds_source.full_name(info)
    print(f"{name} is ready in {path} ({counts})\nTrain with:\n  {command}")
    return 0


def _counts(info: dict[str, Any]) -> dict[str, int]:
    """Returns split -> number of examples."""
    return {s["name"]: sum(map(int, s["shardLengths"])) for s in info["splits"]}


def _command(name: str, folder: pathlib.Path, path: str, info: dict[str, Any]) -> str:
    """Returns the command that trains on the copy at `path`, with its splits."""
    name, _, version = name.partition(":")
    config = info.get("configName")
    name += f"/{config}" if config and "/" not in name else ""
    chosen = tfds_source.locate(name, os.fspath(folder))
    if version or chosen is None or os.fspath(chosen) != path:
        name = f"{name}:{info['version']}"
    splits = [split for split, count in _counts(info).items() if count]
    if not splits:
        raise ValueError(f"{path} holds no example in any split")
    fields = {"name": name, "dir": shlex.quote(os.fspath(folder))}
    train = "train" if "train" in splits else splits[0]
    if train != "train":
        fields["train_split"] = train
    others = [split for split in splits if split != train]
    if not others:
        fields["holdout.eval"] = "0.1"
    elif "validation" not in others:
        fields["eval_split"] = "test" if "test" in others else others[0]
    flags = " ".join(f"--config.data.{key}={value}" for key, value in fields.items())
    return f"litevit --config=mae_tiny {flags}"


if __name__ == "__main__":
    sys.exit(main())
