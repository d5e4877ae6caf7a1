"""Evaluators that the command line adds: --config.evals.TITLE.name=NAME.

The fields of such a block are the keywords of the evaluator's `make`, read from its
source: nothing is imported, so the command line stays quick.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_dict import placeholder

from litevit_jax import plugins
from litevit_jax.arguments import is_override

_NAME = re.compile(r"evals\.([^.]+)\.name")
_KINDS = {"bool": bool, "float": float, "int": int, "str": str, "tuple": tuple}
# Fields of a data set of its own, see `data.splits.evaluator_data`.
_DATA: dict[str, Any] = {
    **dict.fromkeys(("source", "name", "dir", "fraction_of"), str),
    **dict.fromkeys(("shots", "subset_seed", "image_size", "image_width"), int),
    **dict.fromkeys(("fraction", "long_tail", "eval_crop_fraction"), float),
    **{"max_bad_fraction": float, "train_split": str, "eval_split": str},
    **{"labels": str, "unlisted": str, "sampling": str},
}
_HOLDOUT = {"test": float, "eval": float, "select": float, "select_at_most": int}


def split(argv: list[str], titles: Iterable[str]) -> tuple[list[str], list[str]]:
    """Splits off the overrides of evaluators `titles`, which the recipe lacks."""
    blocks = tuple(f"config.evals.{title}." for title in titles)
    plain: list[str] = []
    moved: list[str] = []
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        name = argument.lstrip("-").removeprefix("no")
        of_block = is_override(argument) and name.startswith(blocks)
        target = moved if of_block else plain
        target.append(argument)
        if of_block and "=" not in argument and rest and not rest[0].startswith("-"):
            target.append(rest.pop(0))
    return plain, moved


def add(
    config: Any,
    blocks: dict[str, ConfigDict],
    argv: Sequence[str] = (),
    *,
    keep_open: bool = False,
) -> None:
    """Adds evaluators to a config.

    Args:
      config: of a recipe.
      blocks: see `named`.
      argv: overrides of their fields.
      keep_open: whether fields that are None are added too; `make` has their defaults.
    """
    if not blocks or not isinstance(config, ConfigDict):
        return
    evals = ConfigDict({"evals": blocks})
    argv, values = ["main.py", *argv], flags.FlagValues()
    config_flags.DEFINE_config_dict("config", evals, flag_values=values, sys_argv=argv)
    values(argv)
    with config.unlocked():
        for title, block in evals.evals.items():
            plain = _without_none(block.to_dict())
            config.evals[title] = block if keep_open else ConfigDict(plain)


def _without_none(block: dict[str, Any]) -> dict[str, Any]:
    """Copies a block without the fields that are open, at any depth."""
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in block.items()
        if value is not None
    }


def named(pairs: list[tuple[str, str]], evals: Any) -> dict[str, ConfigDict]:
    """Returns the blocks that overrides add to those of a recipe, by title.

    Args:
      pairs: ('evals.TITLE.name', 'NAME') and other fields with their values.
      evals: the recipe's block; None if it evaluates nothing.

    Raises:
      ValueError: no evaluator has such a name.
    """
    blocks: dict[str, ConfigDict] = {}
    for field, value in pairs if evals is not None else ():
        match = _NAME.fullmatch(field)
        if match is None or match[1] in evals:
            continue
        title = match[1]
        try:
            fields = _fields(plugins.check_name("evaluators", value))
        except ValueError as error:
            raise ValueError(f"--config.{field}={value}: {error}") from None
        if any(name.startswith(f"evals.{title}.data.") for name, _ in pairs):
            data = {name: placeholder(kind) for name, kind in _DATA.items()}
            holdout = {name: placeholder(kind) for name, kind in _HOLDOUT.items()}
            fields["data"] = {**data, "holdout": holdout}
        blocks[title] = ConfigDict({"name": value, "every_steps": 0, **fields})
    return blocks


def _fields(name: str) -> dict[str, Any]:
    """Returns the fields of evaluator `name` with its defaults; None where open."""
    path = plugins.file_of("evaluators", name)
    try:
        tree = ast.parse(path.read_text())
    except SyntaxError as error:
        raise ValueError(f"{path} is no Python: {error}; mend it") from None
    makes = [
        x for x in tree.body if isinstance(x, ast.FunctionDef) and x.name == "make"
    ]
    if not makes:
        raise ValueError(f"{path} defines no make(*, context, ...)")
    arguments = makes[0].args
    fields: dict[str, Any] = {}
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    for argument, default in pairs:
        if argument.arg != "context":
            fields[argument.arg] = _value(argument, default)
    if name in ("classification", "confusion"):
        fields["unmatched"] = "refuse"  # or leave_out
    return fields


def _value(argument: ast.arg, default: ast.expr | None) -> Any:
    value = None
    if default is not None:
        try:
            value = ast.literal_eval(default)
        except ValueError:  # a constant's name: `make` has it, None leaves it so
            value = None
    if value is not None:
        return value
    annotation = "" if argument.annotation is None else ast.unparse(argument.annotation)
    kind = re.match(r"\w+", annotation)
    return placeholder(_KINDS.get(kind[0] if kind else "", object))
