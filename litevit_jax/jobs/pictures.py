"""Tables and pages of images, which some recipes add to an evaluation."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from litevit_jax import distributed, terminal
from litevit_jax.data import tables
from litevit_jax.data.sources import base as sources
from litevit_jax.evaluators import (
    detection_files,
    detections,
    neighbours,
    predict,
)
from litevit_jax.jobs import summary
from litevit_jax.report import page, sheet

_SHOWN = 20  # rows that are printed
_OBJECTS = 5  # of an image, in the table and on the page
_DRAWN = {"channels": 3, "max_pixels": 2**24, "range": None}  # of drawn images


def check(name: str, source: str, fields: dict[str, Any]) -> None:
    """Checks what such a recipe needs before a model is read.

    Args:
      name: of the recipe.
      source: of the data.
      fields: of the config; `images` and `among` say what is looked at, a page with
        `sheet_images` lies beside the `target`.

    Raises:
      ValueError: nothing says which images, or a field has no effect.
      FileExistsError: the page would replace a file.
    """
    data = f"or data as --config={name}:digits or :data=folder,path=DIR"
    ways = "a picture, a folder, a pattern ('DIR/*.jpg') or a list of paths (LIST.txt)"
    if source == "files" and not fields["images"]:
        raise ValueError(
            f"{name}: which images? Give {ways} with --config.images=, {data}"
        )
    if "among" in fields:
        file = neighbours.embedding_of(fields["among"])
        if source == "files" and not fields["among"]:
            raise ValueError(
                f"{name}: among which images? Give {ways}, or an embedding of them, "
                f"with --config.among=, {data}"
            )
        if source != "files" and fields["among"] and file is None:
            raise ValueError(
                f"--config.among={fields['among']}: images are searched among those of "
                f"{source!r}, its training split; leave it out, give an embedding, or "
                "name both with --config.images= and --config.among= and no data"
            )
    if fields["target"] is None or not fields["sheet_images"]:
        return
    path = _page_beside(pathlib.Path(fields["target"]))
    if path.exists():
        raise FileExistsError(
            f"{path}, the page beside the target, is there already; remove it, name "
            "another target, or leave the page out with --config.sheet_images=0"
        )


class _Look(NamedTuple):
    """The part of a file that is shown.

    Attributes:
      title: of the page.
      column: heading of the table's second column.
      rows: path, error and cells of each image.
      notes: for the table and the page.
      parts: of the page.
    """

    title: str
    column: str
    rows: list[tuple[str, str, list[str]]]
    notes: list[str]
    parts: Callable[[], list[Any]]


def show(
    config: dict[str, Any],
    evaluators: dict[str, tuple[Any, int]],
    results: dict[str, dict[str, Any]],
    say: Callable[[str], None],
) -> None:
    """Prints the first rows of a file of pictures, and draws the page.

    Args:
      config: of the job.
      evaluators: title -> (evaluator, every_steps), of which one has written it.
      results: title -> its result.
      say: prints a line.
    """
    [title] = [title for title in _LOOKS if title in evaluators]
    if not distributed.is_primary():
        return
    evaluator, images = evaluators[title][0], config["sheet_images"]
    result = results[title]["last"]
    look = _LOOKS[title](evaluator, config, max(_SHOWN, images))
    say(_table(look.rows[:_SHOWN], look.column, result["n"]))
    notes = [*look.notes, *_unread(result, evaluator.path)]
    for text in notes:
        say(text)
    say(f"done; a row for each image: {evaluator.path}")
    if not images:
        return
    shown = min(images, len(look.rows))
    parts = [*look.parts(), *_left_out(shown, result["n"])]
    path, about = _page_beside(evaluator.path), f"by {config['init']}"
    sections = [page.Section("images", "Images", parts)]
    sheet.write(path, look.title, "; ".join([about, *notes]), sections)
    say(f"page: {path}")


def _page_beside(path: pathlib.Path) -> pathlib.Path:
    return path.with_suffix(".html")


def _unread(result: dict[str, Any], path: pathlib.Path) -> list[str]:
    """Says how many images could not be read; [] if all could."""
    count = result["unreadable"]
    part = f"{count} of {terminal.counted(result['n'], 'image')} could not be read"
    where = "list 'unreadable'" if path.suffix == ".json" else "column 'error'"
    return [f"{part}; the {where} says why"] if count else []


def _left_out(shown: int, images: int) -> list[page.Note]:
    """Says what the page does not show; [] if it shows all."""
    text = (
        f"Of {images:,} images these are the first {shown:,} (--config.sheet_images)."
    )
    return [page.Note(text)] if shown < images else []


def _table(rows: list[tuple[str, str, list[str]]], column: str, images: int) -> str:
    """Formats (path, error, cells) of the first rows of a file of `images`."""
    text = sources.printable
    rows = [(text(path), text(why), [*map(text, cells)]) for path, why, cells in rows]
    most = max((len(cells) for _, _, cells in rows), default=0)
    lines = [["image", *[column] * (most > 0), *[""] * (most - 1)]]
    lines += [[path, *cells, *[""] * (most - len(cells))] for path, _, cells in rows]
    printed = summary.columns(lines).splitlines()
    wide = max(len(line[0]) for line in lines)
    for number, (path, error, _) in enumerate(rows, start=1):
        if error:
            printed[number] = f"{path:{wide}}  not read: {error}"
    if images > len(rows):
        printed.append(f"... and {images - len(rows):,} more")
    return "\n".join(printed)


def _image_of(source: Any, number: int) -> Any:
    """Returns the bytes or pixels of an image."""
    return source[number]["image"]


def _predictions(evaluator: Any, config: dict[str, Any], limit: int) -> _Look:
    if isinstance(evaluator, detections.Detections):
        return _detections(evaluator, config, limit)
    rows = predict.read(evaluator.path, limit)
    top = [[f"{name} {_percent(p)}" for name, p in row.top] for row in rows]
    why = f"classes are numbers: {config['init']} records no names of its classes"
    return _Look(
        f"The {evaluator.top} likeliest classes",
        "classes",
        [(row.path, row.error, cells) for row, cells in zip(rows, top, strict=True)],
        [] if evaluator.context.names else [why],
        functools.partial(_predicted, rows, evaluator, config),
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _predicted(
    rows: list[predict.Prediction], evaluator: Any, config: dict[str, Any]
) -> list[page.Tiles]:
    source = evaluator.context.source(evaluator.split)
    small, tiles = sheet.Thumbnails(config["data"]), []
    for number, row in enumerate(rows[: config["sheet_images"]]):
        lines: list[tuple[str, float | None]] = []
        if row.label:
            own = {row.label, *row.label.split(tables.SEVERAL)}
            wrong = bool(row.top) and row.top[0][0] not in own
            lines.append((f"label: {row.label}{' (another)' * wrong}", None))
        lines += [(f"{name} {_percent(share)}", share) for name, share in row.top]
        read = functools.partial(_image_of, source, number)
        tiles.append(small.tile(row.path, read, lines=lines, **_note(row.error)))
    return [page.Tiles(tiles)]


def _detections(evaluator: Any, config: dict[str, Any], limit: int) -> _Look:
    rows = detection_files.read(evaluator.path, limit)
    cells = []
    for row in rows:
        several = [f"{name} {_percent(p)}" for name, p in row.objects]
        more = len(several) - _OBJECTS
        cells.append([*several[:_OBJECTS], *[f"and {more} more"] * (more > 0)])
    notes = [f"objects have a score of {evaluator.min_score:g} or more"]
    if not evaluator.context.names:
        notes.append(f"classes are numbers: {config['init']} records no names")
    if evaluator.overlay:
        notes.append(
            f"pictures with the detections drawn on them are in {evaluator.folder}"
        )
    return _Look(
        "Objects: class and score",
        "objects (class, score)",
        [(row.path, row.error, x) for row, x in zip(rows, cells, strict=True)],
        notes,
        functools.partial(_detected, rows, evaluator, config),
    )


def _detected(
    rows: list[detection_files.Row], evaluator: Any, config: dict[str, Any]
) -> list[page.Tiles]:
    source = evaluator.context.source(evaluator.split)
    small, drawn = sheet.Thumbnails(config["data"]), sheet.Thumbnails(_DRAWN)
    tiles = []
    for row in rows[: config["sheet_images"]]:
        number = row.number - 1
        lines = [(f"{name} {_percent(p)}", p) for name, p in row.objects[:_OBJECTS]]
        more = len(row.objects) - _OBJECTS
        lines += [(f"and {more} more", None)] * (more > 0)
        if row.error or not evaluator.overlay:
            read = functools.partial(_image_of, source, number)
            tiles.append(small.tile(row.path, read, lines=lines, **_note(row.error)))
            continue
        read = evaluator.drawn(row.number).read_bytes
        tiles.append(drawn.tile(row.path, read, lines=lines))
    return [page.Tiles(tiles)]


def _note(error: str) -> dict[str, str]:
    return {"note": f"not read: {error}"} if error else {}


def _neighbours(evaluator: Any, config: dict[str, Any], limit: int) -> _Look:
    rows = neighbours.read(evaluator.path, limit)
    near = [[f"{path} {cosine:.4f}" for path, _, cosine in x.nearest] for x in rows]
    return _Look(
        f"The {config['top']} nearest images",
        "neighbours",
        [(row.path, row.error, cells) for row, cells in zip(rows, near, strict=True)],
        [],
        functools.partial(_near, rows, evaluator, config),
    )


def _near(
    rows: list[neighbours.Row], evaluator: Any, config: dict[str, Any]
) -> list[page.Tiles]:
    """Returns a line of tiles for each image: the image, then its neighbours."""
    rows = rows[: config["sheet_images"]]
    source = evaluator.context.source(evaluator.split)
    small, lines = sheet.Thumbnails(config["data"]), []
    read = _reader(evaluator, {name for row in rows for name, _, _ in row.nearest})
    photos: dict[str, page.Tile] = {}
    for number, row in enumerate(rows):
        own = functools.partial(_image_of, source, number)
        label = [(f"label: {row.label}", None)] if row.label else []
        note = _note(row.error)
        tiles = [small.tile(row.path, own, lines=label, first=True, **note)]
        for name, of, cosine in row.nearest:
            if name not in photos:
                photos[name] = small.tile(name, functools.partial(read, name))
            about: list[tuple[str, float | None]] = [(f"cosine {cosine:.4f}", None)]
            about += [(f"label: {of}", None)] if of else []
            tiles.append(dataclasses.replace(photos[name], lines=about))
        lines.append(page.Tiles(tiles))
    return lines


def _reader(evaluator: Any, names: set[str]) -> Callable[[str], Any]:
    """Returns what reads the images called `names` of the set that was searched."""
    if evaluator.among is None:
        source = evaluator.context.source(evaluator.features.split)
        numbers = {}
        for number in range(len(source)):
            if (name := sources.utf8(source.name_of(number))) in names:
                numbers.setdefault(name, number)
        return lambda name: _image_of(source, numbers[name])
    folder = neighbours.folder_of(evaluator.among)
    return lambda name: _bytes_of(name, folder, evaluator.among)


def _bytes_of(name: str, folder: str | None, file: pathlib.Path) -> bytes:
    """Reads an image of an embedding.

    Raises:
      FileNotFoundError: nobody knows where it is.
    """
    starts = [] if folder is None else [folder, os.path.dirname(folder), ""]
    for path in (pathlib.Path(start) / name for start in starts):
        if path.is_file():
            return path.read_bytes()
    raise FileNotFoundError(f"not in {folder}, as {file.name} has it")


_LOOKS = {"neighbours": _neighbours, "predict": _predictions}
