"""Reads what the job 'choose' is given: methods, encoders and labelled images."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from litevit_jax import choices
from litevit_jax.data import splits, subsets
from litevit_jax.evaluators import base

METHODS = ("mae", "moco", "distill", "supervised", "random")
_WHOLE = {
    **{"shots": None, "fraction": 1.0, "fraction_of": None, "subset_seed": 0},
    "cache": "off",
}


@dataclasses.dataclass(frozen=True)
class Lineup:
    """The encoders that are compared.

    Attributes:
      methods: that pre-train, and 'random'.
      given: name -> run or file, of further encoders.
      teacher: that `distill` follows; None: one of its own.
    """

    methods: tuple[str, ...]
    given: Mapping[str, str]
    teacher: str | None

    @property
    def own_teacher(self) -> bool:
        """Whether a teacher is trained for `distill`."""
        return "distill" in self.methods and self.teacher is None

    @property
    def pretrained(self) -> list[str]:
        """The methods whose encoders are fine-tuned."""
        return [m for m in self.methods if m not in ("supervised", "random")]

    @property
    def with_curve(self) -> list[str]:
        """The methods that can be tried on fewer images.

        A teacher of its own has seen all of them.
        """
        own = self.own_teacher
        return [m for m in self.pretrained if not (m == "distill" and own)]

    def without(self, method: str) -> Lineup:
        """Returns the others."""
        left = tuple(m for m in self.methods if m != method)
        return dataclasses.replace(self, methods=left)


def lineup(names: Sequence[str], init: str | None, teacher: str | None) -> Lineup:
    """Reads `config.methods`, `config.init` and `config.teacher`.

    Raises:
      ValueError: a mistake in one of them.
    """
    given = encoders(init)
    if teacher is not None and "distill" not in names:
        raise ValueError(
            f"--config.teacher={teacher} is of the method 'distill', which "
            f"--config.methods={tuple(names)} lacks; add it, or leave the teacher out"
        )
    return Lineup(methods(names, given), given, teacher)


def methods(names: Sequence[str], given: Mapping[str, str]) -> tuple[str, ...]:
    """Checks the methods to compare.

    Raises:
      ValueError: one that is unknown or named twice, or nothing to compare.
    """
    for name in names:
        choices.check("methods", name, list(METHODS))
    if len(set(names)) < len(names):
        raise ValueError(f"--config.methods={tuple(names)}: one stands there twice")
    if len(names) + len(given) < 2 or {*names} | {*given} == {"random"}:
        raise ValueError(
            f"--config.methods={tuple(names)} with {len(given)} encoders of "
            "--config.init: expected two or more to compare, as "
            "--config.methods=\"('mae','random')\""
        )
    return tuple(names)


def encoders(init: str | None) -> dict[str, str]:
    """Returns name -> path of the encoders that `config.init` lists.

    Raises:
      ValueError: an empty path, or two of one name.
    """
    given: dict[str, str] = {}
    for path in map(str.strip, init.split(",") if init else ()):
        name = name_of(path)
        if not path or path == "random":
            raise ValueError(
                f"--config.init={init}: expected runs or files of weights, divided by "
                "commas; random parameters are the method 'random'"
            )
        if name in given or name in (*METHODS, "teacher"):
            raise ValueError(
                f"--config.init={init}: {path} would be called {name!r}, as another "
                "encoder is; rename it, or link to it by another name"
            )
        given[name] = path
    return given


def name_of(path: str) -> str:
    """Returns the name of an encoder: that of its run, or of its file."""
    parts = pathlib.PurePath(path.partition("/checkpoints/")[0])
    return parts.stem if parts.suffix else parts.name


def images(data: Mapping[str, Any]) -> tuple[Any, Any]:
    """Opens (the images to learn from, those held out), both labelled.

    Raises:
      ValueError: no data are named, or they lack labels of two classes.
      OSError: no such data.
    """
    if data["source"] is None:
        raise ValueError(
            "which images? Name them: --config=configs/choose.py:data=folder,path=DIR, "
            "a folder with one subfolder for each class"
        )
    if not data["holdout"]["eval"]:
        raise ValueError(
            "--config.data.holdout.eval=0: encoders are compared by images held out of "
            "training; expected a share above 0, as 0.2"
        )
    source = splits.open_splits(ConfigDict({**data, **_WHOLE}))
    learning, held_out = source("train"), source("eval")
    try:
        base.check_labels(learning, "choose: the training split", 2)
        base.check_labels(held_out, "choose: what is held out of it", 1)
    except ValueError as error:
        raise ValueError(
            f"{error}. Encoders are compared by labels; images without any can be "
            "pre-trained on, with configs/mae_tiny.py"
        ) from None
    return learning, held_out


def counts(
    shares: Sequence[float], source: Any, say: Callable[[str], None]
) -> dict[float, int]:
    """Returns share of the labels -> images that it leaves, the largest share first.

    A share with fewer images than classes is left out, with a line.

    Raises:
      ValueError: no share is left.
    """
    kept: dict[float, int] = {}
    classes = len(source.classes)
    for share in sorted(set(shares), reverse=True):
        count = round(share * len(source))
        if share < 1 and count < classes:
            say(
                f"{100 * share:g} % of the labels are left out: {count} of "
                f"{len(source):,} images, fewer than the {classes} classes"
            )
            continue
        kept[share] = len(
            subsets.training_subset(
                source, shots=None, fraction=share, seed=0, of="balanced"
            )
        )
    if not kept:
        raise ValueError(
            f"--config.labels={tuple(shares)} of {len(source):,} images leaves fewer "
            f"than one image for each of {classes} classes; give a larger share"
        )
    return kept
