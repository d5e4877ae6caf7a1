"""Meanings of split names: training, validation or test images.

A name is read word by word in any case: `Train`, `valid`, `training_set`, `val2017`
and `seg_test` name splits. 'test' and 'val' stand in for each other where a data set
has only one of them.
"""

from __future__ import annotations

import collections
import dataclasses
import posixpath
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from litevit_jax import choices
from litevit_jax.data.sources import base


class NoTestSplit(ValueError):
    """An error of data that have no images to test on.

    Attributes:
      where: what holds the data.
      whole: the split that is all of it, but for `splits`.
    """

    def __init__(self, where: str, whole: str, splits: Sequence[str] = ()) -> None:
        self.where, self.whole = where, whole
        which, name = "all of it is 'train'", ""
        if len(splits) > 1:
            which = f"its splits are {', '.join(splits)}"
            name = "Name one of them with --config.data.eval_split=. "
        super().__init__(
            f"{where} has no 'test' split: {which}. {name}Keep a share of it for "
            "testing with --config.data.holdout.test=0.1, or provide a test split"
        )


# Kind -> usual names, the first one preferred.
USUAL = {
    "train": ("train", "training", "trainval", "trn"),
    "test": ("test", "testing", "tst"),
    "val": ("val", "validation", "valid", "dev", "eval", "evaluation"),
    "extra": ("extra", "unlabeled", "unlabelled", "unsup", "unsupervised"),
}
# How files of objects begin, beside those of captions.
USUAL_OBJECTS = "instances_"
# Kinds in the order in which they answer for the kind asked for.
_ANSWERS = {"test": ("test", "val"), "val": ("val", "test")}
_KIND_OF = {name: kind for kind, names in USUAL.items() for name in names}
# Words that say nothing about which split it is.
_FILLER = (
    "data|dataset|datasets|dir|files?|folder|images?|imgs?|jpe?gs?|photos?|pics?|"
    "pictures?|pngs?|sets?|splits?"
)
_WORD = re.compile(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+|\d+")
_SPLIT_WORD = re.compile(rf"({'|'.join(sorted(_KIND_OF, reverse=True))})({_FILLER})?")
_IGNORED = re.compile(rf"{_FILLER}|\d+")


@dataclasses.dataclass(frozen=True)
class Reading:
    """The meaning of the words of a split's name.

    Attributes:
      kind: of split, a key of `USUAL`; None: the name is no split's.
      word: the usual name among its words.
      usual: place among the usual names of its kind; None: other words surround it.
      rest: words beyond the split's that mean something else.
    """

    kind: str | None
    word: str = ""
    usual: int | None = None
    rest: tuple[str, ...] = ()


def read(name: str) -> Reading:
    """Reads the words of a name, such as 'seg_train'."""
    whole = name.casefold()
    if whole in _KIND_OF:
        kind = _KIND_OF[whole]
        return Reading(kind, whole, USUAL[kind].index(whole))
    words = [word.casefold() for word in _WORD.findall(name)]
    matches = {word: _SPLIT_WORD.fullmatch(word) for word in words}
    named = {_KIND_OF[match[1]]: match[1] for match in matches.values() if match}
    if named.keys() == {"train", "val"}:  # 'train_val'
        named = {"train": "trainval"}
    if len(named) != 1:
        return Reading(None)
    [(kind, word)] = named.items()
    rest = (w for w in words if not (matches[w] or _IGNORED.fullmatch(w)))
    return Reading(kind, word, rest=tuple(rest))


def recognise(
    names: Iterable[str], is_nested: Callable[[str], bool] = lambda name: False
) -> dict[str, str]:
    """Returns name -> kind of the names of splits, among names that may be classes.

    A name with further words (`seg_train`; but also the class `bullet_train`) counts
    beside a name without, beside one that differs in the split's word alone
    (`seg_test`), or if it is for training and `is_nested`, as classes hardly are.
    """
    readings = {name: read(name) for name in names}
    kinds = {name: reading.kind for name, reading in readings.items() if reading.kind}
    kinds_of = collections.defaultdict(set)
    for name, kind in kinds.items():
        kinds_of[readings[name].rest].add(kind)
    certain = any(not rest or len(kinds) > 1 for rest, kinds in kinds_of.items())
    nested = (is_nested(name) for name, kind in kinds.items() if kind == "train")
    return kinds if certain or any(nested) else {}


def of_objects(path: str) -> str:
    """Returns the split that a JSON file's name tells: 'instances_a.json' -> 'a'."""
    stem = posixpath.basename(path).removesuffix(".json")
    return stem.removeprefix(USUAL_OBJECTS)


def canonical(split: str) -> str:
    """Returns 'train' or 'test' for any usual name of these, else the name itself."""
    kind = _KIND_OF.get(split.casefold(), split)
    return "test" if kind == "val" else kind


def choose(
    asked: str, kinds: Mapping[str, str], also: Collection[str], where: str
) -> str:
    """Returns the split's name that `asked` means.

    Args:
      asked: a name that is there, in any case, or a usual name of its kind.
      kinds: name -> kind of the splits.
      also: further names that may be asked for.
      where: what holds them, for messages.

    Raises:
      ValueError: nothing of that name, or several that fit equally well.
    """
    names = [*kinds, *also]
    same = [name for name in names if name.casefold() == asked.casefold()]
    if asked in names or len(same) == 1:
        return asked if asked in names else same[0]
    wanted = _KIND_OF.get(asked.casefold())
    for kind in _ANSWERS.get(wanted or "", (wanted,)):
        candidates = [name for name, other in kinds.items() if other == kind]
        usual = [name for name in candidates if read(name).usual is not None]
        best = sorted(usual, key=lambda name: read(name).usual or 0)[:1] or candidates
        if len(best) == 1:
            return best[0]
        if best:
            raise ValueError(
                f"{where}: {', '.join(sorted(best))} all name a {kind} split; say "
                "which with --config.data.train_split= or --config.data.eval_split= "
                "(several of them: joined by +)"
            )
    if wanted and kinds:
        raise ValueError(
            f"{where} has no {asked!r} split: its splits are "
            f"{', '.join(sorted(kinds))}; name one with --config.data.train_split= or "
            "--config.data.eval_split="
        )
    return choices.check(f"split of {where}", asked, sorted(names))


def resolve(
    split: str,
    kinds: Mapping[str, str],
    *,
    holdout: float,
    where: str,
    also: Sequence[str] = (),
) -> tuple[str | None, str | None]:
    """Returns (the split that `split` means, the part of it), or None for all.

    Args:
      split: the name asked for.
      kinds: name -> kind of the splits there; {}: undivided data.
      holdout: share that is 'test' where no split is for testing.
      where: what holds the data, for messages.
      also: further names that may be asked for.

    Raises:
      ValueError: there is no such split, or it needs a held-out share.
    """
    base.check_holdout(holdout)
    part = canonical(split)
    named = part not in ("train", "test")
    if {"test", "val"} & set(kinds.values()) or (kinds and named):
        return choose(split, kinds, also, where), None
    if named and split.casefold() in map(str.casefold, also):
        return choose(split, {}, also, where), None
    if part == "test" and holdout == 0:
        folder = where.startswith("folder ") and not kinds
        raise NoTestSplit(where, "." if folder else "train", sorted(kinds))
    parts = ["test", "train"] if holdout > 0 else ["train"]
    base.check_split(part, [*parts, *also[:20]], where)
    return choose("train", kinds, (), where) if kinds else None, part


def unused_holdout(kinds: Mapping[str, str], holdout: float) -> list[str]:
    """Returns a note if a share is held out though there is a split to test on."""
    unused = holdout and {"test", "val"} & set(kinds.values())
    note = f"data.holdout.test={holdout} is not used: there is a split to test on"
    return [note] * bool(unused)
