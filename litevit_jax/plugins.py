"""Finds objectives, evaluators and sources that live outside the package.

    DIR/objectives/NAME.py    DIR/evaluators/NAME.py    DIR/sources/NAME.py

LITEVIT_PLUGINS names such folders, with ':' between them; the entry points of the group
`litevit_jax.plugins` name installed packages that have them. A file is what it would be
in the package: a module with `make(**kwargs)`. Names that begin with '_' are helpers.

It is a variable and no flag because every process needs it: data-loading workers and
those of other hosts inherit it, and so do notebooks and `python -m` commands. A file of
a folder is imported as `litevit_jax.plugins.FOLDER_DIGEST.objectives.NAME`, under which
name a worker can find it again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import pathlib
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, NamedTuple

from litevit_jax import choices as names

_PACKAGE = pathlib.Path(__file__).parent
# Files that are no plug-ins.
_HELPERS = ("base", "detection_losses", "frozen", "health", "instances", "masking")
_HELPERS += ("parts", "stored", "views", "coco_rows", "coco_scores", "outlines")
_HELPERS += ("detection_files", "detections")
VARIABLE = "LITEVIT_PLUGINS"
GROUP = "litevit_jax.plugins"
# Folder of the package -> folder of a plug-in.
KINDS = {
    "objectives": "objectives",
    "evaluators": "evaluators",
    "data.sources": "sources",
}
# What `make` of each folder returns, and the keywords that the package itself gives.
CONTRACTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "objectives": ("Objective", ()),
    "evaluators": ("Evaluator", ("context",)),
    "data.sources": ("Source", ("split", "dir", "name", "holdout")),
}
HINT = (
    f"if it comes from a plug-in, name its folder in {VARIABLE} or install its package"
)

__path__: list[str] = []  # makes this module a package, whose parts `_register` adds


class Plugin(NamedTuple):
    """A plug-in: the name of its module, and its file."""

    module: str
    path: str

    def load(self) -> ModuleType:
        """Imports the module.

        Raises:
          ValueError: it cannot be imported, or has no `make`.
        """
        try:
            module = importlib.import_module(self.module)
        except (Exception, SystemExit) as error:  # a plug-in may raise any
            why = f"{type(error).__name__}: {error}"
            raise ValueError(
                f"plug-in {self.path} cannot be imported: {why}; mend it, or leave its "
                f"folder out of {VARIABLE}"
            ) from error
        if not callable(getattr(module, "make", None)):
            raise ValueError(f"plug-in {self.path} defines no make(**kwargs)")
        return module


class Root(NamedTuple):
    """A package of plug-ins: its name, its folders, and why it cannot be used."""

    package: str
    folders: tuple[str, ...]
    error: str = ""


def choices(folder: str) -> list[str]:
    """Returns the names in `folder` of the package and of plug-ins, sorted.

    Raises:
      ValueError: a name stands for two files, or a folder is not one of plug-ins.
    """
    own = _own(folder)
    return sorted({*own, *find(folder, own)})


def check_name(folder: str, name: str) -> str:
    """Returns `name` if it is one of `choices(folder)`.

    Raises:
      ValueError: it is not; near matches and plug-ins that are broken are named.
    """
    known = choices(folder)
    if name in known:
        return name
    raise ValueError(
        f"{kind_of(folder)} {name!r} unknown; {names.suggest(name, known)}"
        + "".join(f"; {text}" for text in [*problems(folder), HINT])
    )


def load(folder: str, name: str) -> ModuleType:
    """Imports the file `name` of `folder`, of the package or of a plug-in.

    Raises:
      ValueError: no such name, or a plug-in that cannot be imported.
    """
    plugin = find(folder).get(check_name(folder, name))
    if plugin is not None:
        return plugin.load()
    return importlib.import_module(f"litevit_jax.{folder}.{name}")


def make(folder: str, name: str, call: Callable[..., Any], kwargs: Any) -> Any:
    """Calls `make` of a file, and checks that the result keeps the contract.

    Raises:
      ValueError: it lacks a method, or is no such object.
    """
    what, (contract, _) = f"{kind_of(folder)} {name!r}", CONTRACTS[folder]
    try:
        built = call(**kwargs)
    except TypeError as error:
        if not str(error).startswith("Can't instantiate abstract class"):
            raise
        raise ValueError(
            f"{what} ({file_of(folder, name)}): {error}; define what it lacks, see "
            f"litevit_jax.{contract}"
        ) from error
    kind = getattr(importlib.import_module(f"litevit_jax.{folder}.base"), contract)
    if isinstance(built, kind):
        return built
    raise ValueError(
        f"{what} ({file_of(folder, name)}): make returned {type(built).__name__}, "
        f"expected a class derived from litevit_jax.{contract}"
    )


def about_keyword(
    folder: str, name: str, given: Iterable[str], known: Iterable[str]
) -> str:
    """Says what to do about a keyword that `make` of a file does not take."""
    _, own = CONTRACTS[folder]
    if set(own) - set(known):
        return f"; make in {file_of(folder, name)} has to take {', '.join(own)}"
    return names.about_keyword(set(given) - set(own), set(known) - set(own))


def file_of(folder: str, name: str) -> pathlib.Path:
    """Returns the file of `name`, one of `choices(folder)`."""
    plugin = find(folder).get(name)
    own = _PACKAGE.joinpath(*folder.split("."), f"{name}.py")
    return own if plugin is None else pathlib.Path(plugin.path)


def kind_of(folder: str) -> str:
    """Returns the word for one file of a folder, as 'source' of 'data.sources'."""
    return folder.split(".")[-1].removesuffix("s")


def _own(folder: str) -> list[str]:
    path = str(_PACKAGE.joinpath(*folder.split(".")))
    files = (module.name for module in pkgutil.iter_modules([path]))
    return [name for name in files if name not in _HELPERS]


def find(folder: str, own: Iterable[str] = ()) -> dict[str, Plugin]:
    """Returns the plug-ins that stand beside those of a folder, by name.

    Args:
      folder: of the package, as 'data.sources'.
      own: names that the package has there.

    Raises:
      ValueError: a name stands for two files, or a folder is not one of plug-ins.
    """
    package = _PACKAGE.joinpath(*folder.split("."))
    files = {name: str(package / f"{name}.py") for name in own}
    plugins: dict[str, Plugin] = {}
    kind = KINDS.get(folder)
    for root in roots() if kind else ():
        places = [f"{folder}/{kind}" for folder in root.folders]
        for module in pkgutil.iter_modules(places):
            name = module.name
            if name.startswith("_"):
                continue
            base = pathlib.Path(getattr(module.module_finder, "path", ""), name)
            path = str(base / "__init__.py" if module.ispkg else f"{base}.py")
            if files.setdefault(name, path) != path:
                raise ValueError(
                    f"{folder}: {name!r} stands for {files[name]} and for {path}; "
                    "rename yours"
                )
            plugins[name] = Plugin(f"{root.package}.{kind}.{name}", path)
    return plugins


def problems(folder: str) -> list[str]:
    """Explains each plug-in that cannot be used; imports those of `folder`."""
    texts = [root.error for root in roots() if root.error]
    for plugin in find(folder).values():
        try:
            plugin.load()
        except ValueError as error:
            texts.append(str(error))
    return texts


def overview() -> list[str]:
    """Returns a line for each plug-in: its kind, its name and its file, or its error.

    They are imported. What is wrong with all of them is a line, too.
    """
    try:
        return _overview()
    except ValueError as error:
        return [f"  {error}"]


def _overview() -> list[str]:
    lines = [f"  {root.error}" for root in roots() if root.error]
    for folder, kind in KINDS.items():
        for name, plugin in find(folder).items():
            text = plugin.path
            try:
                plugin.load()
            except ValueError as error:
                text = str(error)
            lines.append(f"  {kind[:-1]} {name}: {text}")
    return lines


def folders() -> list[str]:
    """Returns the folders whose files belong to plug-ins; it does not raise."""
    with contextlib.suppress(ValueError):
        return [folder for root in roots() for folder in root.folders]
    return []


def roots() -> tuple[Root, ...]:
    """Returns the packages of plug-ins, those of the variable first.

    Raises:
      ValueError: the variable names a folder that is none of plug-ins.
    """
    return _roots(os.environ.get(VARIABLE, ""), tuple(sys.path))


@functools.lru_cache(maxsize=8)
def _roots(variable: str, search: tuple[str, ...]) -> tuple[Root, ...]:
    del search  # where entry points are looked for
    named = [_of_folder(text) for text in filter(None, variable.split(os.pathsep))]
    points = importlib.metadata.entry_points(group=GROUP)
    return (*named, *map(_of_entry_point, sorted(points, key=lambda p: p.name)))


def _of_folder(text: str) -> Root:
    folder = pathlib.Path(text).expanduser().absolute()
    kinds = sorted(KINDS.values())
    if not any((folder / kind).is_dir() for kind in kinds):
        what = "it has none" if folder.is_dir() else "no such folder"
        raise ValueError(
            f"{VARIABLE}={text}: {what}; expected a folder with one of "
            f"{', '.join(f'{kind}/' for kind in kinds)}"
        )
    return Root(_register(folder), (str(folder),))


def _register(folder: pathlib.Path) -> str:
    """Makes `folder` a package that can be imported; returns its name."""
    digest = hashlib.sha1(os.fsencode(folder)).hexdigest()[:8]
    name = f"{__name__}.{re.sub(r'[^0-9a-zA-Z]', '_', folder.name)}_{digest}"
    if name not in sys.modules:
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
        sys.modules[name] = importlib.util.module_from_spec(spec)
    return name


def _of_entry_point(point: importlib.metadata.EntryPoint) -> Root:
    """Finds the package that an entry point names; it is not imported."""
    about = f"plug-in {point.name} = {point.value!r} (entry point)"
    try:
        spec = importlib.util.find_spec(point.value)
    except Exception as error:  # a package above it may raise any
        why = f"{type(error).__name__}: {error}"
        return Root(point.value, (), f"{about} cannot be imported: {why}")
    if spec is None or spec.submodule_search_locations is None:
        return Root(point.value, (), f"{about} names no package that is installed")
    return Root(point.value, tuple(spec.submodule_search_locations))


# A worker that is handed an object of a plug-in imports its module, and this one first.
with contextlib.suppress(ValueError):
    for _text in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        _of_folder(_text)
