"""The objects that a detector sees on every image, written to a file and drawn."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from litevit_jax import distributed, paths
from litevit_jax.data import decode, objects
from litevit_jax.data.sources import base as sources
from litevit_jax.evaluators import (
    base,
    coco_rows,
    detection_files,
    frozen,
    outlines,
    parts,
    reconstruction,
)

MIN_SCORE = 0.5
_QUALITY = 90  # of drawn pictures, JPEG files


def of_target(
    *,
    context: base.Context,
    path: pathlib.Path,
    named: bool,
    split: str,
    top: int | None,
    min_score: float | None,
    overlay: float,
) -> Detections:
    """Builds the evaluator 'predict' of a detector.

    Args:
      context: see base; its `names` are written, or numbers if it has none.
      path: of the file; its ending says how: .csv, .jsonl or .json.
      named: whether the user named it; else it may be replaced.
      split: the images.
      top: objects of each image, the likeliest first; None: all.
      min_score: of an object; None: 0.5.
      overlay: share of the colours of masks in the pictures; 0: no pictures.

    Raises:
      FileExistsError: the pictures' folder is there already.
      ModuleNotFoundError: there are masks, and pycocotools is not installed.
    """
    if "masks" in context.predicts:
        objects.pycocotools()
    score = MIN_SCORE if min_score is None else min_score
    evaluator = Detections(context, split, path, named, top, score, overlay)
    begun = (evaluator.file({}).folder / "about.json").exists()
    if named and evaluator.folder.exists() and not begun and overlay:
        raise FileExistsError(
            f"{evaluator.folder}, the folder of the pictures beside the target, is "
            "there already; remove it or name another target"
        )
    return evaluator


@dataclasses.dataclass(frozen=True)
class Detections(base.Evaluator):
    """Writes the objects of every image to `path`, and draws them into `folder`.

    Images are written one by one: memory does not grow with their number, and a stopped
    command goes on after the last one.
    """

    split: str
    path: pathlib.Path
    named: bool
    top: int | None
    min_score: float
    overlay: float
    own_file: ClassVar[bool] = True

    @property
    def reads(self) -> tuple[str, ...]:
        """The detections of the objective, with masks if it predicts any."""
        return coco_rows.reads(masks="masks" in self.context.predicts)

    @property
    def folder(self) -> pathlib.Path:
        """The folder of the drawn images."""
        return self.path.with_suffix(".pictures")

    def file(self, about: dict[str, Any]) -> parts.Parts:
        """Returns the file on its way; `about` is what else it depends on."""
        return parts.Parts(self.context, self.split, self.path, self.reads, about)

    def drawn(self, number: int) -> pathlib.Path:
        """Returns the file of the drawn image `number`, counted from 1."""
        name = self.context.source(self.split).name_of(number - 1)
        stem = "".join(filter(_is_plain, pathlib.PurePath(name).stem))[:80]
        return self.folder / f"{number:06d}-{stem}.jpg"

    def run(self, state: Any, *, step: int) -> dict[str, Any]:
        """Returns n, the images, `unreadable` among them, `objects`, and the file."""
        del step
        about: dict[str, Any] = {"top": self.top, "min_score": self.min_score}
        about |= {"overlay": self.overlay, "names": list(self.context.names)}
        file = self.file(about)
        begin = functools.partial(self._begin, file.folder, file.described(state))
        done, source = distributed.run_on_primary(begin), self._source
        if done < len(source):
            # Nothing is remembered: memory stays the same.
            context = dataclasses.replace(self.context, last=None)
            rest = frozen.part(context, self.split, np.arange(done, len(source)))
            with _Journal(file.folder) as journal:
                for pair in rest.over(state, self.split, self.reads):
                    journal.add(functools.partial(self._row, done), *pair)
        finish = functools.partial(self._finish, file.folder)
        return {**distributed.run_on_primary(finish), "file": str(self.path)}

    @property
    def _source(self) -> sources.Source:
        return self.context.source(self.split)

    def _begin(self, folder: pathlib.Path, about: dict[str, Any]) -> int:
        """Returns how many images are in the journal; begins one if there is none."""
        if not (folder / "about.json").exists() and not self.named:
            shutil.rmtree(self.folder, ignore_errors=True)  # of the last command
        parts.open_folder(folder, about)
        return detection_files.whole_lines(folder / detection_files.JOURNAL)

    def _finish(self, folder: pathlib.Path) -> dict[str, int]:
        journal = folder / detection_files.JOURNAL
        about = detection_files.About(self._source, list(self.context.names))
        paths.make_folder(self.path.parent)
        written = parts.partial(self.path)
        counts = detection_files.write(journal, written, self.path.suffix, about)
        paths.rename(written, self.path)
        shutil.rmtree(folder)
        return counts

    def _row(self, done: int, batch: base.Rows, out: base.Rows, row: int) -> str:
        """Returns the line of an image, which is drawn."""
        index = done + int(batch["index"][row])
        line: dict[str, Any] = {
            "image": index + 1,
            "path": sources.utf8(self._source.name_of(index)),
            "error": None,
            "width": None,
            "height": None,
            "objects": [],
        }
        if batch["mask"][row] == 0:
            return json.dumps(line | {"error": self._why(index)}) + "\n"
        size = coco_rows.pair(batch["size"][row])
        height, width = coco_rows.pair(batch["original_size"][row])
        one = {name: out[name][row] for name in self.reads}
        one["valid"] = one["valid"] & (one["scores"] >= self.min_score)
        classes = range(1 + int(one["classes"].max(initial=0)))
        listed = coco_rows.to_coco(one, size, (height, width), index, classes)
        listed = sorted(listed, key=lambda x: -x["score"])[: self.top]
        if self.overlay:
            self._draw(index, listed)
        named = [detection_files.named(x, self.context.names) for x in listed]
        line |= {"width": width, "height": height, "objects": named}
        return json.dumps(line, ensure_ascii=False) + "\n"

    def _draw(self, index: int, listed: list[dict[str, Any]]) -> None:
        names = self.context.names
        most = max((x["category_id"] for x in listed), default=0)
        names = names or tuple(map(str, range(most + 1)))
        image = np.asarray(self._decode(self._source[index]["image"]))
        image = reconstruction.rgb(image.reshape(*image.shape[:2], -1))
        pixels = outlines.drawn(
            image, listed, range(len(names)), names, overlay=self.overlay
        )
        path = self.drawn(index + 1)
        paths.make_folder(path.parent)
        with path.open("wb") as file:
            Image.fromarray(pixels).save(file, format="jpeg", quality=_QUALITY)

    @property
    def _decode(self) -> decode.Decode:
        return parts.decoder(self.context)

    def _why(self, index: int) -> str:
        """Returns why an image cannot be read."""
        try:
            self._decode(self._source[index]["image"])
        except Exception as error:  # whatever a file system or a format may raise
            return sources.utf8(str(error))
        return "unreadable during prediction, readable now; predict to a new target"


class _Journal:
    """Lines about images in their order, each the work of a thread.

    Only the first process writes them. Few lines wait, so that memory stays the same.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self._path = folder / detection_files.JOURNAL
        threads = os.cpu_count() or 1
        self._pool = concurrent.futures.ThreadPoolExecutor(threads)
        self._waiting: collections.deque[concurrent.futures.Future[str]] = (
            collections.deque()
        )
        self._most = 2 * threads

    def __enter__(self) -> _Journal:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        try:
            if kind is None:
                self._write(0)
        finally:
            self._pool.shutdown(cancel_futures=True)

    def add(
        self, line_of: Callable[..., str], batch: base.Rows, out: base.Rows
    ) -> None:
        """Adds the lines `line_of(batch, out, row)` of the rows that are images."""
        if not distributed.is_primary():
            return
        for row in np.flatnonzero(batch["index"] >= 0):
            self._waiting.append(self._pool.submit(line_of, batch, out, row))
        self._write(self._most)

    def _write(self, left: int) -> None:
        lines = []
        while len(self._waiting) > left:
            lines.append(self._waiting.popleft().result())
        if lines:
            paths.append(self._path, "".join(lines).encode("utf-8", "backslashreplace"))


def _is_plain(letter: str) -> bool:
    return letter.isalnum() or letter in "-_."
