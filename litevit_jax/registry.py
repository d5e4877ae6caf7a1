"""A name in a config -> the file of that name in a folder of the package.

Every plug-in file (an objective, an evaluator, a data source, ...) exposes
`make(**kwargs)`. Nothing is registered: the folder's listing is the registry.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pathlib
import pkgutil
from typing import Any

_ROOT = pathlib.Path(__file__).parent
_NOT_PLUGINS = ("base", "frozen", "health", "masking")


def choices(folder: str) -> list[str]:
    """Names of the plug-ins in `folder`, for example 'objectives'."""
    path = str(_ROOT.joinpath(*folder.split(".")))
    names = (module.name for module in pkgutil.iter_modules([path]))
    return sorted(name for name in names if name not in _NOT_PLUGINS)


def suggest(name: str, known: list[str]) -> str:
    """'did you mean ...? ' for near matches of `name`, then all of `known`."""
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{hint}choose from {', '.join(known)}"


def check(kind: str, name: str, known: list[str]) -> str:
    """Returns `name` if it is one of `known`.

    Raises:
      ValueError: otherwise; the message lists near matches and all choices.
    """
    if name not in known:
        raise ValueError(f"{kind} {name!r} unknown; {suggest(name, known)}")
    return name


def make(folder: str, name: str, /, **kwargs: Any) -> Any:
    """Builds plug-in `name` of `folder` with its `make(**kwargs)`.

    Raises:
      ValueError: no such plug-in, or a keyword that its `make` does not take.
    """
    kind = folder.split(".")[-1].removesuffix("s")
    check(kind, name, choices(folder))
    module = importlib.import_module(f"litevit_jax.{folder}.{name}")
    try:
        inspect.signature(module.make).bind(**kwargs)
    except TypeError as error:
        raise ValueError(f"{kind} {name!r}: {error}") from error
    return module.make(**kwargs)
