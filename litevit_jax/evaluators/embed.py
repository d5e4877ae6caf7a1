"""Features of every image of a split, written to a file.

Rows are in the order of the split. An image that cannot be read keeps its row: its
features are not-a-number, and the column `error` says why.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import pathlib
import shutil
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from litevit_jax import checkpoint, choices, distributed, paths
from litevit_jax.data import decode
from litevit_jax.evaluators import base, frozen

# Pool -> predictions after the final norm, and after each block.
_READS = {
    "cls": (("features_cls",), ("features_blocks",)),
    "avg": (("features_avg",), ("features_blocks_avg",)),
    "cls_avg": (
        ("features_cls", "features_avg"),
        ("features_blocks", "features_blocks_avg"),
    ),
    "tokens": (("tokens",), ()),
}
POOLS = tuple(_READS)
_USUAL = "cls"  # of a block
_PART_BYTES = 2**26  # of features that are computed between two parts
_TEXT = ("path", "label", "error")  # the columns beside the features


def make(
    *,
    context: base.Context,
    target: str,
    split: str = "eval",
    pool: str | None = None,
    block: int | None = None,
) -> Embed:
    """Builds the evaluator.

    Args:
      context: see base.
      target: file that is written; its ending says how: .parquet, .npz, .npy or .csv.
      split: the images.
      pool: 'cls', the class token; 'avg', the mean of the patch tokens; 'cls_avg', both
        side by side; 'tokens', all patch tokens. None: what the model's own evaluations
        read, the class token, or of a classifier what its head reads.
      block: after which block, from 1, without the final norm; None: after the last
        one and the final norm.

    Raises:
      ValueError: an unknown ending or pool, or tokens of a block that is not the last.
      FileExistsError: the target is there already.
      ModuleNotFoundError: the package that writes the format is not installed.
    """
    if pool is not None:
        choices.check("embed: pool", pool, POOLS)
    path = pathlib.Path(target)
    if path.suffix not in _WRITERS:
        raise ValueError(
            f"embed: target={target} ends in {path.suffix!r}, expected one of "
            f"{', '.join(_WRITERS)}"
        )
    if block is not None and (pool == "tokens" or block < 1):
        raise ValueError(
            f"embed: block={block} with pool={pool!r}; expected a block from 1 on, and "
            "cls, avg or cls_avg: all tokens are those after the final norm"
        )
    for file in _files(path):
        if file.exists():
            raise FileExistsError(f"{file} is there already; remove it or name another")
    if path.suffix == ".parquet":
        _parquet()
    return Embed(context, split, path, pool, block)


@dataclasses.dataclass(frozen=True)
class Embed(base.Evaluator):
    """Writes features, paths and labels of a split to `path`, in parts that are kept.

    A stopped embedding goes on after its last whole part; the parts lie beside the
    target, and memory holds one of them, whatever the number of images.
    """

    split: str
    path: pathlib.Path
    pool: str | None
    block: int | None

    @property
    def reads(self) -> tuple[str, ...]:
        """The predictions that are written."""
        if self.pool is None and self.block is None:
            return ("features",)
        return _READS[self.pool or _USUAL][self.block is not None]

    def run(self, state: Any, *, step: int) -> dict[str, Any]:
        """Returns n, the images, `unreadable` among them, `width` and the file."""
        source = self.context.source(self.split)
        about = {
            "params": checkpoint.fingerprint(state),
            "images": source.fingerprint(),
            "size": list(self.context.size),
            "reads": list(self.reads),
            "block": self.block,
        }
        begun = functools.partial(_begin, self.parts, about)
        done = distributed.run_on_primary(begun)
        for rows, number in self._rows(state, done):
            _on_primary(functools.partial(_save, self.parts, number, rows))
        written = functools.partial(self._write, source)
        return {**distributed.run_on_primary(written), "file": str(self.path)}

    @property
    def parts(self) -> pathlib.Path:
        """The folder of the parts."""
        return self.path.with_name(f"{self.path.name}.parts")

    def _rows(self, state: Any, start: int) -> Iterator[tuple[np.ndarray, int]]:
        """Yields (features [n, ...] of a part, number of its first image).

        Rows of images that cannot be read are not-a-number.
        """
        length = len(self.context.source(self.split))
        if start >= length:
            return
        left = frozen.part(self.context, self.split, np.arange(start, length))
        gathered: list[np.ndarray] = []
        size, first = 0, start
        for batch, out in left.over(state, self.split, self.reads):
            rows = self._features(out)[batch["index"] >= 0]
            rows[batch["mask"][batch["index"] >= 0] == 0] = np.nan
            gathered.append(rows)
            size += rows.nbytes
            if size >= _PART_BYTES:
                part = np.concatenate(gathered)
                yield part, first
                gathered, size, first = [], 0, first + len(part)
        if gathered:
            yield np.concatenate(gathered), first

    def _features(self, out: base.Rows) -> np.ndarray:
        """Features [B, ...] of a batch, float32."""
        columns = [out[name].astype(np.float32) for name in self.reads]
        if self.block is not None:
            depth = columns[0].shape[1]
            if self.block > depth:
                raise ValueError(
                    f"embed: block={self.block}, but the encoder has {depth}"
                )
            columns = [x[:, self.block - 1] for x in columns]
        return np.concatenate(columns, axis=-1)

    def _write(self, source: Any) -> dict[str, Any]:
        """Writes the file from its parts, which are removed."""
        table = Table(self.parts, source, len(self.context.mean))
        paths.make_folder(self.path.parent)
        written = _WRITERS[self.path.suffix](self.path, table)
        for partial, path in written:
            paths.rename(partial, path)
        shutil.rmtree(self.parts)
        return {"n": len(source), "unreadable": table.unreadable, "width": table.width}


def _on_primary(call: Callable[[], None]) -> None:
    if distributed.is_primary():
        call()


def _begin(folder: pathlib.Path, about: dict[str, Any]) -> int:
    """Opens the folder of parts; returns how many images they hold.

    Raises:
      ValueError: they are those of another embedding.
    """
    path = folder / "about.json"
    if path.exists():
        other = paths.read_json(path, "remove the folder to begin anew")
        changed = [k for k in about if other.get(k) != about[k]]
        if changed:
            raise ValueError(
                f"{folder} holds a part of an embedding with other {changed[0]}: "
                f"{other.get(changed[0])}, now {about[changed[0]]}; remove the folder "
                "to begin anew, or name another target"
            )
        whole = sorted(folder.glob("*.npy"))
        if not whole:
            return 0
        last = np.load(whole[-1], mmap_mode="r")
        return int(whole[-1].stem) + len(last)
    folder.mkdir(parents=True, exist_ok=True)
    paths.replace_text(path, json.dumps(about) + "\n")
    return 0


def _save(folder: pathlib.Path, first: int, rows: np.ndarray) -> None:
    file = io.BytesIO()
    np.save(file, rows)
    paths.replace_bytes(folder / f"{first:09d}.npy", file.getvalue())


class Table:
    """The columns of an embedding, one part after the other.

    Attributes:
      shape: of one image's features.
      unreadable: how many rows have an error, of those that were read.
    """

    def __init__(self, folder: pathlib.Path, source: Any, channels: int) -> None:
        self._files = sorted(folder.glob("*.npy"))
        self._source = source
        self._decode = decode.Decode(channels=channels)
        self.shape = np.load(self._files[0], mmap_mode="r").shape[1:]
        self.unreadable = 0

    def __len__(self) -> int:
        return len(self._source)

    @property
    def width(self) -> int:
        """Numbers of one image."""
        return int(np.prod(self.shape))

    def parts(self) -> Iterator[tuple[np.ndarray, dict[str, list[Any]]]]:
        """Yields (features [n, ...], {'path', 'label', 'error'}) part by part."""
        self.unreadable = 0
        for file in self._files:
            features, first = np.load(file), int(file.stem)
            rows = range(first, first + len(features))
            broken = np.isnan(features.reshape(len(features), -1)).all(axis=1)
            self.unreadable += int(broken.sum())
            yield (
                features,
                {
                    "path": [self._source.name_of(row) for row in rows],
                    "label": [self._label(row) for row in rows],
                    "error": [
                        self._why(row) if bad else None
                        for row, bad in zip(rows, broken, strict=True)
                    ],
                },
            )

    def _label(self, row: int) -> str | None:
        label, classes = self._source.label_of(row), self._source.classes
        return str(classes[label]) if 0 <= label < len(classes) else None

    def _why(self, row: int) -> str:
        try:
            self._decode(self._source[row]["image"])
        except Exception as error:
            return str(error)
        return "its features are not numbers"


def _parquet() -> Any:
    """Imports pyarrow's writer.

    Raises:
      ModuleNotFoundError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "a .parquet file needs the Python package 'pyarrow', which is not "
            "installed: pip install pyarrow, or name a target that ends in .npz"
        ) from None
    return pyarrow


Written = list[tuple[pathlib.Path, pathlib.Path]]  # (as it is written, its name)


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    """The files of an embedding: an .npy file has its paths in another one."""
    beside = path.with_name(f"{path.name}.csv")
    return [path, beside] if path.suffix == ".npy" else [path]


def _partial(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f".{path.name}.partial")


def _write_parquet(path: pathlib.Path, table: Table) -> Written:
    pyarrow = _parquet()
    kind = pyarrow.list_(pyarrow.float32(), table.width)
    columns = [(name, pyarrow.string()) for name in _TEXT]
    notes = {"shape": json.dumps(table.shape)}
    schema = pyarrow.schema([*columns, ("features", kind)], metadata=notes)
    with pyarrow.parquet.ParquetWriter(_partial(path), schema) as writer:
        for features, text in table.parts():
            flat = pyarrow.array(features.reshape(-1))
            lists = pyarrow.FixedSizeListArray.from_arrays(flat, table.width)
            arrays = [pyarrow.array(text[name], pyarrow.string()) for name in _TEXT]
            writer.write_table(pyarrow.table([*arrays, lists], schema=schema))
    return [(_partial(path), path)]


def _write_npz(path: pathlib.Path, table: Table) -> Written:
    """Writes the arrays features, path, label and error; text is unicode."""
    text: dict[str, list[str]] = {name: [] for name in _TEXT}
    with zipfile.ZipFile(_partial(path), "w", zipfile.ZIP_STORED) as archive:
        with archive.open("features.npy", "w", force_zip64=True) as file:
            _header(file, (len(table), *table.shape))
            for features, columns in table.parts():
                file.write(np.ascontiguousarray(features, "<f4").tobytes())
                for name in _TEXT:
                    text[name] += [value or "" for value in columns[name]]
        for name, values in text.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, np.array(values), allow_pickle=False)
    return [(_partial(path), path)]


def _write_npy(path: pathlib.Path, table: Table) -> Written:
    """Writes features alone, and the other columns into PATH.npy.csv."""
    features_file, beside = _files(path)
    with (
        _partial(path).open("wb") as file,
        _partial(beside).open("w", newline="") as lines,
    ):
        writer = csv.writer(lines)
        writer.writerow(_TEXT)
        _header(file, (len(table), *table.shape))
        for features, columns in table.parts():
            file.write(np.ascontiguousarray(features, "<f4").tobytes())
            writer.writerows(zip(*(columns[name] for name in _TEXT), strict=True))
    return [(_partial(beside), beside), (_partial(path), features_file)]


def _write_csv(path: pathlib.Path, table: Table) -> Written:
    with _partial(path).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*_TEXT, *(f"f{number}" for number in range(table.width))])
        for features, columns in table.parts():
            text = zip(*(columns[name] for name in _TEXT), strict=True)
            flat = features.reshape(len(features), -1)
            for row, values in zip(text, flat, strict=True):
                # Nine digits give float32 back bit for bit.
                writer.writerow([*row, *(f"{value:.9g}" for value in values)])
    return [(_partial(path), path)]


def _header(file: Any, shape: tuple[int, ...]) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


_WRITERS: dict[str, Callable[[pathlib.Path, Table], Written]] = {
    ".parquet": _write_parquet,
    ".npz": _write_npz,
    ".npy": _write_npy,
    ".csv": _write_csv,
}
