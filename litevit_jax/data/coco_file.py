"""Reads COCO's JSON files of objects, and checks all that is in them.

A file has `images` (id, file_name, height, width), `categories` (id, name) and
`annotations` (id, image_id, category_id, bbox, and maybe segmentation, area, iscrowd).
What contradicts itself is an error that names the annotation; what is merely empty is
left out and counted.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Container, Sequence
from typing import Any, TypeGuard

import numpy as np

from litevit_jax.data import coco_shapes as shapes
from litevit_jax.data import objects
from litevit_jax.data.sources import base

_AGAIN = "export the file again"
_LISTS = ("images", "annotations", "categories")
_APART = 2.0  # pixels by which a box may differ from its mask

_BAD_POLYGON = (
    "polygons left out (fewer than 3 points, an odd number of coordinates, or not "
    "numbers)"
)
_NO_POLYGON = "objects left out, without a valid polygon"
_EMPTY = "objects left out, empty or outside their image"
_APART_NOTE = (
    f"boxes more than {_APART:g} pixels off their masks; training takes the masks' "
    "boxes"
)
_ZERO = "annotations with id 0, renumbered"
_AREA = "areas that no object can have, counted anew"


@dataclasses.dataclass(frozen=True)
class Image:
    """An image of a file, and the objects on it."""

    name: str
    objects: objects.Objects


@dataclasses.dataclass(frozen=True)
class File:
    """The content of a file.

    Attributes:
      images: in the file's order.
      classes: names of the classes, by rising id.
      class_ids: the file's numbers of the classes.
      notes: on what was left out or changed.
    """

    images: list[Image]
    classes: list[str]
    class_ids: list[int]
    notes: list[str]


def read(
    content: Any,
    where: str,
    *,
    masks: bool,
    read_png: Callable[[str], np.ndarray],
    crowds: bool = True,
) -> File:
    """Checks the content of a file.

    Args:
      content: what the JSON file holds.
      where: its path, for messages.
      masks: whether objects need masks; else shapes are left out.
      read_png: name or data URI of a PNG -> its pixels, bool [h, w].
      crowds: whether `iscrowd` marks crowds; False: such objects are like any other.

    Raises:
      ValueError: the content contradicts itself; the message names the file, and the
        annotation and image.
    """
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) for key in _LISTS
    ):
        got = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{where} is not a COCO file of objects: expected an object with the lists "
            f"{', '.join(_LISTS)}; got {got}. Export the labels as 'COCO'"
        )
    used = {x.get("category_id") for x in content["annotations"] if _has_category(x)}
    class_ids, classes = _categories(content["categories"], where, used)
    reader = _Reader(where, class_ids, masks, read_png, crowds)
    images = reader.images(content["images"])
    those = reader.annotations(content["annotations"])
    return File(
        [Image(name, _collect(key, size, those[key])) for key, name, size in images],
        classes,
        class_ids,
        reader.notes(),
    )


def _has_category(annotation: Any) -> bool:
    return isinstance(annotation, dict) and shapes.is_whole(
        annotation.get("category_id")
    )


def _is_text(value: Any) -> TypeGuard[str]:
    """Whether JSON has a text that a file system and UTF-8 can hold."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        return bool(value.encode())
    except UnicodeEncodeError:  # a lone surrogate
        return False


def _categories(
    entries: list[Any], where: str, used: Container[int]
) -> tuple[list[int], list[str]]:
    """Returns ids and names of the classes, by rising id.

    Args:
      entries: of the file.
      where: its path.
      used: ids that annotations have.

    Raises:
      ValueError: ids or names that are missing, or not of one class alone.
    """
    names: dict[int, str] = {}
    for entry in entries:
        key = entry.get("id") if isinstance(entry, dict) else None
        if not shapes.is_whole(key) or not _is_text(entry.get("name")):
            raise ValueError(
                f"{where}: category {entry!r:.80}; expected a whole number as id and a "
                "name: export the file again"
            )
    above = {str(x.get("supercategory")) for x in entries}
    if len(entries) > 1 and 0 not in used and _has_umbrella(entries, above):
        entries = [entry for entry in entries if entry["id"] != 0]
    for entry in entries:
        key, name = entry["id"], entry["name"]
        if key in names:
            raise ValueError(
                f"{where}: categories {names[key]!r} and {name!r} have the same id, "
                f"{key}; expected one of its own for each: export the file again"
            )
        if name in names.values():
            raise ValueError(
                f"{where}: two categories are called {name!r}; merge or rename them in "
                "your labelling tool, and export the file again"
            )
        names[key] = name
    if not names:
        raise ValueError(f"{where} has no categories; expected at least one")
    ids = sorted(names)
    return ids, [names[key] for key in ids]


def _has_umbrella(entries: list[Any], above: set[str]) -> bool:
    """Whether category 0 only stands above all others, as Roboflow writes it."""
    first = next((x for x in entries if x["id"] == 0), None)
    if first is None or first.get("supercategory") != "none":
        return False
    return above == {"none", first["name"]}


@dataclasses.dataclass
class _Object:
    """An object that was read.

    Attributes:
      key: its id.
      category: number of its class.
      box: x1, y1, x2, y2.
      crowd, area, shape: as in `objects.Objects`.
    """

    key: int
    category: int
    box: list[float]
    crowd: bool
    area: float
    shape: Any


def _collect(
    key: int | str, size: objects.Size, those: Sequence[_Object]
) -> objects.Objects:
    return objects.Objects(
        size=size,
        image_id=key,
        ids=[x.key for x in those],
        classes=[x.category for x in those],
        boxes=np.array([x.box for x in those], np.float64).reshape(-1, 4),
        crowd=np.array([x.crowd for x in those], bool),
        areas=np.array([x.area for x in those], np.float64),
        shapes=[x.shape for x in those],
    )


class _Reader:
    """Reads the entries of a file, and counts what is left out."""

    def __init__(
        self,
        where: str,
        class_ids: Sequence[int],
        masks: bool,
        read_png: Callable[[str], np.ndarray],
        crowds: bool,
    ):
        self._where = where
        self._number = {key: number for number, key in enumerate(class_ids)}
        self._masks, self._read_png, self._crowds = masks, read_png, crowds
        self._about: dict[int | str, tuple[str, objects.Size]] = {}
        self._counts: dict[str, list[str]] = collections.defaultdict(list)

    def notes(self) -> list[str]:
        """Describes what was left out or changed: how many, and the first."""
        return [
            f"{what}: {len(names)} ({base.first(names, 3)})"
            for what, names in self._counts.items()
        ]

    def images(self, entries: list[Any]) -> list[tuple[int | str, str, objects.Size]]:
        """Returns id, file name and (h, w) of each image."""
        for entry in entries:
            entry = entry if isinstance(entry, dict) else {"id": entry}
            key, name = entry.get("id"), entry.get("file_name")
            sides: Any = entry.get("height"), entry.get("width")
            if not (shapes.is_whole(key) or _is_text(key)):
                raise self._error(
                    f"image id {key!r}", f"expected a whole number or a text: {_AGAIN}"
                )
            if not _is_text(name) or not objects.clean_name(name):
                raise self._error(
                    f"image {key} has file_name {name!r:.80}",
                    f"expected the name of an image file: {_AGAIN}",
                )
            if not all(shapes.is_whole(x) and 0 < x < 2**31 for x in sides):
                raise self._error(
                    f"image {key} ({name!r}) has height {sides[0]!r} and width "
                    f"{sides[1]!r}",
                    f"expected its size in pixels: {_AGAIN}",
                )
            if key in self._about:
                other = self._about[key][0]
                raise self._error(
                    f"two images have id {key}: {other!r} and {name!r}",
                    f"expected another id for each image: {_AGAIN}",
                )
            self._about[key] = name, (sides[0], sides[1])
        return [(key, *about) for key, about in self._about.items()]

    def annotations(self, entries: list[Any]) -> dict[int | str, list[_Object]]:
        """Returns the objects of each image, in the file's order."""
        read: dict[int | str, list[_Object]] = collections.defaultdict(list)
        ids: set[int] = set()
        for entry in entries:
            key = entry.get("id") if isinstance(entry, dict) else None
            if not shapes.is_whole(key):
                raise self._error(
                    f"annotation {entry!r:.80} has id {key!r}",
                    "expected a whole number",
                )
            if key in ids:
                raise self._error(
                    f"two annotations have id {key}",
                    f"expected another id for each: {_AGAIN}",
                )
            ids.add(key)
            one = self._annotation(key, entry)
            if one is not None:
                read[entry["image_id"]].append(one)
        for one in (x for those in read.values() for x in those if x.key == 0):
            # COCO's scoring takes a match with object 0 for none.
            one.key = max(ids) + 1
            self._count(_ZERO, f"now {one.key}")
        return read

    def _annotation(self, key: int, entry: dict[str, Any]) -> _Object | None:
        """Returns an object; None if nothing is left of it."""
        image, category = entry.get("image_id"), entry.get("category_id")
        if not isinstance(image, (int, str)) or image not in self._about:
            raise self._error(
                f"annotation {key} is of image {image!r}",
                f"which is not in 'images': {_AGAIN}",
            )
        name, size = self._about[image]
        what = f"annotation {key} of image {image} ({name!r})"
        if not shapes.is_whole(category) or category not in self._number:
            raise self._error(
                f"{what} has category_id {category!r}",
                "expected one of the ids in 'categories', whole numbers: "
                f"{base.first([*map(str, self._number)])}",
            )
        crowd = entry.get("iscrowd") or 0
        if crowd not in (0, 1):
            raise self._error(
                f"{what} has iscrowd {entry['iscrowd']!r}", "expected 0 or 1"
            )
        raw, has_box = entry.get("segmentation"), entry.get("bbox") is not None
        is_read = self._masks or not has_box
        shape = self._shape(raw, size, what) if is_read else None
        if shape == []:
            self._count(_NO_POLYGON, what)
            return None
        box = self._box(entry.get("bbox"), shape, size, what)
        if box is None:
            self._count(_EMPTY, what)
            return None
        area, shape = entry.get("area"), shape if self._masks else None
        # pycocotools leaves out objects whose area is none.
        if not shapes.is_number(area) or not 0 < area <= size[0] * size[1]:
            if area is not None:
                self._count(_AREA, f"{what}: {area!r:.20}")
            area = shapes.area(shape, box, size)
        return _Object(
            key,
            self._number[category],
            box,
            bool(crowd) and self._crowds,
            float(area),
            shape,
        )

    def _shape(self, raw: Any, size: objects.Size, what: str) -> Any:
        """Returns polygons or runs; None without any, [] if no polygon is one."""
        try:
            shape, bad = shapes.read(raw, size, self._read_png)
        except ValueError as error:
            raise ValueError(
                base.printable(f"{self._where}: {what} has {error}")
            ) from None
        if shape is None and self._masks:
            raise self._error(
                f"{what} has a box but no segmentation",
                "expected polygons or runs of each object. For boxes alone, "
                f"{objects.BOXES_ALONE}",
            )
        for _ in range(bad):
            self._count(_BAD_POLYGON, what)
        return shape

    def _box(
        self, raw: Any, shape: Any, size: objects.Size, what: str
    ) -> list[float] | None:
        """Returns the box, cut to the image; None if nothing is left.

        An empty box gives way to that of the mask.
        """
        tight = None if shape is None else shapes.tight_box(shape, size)
        if shape is not None and tight is None:
            return None
        if raw is None and tight is not None:
            return tight
        if (
            not isinstance(raw, list)
            or len(raw) != 4
            or not all(map(shapes.is_number, raw))
        ):
            raise self._error(
                f"{what} has bbox {raw!r:.60}",
                "expected four finite numbers: x, y, width, height in pixels",
            )
        x, y, width, height = raw
        ends = zip((x, y, x + width, y + height), (size[1], size[0]) * 2, strict=True)
        box = [float(min(max(end, 0), limit)) for end, limit in ends]
        is_empty = not (box[0] < box[2] and box[1] < box[3])
        if tight is not None and (is_empty or _are_apart(box, tight)):
            self._count(_APART_NOTE, what)
        return tight if is_empty else box

    def _count(self, kind: str, what: str) -> None:
        self._counts[kind].append(what)

    def _error(self, what: str, expected: str) -> ValueError:
        return ValueError(base.printable(f"{self._where}: {what}; {expected}"))


def _are_apart(box: Sequence[float], tight: Sequence[float]) -> bool:
    return max(abs(a - b) for a, b in zip(box, tight, strict=True)) > _APART
