"""Tables and pages of images, which some recipes add to an evaluation."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

from litevit_jax import distributed, terminal
from litevit_jax.evaluators import predict
from litevit_jax.jobs import summary
from litevit_jax.report import page, sheet

_SHOWN = 20  # rows that are printed


def check(name: str, images: str | None, source: str, page_of: str | None) -> None:
    """Checks what such a recipe needs before a model is read.

    Args:
      name: of the recipe.
      images: which it looks at.
      source: of the data.
      page_of: the file beside which a page is written, if there is one.

    Raises:
      ValueError: nothing says which images.
      FileExistsError: the page would replace a file.
    """
    if source == "files" and not images:
        raise ValueError(
            f"{name}: which images? Give a picture, a folder, a pattern ('DIR/*.jpg') "
            "or a list of paths (LIST.txt) with --config.images=, or data as "
            f"--config={name}:data=folder,path=DIR"
        )
    path = None if page_of is None else _page_beside(pathlib.Path(page_of))
    if path is not None and path.exists():
        raise FileExistsError(
            f"{path}, the page beside the target, is there already; remove it, name "
            "another target, or leave the page out with --config.sheet_images=0"
        )


def show(
    config: dict[str, Any], evaluator: Any, result: dict[str, Any], say: Any
) -> None:
    """Prints the first rows of a file of predictions, and draws the page.

    Args:
      config: of the job.
      evaluator: that has written the file.
      result: its numbers.
      say: prints a line.
    """
    if not distributed.is_primary():
        return
    images = config["sheet_images"]
    rows = predict.read(evaluator.path, max(_SHOWN, images))
    say(_table(rows[:_SHOWN], result["n"]))
    notes = [*_unnamed(evaluator.context.names, config["init"]), *_unread(result)]
    for text in notes:
        say(text)
    say(f"done: all rows are in {evaluator.path}")
    if not images:
        return
    tiles = _tiles(rows[:images], evaluator, config["data"])
    parts = [page.Tiles(tiles), *_left_out(len(tiles), result["n"])]
    path = _page_beside(evaluator.path)
    sheet.write(
        path,
        f"The {config['top']} likeliest classes",
        "; ".join([f"by {config['init']}", *notes]),
        [page.Section("images", "Images", parts)],
    )
    say(f"page: {path}")


def _page_beside(path: pathlib.Path) -> pathlib.Path:
    return path.with_suffix(".html")


def _unread(result: dict[str, Any]) -> list[str]:
    """Says how many images could not be read; [] if all could."""
    count = result["unreadable"]
    part = f"{count} of {terminal.counted(result['n'], 'image')} could not be read"
    return [f"{part}; the column 'error' says why"] if count else []


def _left_out(shown: int, images: int) -> list[page.Note]:
    """Says what the page does not show; [] if it shows all."""
    text = (
        f"Of {images:,} images these are the first {shown:,} (--config.sheet_images)."
    )
    return [page.Note(text)] if shown < images else []


def _image_of(source: Any, number: int) -> Any:
    """Returns the bytes or pixels of an image."""
    return source[number]["image"]


def _unnamed(names: tuple[str, ...], init: str) -> list[str]:
    why = f"classes are numbers: {init} records no names of its classes"
    return [] if names else [why]


def _table(rows: list[predict.Prediction], images: int) -> str:
    """Formats rows: in each column a class and its probability in percent."""
    most = max((len(row.top) for row in rows), default=0)
    cells = [["image", "classes"[: 7 * most], *[""] * (most - 1)]]
    for row in rows:
        top = [f"{name} {_percent(share)}" for name, share in row.top]
        cells.append([row.path, *top, *[""] * (most - len(top))])
    lines = summary.columns(cells).splitlines()
    wide = max(len(row.path) for row in rows)
    for number, row in enumerate(rows, start=1):
        if row.error:
            lines[number] = f"{row.path:{wide}}  not read: {row.error}"
    if images > len(rows):
        lines.append(f"... and {images - len(rows):,} more")
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _tiles(
    rows: list[predict.Prediction], evaluator: predict.Predict, data: Any
) -> list[page.Tile]:
    source = evaluator.context.source(evaluator.split)
    small, tiles = sheet.Thumbnails(data), []
    for number, row in enumerate(rows):
        lines: list[tuple[str, float | None]] = []
        if row.label:
            wrong = bool(row.top) and row.label != row.top[0][0]
            lines.append((f"label: {row.label}{' (another)' * wrong}", None))
        lines += [(f"{name} {_percent(share)}", share) for name, share in row.top]
        note = {"note": f"not read: {row.error}"} if row.error else {}
        read = functools.partial(_image_of, source, number)
        tiles.append(small.tile(row.path, read, lines=lines, **note))
    return tiles
