"""Images below a folder, notes on its other files, and lists with labels."""

from __future__ import annotations

import collections
import dataclasses
import posixpath
from collections.abc import Iterable, Sequence

import numpy as np

from litevit_jax.data import filetree, layout
from litevit_jax.data.sources import base

# Tables of labels beside the images of a split.
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
# What to do with other files where images are expected.
_HINTS = {
    "array_record": "packed images are read by data=packed",
    "arrow": "export their images to files",
    "gz": "unpack archives first",
    "npz": "arrays are read by data=arrays,path=FILE",
    "parquet": "Parquet files are read from a folder without other images",
    "tar": "tar files of images are read by data=tar",
    "tfrecord": "TFDS data sets are read by data.source=tfds",
    "tgz": "unpack archives first",
    "zip": "unpack archives first",
}


@dataclasses.dataclass(frozen=True)
class Listing:
    """The images below `top`, sorted by their names relative to `root`.

    Attributes:
      notes: what else there is, for the user.
      other_splits: names of the folders that are splits beside this one.
    """

    root: filetree.Tree
    top: str
    names: list[str]
    notes: list[str]
    other_splits: list[str]

    @classmethod
    def read(
        cls, root: filetree.Tree, top: str, splits: layout.Layout, split: str | None
    ) -> Listing:
        """Lists `top`, which is in folder `split` of the layout `splits`.

        Raises:
          ValueError: no image there; the message counts what there is instead.
        """
        name = posixpath.basename(split or "")
        names, unread, skipped = [], collections.Counter(), {}
        barred = splits.opposite(name) if split else []
        for file in root.walk(top, skipped, barred):
            if layout.is_image(root, file):
                names.append(layout.join(top, file))
            elif file not in METADATA:  # in a folder below, it is not read
                unread[_kind_of(file)] += 1
        if not names:
            raise ValueError(_no_images(root, top, unread, skipped))
        notes = [f"from {root.path_of(top)}"]
        notes += _beside(splits, name) + _not_read(root, unread, skipped)
        others = [other for other in splits.kinds if other != name]
        return cls(root, top, sorted(names), notes, others)


def _beside(splits: layout.Layout, name: str) -> list[str]:
    """Returns notes on folders and images beside split `name`."""
    unused = [f"{other}/" for other in splits.unused if other != name]
    unused += [f"{splits.loose} images beside the splits"] * bool(splits.loose)
    return [f"not used: {base.first(unused)}"] * bool(unused)


def _not_read(
    root: filetree.Tree, others: collections.Counter[str], skipped: dict[str, str]
) -> list[str]:
    """Returns notes on files that are no images, or no regular files."""
    notes = []
    if others:
        tables = any(kind.startswith("metadata.") or kind == ".csv" for kind in others)
        why = " (labels of a table are read with data.labels=FILE)" * tables
        notes.append(f"not read: {_count(others)}{why}{layout.beside(root, *others)}")
    return notes + base.skipped_entries(skipped)


def _kind_of(file: str) -> str:
    """Returns a file's extension, or the whole name of a file about images."""
    name = posixpath.basename(file)
    return name if name.startswith("metadata.") else f".{layout.extension(file)}"


def _count(kinds: collections.Counter[str]) -> str:
    return base.first([f"{count} {kind}" for kind, count in kinds.most_common()])


def _no_images(
    root: filetree.Tree,
    top: str,
    others: collections.Counter[str],
    skipped: dict[str, str],
) -> str:
    counted = _count(others + collections.Counter(skipped.values()))
    hints = {_HINTS[kind[1:]] for kind in others if kind[1:] in _HINTS}
    return (
        f"no image below {root.path_of(top)}; found {counted or 'no file at all'}, "
        f"expected one of {layout.expected(root)}{layout.beside(root, *others)}"
        + "".join(f"; {hint}" for hint in sorted(hints))
    )


class Listed(base.Source):
    """Examples of a list with their labels int32 `[N]`, -1 for none."""

    def __init__(
        self,
        *,
        labels: np.ndarray,
        classes: list[str],
        notes: Sequence[str] = (),
        other_splits: Sequence[str] = (),
    ):
        self._labels = labels
        self._classes = classes
        self.notes = notes
        self.other_splits = other_splits

    @property
    def classes(self) -> list[str]:
        return list(self._classes)

    @property
    def labelled(self) -> bool:
        return bool((self._labels >= 0).any())

    def __len__(self) -> int:
        return len(self._labels)

    def label_of(self, index: int) -> int:
        return int(self._labels[index])


def in_order(classes: Iterable[str]) -> list[str]:
    """Sorts by name, or by number if all are numbers, as in ImageNet-V2."""
    names = sorted(classes)
    numbers = all(name.isdecimal() for name in names)
    return sorted(names, key=int) if numbers else names
