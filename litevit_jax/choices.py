"""Near matches for unknown names, and config fields that are gone or renamed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

_LONG = 40  # names; more are not listed


def near(name: Any, known: Iterable[str], *, cutoff: float = 0.5) -> list[str]:
    """Returns up to three names of `known` that are like `name`, the nearest first.

    `cutoff`: the least likeness, from 0 to 1 for equal names.
    """
    return difflib.get_close_matches(str(name), list(known), n=3, cutoff=cutoff)


def hint(name: Any, known: Iterable[str], *, form: str = "{}") -> str:
    """Returns 'did you mean a or b? ', or '' if no name of `known` is near."""
    names = [form.format(match) for match in near(name, known)]
    return f"did you mean {' or '.join(names)}? " if names else ""


def suggest(name: Any, known: Iterable[str], *, form: str = "{}") -> str:
    """Returns 'did you mean a? choose from a, b, c': the nearest names, then all.

    Of a long list the nearest names are given alone, or else its beginning.

    Args:
      name: the unknown name.
      known: names that are valid.
      form: format of each name, for example 'configs/{}.py'.
    """
    known = list(known)
    nearest = hint(name, known, form=form)
    if len(known) > _LONG and nearest:
        return nearest.rstrip()
    names = ", ".join(form.format(each) for each in known[:_LONG])
    more = f", ... ({len(known):,} in all)" if len(known) > _LONG else ""
    return f"{nearest}choose from {names}{more}"


def about_keyword(given: Iterable[str], known: Iterable[str] | None) -> str:
    """Returns '; did you mean a? ...' for a keyword that is not known; '' without."""
    known = sorted(known or ())
    unknown = sorted(key for key in given if key not in known)
    return f"; {suggest(unknown[0], known)}" if unknown else ""


def check(what: str, name: Any, known: Iterable[str]) -> Any:
    """Returns `name` if it is one of `known`.

    Raises:
      ValueError: it is not; the message suggests names, see `suggest`.
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
      matters: whether a run that used it computed anything else.
    """

    off: Any
    instead: str
    matters: bool = True


REMOVED = {
    "accum_steps": Removed(
        off=1,
        instead="give --config.microbatch=N, how many images a device computes at once",
        matters=False,  # slices change rounding alone
    ),
    "log.tensorboard": Removed(
        off=False,
        instead="name what writes the numbers, --config.log.writers=\"('jsonl', "
        "'tensorboard')\", or jsonl alone",
        matters=False,
    ),
    "scan": Removed(
        off=False,
        instead="looping over one compiled block was slower and took more memory; to "
        "save memory use --config.remat=True",
    ),
}

# Old -> new name of fields and blocks. A star stands for one part of a name.
RENAMED = {
    "batch_size_at_most": "auto_batch.at_most",
    "data.holdout": "data.holdout.test",
    "data.select_at_most": "data.holdout.select_at_most",
    "data.select_fraction": "data.holdout.select",
    "data.validation_share": "data.holdout.eval",
    "encoder_default": "fallback.encoder",
    "evals.*.data.holdout": "evals.*.data.holdout.test",
    "evals.*.data.select_at_most": "evals.*.data.holdout.select_at_most",
    "evals.*.data.select_fraction": "evals.*.data.holdout.select",
    "evals.*.data.validation_share": "evals.*.data.holdout.eval",
    "evals.*.select_fraction": "evals.*.holdout",
    "file_normalize": "fallback",
    "lr.batch_if_chosen": "auto_batch.lr_batch",
    "steps_at_least": "auto_batch.steps_at_least",
    "sweep.validation_share": "sweep.holdout",
    "view_default": "fallback",
}


def new_name(name: str, *, block: bool = False) -> str | None:
    """Returns the new name of field `name` of an older config; None if it kept it.

    `block`: whether it holds fields instead of a value.
    """
    for old, new in RENAMED.items():
        pattern = re.escape(old).replace(r"\*", r"([^.]+)") + r"(?=\.|$)"
        match = re.match(pattern, name)
        if match is None:
            continue
        rest = name[match.end() :]
        # A value became a block of the same name: what is in the block is new.
        if not (new.startswith(f"{old}.") and (block or rest)):
            for part in match.groups():
                new = new.replace("*", part, 1)
            return new + rest
    return None


def about_old(name: str, value: Any = None, *, block: bool = False) -> str | None:
    """Returns a message if field `name` exists in earlier versions alone, else None.

    `block`: whether it holds fields instead of a value.
    """
    if name in REMOVED:
        gone = REMOVED[name]
        return None if value == gone.off else f"{name} is gone: {gone.instead}"
    new = new_name(name, block=block)
    return None if new is None else f"{name} is called config.{new} now"


def upgrade(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the saved config of an older run under today's field names."""
    moved: list[tuple[str, Any]] = []

    def keep(block: dict[str, Any], prefix: str) -> dict[str, Any]:
        kept = {}
        for key, value in block.items():
            name, is_block = f"{prefix}{key}", isinstance(value, dict)
            new = new_name(name, block=is_block)
            if new is not None:
                moved.append((new, value))
            else:
                kept[key] = keep(value, f"{name}.") if is_block else value
        return kept

    upgraded = keep(config, "")
    for name, value in moved:
        *blocks, key = name.split(".")
        block = upgraded
        for part in blocks:
            block = block.setdefault(part, {})
        if isinstance(value, dict):
            value = {**value, **block.get(key, {})}
        block[key] = value
    return upgraded
