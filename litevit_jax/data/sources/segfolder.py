"""A folder of images and one of label maps: the same names, labels as PNG files.

    DIR/images/training/a.jpg     DIR/annotations/training/a.png      ADE20K
    DIR/images/train/a.jpg        DIR/labels/train/a.png              splits as folders
    DIR/images/a.jpg              DIR/labels/a.png      DIR/train.txt splits as lists
    DIR/JPEGImages/a.jpg          DIR/SegmentationClass/a.png         PASCAL VOC, with
                                  DIR/ImageSets/Segmentation/train.txt

A list has the name of an image on each line, with or without its extension; a name
counts once. Without folders or lists that name a split, `holdout` keeps a share of the
images as 'test'. Images without a label map are counted and left out, unless a list
names them; so are label maps without an image, and images outside the splits' folders.

The number in a pixel is its class, 255 none (see `label_maps`). Names of classes come
from DIR/classes.txt, one on each line, from ADE20K's DIR/objectInfo150.txt, or from
`classes`.
"""

from __future__ import annotations

import itertools
import os
import posixpath
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from litevit_jax.data import filetree, label_maps, layout, split_names
from litevit_jax.data.sources import base, folder

_IMAGES = ("images", "JPEGImages")
_LABELS = ("annotations", "labels", "masks", "SegmentationClass")
_LISTS = ("", "splits", "ImageSets/Segmentation")
_CLASS_FILES = ("classes.txt", "objectInfo150.txt")
_MOST_CLASSES = label_maps.IGNORED
_COMMAND = "configs/segment.py:folder"


class SegFolder(base.Source):
    """Image files and their label maps, with names relative to a folder."""

    annotations = ("label_map",)

    def __init__(
        self,
        tree: filetree.Tree,
        pairs: list[tuple[str, str]],
        *,
        classes: list[str],
        reduce_zero_label: bool,
        notes: Sequence[str] = (),
        other_splits: Sequence[str] = (),
    ):
        self._tree = tree
        self._images = folder.PackedNames([image for image, _ in pairs])
        self._labels = folder.PackedNames([labels for _, labels in pairs])
        self._classes = classes
        self._reduce_zero_label = reduce_zero_label
        self.notes = notes
        self.other_splits = other_splits

    @property
    def classes(self) -> list[str]:
        return list(self._classes)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self._tree.read(self._images[index])
        name = self._labels[index]
        try:
            label_map = label_maps.read(
                self._tree.read(name),
                image,
                classes=len(self._classes),
                reduce_zero_label=self._reduce_zero_label,
            )
        except base.AnnotationError as error:
            path = base.printable(self._tree.path_of(name))
            raise base.AnnotationError(f"{path}: {error}") from None
        return {"image": image, "label": -1, "label_map": label_map}

    def label_of(self, index: int) -> int:
        return -1

    def name_of(self, index: int) -> str:
        return self._images[index]

    def fingerprint(self) -> str:
        """Returns a digest of names, sizes of files, classes and their meaning."""
        names = (self._images, self._labels)
        sizes = [self._tree.size(x[i]) for x in names for i in range(len(self))]
        how = [*self._classes, str(self._reduce_zero_label)]
        return base.digest(
            [
                *(x.blob for x in names),
                np.array(sizes, "<i8").tobytes(),
                *(os.fsencode(text) for text in how),
            ]
        )


def make(
    *,
    split: str,
    dir: str | None = None,
    name: str | None = None,
    holdout: float = 0.0,
    classes: str | int | Sequence[str] | None = None,
    reduce_zero_label: bool | None = None,
) -> SegFolder:
    """One split of the images and label maps below `dir`; see the module.

    Args:
      split: 'train', 'test' (also 'val', 'validation'...), or the name of one.
      dir: the folder.
      name: ignored.
      holdout: share of the images kept as 'test', chosen by a hash of their names,
        where nothing names a split for testing.
      classes: their number, their names (joined by commas), or a file of names, one on
        each line; None: a file in `dir` has them.
      reduce_zero_label: whether 0 stands for pixels of no class, as in ADE20K, and the
        classes count from 1. It has to be said.

    Raises:
      FileNotFoundError, NotADirectoryError: `dir` is not a folder.
      ValueError: no such folders, split or images; or what labels mean is not said.
    """
    del name
    tree = folder.open_root(dir, _COMMAND)
    if not isinstance(reduce_zero_label, bool):
        raise ValueError(
            f"{tree}: is label 0 a class? Say --config.data.options.reduce_zero_label="
            "False if it is (PASCAL VOC, most sets), or True if it stands for pixels "
            "of no class, and the classes count from 1 (ADE20K); got "
            f"{reduce_zero_label!r}"
        )
    known = _class_names(tree, classes)
    images, labels = _Files.read(tree, _IMAGES), _Files.read(tree, _LABELS)
    splits = _Splits.read(tree, images)
    chosen, part = split_names.resolve(
        split, splits.kinds, holdout=holdout, where=f"folder {tree}"
    )
    pairs, notes = _pair(tree, images, labels, splits.stems(chosen, images))
    if part:
        keys = (os.fsencode(image) for image, _ in pairs)
        keep = base.part_of(keys, part, holdout, f"folder {tree}")
        pairs = list(itertools.compress(pairs, keep))
    return SegFolder(
        tree,
        pairs,
        classes=known,
        reduce_zero_label=reduce_zero_label,
        notes=[
            f"from {tree}",
            *splits.notes(images),
            *notes,
            *split_names.unused_holdout(splits.kinds, holdout),
        ],
        other_splits=[other for other in splits.kinds if other != chosen],
    )


class _Files(NamedTuple):
    """The pictures below folder `top`: name without extension -> name in the tree."""

    top: str
    names: dict[str, str]

    @classmethod
    def read(cls, tree: filetree.Tree, usual: Sequence[str]) -> _Files:
        """Lists the folder that has one of the usual names, and pictures.

        Raises:
          ValueError: none of them has, or several.
        """
        named = [name for name in tree.folders("") if name in usual]
        filled = [files for files in (cls._list(tree, top) for top in named) if files]
        if len(filled) != 1:
            got = [files.top for files in filled] or tree.folders("")
            empty = "" if filled else _without(tree, named)
            raise ValueError(
                f"{tree}: expected one folder of {_kind(usual)}, named "
                f"{' or '.join(usual)}; got {base.first(got) or 'no folder'}{empty}. "
                "Give the folder above both, as docs/dense.md shows"
            )
        return filled[0]

    @classmethod
    def _list(cls, tree: filetree.Tree, top: str) -> _Files | None:
        names: dict[str, str] = {}
        for file in sorted(tree.walk(top)):
            if not layout.is_picture(file) or not _may_be(top, file):
                continue
            stem = posixpath.splitext(file)[0]
            if stem in names:
                raise ValueError(
                    f"{tree.path_of(names[stem])} and {file}: two pictures of one "
                    "name, so that their label maps cannot be told apart; keep one"
                )
            names[stem] = layout.join(top, file)
        return cls(top, names) if names else None


def _kind(usual: Sequence[str]) -> str:
    return "images" if usual == _IMAGES else "label maps (.png)"


def _without(tree: filetree.Tree, named: Sequence[str]) -> str:
    """Says what folders of the right names hold instead of such pictures; maybe ''."""
    kinds = sorted({layout.extension(file) for x in named for file in tree.walk(x)})
    what = f"files that end in .{', .'.join(kinds[:5])}" if kinds else "nothing"
    return f", but {' and '.join(named)} has {what}" if named else ""


def _may_be(top: str, file: str) -> bool:
    """Whether a picture is of a kind that folder `top` is read for."""
    return top in _IMAGES or layout.extension(file) == "png"


class _Splits(NamedTuple):
    """The splits of a set, as folders or as lists of names.

    Attributes:
      kinds: name -> kind, see `split_names`; {}: undivided.
      lists: name -> names of images without extension; {}: splits are folders.
    """

    kinds: dict[str, str]
    lists: dict[str, list[str]]

    @classmethod
    def read(cls, tree: filetree.Tree, images: _Files) -> _Splits:
        """Looks for folders that name splits, then for lists."""
        kinds = split_names.recognise(tree.folders(images.top))
        if kinds:
            return cls(kinds, {})
        for top in _LISTS:
            files = [name for name in _files(tree, top) if name.endswith(".txt")]
            kinds = split_names.recognise(name.removesuffix(".txt") for name in files)
            if kinds:
                paths = {name: layout.join(top, f"{name}.txt") for name in kinds}
                lists = {name: _lines(tree, path) for name, path in paths.items()}
                stems = {
                    name: [_stem(line, images) for line in lines]
                    for name, lines in lists.items()
                }
                return cls(kinds, stems)
        return cls({}, {})

    def stems(self, chosen: str | None, images: _Files) -> tuple[list[str], bool]:
        """Returns the images of a split, and whether a list names them."""
        if chosen is None:
            return list(images.names), False
        if self.lists:
            return list(dict.fromkeys(self.lists[chosen])), True
        return [x for x in images.names if x.startswith(f"{chosen}/")], False

    def notes(self, images: _Files) -> list[str]:
        """Says which images no split has; what a list repeats counts once."""
        if self.lists:
            twice = [(k, len(x) - len(set(x))) for k, x in self.lists.items()]
            return [f"named again in {name}.txt: {n} images" for name, n in twice if n]
        tops = tuple(f"{name}/" for name in self.kinds)
        beside = [x for x in images.names if tops and not x.startswith(tops)]
        note = f"in no split: {len(beside)} images ({base.first(beside)})"
        return [note] if beside else []


def _stem(line: str, images: _Files) -> str:
    """Returns a line of a list without the extension of a picture."""
    return posixpath.splitext(line)[0] if layout.is_picture(line) else line


def _files(tree: filetree.Tree, top: str) -> list[str]:
    """Returns the files directly in `top`; [] if there is no such folder."""
    try:
        return sorted(tree.files(top))
    except FileNotFoundError:
        return []


def _lines(tree: filetree.Tree, path: str) -> list[str]:
    """Returns the lines of a file that are not empty."""
    try:
        text = tree.read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{tree.path_of(path)} is no text in UTF-8: {error}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _pair(
    tree: filetree.Tree, images: _Files, labels: _Files, listed: tuple[list[str], bool]
) -> tuple[list[tuple[str, str]], list[str]]:
    """Returns (image, label map) of each name, and notes on what has no partner.

    Raises:
      ValueError: a list names an image that is not there or has no label map, or no
        image has one.
    """
    stems, by_list = listed
    lonely = [x for x in stems if x not in images.names or x not in labels.names]
    pairs = [
        (images.names[x], labels.names[x])
        for x in stems
        if x in images.names and x in labels.names
    ]
    where = f"{tree.path_of(images.top)} and {tree.path_of(labels.top)}"
    if by_list and lonely:
        lacks = images if lonely[0] not in images.names else labels
        raise ValueError(
            f"{len(lonely)} of {len(stems)} names of a split's list are not in "
            f"{where}: {base.first(lonely)}; the first is not in {lacks.top}. Add the "
            "files, or take the names out of the list"
        )
    if not stems:
        raise ValueError(f"{tree.path_of(images.top)}: no image of the split is there")
    if not pairs:
        raise ValueError(
            f"no image has a label map: {len(stems)} images, {len(labels.names)} label "
            f"maps in {where}; expected the same names but for the extension, as "
            f"{stems[0]}.jpg and {stems[0]}.png, not {next(iter(labels.names))}"
        )
    notes = []
    if lonely:
        notes.append(
            f"left out, as they have no label map: {len(lonely)} images "
            f"({base.first(lonely)})"
        )
    without = [x for x in labels.names if x not in images.names]
    if without:
        notes.append(
            f"label maps without an image: {len(without)} ({base.first(without)})"
        )
    return pairs, notes


def _class_names(
    tree: filetree.Tree, classes: str | int | Sequence[str] | None
) -> list[str]:
    """Returns the names of the classes by number, or raises a ValueError."""
    names = _read_classes(tree, classes)
    twice = sorted({name for name in names if names.count(name) > 1})
    if "" in names or twice:
        raise ValueError(
            f"{tree}: classes {base.first(names)}: "
            f"{f'{twice[0]!r} stands there twice' if twice else 'one has no name'}; "
            "expected a different name for each (data.options.classes)"
        )
    if not 0 < len(names) <= _MOST_CLASSES:
        raise ValueError(
            f"{tree}: {len(names)} classes; expected 1 to {_MOST_CLASSES}, as labels "
            f"are bytes and {label_maps.IGNORED} is none"
        )
    return names


def _read_classes(tree: filetree.Tree, classes: Any) -> list[str]:
    if classes is None:
        files = [name for name in tree.files("") if name in _CLASS_FILES]
        if not files:
            raise ValueError(
                f"{tree} has no {' and no '.join(_CLASS_FILES)}: which classes have "
                "the labels? Write classes.txt, a name on each line, or say "
                "--config.data.options.classes=N (their number, names joined by "
                "commas, or a file)"
            )
        return _names_in(_lines(tree, sorted(files)[0]))
    if isinstance(classes, Sequence) and not isinstance(classes, str):
        return [str(name) for name in classes]
    text = str(classes).strip()
    if re.fullmatch(r"[-+.\d]+", text) and not text.isdecimal():
        raise ValueError(
            f"data.options.classes={text}: expected a whole number of classes, names "
            "joined by commas, or a file of names (.txt)"
        )
    if text.isdecimal():
        return [str(number) for number in range(min(int(text), _MOST_CLASSES + 1))]
    if text.endswith(".txt"):
        try:
            with open(os.path.expanduser(text), encoding="utf-8-sig") as file:
                return _names_in([line.strip() for line in file if line.strip()])
        except FileNotFoundError:
            raise FileNotFoundError(
                f"data.options.classes={text}: no such file; give its whole path"
            ) from None
    return [name.strip() for name in text.split(",")]


def _names_in(lines: list[str]) -> list[str]:
    """Returns the names of a file's lines; of ADE20K's table the last column."""
    if lines and lines[0].startswith("Idx\t"):
        return [line.rpartition("\t")[2] for line in lines[1:]]
    return lines
