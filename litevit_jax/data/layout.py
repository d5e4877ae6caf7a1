"""Decides whether the subfolders of an image folder are splits, classes or neither.

A split is never read as a class. Where names leave a doubt, the user is asked.
"""

from __future__ import annotations

import dataclasses
import functools
import posixpath
from collections.abc import Iterable, Mapping, Sequence

from litevit_jax.data import filetree, split_names

EXTENSIONS = frozenset(
    ["bmp", "gif", "jfif", "jpe", "jpeg", "jpg", "png", "tif", "tiff", "webp"]
)
# Arrays beside pictures are their masks, features or labels as a rule, and DICOM files
# their originals: they are images where there are no pictures.
ALONE = frozenset(["dcm", "npy"])


@dataclasses.dataclass(frozen=True)
class Layout:
    """The splits of the folder `top`.

    Attributes:
      kinds: subfolder -> kind of split, see `split_names`; {}: an undivided folder.
      unused: other subfolders that hold images.
      loose: images directly in the folder.
    """

    top: str = ""
    kinds: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unused: tuple[str, ...] = ()
    loose: int = 0

    def opposite(self, name: str) -> list[str]:
        """Returns the test folders for a training split `name`, and the reverse."""
        training = self.kinds.get(name) in ("train", "extra")
        other = ("test", "val") if training else ("train", "extra")
        return [join(self.top, n) for n, kind in self.kinds.items() if kind in other]

    def training(self, root: filetree.Tree) -> str | None:
        """Returns the folder of the training split, or None."""
        if "train" not in self.kinds.values():
            return None
        name = split_names.choose("train", self.kinds, (), f"folder {root}")
        return join(self.top, name)


def extension(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[2].lower()


def is_picture(name: str) -> bool:
    return extension(name) in EXTENSIONS


def is_image(root: filetree.Tree, name: str) -> bool:
    """Whether a file of `root` is read: a picture, or one of `ALONE` without any."""
    kind = extension(name)
    return kind in EXTENSIONS or (kind in ALONE and first_picture(root) is None)


@functools.lru_cache(maxsize=8)
def first_picture(root: filetree.Tree) -> str | None:
    """Returns the name of some picture below `root`, or None."""
    return next((name for name in root.walk("") if is_picture(name)), None)


def expected(root: filetree.Tree | None = None) -> str:
    """Lists the extensions of images, for messages."""
    alone = ALONE if root is None or first_picture(root) is None else frozenset()
    return ", ".join(f".{extension}" for extension in sorted(EXTENSIONS | alone))


def why_no_image(root: filetree.Tree, path: str) -> str:
    """Tells why a path is no image of a folder, and what is expected; '' if it is."""
    if not is_image(root, path):
        return f"not an image; expected one of {expected(root)}{beside(root, path)}"
    try:
        root.size(path)
    except filetree.NoRegularFile as error:
        return f"which is a {error}; expected a regular file"
    except (OSError, KeyError):
        return f"which does not exist; expected an image at {root.path_of(path)}"
    return ""


def beside(root: filetree.Tree, *names: str) -> str:
    """Says why arrays or DICOM files among `names` are not read; '' without any."""
    kinds = sorted({extension(name) for name in names} & ALONE)
    picture = first_picture(root) if kinds else None
    if picture is None:
        return ""
    return (
        f"; {' and '.join(f'.{kind}' for kind in kinds)} files are images where no "
        f"pictures are, but here is {root.path_of(picture)}"
    )


def join(top: str, name: str) -> str:
    return f"{top}/{name}" if top else name


def find(root: filetree.Tree, top: str = "", *, strict: bool = True) -> Layout:
    """Returns the splits among the subfolders of `top`.

    With `strict` False a doubtful layout is taken as undivided.

    Raises:
      ValueError: a subfolder may be a split or a class.
    """
    folders = root.folders(top)
    kinds = split_names.recognise(folders, lambda n: _is_nested(root, join(top, n)))
    training = [name for name, kind in kinds.items() if kind == "train"]
    if not training:
        testing = [name for name, kind in kinds.items() if kind in ("test", "val")]
        if not any(_has_image(root, join(top, name)) for name in testing):
            return Layout(top)
    others = [
        name
        for name in folders
        if name not in kinds and _has_image(root, join(top, name))
    ]
    loose = _count_loose(root, top)
    doubt = _doubt(root, top, kinds, training, others, loose)
    if doubt and strict:
        raise ValueError(doubt)
    return Layout(top) if doubt else Layout(top, kinds, tuple(others), loose)


def _doubt(
    root: filetree.Tree,
    top: str,
    kinds: dict[str, str],
    training: list[str],
    others: list[str],
    loose: int,
) -> str | None:
    """Returns why the subfolders `kinds` may be classes; None if they are splits."""

    def flat(names: list[str]) -> list[str]:
        return [name for name in names if _count_loose(root, join(top, name))]

    beside = flat(others) if training else others
    if training and not (beside and flat(training)):
        return None
    if not (beside or loose):
        return None
    named = ", ".join(map(repr, training or kinds))
    rest = [*map(repr, beside[:5]), *["..."] * (len(beside) > 5)]
    rest += [f"{loose} images directly in it"] * bool(loose and not training)
    return (
        f"{root.path_of(top)}: {named} reads as a split, but beside it lies what may "
        f"be a class: {', '.join(rest)}. If all subfolders are classes: "
        "--config.data.train_split=. (and --config.data.holdout.eval=0.1 to "
        "evaluate on a part of them). If it is a split: --config.data.train_split="
        f"./{(training or ['NAME'])[0]} and --config.data.eval_split=./NAME, or move "
        "the rest elsewhere"
    )


def locate(root: filetree.Tree, split: str) -> tuple[str, bool]:
    """Returns (folder, whether its subfolders may be splits) for a split's path.

    `a/b` and `./a` name a folder below `root`, '.' all of it; with '/' or '/.' at the
    end its subfolders are classes, whatever their names.

    Raises:
      ValueError: no such folder.
    """
    top = ""
    for part in posixpath.normpath(split).split("/"):
        if part != ".":
            where = f"folder {root.path_of(top)}"
            top = join(top, split_names.choose(part, {}, root.folders(top), where))
    return top, bool(top) and not split.endswith(("/", "/."))


def descend(root: filetree.Tree, top: str) -> str:
    """Returns the folder with the images of split `top`: itself, or `train/train`.

    Raises:
      ValueError: `top` holds splits of its own.
    """
    name = posixpath.basename(top)
    own = split_names.read(name).kind
    folders = root.folders(top)
    kinds = split_names.recognise(folders)
    if own:
        kinds |= {n: own for n in folders if n.casefold() == name.casefold()}
    if not kinds:
        return top
    filled = [n for n in folders if _has_image(root, join(top, n))]
    kinds = {name: kind for name, kind in kinds.items() if name in filled}
    alone = len(filled) == 1 and not _count_loose(root, top)
    if alone and [*kinds.values()] == [own]:
        return descend(root, join(top, filled[0]))
    nested = any(_is_nested(root, join(top, name)) for name in kinds)
    if nested or len(set(kinds.values())) > 1 or len(kinds) == len(filled) > 0:
        raise ValueError(_own_splits(root, top, kinds, top))
    return top


def subfolders(names: Iterable[str], top: str) -> dict[str, set[str]]:
    """Returns folder below `top` -> its subfolders with images ('': itself).

    Args:
      names: images below `top`, relative to the root as `top` is.
      top: the folder of the class folders.
    """
    inside: dict[str, set[str]] = {}
    for folder in {posixpath.dirname(name) for name in names}:
        child = ""
        while folder != top and child not in inside.setdefault(folder, set()):
            inside[folder].add(child)
            folder, child = posixpath.split(folder)
    return inside


def check_classes(root: filetree.Tree, top: str, inside: dict[str, set[str]]) -> None:
    """Raises ValueError if a class folder holds splits, or a copy of all classes.

    Args:
      root: the tree.
      top: the folder of the class folders.
      inside: every folder below `top` -> its subfolders that hold images.
    """
    start = len(join(top, ""))
    owners = {folder: folder[start:].partition("/")[0] for folder in inside}
    names = set(owners.values())
    for folder in sorted(inside):
        folders = inside[folder] - {""}
        kinds = split_names.recognise(folders)
        values = set(kinds.values()) - {"extra"}
        if values and (len(values) > 1 or len(kinds) == len(folders)):
            raise ValueError(_own_splits(root, folder, kinds, top))
        beside = {name.casefold(): name for name in names - {owners[folder]}}
        copies = beside.keys() & {name.casefold() for name in folders}
        # All of the classes; or classes and nothing else, but numbers may number parts.
        whole = len(copies) == len(beside)
        alone = len(copies) == len(folders) and not all(map(str.isdecimal, copies))
        if len(copies) > 1 and (whole or alone):
            copied = sorted(beside[name] for name in copies)
            raise ValueError(
                f"{root.path_of(folder)} holds folders of "
                f"{'all' * whole or len(copies)} of the classes beside it "
                f"({', '.join(copied[:5])}): it looks like a copy of them, not like a "
                "class. Move it elsewhere; if it is a class: "
                f"--config.data.train_split={join(top, '.')}"
            )


def check_split(
    root: filetree.Tree, splits: Layout, split: str, classes: Sequence[str]
) -> None:
    """Raises ValueError if a class of `split` looks like a split of the other kind.

    It is a class if a split of the other kind has it too.

    Args:
      root: the tree.
      splits: the splits.
      split: the name of one.
      classes: of this split.
    """
    training = splits.kinds.get(split) in ("train", "extra")
    for name in classes:
        reading = split_names.read(name)
        if not reading.kind or reading.rest or len(classes) == 1:
            continue
        if training == (reading.kind in ("train", "extra")):
            continue
        others = (descend(root, folder) for folder in splits.opposite(split))
        if not any(name in root.folders(folder) for folder in others):
            folder = join(splits.top, split)
            rest = [other for other in classes if other != name]
            raise ValueError(
                f"{root.path_of(folder)}: {name!r} reads as a split, but beside it lie "
                f"what look like classes: {', '.join(map(repr, rest[:5]))}. If it is a "
                f"class: --config.data.train_split={folder}/. ; if not, move it beside "
                f"{root.path_of(folder)}"
            )


def _own_splits(
    root: filetree.Tree, top: str, kinds: dict[str, str], level: str
) -> str:
    """Explains that `top` holds splits `kinds`; `level` holds the possible classes."""
    first = min(kinds, key=lambda name: (kinds[name] != "train", name))
    path = root.path_of(top)
    return (
        f"{path} holds splits of its own ({', '.join(sorted(kinds))}), so it is "
        f"neither a class nor a split. Read it alone, path={path}, or name the folders "
        "to read, as in --config.data.train_split="
        f"{join(top, first)}. If all subfolders of {root.path_of(level)} are classes: "
        f"--config.data.train_split={join(level, '.')}"
    )


def _count_loose(root: filetree.Tree, top: str) -> int:
    """Counts the images directly in `top`."""
    return sum(is_image(root, name) for name in root.files(top))


def _has_image(root: filetree.Tree, top: str) -> bool:
    return any(is_image(root, name) for name in root.walk(top))


def _is_nested(root: filetree.Tree, top: str) -> bool:
    """Whether `top` holds images in subfolders alone, like a split with classes."""
    below = (_has_image(root, join(top, name)) for name in root.folders(top))
    return not _count_loose(root, top) and any(below)
