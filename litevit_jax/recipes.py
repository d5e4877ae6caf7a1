"""The recipes: their files, and the comments beside their fields.

Only the recipe that is asked for is imported, so help is quick.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import io
import itertools
import pathlib
import tokenize
from collections.abc import Iterator, Sequence
from typing import Any

from litevit_jax import choices, configs

FOLDER = pathlib.Path(configs.__path__[0])  # of the repository, or of the package
_SHARED = FOLDER / "common.py"  # what the recipes share
# Where a recipe of yours takes another one from; the latter in a clone alone.
_PACKAGES = ("litevit_jax.configs", "configs")


def names() -> list[str]:
    """Names of all recipes, as 'mae_tiny'."""
    files = (path for path in FOLDER.glob("[!_]*.py") if path != _SHARED)
    return sorted(path.stem for path in files)


def locate(text: str) -> str:
    """The file that `text` names: a file of yours, or a recipe from any directory.

    A recipe is named `mae_tiny`, `mae_tiny.py` or `configs/mae_tiny.py`; anything else
    is returned as it is.
    """
    path = pathlib.Path(text)
    name = path.name.removesuffix(".py")
    if name not in names() or (text != name and path.is_file()):
        return text
    known = path.parent in (pathlib.Path("."), pathlib.Path("configs"))
    return str(FOLDER / f"{name}.py") if known else text


def get(name: str, variant: str | None = None) -> Any:
    """The config of recipe `name`, as 'mae_tiny', in a variant, as 'digits,smoke'.

    >>> config = litevit_jax.recipes.get("mae_tiny", "digits")
    >>> config.batch_size, config.data.source
    (128, 'digits')

    Raises:
      ValueError: no such recipe, or no such variant.
    """
    for what, value in (("name", name), ("variant", variant)):
        if not isinstance(value, str) and (what, value) != ("variant", None):
            raise ValueError(
                f"recipes.get: got {what} {value!r}, expected text, as "
                "recipes.get('mae_tiny', 'digits')"
            )
    name = name.removeprefix("configs/").removesuffix(".py")
    recipe, colon, own = name.partition(":")
    if colon and recipe in names():
        raise ValueError(
            f"recipe {name!r}: here the variant stands apart; write "
            f"recipes.get({recipe!r}, {own!r})"
        )
    if name not in names():
        raise ValueError(f"recipe {name!r} unknown; {unknown(name)}")
    recipe: Any = importlib.import_module(f"litevit_jax.configs.{name}")
    return recipe.get_config(variant)


def unknown(text: str) -> str:
    """Suggests recipes for a `text` that names no file: near matches, then all."""
    is_path = text.endswith(".py") or "/" in text
    form = "configs/{}.py" if is_path else "{}"
    return choices.suggest(pathlib.Path(text).stem, names(), form=form)


def unflagged(words: Sequence[str]) -> str | None:
    """Says how to name a recipe that stands without its flag among `words`, if any."""
    named = (word for word in words if word.partition(":")[0] in names())
    return next((f"{w!r} is a recipe: write --config={w}" for w in named), None)


def docstring(path: str | pathlib.Path) -> str:
    """The docstring of a recipe's file; '' if it has none."""
    return ast.get_docstring(ast.parse(pathlib.Path(path).read_text())) or ""


def variants(path: str | pathlib.Path) -> str:
    """Returns the variants that a recipe's `get_config` documents, in one line."""
    for node in ast.parse(pathlib.Path(path).read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name == "get_config":
            text = " ".join((ast.get_docstring(node) or "").split())
            return text.removeprefix("`arg`: ")
    return ""


def overview() -> str:
    """A line for each recipe: its name, and the first line of its docstring."""
    wide = max(map(len, names()))
    lines = ((name, docstring(FOLDER / f"{name}.py")) for name in names())
    return "\n".join(
        f"  {name:{wide}}  {text.partition(chr(10))[0]}" for name, text in lines
    )


def main(argv: Sequence[str]) -> int:
    """Prints all recipes; the command `litevit recipes`."""
    parser = argparse.ArgumentParser(
        "litevit recipes", description="Lists the recipes, which --config= names."
    )
    parser.parse_args(argv)
    print(overview())
    return 0


def describe(path: str | pathlib.Path, config: Any) -> str:
    """Every field of `config`, the recipe in file `path`: value and comment."""
    every = [comments(source) for source in _sources(pathlib.Path(path))]
    rows = [
        (
            f"{name} = {_value(value)}",
            next(filter(None, (_comment(name, entries) for entries in every)), ""),
        )
        for name, value in fields(config)
    ]
    wide = min(max((len(left) for left, _ in rows), default=0), 44)
    return "\n".join(
        f"  {left:{wide}}  # {why}" if why else f"  {left}" for left, why in rows
    )


def _sources(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Files of a recipe, of recipes that it derives from, and of what all share."""
    yield path
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module in _PACKAGES:
            for name in (alias.name for alias in node.names):
                if name in names():
                    yield from _sources(FOLDER / f"{name}.py")
    yield _SHARED


def fields(block: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ('a.b', value) for every field of a config."""
    for key, value in block.items():
        if hasattr(value, "items"):
            yield from fields(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _value(value: Any) -> str:
    return value if isinstance(value, str) and value else repr(value)


def comments(path: str | pathlib.Path) -> dict[str, str]:
    """Name of a field -> the comment beside the line that sets it, or above it.

    The name is as much of the dotted one as the source tells: 'data.flip' for a line
    `data.flip = 0.5  # why`, 'flip' for an entry of a dict that a function returns. It
    begins with a dot if it is the whole name: '.seed' for `config.seed = 0`.
    """
    source = pathlib.Path(path).read_text()
    beside, above = _by_line(source)
    by_name: dict[str, str] = {}
    for node in ast.walk(ast.parse(source)):
        for name, first, last in _settings(node):
            text = beside.get(last) or beside.get(first) or above.get(first)
            if text:
                by_name.setdefault(name, text)
    return by_name


def _comment(name: str, by_name: dict[str, str]) -> str:
    """The comment of the longest name that `name` ends with; '' if there is none."""
    parts = f".{name}".split(".")
    tails = [f".{name}", *(".".join(parts[i:]) for i in range(1, len(parts)))]
    return next((by_name[tail] for tail in tails if tail in by_name), "")


def _by_line(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """Line -> the comment at its end; line -> the comment in the lines above it."""
    beside: dict[int, str] = {}
    alone: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            kind = alone if token.line.lstrip().startswith("#") else beside
            kind[token.start[0]] = token.string.lstrip("# ")
    above: dict[int, str] = {}
    for line in alone:
        if line - 1 not in alone:
            rows = [
                alone[i] for i in itertools.takewhile(alone.get, itertools.count(line))
            ]
            above[line + len(rows)] = " ".join(rows)
    return beside, above


def _settings(node: ast.AST) -> Iterator[tuple[str, int, int]]:
    """Yields (name, first line, last line) of each field that a statement sets."""
    if isinstance(node, ast.Assign | ast.Return):
        targets = node.targets if isinstance(node, ast.Assign) else []
        base = _dotted(targets[0]) if targets else ""
        if blocks := _dicts(node.value):
            yield from _entries(base, blocks)
        elif base:
            yield base, node.lineno, node.end_lineno or 0
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        base = _dotted(node.func.value)
        if node.func.attr == "update" and base:
            last = {word.value.end_lineno: word for word in node.keywords if word.arg}
            for line, word in last.items():
                yield f"{base}.{word.arg}".replace("..", "."), word.lineno, line or 0


def _dicts(node: ast.expr | None) -> list[ast.Dict]:
    """The dicts that `{...}`, or `{...} | {...}`, writes out."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _dicts(node.left) + _dicts(node.right)
    return [node] if isinstance(node, ast.Dict) else []


def _entries(base: str, blocks: list[ast.Dict]) -> Iterator[tuple[str, int, int]]:
    pairs = (zip(x.keys, x.values, strict=True) for x in blocks)
    for key, value in itertools.chain.from_iterable(pairs):
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            name = f"{base}.{key.value}" if base else key.value
            if inner := _dicts(value):
                yield from _entries(name, inner)
            else:
                yield name, key.lineno, value.end_lineno or 0


def _dotted(node: ast.AST) -> str:
    """Returns '.a.b' for `config.a.b`, 'data.b' for `data.b`; '' for anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    root = "" if node.id == "config" else node.id.lower()
    return ".".join([root, *reversed(parts)])
