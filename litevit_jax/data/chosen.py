"""Images below a folder by the splits of its layout, before they have labels."""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Sequence

from litevit_jax.data import filetree, layout, split_names
from litevit_jax.data.listing import Listing


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The images of a split.

    Attributes:
      listing: the images.
      splits: of the folder above it.
      folder: of the split, if it is one of `splits`.
      training: folder of the training split, if that is another one.
      part: 'train' or 'test' of the images by the holdout; None: all.
      divisible: whether class folders must not hold splits.
      notes, other_splits: see `base.Source`.
    """

    listing: Listing
    splits: layout.Layout
    folder: str | None = None
    training: str | None = None
    part: str | None = None
    divisible: bool = True
    notes: Sequence[str] = ()
    other_splits: Sequence[str] = ()


def choose(root: filetree.Tree, split: str, holdout: float) -> Chosen:
    """Lists the images of a split; see `sources.folder` for its name."""
    if "/" in split or split == ".":
        return _choose_path(root, split)
    splits = layout.find(root)
    also = splits.unused if splits.kinds else root.folders("")
    chosen, part = split_names.resolve(
        split, splits.kinds, holdout=holdout, where=f"folder {root}", also=also
    )
    if not (part or splits.kinds):
        return _choose_path(root, f"./{chosen}")
    if not part:
        return _choose_split(root, splits, str(chosen), holdout)
    training = splits.training(root)
    top = layout.descend(root, training) if training else ""
    listing = Listing.read(root, top, splits, training)
    others = listing.other_splits
    return Chosen(listing, splits, training, part=part, other_splits=others)


def _choose_path(root: filetree.Tree, split: str) -> Chosen:
    """Lists any subfolder of `root`, or `root` itself."""
    top, divisible = layout.locate(root, split)
    parent, name = posixpath.split(top)
    splits = layout.Layout(parent)
    if divisible:
        splits = layout.find(root, parent, strict=False)
        if name in [*splits.kinds, *splits.unused]:
            return _choose_split(root, splits, name)
        top = layout.descend(root, top)
    listing = Listing.read(root, top, splits, None)
    return Chosen(listing, splits, divisible=divisible)


def _choose_split(
    root: filetree.Tree, splits: layout.Layout, split: str, holdout: float = 0.0
) -> Chosen:
    """Lists subfolder `split`, whose classes are those of the training split."""
    folder = layout.join(splits.top, split)
    listing = Listing.read(root, layout.descend(root, folder), splits, folder)
    training = splits.training(root)
    return Chosen(
        listing,
        splits,
        folder,
        training if training != folder else None,
        notes=split_names.unused_holdout(splits.kinds, holdout),
        other_splits=listing.other_splits,
    )
