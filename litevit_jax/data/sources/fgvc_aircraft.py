"""FGVC-Aircraft (arXiv 1306.5151) as its archive lies unpacked; TFDS has no such set.

    DIR/data/images/0034309.jpg ...
    DIR/data/images_variant_train.txt ...   lines 'number class'

Splits: train, val, trainval (both of them), test. `level` of the name picks the
labels: variant (100 classes, the usual one), family or manufacturer. Classes are in the
order of their names.
"""

from __future__ import annotations

import pathlib

import numpy as np

from litevit_jax import choices
from litevit_jax.data import filetree
from litevit_jax.data.sources import base, folder

SPLITS = ("test", "train", "trainval", "val")
LEVELS = ("family", "manufacturer", "variant")


def make(
    *,
    split: str,
    dir: str | None = None,
    name: str | None = None,
    holdout: float = 0.0,
) -> folder.Folder:
    """One split of the unpacked archive.

    Args:
      split: 'train', 'val', 'trainval' or 'test'.
      dir: the folder that the archive unpacks to, or its `data`.
      name: the level of the labels; '' means 'variant'.
      holdout: ignored; the splits are fixed.

    Raises:
      FileNotFoundError: the archive, its lists or an image are not there.
      ValueError: no such split or level, or a list that is none.
    """
    del holdout
    level = choices.check("data.name of fgvc_aircraft", name or "variant", [*LEVELS])
    root = _root(dir)
    base.check_split(split, SPLITS, f"FGVC-Aircraft in {root}")
    listed = _read(root, level, split)
    classes = sorted(set(_read(root, level, "trainval").values()))
    number = {name: label for label, name in enumerate(classes)}
    unknown = sorted(set(listed.values()) - number.keys())
    if unknown:
        raise ValueError(
            f"images_{level}_{split}.txt in {root} has classes that trainval has not: "
            f"{', '.join(unknown[:10])}"
        )
    tree = filetree.LocalTree(str(root / "images"))
    present = set(tree.files(""))
    missing = [image for image in listed if f"{image}.jpg" not in present]
    if missing:
        raise FileNotFoundError(
            f"{root / 'images'} lacks {len(missing)} of the {len(listed)} images of "
            f"split {split!r}, the first {missing[0]}.jpg; unpack the archive again"
        )
    labels = np.array([number[name] for name in listed.values()], np.int32)
    names = [f"{image}.jpg" for image in listed]
    return folder.Folder(
        tree,
        names,
        labels=labels,
        classes=classes,
        notes=[f"from {root}"],
        other_splits=[other for other in SPLITS if other != split],
    )


def _root(dir: str | None) -> pathlib.Path:
    """The folder `data` of the archive."""
    given = pathlib.Path(dir or "fgvc-aircraft-2013b").expanduser()
    for root in (given / "data", given):
        if (root / "images").is_dir():
            return root
    raise FileNotFoundError(
        f"data.dir={dir!r}: no FGVC-Aircraft there (expected data/images and "
        "data/images_variant_train.txt); download fgvc-aircraft-2013b.tar.gz from "
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/, unpack it and give "
        "--config.data.dir=DIR/fgvc-aircraft-2013b"
    )


def _read(root: pathlib.Path, level: str, split: str) -> dict[str, str]:
    """Image number -> class, in the order of the list."""
    path = root / f"images_{level}_{split}.txt"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; unpack the archive again")
    pairs = (line.partition(" ") for line in path.read_text().splitlines() if line)
    listed = {image: name.strip() for image, _, name in pairs}
    if not listed or not all(listed.values()):
        raise ValueError(f"{path}: expected lines of an image's number and its class")
    return listed
