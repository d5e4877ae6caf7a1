"""Numbers of every image of a split, written to a file in parts that are kept.

Rows are in the order of the split. An image that cannot be read keeps its row: its
numbers are not-a-number, and its error says why. A stopped command goes on after its
last whole part; the parts lie beside the file, and memory holds one of them, whatever
the number of images.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from litevit_jax import checkpoint, distributed, paths
from litevit_jax.data import decode, tables
from litevit_jax.data.sources import base as sources
from litevit_jax.evaluators import base, frozen

TEXT = ("path", "label", "error")  # the columns beside the numbers
PART_BYTES = 2**26  # of numbers that are computed between two parts

Columns = dict[str, list[Any]]
Written = list[tuple[pathlib.Path, pathlib.Path]]  # (as it is written, its name)
Writer = Callable[[pathlib.Path, "Table"], Written]


def check_target(
    what: str, path: pathlib.Path, endings: Iterable[str], files: Iterable[pathlib.Path]
) -> None:
    """Raises an error unless `path` is a new file of a known format.

    Args:
      what: evaluator that writes it, for messages.
      path: of the file.
      endings: that are known.
      files: that are written.

    Raises:
      ValueError: an unknown ending.
      FileExistsError: one of the files is there already.
    """
    if path.suffix not in endings:
        raise ValueError(
            f"{what}: target={path} ends in {path.suffix!r}, expected one of "
            f"{', '.join(endings)}"
        )
    for file in files:
        if file.exists():
            raise FileExistsError(f"{file} is there already; remove it or name another")


def partial(path: pathlib.Path) -> pathlib.Path:
    """Returns the hidden name that a file has while it is written."""
    return path.with_name(f".{path.name}.partial")


@dataclasses.dataclass(frozen=True)
class Parts:
    """The numbers of a split's images on their way into the file `path`.

    Attributes:
      context: of the evaluator.
      split: the images.
      path: of the file.
      reads: names of the predictions that the numbers are made of.
      about: what else they depend on, beside parameters and images; plain JSON.
    """

    context: base.Context
    split: str
    path: pathlib.Path
    reads: tuple[str, ...]
    about: dict[str, Any]

    def write(
        self, state: Any, numbers: Callable[[base.Rows], np.ndarray], writer: Writer
    ) -> dict[str, Any]:
        """Computes what is missing, and writes the file.

        Returns n, the images, `unreadable` among them, `width`, the numbers of each,
        and the file.

        Args:
          state: the model.
          numbers: predictions of a batch -> numbers [B, ...].
          writer: writes the table to files, which get their names afterwards.
        """
        source, about = self.context.source(self.split), self.described(state)
        begun = functools.partial(_begin, self.folder, about)
        done = distributed.run_on_primary(begun)
        for rows, number in self._rows(state, numbers, done):
            _on_primary(functools.partial(_save, self.folder, number, rows))
        finish = functools.partial(self._finish, source, about, writer)
        return {**distributed.run_on_primary(finish), "file": str(self.path)}

    def described(self, state: Any) -> dict[str, Any]:
        """Returns what the numbers depend on, as JSON gives it back."""
        about = {
            "params": checkpoint.fingerprint(state),
            "images": self.context.source(self.split).fingerprint(),
            **of_images(self.context),
            "reads": self.reads,
            **self.about,
        }
        return json.loads(json.dumps(about))

    @property
    def folder(self) -> pathlib.Path:
        """The folder of the parts."""
        return self.path.with_name(f"{self.path.name}.parts")

    def _rows(
        self, state: Any, numbers: Callable[[base.Rows], np.ndarray], start: int
    ) -> Iterator[tuple[np.ndarray, int]]:
        """Yields (numbers [n, ...] of a part, number of its first image).

        Rows of images that cannot be read are not-a-number.
        """
        length = len(self.context.source(self.split))
        if start >= length:
            return
        # Nothing is remembered: memory stays the same however many images there are.
        context = dataclasses.replace(self.context, last=None)
        left = frozen.part(context, self.split, np.arange(start, length))
        gathered: list[np.ndarray] = []
        size, first = 0, start
        for batch, out in left.over(state, self.split, self.reads):
            rows = numbers(out)[batch["index"] >= 0]
            rows[batch["mask"][batch["index"] >= 0] == 0] = np.nan
            gathered.append(rows)
            size += rows.nbytes
            if size >= PART_BYTES:
                part = np.concatenate(gathered)
                yield part, first
                gathered, size, first = [], 0, first + len(part)
        if gathered:
            yield np.concatenate(gathered), first

    def _finish(
        self, source: Any, about: dict[str, Any], writer: Writer
    ) -> dict[str, int]:
        """Writes the file from its parts, which are removed."""
        table = Table(self.folder, source, decoder(self.context), about)
        paths.make_folder(self.path.parent)
        for written, path in writer(self.path, table):
            paths.rename(written, path)
        shutil.rmtree(self.folder)
        return {"n": len(source), "unreadable": table.unreadable, "width": table.width}


def decoder(context: base.Context) -> decode.Decode:
    """Returns what reads images as the evaluation does, to learn why it could not."""
    how = json.loads(context.images or "{}")
    how = {key: how[key] for key in ("max_pixels", "range") if key in how}
    return decode.Decode(channels=len(context.mean), **how)


def of_images(context: base.Context) -> dict[str, Any]:
    """Returns how images are prepared, as far as numbers depend on it."""
    return {
        "size": context.size,
        "crop": context.crop,
        "mean": context.mean,
        "std": context.std,
        "range": json.loads(context.images or "{}").get("range") or "full",
    }


def _on_primary(call: Callable[[], None]) -> None:
    if distributed.is_primary():
        call()


def open_folder(folder: pathlib.Path, about: dict[str, Any]) -> None:
    """Opens the folder of parts of a file, which depends on `about`.

    Raises:
      ValueError: they are those of another file.
    """
    path = folder / "about.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        paths.replace_text(path, json.dumps(about) + "\n")
        return
    other = paths.read_json(path, "remove the folder to begin anew")
    changed = [k for k in about if other.get(k) != about[k]]
    if changed:
        raise ValueError(
            f"{folder} holds a part of a file with other {changed[0]}: "
            f"{other.get(changed[0])}, now {about[changed[0]]}; remove the folder "
            "to begin anew, or name another target"
        )


def _begin(folder: pathlib.Path, about: dict[str, Any]) -> int:
    """Opens the folder of parts; returns how many images they hold."""
    open_folder(folder, about)
    whole = sorted(folder.glob("*.npy"))
    if not whole:
        return 0
    last = np.load(whole[-1], mmap_mode="r")
    return int(whole[-1].stem) + len(last)


def _save(folder: pathlib.Path, first: int, rows: np.ndarray) -> None:
    file = io.BytesIO()
    np.save(file, rows)
    paths.replace_bytes(folder / f"{first:09d}.npy", file.getvalue())


class Table:
    """The columns of a file, one part after the other.

    Attributes:
      shape: of one image's numbers.
      about: what the numbers depend on.
      unreadable: how many rows have an error, of those that were read.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        source: Any,
        decoder: decode.Decode,
        about: dict[str, Any],
    ) -> None:
        self._files = sorted(folder.glob("*.npy"))
        self._source = source
        self._decode = decoder
        self.shape = np.load(self._files[0], mmap_mode="r").shape[1:]
        self.about = about
        self.unreadable = 0

    def __len__(self) -> int:
        return len(self._source)

    @property
    def width(self) -> int:
        """Numbers of one image."""
        return int(np.prod(self.shape))

    def parts(self) -> Iterator[tuple[np.ndarray, Columns]]:
        """Yields (numbers [n, ...], {'path', 'label', 'error'}) part by part."""
        self.unreadable = 0
        for file in self._files:
            numbers, first = np.load(file), int(file.stem)
            rows = range(first, first + len(numbers))
            broken = np.isnan(numbers.reshape(len(numbers), -1)).all(axis=1)
            self.unreadable += int(broken.sum())
            yield (
                numbers,
                {
                    "path": [sources.utf8(self._source.name_of(row)) for row in rows],
                    "label": list(map(self._label, rows, broken)),
                    "error": list(map(self._why, rows, broken)),
                },
            )

    def _label(self, row: int, broken: bool) -> str | None:
        """Returns the name of an image's class, several as in tables of labels."""
        classes = self._source.classes
        try:
            own = self._source.labels_of(row) if classes else np.zeros(0)
        except Exception:  # a source that reads the image for it
            if broken:
                return None
            raise
        text = tables.SEVERAL.join(str(classes[k]) for k in np.flatnonzero(own))
        return sources.utf8(text) or None

    def _why(self, row: int, broken: bool) -> str | None:
        if not broken:
            return None
        try:
            self._decode(self._source[row]["image"])
        except Exception as error:
            return sources.utf8(str(error))
        return "what the model computes of it are no numbers"
