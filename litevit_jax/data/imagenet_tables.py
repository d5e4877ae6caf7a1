"""ImageNet's own tables of labels: Kaggle's, and the development kit's."""

from __future__ import annotations

import io
import posixpath
from collections.abc import Sequence

from litevit_jax import paths
from litevit_jax.data import tables

_KAGGLE = {"imageid", "predictionstring"}
_DEVKIT = "ILSVRC2012_val_{:08d}"


def is_kaggle(columns: Sequence[str]) -> bool:
    """Whether a table has the columns of LOC_val_solution.csv."""
    return set(columns) >= _KAGGLE


def kaggle(file: str, records: Sequence[tables.Record]) -> tables.Table:
    """Returns Kaggle's table of ImageNet: `n01978287 85 1 499 272 n...` of each image.

    Every fifth word is a class, the others are corners of boxes.
    """
    rows = [
        tables.Row(
            number,
            str(record["imageid"]).strip(),
            tuple(dict.fromkeys(str(record["predictionstring"]).split()[::5])),
        )
        for number, record in records
    ]
    return tables.Table(file, rows, stems=True)


def devkit(file: str, text: str) -> tables.Table:
    """Returns the table of ImageNet's development kit: a class number for each image.

    Raises:
      ValueError: a line is no class number.
      FileNotFoundError: meta.mat, which has the names, is not beside the file.
    """
    lines = text.splitlines()
    numbers = [(n, line.strip()) for n, line in enumerate(lines, start=1)]
    wrong = [
        (n, f"got {line[:60]!r}; expected the number of a class, as ImageNet's "
         "development kit has it (other tables end in .csv, .tsv, .jsonl or .parquet)")
        for n, line in numbers
        if not (line.isascii() and line.isdecimal())
    ]  # fmt: skip
    if not lines:
        raise ValueError(f"{file}: got no row; expected a class number in every line")
    if wrong:
        raise tables.Table(file, ()).error(wrong)
    names = _class_names(file)
    wrong = [
        (n, f"got class {line}; expected 1 to {max(names)}, of meta.mat")
        for n, line in numbers
        if int(line) not in names
    ]
    if wrong:
        raise tables.Table(file, ()).error(wrong)
    rows = [
        tables.Row(n, _DEVKIT.format(n), (names[int(line)],)) for n, line in numbers
    ]
    return tables.Table(file, rows, stems=True)


def _class_names(file: str) -> dict[int, str]:
    """Returns the WordNet name of each class number, from the kit's meta.mat."""
    beside = paths.path(posixpath.join(posixpath.dirname(file), "meta.mat"))
    if not beside.is_file():
        raise FileNotFoundError(
            f"{file} has numbers of classes; expected their names in {beside}, beside "
            "it as in the development kit (ILSVRC2012_devkit_t12/data)"
        )
    from scipy import io as matlab

    try:
        content = matlab.loadmat(io.BytesIO(beside.read_bytes()), squeeze_me=True)
        synsets = content["synsets"]
        pairs = zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)
        return {int(number): str(name) for number, name in pairs}
    except Exception as error:  # whatever SciPy raises of a file that is another one
        raise ValueError(
            f"{beside} is damaged, or not that of the development kit ({error}); "
            "copy it again"
        ) from None
