"""The Source contract: random access to raw examples of one split.

A source file exposes

    make(*, split, dir=None, name=None, holdout=0.0) -> Source
"""

from __future__ import annotations

import abc
import hashlib
import os
from collections.abc import Iterable
from typing import Any

from litevit_jax import registry

# Names of the split to test on, in the order in which a set is asked for them.
EVAL_SPLITS = ("test", "val", "validation")


class Source(abc.ABC):
    """Raw examples of one split; picklable, and safe to read from many threads."""

    @property
    def in_memory(self) -> bool:
        """Whether a worker process would hold a copy, and have nothing to decode."""
        return False

    @property
    @abc.abstractmethod
    def classes(self) -> list[str]:
        """Names of the classes by label; [] when the data has no labels."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of examples."""

    @abc.abstractmethod
    def __getitem__(self, index: int) -> dict[str, Any]:
        """Example `index`, not decoded.

        Returns:
          `image`: encoded bytes, or uint8 [H, W] or [H, W, C];
          `label`: int, -1 when the example has none.
        """

    def label_of(self, index: int) -> int:
        """Label of example `index`, -1 without; at best its image is not read."""
        return int(self[index]["label"])

    @abc.abstractmethod
    def name_of(self, index: int) -> str:
        """Where example `index` comes from, for messages; does not raise."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Short hex digest of what the data is, wherever it lies."""


def printable(name: str) -> str:
    """`name` as text that any log can hold; bytes that are no UTF-8 are spelled out."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def check_split(split: str, known: Iterable[str], where: str) -> str:
    """Returns `split` if it is one of `known`, else a ValueError listing them."""
    return registry.check(f"split of {where}", split, sorted(known))


def check_holdout(holdout: float) -> float:
    """Returns `holdout` if it is a share of the data, in [0, 1)."""
    if not 0 <= holdout < 1:
        raise ValueError(
            f"data.holdout={holdout} is not a share of the data; expected 0 <= "
            "holdout < 1, for example 0.1"
        )
    return holdout


def in_holdout(key: bytes, holdout: float) -> bool:
    """Whether the example called `key` belongs to the held-out share.

    It depends on `key` alone, so that adding examples never moves others.
    """
    bits = hashlib.blake2b(key, digest_size=8).digest()
    return int.from_bytes(bits, "little") < holdout * 2**64


def holdout_splits(holdout: float) -> list[str]:
    """Splits of data that comes without a test split of its own."""
    return ["test", "train"] if holdout > 0 else ["train"]


def check_holdout_split(split: str, holdout: float, where: str) -> str:
    """Returns `split` if `holdout` provides it; 'val' means 'test'.

    Raises:
      ValueError: the split needs a held-out share and there is none, or it is
        not a split at all.
    """
    check_holdout(holdout)
    if split in ("val", "validation"):
        split = "test"
    if split == "test" and holdout == 0:
        raise ValueError(
            f"{where} has no 'test' split: all of it is 'train'. Keep a share of it "
            "for testing with --config.data.holdout=0.1, or provide a test split"
        )
    return check_split(split, holdout_splits(holdout), where)


def digest(parts: Iterable[bytes]) -> str:
    """16 hex digits of the sequence of `parts`."""
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.hexdigest()
