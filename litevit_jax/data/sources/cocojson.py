"""A folder of images and COCO's JSON files of the objects on them.

    DIR/train2017/1.jpg      DIR/annotations/instances_train2017.json      COCO
    DIR/train/a.jpg          DIR/train/_annotations.coco.json              Roboflow
    DIR/images/default/a.jpg DIR/annotations/instances_default.json        CVAT
    DIR/images/a.jpg         DIR/result.json                               Label Studio

A file whose name, or whose folder's, is that of a split holds that split; a single
other file is undivided, and `holdout` keeps a share of its images as 'test'. `json` and
`images` name a file and a folder that lie elsewhere. Masks are polygons, runs of pixels
(RLE), or names of PNGs; see `coco_file` for what is an error and what is left out.

Coordinates are pixels of the upright image. In training, images without objects are
left out, and so are those with nothing but crowds; `keep_empty` says otherwise.
"""

from __future__ import annotations

import base64
import io
import itertools
import json as json_text
import os
import posixpath
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from litevit_jax.data import (
    canvases,
    coco_file,
    coco_images,
    decode,
    filetree,
    layout,
    objects,
    split_names,
)
from litevit_jax.data.sources import base, folder

_COMMAND = "configs/detect.py:folder"
_FOLDERS = ("", "annotations", "labels")  # that hold files, beside those of splits
_PNG = "data:image/png;base64,"
_GZIP = b"\x1f\x8b"  # how a compressed file begins


class CocoJson(base.Source):
    """Image files and the objects on them."""

    def __init__(
        self,
        tree: filetree.Tree,
        rows: list[tuple[str, objects.Objects]],
        *,
        file: coco_file.File,
        masks: bool,
        notes: Sequence[str],
        other_splits: Sequence[str],
    ):
        self._tree = tree
        self._names = folder.PackedNames([name for name, _ in rows])
        self._objects = [objects.encode(those) for _, those in rows]
        self._classes = file.classes
        self.class_ids = file.class_ids
        self.annotations = ("objects", "boxes") if masks else ("boxes",)
        self.object_counts = [int((~those.crowd).sum()) for _, those in rows]
        self.notes = notes
        self.other_splits = other_splits

    @property
    def classes(self) -> list[str]:
        return list(self._classes)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, those = self._tree.read(self._names[index]), self.objects(index)
        try:
            size = canvases.size_of(image)
        except decode.DecodeError:  # its reader says what is wrong
            size = those.size
        coco_images.check_size(self._tree, self._names[index], those, size)
        return {"image": image, "label": -1, "objects": those}

    def objects(self, index: int) -> objects.Objects:
        return objects.decode(self._objects[index])

    def label_of(self, index: int) -> int:
        return -1

    def name_of(self, index: int) -> str:
        return self._names[index]

    def fingerprint(self) -> str:
        """Returns a digest of names, sizes of files, objects and classes."""
        names = (self._names[i] for i in range(len(self)))
        sizes = [coco_images.bytes_of(self._tree, name) for name in names]
        how = [*self._classes, *map(str, self.class_ids), *self.annotations]
        return base.digest(
            [
                self._names.blob,
                np.array(sizes, "<i8").tobytes(),
                *self._objects,
                *(os.fsencode(text) for text in how),
            ]
        )


def make(
    *,
    split: str,
    dir: str | None = None,
    name: str | None = None,
    holdout: float = 0.0,
    json: str | None = None,
    images: str | None = None,
    masks: bool = True,
    keep_empty: bool | None = None,
    crowds: bool = True,
) -> CocoJson:
    """One split of the images and objects below `dir`; see the module.

    Args:
      split: 'train', 'test' (also 'val', 'valid'...), or the name of one.
      dir: the folder.
      name: ignored.
      holdout: share of the images kept as 'test', chosen by a hash of their names,
        where nothing names a split for testing.
      json: name in `dir` of the file to read, which is then undivided; None: those of
        the module's table.
      images: name in `dir` of the folder of images; None: they are looked for.
      masks: whether objects have masks; False reads boxes alone.
      keep_empty: whether images without objects stay; None: except in training.
      crowds: whether `iscrowd` marks crowds, no targets; False: objects like others.

    Raises:
      FileNotFoundError, NotADirectoryError: `dir` is not a folder.
      ValueError: no such files, split or images, or a file contradicts itself.
    """
    del name
    if masks:
        objects.pycocotools()
    tree = folder.open_root(dir, _COMMAND)
    files = _Files.read(tree, json)
    chosen, part = split_names.resolve(
        split, files.kinds, holdout=holdout, where=f"folder {tree}"
    )
    path = files.paths[chosen or ""]
    read_png, where = _Pngs(tree, posixpath.dirname(path)).read, tree.path_of(path)
    file = coco_file.read(
        _parse(tree, path), where, masks=masks, read_png=read_png, crowds=crowds
    )
    rows, notes = coco_images.Lookup(tree, path, chosen or "", images).rows(file)
    rows = _part_of(rows, part, holdout, f"folder {tree}")
    training = (part or files.kinds.get(chosen or "")) == "train"
    notes = [*_counted(rows), *notes, *file.notes]
    if training if keep_empty is None else not keep_empty:
        rows, notes = _without_empty(rows, where, notes)
    coco_images.check_sizes(tree, rows)
    unused = split_names.unused_holdout(files.kinds, holdout)
    return CocoJson(
        tree,
        rows,
        file=file,
        masks=masks,
        notes=[f"from {where}", *notes, *unused],
        other_splits=[other for other in files.kinds if other != chosen],
    )


class _Files(NamedTuple):
    """The JSON files of a folder.

    Attributes:
      kinds: split -> kind, see `split_names`; {}: undivided.
      paths: split -> name of its file; '' stands for all images.
    """

    kinds: dict[str, str]
    paths: dict[str, str]

    @classmethod
    def read(cls, tree: filetree.Tree, json: str | None) -> _Files:
        """Looks for files whose names or folders name splits.

        Raises:
          ValueError: no file, or several that no split tells apart.
        """
        if json:
            return cls({}, {"": layout.join("", json.strip("/"))})
        by_folder = {
            top: names
            for top in tree.folders("")
            if split_names.read(top).kind and (names := _json_in(tree, top))
        }
        if by_folder:
            paths = {top: _only(tree, names) for top, names in by_folder.items()}
            return cls(_kinds(paths), paths)
        for top in _FOLDERS:
            names = _json_in(tree, top)
            named = {split_names.of_objects(name): name for name in names}
            kinds = split_names.recognise(named)
            if kinds:
                return cls(kinds, {split: named[split] for split in kinds})
            if names:
                return cls({}, {"": _only(tree, names)})
        raise ValueError(
            f"{tree}: no JSON file of objects; expected DIR/annotations/*.json, "
            "DIR/train/_annotations.coco.json or DIR/result.json, as docs/dense.md "
            "shows, or --config.data.options.json=NAME"
        )


def _kinds(splits: Any) -> dict[str, str]:
    return {split: split_names.read(split).kind or "other" for split in splits}


def _json_in(tree: filetree.Tree, top: str) -> list[str]:
    """Returns the JSON files directly in `top`; those named as of objects, if any."""
    try:
        files = sorted(name for name in tree.files(top) if name.endswith(".json"))
    except FileNotFoundError:
        return []
    usual = [name for name in files if name.startswith(split_names.USUAL_OBJECTS)]
    return [layout.join(top, name) for name in usual or files]


def _only(tree: filetree.Tree, names: Sequence[str]) -> str:
    if len(names) > 1:
        raise ValueError(
            f"{tree}: {len(names)} JSON files that no split tells apart: "
            f"{base.first(names)}; say which with --config.data.options.json=NAME, or "
            "name them train.json and val.json"
        )
    return names[0]


def _parse(tree: filetree.Tree, path: str) -> Any:
    """Returns what a JSON file holds.

    Raises:
      ValueError: it is damaged.
    """
    try:
        content = tree.read(path)
        if content.startswith(_GZIP):
            raise ValueError(
                f"{tree.path_of(path)} is compressed; unpack it with gunzip, and name "
                "it .json"
            )
    except (FileNotFoundError, IsADirectoryError, KeyError):
        raise ValueError(
            f"{tree.path_of(path)} does not exist; expected a JSON file of objects "
            "(data.options.json, a name in data.dir)"
        ) from None
    try:
        return json_text.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{tree.path_of(path)} is not valid JSON: {error}; export it again"
        ) from None


class _Pngs(NamedTuple):
    """Masks that are pictures, by names beside a file or in the whole folder."""

    tree: filetree.Tree
    top: str

    def read(self, text: str) -> np.ndarray:
        """Decodes a PNG, by name or as data URI: bool [h, w], where it is not 0."""
        if text.startswith(_PNG):
            encoded = base64.b64decode(text.removeprefix(_PNG), validate=True)
        else:
            encoded = self._file(objects.clean_name(text))
        with PIL.Image.open(io.BytesIO(encoded)) as opened:
            if opened.mode[0] not in "1LPI" or len(opened.getbands()) > 1:
                raise ValueError(
                    f"mode {opened.mode}; expected one channel, without alpha, that "
                    "is 0 where the object is not"
                )
            return np.asarray(opened) != 0

    def _file(self, name: str) -> bytes:
        for top in (self.top, ""):
            try:
                return self.tree.read(layout.join(top, name))
            except (FileNotFoundError, KeyError):
                continue
        raise FileNotFoundError("no such file")


def _part_of(
    rows: list[tuple[str, objects.Objects]],
    part: str | None,
    holdout: float,
    where: str,
) -> list[tuple[str, objects.Objects]]:
    """Returns the images of a part, 'train' or 'test', of an undivided set; or all."""
    if not part:
        return rows
    keys = (os.fsencode(row) for row, _ in rows)
    return list(itertools.compress(rows, base.part_of(keys, part, holdout, where)))


def _without_empty(
    rows: list[tuple[str, objects.Objects]], where: str, notes: list[str]
) -> tuple[list[tuple[str, objects.Objects]], list[str]]:
    """Leaves out images without a target; adds to the `notes` on what was read.

    Raises:
      ValueError: none has one.
    """
    empty = [name for name, those in rows if those.crowd.all()]
    if not empty:
        return rows, notes
    if len(empty) == len(rows):
        crowds = any(len(those) for _, those in rows)
        advice = (
            "--config.data.options.crowds=False takes crowds as objects, as it must be "
            "with masks that CVAT exports"
        )
        raise ValueError(
            f"{where}: none of its {len(rows)} images has an object to train on "
            f"({'; '.join(notes)}); expected at least one. "
            f"{advice if crowds else 'Label some images, and export them again'}"
        )
    listed = f"{len(empty)} ({base.first(empty, 3)})"
    advice = "data.options.keep_empty=True keeps them"
    kept = [row for row in rows if not row[1].crowd.all()]
    return kept, [*notes, f"left out, as they have no objects: {listed}; {advice}"]


def _counted(rows: list[tuple[str, objects.Objects]]) -> list[str]:
    """Says how many objects there are, and how many of them are crowds."""
    counts = [len(those) for _, those in rows]
    crowds = sum(int(those.crowd.sum()) for _, those in rows)
    total = sum(counts)
    return [
        f"{total:,} object{'s' * (total != 1)}, at most {max(counts, default=0)} per "
        "image",
        *[f"of them crowds, which are no targets: {crowds} (data.options.crowds)"]
        * bool(crowds),
    ]
