"""Helps a user to choose: near matches of an unknown name, and fields that are gone."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, NamedTuple

_LONG = 40  # names; more are not listed


def near(name: Any, known: Iterable[str]) -> list[str]:
    """Returns up to three names of `known` that are like `name`, the nearest first."""
    return difflib.get_close_matches(str(name), list(known), n=3, cutoff=0.5)


def hint(name: Any, known: Iterable[str], *, form: str = "{}") -> str:
    """Returns 'did you mean a or b? ', or '' if no name of `known` is near."""
    names = [form.format(match) for match in near(name, known)]
    return f"did you mean {' or '.join(names)}? " if names else ""


def suggest(name: Any, known: Iterable[str], *, form: str = "{}") -> str:
    """Returns 'did you mean a? choose from a, b, c': the nearest names, then all.

    Of a long list the nearest names are given alone, or else its beginning.

    Args:
      name: what was given.
      known: names that are valid.
      form: how a name is written, as 'configs/{}.py'.
    """
    known = list(known)
    nearest = hint(name, known, form=form)
    if len(known) > _LONG and nearest:
        return nearest.rstrip()
    names = ", ".join(form.format(each) for each in known[:_LONG])
    more = f", ... ({len(known):,} in all)" if len(known) > _LONG else ""
    return f"{nearest}choose from {names}{more}"


def check(what: str, name: Any, known: Iterable[str]) -> Any:
    """Returns `name` if it is one of `known`.

    Raises:
      ValueError: it is not: what is unknown, then as `suggest`.
    """
    known = list(known)
    if name not in known:
        raise ValueError(f"{what} {name!r} unknown; {suggest(name, known)}")
    return name


class Removed(NamedTuple):
    """A field that configs of earlier versions have.

    Attributes:
      off: its value in a run that did not use it, which goes on as before.
      instead: why it is gone, and what to use now.
    """

    off: Any
    instead: str


REMOVED = {
    "scan": Removed(
        off=False,
        instead="looping over one compiled block was slower and took more memory; to "
        "save memory use --config.remat=True",
    )
}
