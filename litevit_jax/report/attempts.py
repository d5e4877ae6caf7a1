"""Goes on with a report when a part of it cannot be drawn, and says which."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def attempt(what: str, notes: list[str], make: Callable[[], T], otherwise: T) -> T:
    """Returns what `make` returns; if it fails, `otherwise`, and adds a note.

    A run's files may hold anything: cut, damaged, or written by other programs.
    """
    try:
        return make()
    except Exception as error:
        why = (str(error).strip().splitlines() or [""])[0][:200]
        notes.append(f"{what} is left out: {why or type(error).__name__}")
        return otherwise
