"""Labels of images by the folders that they lie in, one for each class."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import numpy as np

from litevit_jax.data import filetree, layout
from litevit_jax.data.listing import Listing, in_order
from litevit_jax.data.sources import base

_log = logging.getLogger(__name__)


def renumber(
    listing: Listing,
    labels: np.ndarray,
    classes: list[str],
    known: list[str],
    training: str,
) -> np.ndarray:
    """Renumbers labels of `classes` by the classes of the training split."""
    if not classes:
        return labels
    unknown = sorted(set(classes) - set(known))
    if unknown:
        path_of = listing.root.path_of
        raise ValueError(
            f"{path_of(listing.top)} has classes that {path_of(training)} has not: "
            f"{base.first(unknown, 10)} ({len(unknown)} of {len(classes)}); the "
            "class folders of the splits must have the same names"
        )
    return np.array([known.index(name) for name in classes], np.int32)[labels]


def labels_of(
    listing: Listing, known: Sequence[str] = (), *, divisible: bool = True
) -> tuple[np.ndarray, list[str]]:
    """Returns labels int32 [N] and class names, from each name's folder below `top`.

    A lone folder that holds all class folders is no class, unless it is called like one
    of those `known`.

    Raises:
      ValueError: some images are in class folders and some are not, or (if
        `divisible`) a class folder holds splits.
    """
    root, top, names = listing.root, listing.top, listing.names
    depth = top.count("/") + 1 if top else 0
    owners = [_part(name, depth) for name in names]
    loose = [name for name, owner in zip(names, owners, strict=True) if not owner]
    if len(loose) == len(names):
        return np.full(len(names), -1, np.int32), []
    if loose:
        inside = next(name for name, owner in zip(names, owners, strict=True) if owner)
        raise ValueError(
            f"{root.path_of(top)} holds images directly ({loose[0]!r}, {len(loose)} in "
            f"all) and in subfolders ({inside!r}): with labels or without? Move all of "
            "them into class folders, or the class folders elsewhere"
        )
    classes = in_order(set(owners))
    if divisible:
        inside = layout.subfolders(names, top)
        layout.check_classes(root, top, inside)
        inner = unwrapped(inside, top)
        if inner != top and classes[0] not in known:
            listing.notes.append(
                f"the class folders are those of {root.path_of(inner)}"
            )
            inner = dataclasses.replace(listing, top=inner)
            return labels_of(inner, divisible=divisible)
        folders = [layout.join(top, name) for name in classes]
        listing.notes.extend(
            _doubtful_classes({name: inside[name] for name in folders})
        )
    empty = sorted(set(root.folders(top)) - set(classes))
    if empty:
        named, folder = ", ".join(empty), root.path_of(top)
        _log.warning("folders of %s without images, ignored: %s", folder, named)
    number = {name: label for label, name in enumerate(classes)}
    return np.array([number[owner] for owner in owners], np.int32), classes


def unwrapped(inside: Mapping[str, set[str]], top: str) -> str:
    """Returns the folder of the class folders: `top`, or a lone one inside it.

    Args:
      inside: see `layout.subfolders`.
      top: the folder of a split.
    """
    start = len(layout.join(top, ""))
    names = {folder[start:].partition("/")[0] for folder in inside}
    if len(names) != 1:
        return top
    inner = layout.join(top, names.pop())
    while len(folders := inside[inner]) == 1 and "" not in folders:
        inner = layout.join(inner, next(iter(folders)))
    return top if "" in inside[inner] else inner


def _doubtful_classes(inner: dict[str, set[str]]) -> list[str]:
    """Returns a note if the folders below the class folders look like classes.

    Args:
      inner: class folder -> its subfolders that hold images; '' stands for itself.
    """
    below = sorted(next(iter(inner.values())))
    if len(below) < 2 or any(sorted(other) != below for other in inner.values()):
        return []
    return [
        f"each class folder holds the same subfolders ({base.first(below)}): if those "
        "are the classes, name one folder to read, as in --config.data.train_split="
        f"{sorted(inner)[0]}"
    ]


def _part(name: str, depth: int) -> str:
    """Returns folder number `depth` of a relative file name; '' if it is the file."""
    parts = name.split("/", depth + 1)
    return parts[depth] if len(parts) > depth + 1 else ""


def training_classes(root: filetree.Tree, top: str, barred: Sequence[str]) -> list[str]:
    """Returns class folders of `top` with an image; no link may enter `barred`."""
    files = root.walk(top, barred=barred)
    images = [layout.join(top, name) for name in files if layout.is_image(root, name)]
    top = unwrapped(layout.subfolders(images, top), top)
    depth = top.count("/") + 1
    return in_order({_part(name, depth) for name in images} - {""})
