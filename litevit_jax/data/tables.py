"""Tables of labels: a row for each image, in CSV, TSV, JSON lines or Parquet.

    path,label,split          the header of FILE.csv; FILE.tsv has tabs
    {"path": ..., "label": ...}    a line of FILE.jsonl
    FILE.parquet              columns of the same names

`file_name` is `path`, and `labels` may hold several labels: a list, or a text with |
between them: one row with several makes it a table of several labels an image.
An empty label is none. Rows are counted as the lines of a text, with its
header; those of a Parquet file from 1. Of ImageNet, also its own files are read:

    LOC_val_solution.csv                           Kaggle's ImageId,PredictionString
    ILSVRC2012_validation_ground_truth.txt         the development kit's, beside its
                                                   meta.mat
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from litevit_jax import choices, paths

EXTENSIONS = ("csv", "tsv", "jsonl", "parquet", "txt")
_PATH = ("path", "file_name")
_LABEL = ("label", "labels")
SEVERAL = "|"  # between labels of an image
_EXPECTED = "expected columns path and label (or labels), and maybe split"

Record = tuple[int, dict[str, Any]]  # row number, column -> value


@dataclasses.dataclass(frozen=True)
class Row:
    """A row: its number, the path as it is written, labels, and split ('': none)."""

    number: int
    path: str
    labels: tuple[str, ...]
    split: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of a file.

    Attributes:
      file: its path, for messages.
      rows: not empty.
      divided: whether rows have splits.
      stems: whether rows name files without folder and extension.
      unread: names of columns that are not used.
    """

    file: str
    rows: Sequence[Row]
    divided: bool = False
    stems: bool = False
    unread: Sequence[str] = ()

    @property
    def several(self) -> bool:
        """Whether a row has several labels."""
        return any(len(row.labels) > 1 for row in self.rows)

    def error(self, wrong: Sequence[tuple[int, str]]) -> ValueError:
        """Returns an error that tells what is wrong with rows: (number, what)."""
        shown = [f"row {number}: {what}" for number, what in wrong[:5]]
        more = [f"and {len(wrong) - 5:,} rows more"] * (len(wrong) > 5)
        return ValueError(f"{self.file}, " + "; ".join([*shown, *more]))


def is_table(name: str) -> bool:
    """Whether a file's name ends as that of a table."""
    return name.rpartition(".")[2].lower() in EXTENSIONS


def read(file: str) -> Table:
    """Reads the table of labels `file`.

    Raises:
      FileNotFoundError: it does not exist.
      ModuleNotFoundError: a Parquet file, and pyarrow is not installed.
      ValueError: another kind of file, no row, or a row that is wrong.
    """
    path = paths.path(file)
    path = path.expanduser() if paths.is_local(file) else path
    kind = path.suffix.removeprefix(".").lower()
    if kind not in EXTENSIONS:
        known = ", ".join(f".{each}" for each in EXTENSIONS)
        raise ValueError(
            f"data.labels={file!r} is no table of labels; expected one of {known}"
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"data.labels={file!r} does not exist, or is no regular file; expected a "
            "table with a row for each image (its path is not relative to data.dir)"
        )
    table = parse(str(path), path.read_bytes())
    assert table is not None
    return table


def parse(file: str, content: bytes, *, optional: bool = False) -> Table | None:
    """Returns the table that `content` of the file called `file` holds; see `read`.

    `optional`: without columns for paths and labels it is None.
    """
    from litevit_jax.data import imagenet_tables

    kind = file.rpartition(".")[2].lower()
    if kind == "txt":
        return imagenet_tables.devkit(file, decoded(file, content))
    if kind == "parquet":
        columns, records = _of_parquet(file, content)
    elif kind == "jsonl":
        columns, records = _of_json(file, decoded(file, content))
    else:
        lines = fields(file, content, "\t" if kind == "tsv" else ",")
        columns, records = _of_fields(file, lines)
    if not records:
        raise ValueError(f"{file}: got no row; {_EXPECTED}, and a row for each image")
    if imagenet_tables.is_kaggle(columns):
        return imagenet_tables.kaggle(file, records)
    lacking = not (set(_PATH) & set(columns) and set(_LABEL) & set(columns))
    if lacking and optional:
        return None
    return _table(file, columns, records)


def _table(file: str, columns: Sequence[str], records: Sequence[Record]) -> Table:
    """Checks columns and values, and makes them rows."""
    path = next((name for name in _PATH if name in columns), None)
    label = [name for name in _LABEL if name in columns]
    if path is None or not label:
        raise _missing_column(file, columns)
    if len(label) > 1:
        raise ValueError(f"{file}: got columns label and labels; expected one of them")
    divided = "split" in columns
    unread = [name for name in columns if name not in (path, *label, "split")]
    rows, wrong = [], []
    for number, record in records:
        try:
            rows.append(
                Row(
                    number,
                    _one("path", record.get(path)),
                    labels_of(label[0], record.get(label[0])),
                    _one("split", record.get("split")) if divided else "",
                )
            )
        except ValueError as error:
            wrong.append((number, str(error)))
    table = Table(file, rows, divided, unread=unread)
    if wrong:
        raise table.error(wrong)
    return table


def _missing_column(file: str, columns: Sequence[str]) -> ValueError:
    """Returns the error of a table that lacks a column."""
    hint = "".join(choices.hint(name, columns) for name in ("path", "label"))
    advice = f"{hint}rename them in the first line"
    if len(columns) == 1 and any(mark in columns[0] for mark in ",;\t"):
        advice = "separate fields by commas (in .tsv by tabs)"
    return ValueError(
        f"{file}: got the columns {', '.join(columns) or 'none'}; {_EXPECTED}; {advice}"
    )


def _one(what: str, value: Any) -> str:
    """Returns a value that must be there as text."""
    text = "" if value is None else _text_of(what, value)
    if not text:
        raise ValueError(f"got no {what}; expected one in every row")
    return text


def labels_of(column: str, value: Any) -> tuple[str, ...]:
    """Returns the labels of a cell; () for none.

    Raises:
      ValueError: a list in a column for one label, or no text and no whole number.
    """
    if value != value:  # a missing one, among numbers
        value = None
    if isinstance(value, list | tuple):
        if column == "label":
            raise ValueError(
                f"got {list(value)!r} as label, expected one; a column of several is "
                "called labels"
            )
        cells = [_text_of(column, each) for each in value]
    else:
        text = "" if value is None else _text_of(column, value)
        cells = text.split(SEVERAL) if column == "labels" else [text]
    names = [cell.strip() for cell in cells if cell.strip()]
    if len(set(names)) < len(names):
        raise ValueError(f"got the labels {', '.join(names)}; expected each once")
    return tuple(names)


def _text_of(what: str, value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"got {value!r} as {what}; expected text or a whole number")
    return str(value).strip()


def decoded(file: str, content: bytes) -> str:
    """Decodes UTF-8.

    Raises:
      ValueError: it is something else; the message names the line.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        got = content[error.start : error.start + 1]
        raise ValueError(f"{file}, line {line}: got {got}; expected UTF-8") from None


def fields(
    file: str, content: bytes, delimiter: str = ",", expected: str = _EXPECTED
) -> Iterator[tuple[int, list[str]]]:
    """Yields line number and fields of a CSV file, without its empty lines.

    Raises:
      ValueError: no UTF-8, or wrong quotes; `expected` ends the message.
    """
    text = decoded(file, content)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(
            f"{file}, line {reader.line_num}: got {error}; {expected}"
        ) from None


def _of_fields(
    file: str, lines: Iterable[tuple[int, list[str]]]
) -> tuple[list[str], list[Record]]:
    """Returns the columns that the first line names, and the records below it."""
    lines = iter(lines)
    _, header = next(lines, (0, []))
    columns = _columns(file, header)
    records, wrong = [], []
    for number, cells in lines:
        if len(cells) == len(columns):
            records.append((number, dict(zip(columns, cells, strict=True))))
        else:
            got = f"got {len(cells)} fields, {','.join(cells)[:60]!r}"
            wrong.append((number, f"{got}; expected {len(columns)}, as in the header"))
    if wrong:
        raise Table(file, ()).error(wrong)
    return columns, records


def _columns(file: str, header: Iterable[str]) -> list[str]:
    """Returns the names of columns in lower case, each one once."""
    columns = [str(name).strip().lower() for name in header]
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise ValueError(
            f"{file}: got several columns {', '.join(twice)}; expected one"
        )
    return columns


def _of_json(file: str, text: str) -> tuple[list[str], list[Record]]:
    """Returns the names of all keys, and a record for each line."""
    columns: dict[str, None] = {}
    records, wrong = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
            if not isinstance(content, dict):
                raise ValueError("no object")
        except (ValueError, RecursionError) as error:
            got = f"got {line[:60]!r} ({error})"
            wrong.append((number, f"{got}; expected an object, as {{...}}"))
            continue
        names = _columns(f"{file}, row {number}", content)
        record = dict(zip(names, content.values(), strict=True))
        columns |= dict.fromkeys(record)
        records.append((number, record))
    label = next((name for name in _LABEL if name in columns), None)
    if label and not wrong:
        lacking = [number for number, record in records if label not in record]
        wrong = [(number, f"got no {label}; null is none") for number in lacking]
    if wrong:
        raise Table(file, ()).error(wrong)
    return list(columns), records


def pyarrow(what: str) -> Any:
    """Imports pyarrow's reader of Parquet files, for `what`.

    Raises:
      ModuleNotFoundError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ModuleNotFoundError(
            f"{what} needs the Python package 'pyarrow', which is not installed: "
            'pip install "litevit_jax[parquet]"'
        ) from error
    return pyarrow


def _of_parquet(file: str, content: bytes) -> tuple[list[str], list[Record]]:
    """Returns the columns of a Parquet file, and records of those that are read."""
    arrow = pyarrow(file)
    try:
        opened = arrow.parquet.ParquetFile(arrow.BufferReader(content))
        names = opened.schema_arrow.names
        columns = _columns(file, names)
        used = (*_PATH, *_LABEL, "split")
        read = [name for name in names if name.strip().lower() in used]
        rows = opened.read(columns=read).to_pylist()
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"{file} is damaged ({error}); write it anew") from None
    lower = [name.strip().lower() for name in read]
    return columns, [
        (number, dict(zip(lower, row.values(), strict=True)))
        for number, row in enumerate(rows, start=1)
    ]
