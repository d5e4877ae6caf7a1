"""Files of detections: rows of CSV, JSON lines, or a COCO file.

Boxes are left, top, width and height in pixels of the upright picture; a mask is COCO's
compressed run lengths. Every image has a row, one that cannot be read its error.
"""

from __future__ import annotations

import csv
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TextIO

from litevit_jax.data import objects
from litevit_jax.data.sources import base as sources
from litevit_jax.evaluators import coco_rows

JOURNAL = "images.jsonl"  # in the folder of a file on its way
BOX = ("left", "top", "width", "height")
_IMAGE = ("image", "path", "error", "image_width", "image_height")
_HEAD = (*_IMAGE, "class", "score", *BOX, "mask")


class About(NamedTuple):
    """The rest that a file needs, beside its rows.

    Attributes:
      source: of the images.
      names: of the classes that the detector tells apart; [] if it records none.
    """

    source: sources.Source
    names: list[str]


class Row(NamedTuple):
    """An image in a file of detections.

    Attributes:
      number: of the image, from 1.
      path: of it.
      error: why it could not be read, or ''.
      objects: (class, score), the likeliest first.
    """

    number: int
    path: str
    error: str
    objects: list[tuple[str, float]]


def named(detection: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Returns a detection as a row has it; its category is the number of its class."""
    number = detection["category_id"]
    row = {
        "class": sources.utf8(names[number]) if names else str(number),
        "score": detection["score"],
        "box": detection["bbox"],
    }
    if "segmentation" in detection:
        row["mask"] = detection["segmentation"]
    return row


def whole_lines(journal: pathlib.Path) -> int:
    """Counts the lines of a journal; one that a kill has cut is taken away."""
    if not journal.exists():
        return 0
    count = length = 0
    with journal.open("rb+") as file:
        for line in file:
            if line.endswith(b"\n"):
                count, length = count + 1, length + len(line)
        file.truncate(length)
    return count


def _lines(journal: pathlib.Path) -> Iterator[dict[str, Any]]:
    with journal.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def write(
    journal: pathlib.Path, path: pathlib.Path, ending: str, about: About
) -> dict[str, int]:
    """Writes the rows of a journal to `path`, in the format of an `ending`.

    Returns:
      n, the images, `unreadable` among them, and `objects`.
    """
    counts = {"n": 0, "unreadable": 0, "objects": 0}
    for row in _lines(journal):
        counts["n"] += 1
        counts["unreadable"] += row["error"] is not None
        counts["objects"] += len(row["objects"])
    with path.open("w", newline="", encoding="utf-8") as file:
        WRITERS[ending](file, journal, about)
    return counts


def _write_csv(file: TextIO, journal: pathlib.Path, about: About) -> None:
    del about
    writer = csv.writer(file)
    writer.writerow(_HEAD)
    for row in _lines(journal):
        image = [row[name.removeprefix("image_")] for name in _IMAGE[1:]]
        for each in row["objects"] or [None]:
            cells: list[Any] = [""] * (len(_HEAD) - len(_IMAGE))
            if each is not None:
                numbers = (f"{x:.9g}" for x in (each["score"], *each["box"]))
                mask = each.get("mask", {"counts": ""})["counts"]
                cells = [each["class"], *numbers, mask]
            writer.writerow([row["image"], *image, *cells])


def _write_jsonl(file: TextIO, journal: pathlib.Path, about: About) -> None:
    del about
    with journal.open(encoding="utf-8") as lines:
        file.writelines(lines)


def _write_coco(file: TextIO, journal: pathlib.Path, about: About) -> None:
    """Writes images, categories and annotations, a line each; and what has an error."""
    source = about.source
    known = bool({"objects", "boxes"} & set(source.annotations))

    def image_id(row: dict[str, Any]) -> int | str:
        number = row["image"]
        return source.objects(number - 1).image_id if known else number

    def images() -> Iterator[dict[str, Any]]:
        for row in _lines(journal):
            if row["error"] is None:
                size = {name: row[name] for name in ("width", "height")}
                yield {"id": image_id(row), "file_name": row["path"], **size}

    def unreadable() -> Iterator[dict[str, Any]]:
        for row in _lines(journal):
            if row["error"] is not None:
                names = {"file_name": row["path"], "error": row["error"]}
                yield {"image": row["image"], **names}

    ids = _category_ids(source, journal, about.names)
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    file.write('{"info": {"description": "detections"},\n')
    _write_list(file, "images", images())
    _write_list(file, "unreadable", unreadable())
    _write_list(file, "categories", iter(categories))
    _write_list(file, "annotations", _annotations(journal, image_id, ids), end="")
    file.write("}\n")


def _write_list(
    file: TextIO, name: str, rows: Iterator[dict[str, Any]], end: str = ","
) -> None:
    file.write(f'"{name}": [\n')
    for number, row in enumerate(rows):
        file.write(",\n" * (number > 0) + json.dumps(row, ensure_ascii=False))
    file.write(f"\n]{end}\n")


def _annotations(
    journal: pathlib.Path,
    image_id: Callable[[dict[str, Any]], int | str],
    ids: dict[str, int],
) -> Iterator[dict[str, Any]]:
    number = itertools.count(1)  # 0 is no match for pycocotools
    for row in _lines(journal):
        for each in row["objects"]:
            area, mask = each["box"][2] * each["box"][3], {}
            if "mask" in each:
                mask = {"segmentation": each["mask"]}
                area = float(objects.pycocotools().area(each["mask"]))
            yield {
                "id": next(number),
                "image_id": image_id(row),
                "category_id": ids[each["class"]],
                "bbox": each["box"],
                "area": area,
                "iscrowd": 0,
                "score": each["score"],
                **mask,
            }


def _category_ids(
    source: sources.Source, journal: pathlib.Path, names: list[str]
) -> dict[str, int]:
    """Returns the id of each class by name: those of data that have them, else 1 to K.

    A detector without names calls its classes by their numbers, those that occur here.
    """
    names = [sources.utf8(name) for name in names]
    if not names:
        called = (x["class"] for row in _lines(journal) for x in row["objects"])
        return {name: int(name) + 1 for name in sorted(set(called), key=int)}
    if not source.class_ids:
        return {name: number for number, name in enumerate(names, start=1)}
    pairs = zip(source.classes, coco_rows.category_ids(source), strict=True)
    known = {sources.utf8(name): number for name, number in pairs}
    others = itertools.count(max(known.values(), default=0) + 1)
    return {name: known[name] if name in known else next(others) for name in names}


WRITERS: dict[str, Callable[[TextIO, pathlib.Path, About], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".json": _write_coco,
}


def read(path: pathlib.Path, limit: int) -> list[Row]:
    """Reads the first `limit` images of a file that `write` made."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(itertools.islice(_READERS[path.suffix](file), limit))


def _read_csv(file: TextIO) -> Iterator[Row]:
    for number, rows in itertools.groupby(csv.DictReader(file), lambda x: x["image"]):
        several = list(rows)
        pairs = [(x["class"], float(x["score"])) for x in several if x["score"]]
        yield Row(int(number), several[0]["path"], several[0]["error"], pairs)


def _read_jsonl(file: TextIO) -> Iterator[Row]:
    for row in map(json.loads, file):
        pairs = [(x["class"], x["score"]) for x in row["objects"]]
        yield Row(row["image"], row["path"], row["error"] or "", pairs)


def _read_coco(file: TextIO) -> Iterator[Row]:
    """Reads what stands before the annotations, and these image by image."""
    next(file)  # info
    lists = {name: list(_read_list(file)) for name in ("images", "errors", "names")}
    names = {x["id"]: x["name"] for x in lists["names"]}
    errors = {x["image"]: x for x in lists["errors"]}
    images = iter(lists["images"])
    groups = itertools.groupby(_read_list(file), lambda x: x["image_id"])
    group: Any = next(groups, (None, ()))
    for number in range(1, 1 + len(errors) + len(lists["images"])):
        if number in errors:
            row = errors[number]
            yield Row(number, row["file_name"], row["error"], [])
            continue
        image, pairs = next(images), []
        if group[0] == image["id"]:
            pairs = [(names[x["category_id"]], x["score"]) for x in group[1]]
            group = next(groups, (None, ()))
        yield Row(number, image["file_name"], "", pairs)


def _read_list(file: TextIO) -> Iterator[dict[str, Any]]:
    """Reads the next list of a COCO file, a line each."""
    next(file)  # its name
    for line in file:
        if line.startswith("]"):
            return
        if line.strip():
            yield json.loads(line.rstrip(",\n"))


_READERS: dict[str, Callable[[TextIO], Iterator[Row]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".json": _read_coco,
}
