"""Features of every image of a split, written to a file.

Rows are in the order of the split. An image that cannot be read keeps its row: its
features are not-a-number, and the column `error` says why.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import pathlib
import zipfile
from typing import Any, ClassVar, NamedTuple

import numpy as np

from litevit_jax import checkpoint, choices, paths, trees
from litevit_jax.evaluators import base, parts
from litevit_jax.evaluators.parts import Table, Written, partial

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


def make(
    *,
    context: base.Context,
    target: str,
    split: str = "eval",
    pool: str | None = None,
    block: int | None = None,
    folder: str | None = None,
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
      folder: that the paths start from, which the file records.

    Raises:
      ValueError: an unknown ending or pool, or tokens of a block that is not the last.
      FileExistsError: the target is there already.
      ModuleNotFoundError: the package that writes the format is not installed.
    """
    if pool is not None:
        choices.check("embed: pool", pool, POOLS)
    path = pathlib.Path(target)
    parts.check_target("embed", path, _WRITERS, _files(path))
    if block is not None and (pool == "tokens" or block < 1):
        raise ValueError(
            f"embed: block={block} with pool={pool!r}; expected a block from 1 on, and "
            "cls, avg or cls_avg: all tokens are those after the final norm"
        )
    if path.suffix == ".parquet":
        _parquet()
    return Embed(context, split, path, pool, block, folder)


@dataclasses.dataclass(frozen=True)
class Embed(base.Evaluator):
    """Writes features, paths and labels of a split to `path`, in parts that are kept.

    A stopped embedding goes on after its last whole part.
    """

    split: str
    path: pathlib.Path
    pool: str | None
    block: int | None
    folder: str | None = None
    own_file: ClassVar[bool] = True

    @property
    def reads(self) -> tuple[str, ...]:
        """The predictions that are written."""
        if self.pool is None and self.block is None:
            return ("features",)
        return _READS[self.pool or _USUAL][self.block is not None]

    def run(self, state: Any, *, step: int) -> dict[str, Any]:
        """Returns n, the images, `unreadable` among them, `width` and the file."""
        del step
        return self.parts(state).write(state, self.features, _WRITERS[self.path.suffix])

    def parts(self, state: Any) -> parts.Parts:
        """Returns the features on their way into the file."""
        folder = self.folder
        if folder is not None and paths.is_local(folder):
            folder = str(pathlib.Path(folder).expanduser().absolute())
        about = {"folder": folder, **self.about(state)}
        return parts.Parts(self.context, self.split, self.path, self.reads, about)

    def about(self, state: Any) -> dict[str, Any]:
        """Describes what two files must share for their features to be compared."""
        params = {k: x for k, x in state.params.items() if k in ("encoder", "head")}
        params = trees.flatten(params or state.params)
        read = {k: x for k, x in params.items() if not k.startswith("head/fc/")}
        of_head = any(name.startswith("head/") for name in read)
        model_state = state.model_state if of_head else {}
        model = base.Model(params=read, model_state=model_state)
        return {"encoder": checkpoint.fingerprint(model), "block": self.block}

    def features(self, out: base.Rows) -> np.ndarray:
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


class Embedding(NamedTuple):
    """The content of an embedding's file.

    Attributes:
      features: float32 [n, D]; not-a-number where an image could not be read.
      path, label: of each image, '' where there is no label.
      about: what the features depend on.
    """

    features: np.ndarray
    path: list[str]
    label: list[str]
    about: dict[str, Any]


READABLE = (".parquet", ".npz")


def read_about(path: pathlib.Path) -> dict[str, Any]:
    """Reads what the features of a file depend on.

    Raises:
      ValueError: it is no embedding, or one that records nothing of that.
    """
    try:
        if path.suffix == ".parquet":
            notes = _parquet().parquet.read_schema(path).metadata or {}
            text = notes[b"about"]
        else:
            with np.load(path) as file:
                text = file["about"].item()
        about: dict[str, Any] = json.loads(text)
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} does not say of which encoder it is ({error}); expected a "
            f"{' or '.join(READABLE)} file that configs/embed.py has written: embed "
            "the images again"
        ) from None
    return about


def read(path: pathlib.Path) -> Embedding:
    """Reads a .parquet or .npz file that `Embed` has written.

    Raises:
      ValueError: see `read_about`.
    """
    about = read_about(path)
    if path.suffix == ".parquet":
        table = _parquet().parquet.read_table(path)
        flat = table["features"].combine_chunks().flatten().to_numpy()
        features = flat.reshape(len(table), -1)
        text = [[x or "" for x in table[k].to_pylist()] for k in ("path", "label")]
    else:
        with np.load(path) as file:
            features = file["features"]
            text = [file[name].tolist() for name in ("path", "label")]
    return Embedding(features, text[0], text[1], about)


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


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    """The files of an embedding: an .npy file has its paths in another one."""
    beside = path.with_name(f"{path.name}.csv")
    return [path, beside] if path.suffix == ".npy" else [path]


def _write_parquet(path: pathlib.Path, table: Table) -> Written:
    pyarrow = _parquet()
    kind = pyarrow.list_(pyarrow.float32(), table.width)
    columns = [(name, pyarrow.string()) for name in parts.TEXT]
    notes = {"shape": json.dumps(table.shape), "about": json.dumps(table.about)}
    schema = pyarrow.schema([*columns, ("features", kind)], metadata=notes)
    with pyarrow.parquet.ParquetWriter(partial(path), schema) as writer:
        for features, text in table.parts():
            flat = pyarrow.array(features.reshape(-1))
            lists = pyarrow.FixedSizeListArray.from_arrays(flat, table.width)
            arrays = [
                pyarrow.array(text[name], pyarrow.string()) for name in parts.TEXT
            ]
            writer.write_table(pyarrow.table([*arrays, lists], schema=schema))
    return [(partial(path), path)]


def _write_npz(path: pathlib.Path, table: Table) -> Written:
    """Writes the arrays features, path, label, error and about; text is unicode."""
    text: dict[str, list[str]] = {name: [] for name in parts.TEXT}
    with zipfile.ZipFile(partial(path), "w", zipfile.ZIP_STORED) as archive:
        with archive.open("features.npy", "w", force_zip64=True) as file:
            _header(file, (len(table), *table.shape))
            for features, columns in table.parts():
                file.write(np.ascontiguousarray(features, "<f4").tobytes())
                for name in parts.TEXT:
                    text[name] += [value or "" for value in columns[name]]
        columns = {**text, "about": json.dumps(table.about)}
        for name, values in columns.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, np.array(values), allow_pickle=False)
    return [(partial(path), path)]


def _write_npy(path: pathlib.Path, table: Table) -> Written:
    """Writes features alone, and the other columns into PATH.npy.csv."""
    features_file, beside = _files(path)
    with (
        partial(path).open("wb") as file,
        partial(beside).open("w", newline="") as lines,
    ):
        writer = csv.writer(lines)
        writer.writerow(parts.TEXT)
        _header(file, (len(table), *table.shape))
        for features, columns in table.parts():
            file.write(np.ascontiguousarray(features, "<f4").tobytes())
            writer.writerows(zip(*(columns[name] for name in parts.TEXT), strict=True))
    return [(partial(beside), beside), (partial(path), features_file)]


def _write_csv(path: pathlib.Path, table: Table) -> Written:
    with partial(path).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*parts.TEXT, *(f"f{number}" for number in range(table.width))])
        for features, columns in table.parts():
            text = zip(*(columns[name] for name in parts.TEXT), strict=True)
            flat = features.reshape(len(features), -1)
            for row, values in zip(text, flat, strict=True):
                # Nine digits give float32 back bit for bit.
                writer.writerow([*row, *(f"{value:.9g}" for value in values)])
    return [(partial(path), path)]


def _header(file: Any, shape: tuple[int, ...]) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


_WRITERS: dict[str, parts.Writer] = {
    ".parquet": _write_parquet,
    ".npz": _write_npz,
    ".npy": _write_npy,
    ".csv": _write_csv,
}
