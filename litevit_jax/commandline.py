"""The flags of the program, and what is wrong with a command line it cannot use."""

from __future__ import annotations

import functools
import operator
import pathlib
import re
import shlex
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from litevit_jax import (
    choices,
    evaluator_flags,
    exits,
    plugins,
    preemption,
    recipes,
    registry,
)
from litevit_jax.arguments import (
    config_argument,
    config_path,
    is_override,
    overrides,
    with_config,
    with_variant,
)

EXIT_USAGE = exits.USAGE

# Of the program, besides --config.
FLAGS = ("workdir", "plan", "plan_out", "coordinator", "num_processes", "process_id")
FLAGS += ("join_timeout_s",)

MISSING = "--config is missing, for example --config=configs/mae_tiny.py"
_KINDS = {int: "a whole number", float: "a number", bool: "True or False"}
_HELP = ("help", "helpfull", "helpshort", "h", "?")
_FIELDS_HELP = "{} --config={} --help lists the fields of a recipe"


def define(values: flags.FlagValues = flags.FLAGS, argv: Any = None) -> None:
    """Defines the program's flags in `values`; `argv`: None is the program's."""
    _define_config(values, argv)
    text = "Directory of the run, or gs://...; default runs/<config name>."
    flags.DEFINE_string("workdir", None, text, flag_values=values)
    text = "Topology to plan the run for: v5e-256, cpu..."
    flags.DEFINE_string("plan", None, text, flag_values=values)
    text = "File that gets the plan as JSON."
    flags.DEFINE_string("plan_out", None, text, flag_values=values)
    text = "HOST:PORT of process 0, for several hosts (JAX_COORDINATOR_ADDRESS)."
    flags.DEFINE_string("coordinator", None, text, flag_values=values)
    for name, text in (
        ("num_processes", "How many processes there are (JAX_NUM_PROCESSES)."),
        ("process_id", "Which of them this is, from 0 on (JAX_PROCESS_ID)."),
    ):
        flags.DEFINE_integer(name, None, text, flag_values=values)
    text = "Seconds to wait for all processes to join."
    flags.DEFINE_float("join_timeout_s", 300.0, text, flag_values=values)


def _define_config(values: flags.FlagValues, argv: Any) -> None:
    config_flags.DEFINE_config_file(
        "config",
        None,
        "Recipe, or a file of yours, with a variant: NAME:VARIANT or FILE.py.",
        flag_values=values,
        sys_argv=argv,
    )


def parse(argv: list[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses `argv` into `values`; a mistake ends in one message, without traceback.

    With --help the flags and recipes are printed, or the fields of the recipe that is
    named.

    Raises:
      SystemExit: help was asked for, or the command line cannot be used.
    """
    asked = [a for a in argv[1:] if a.startswith("-") and a.lstrip("-") in _HELP]
    argv = [a for a in argv if a not in asked]
    if asked and config_argument(argv) is None:
        preemption.say(_help(), sys.stdout)
        raise SystemExit(0)
    rest, wrong = _read(argv, values)
    if wrong is None and len(rest) > 1:
        wrong = f"unexpected argument {rest[1]!r}"
    if wrong is not None:
        raise SystemExit(usage(wrong))
    if asked:
        preemption.say(_recipe_help(argv, values["config"].value), sys.stdout)
        raise SystemExit(0)
    return rest


def config_of(recipe: str, fields: Mapping[str, str]) -> ConfigDict:
    """Returns the config of a command line: a recipe with other values of fields.

    Args:
      recipe: what stands behind `--config=`, as 'mae_tiny:digits'.
      fields: 'lr.base' -> what stands behind `--config.lr.base=`.

    Raises:
      ValueError: no such recipe, or a field or value that it does not take.
    """
    argv = ["main.py", f"--config={recipe}"]
    argv += [f"--config.{name}={value}" for name, value in fields.items()]
    _, wrong = _read(argv, values := flags_for(argv))
    if wrong is not None:
        raise ValueError(wrong)
    config: Any = values["config"].value
    return config


def _read(argv: list[str], values: flags.FlagValues) -> tuple[list[str], str | None]:
    """Parses `argv` into `values`; returns what is left of it, and the first mistake.

    Help is not asked for in `argv`.
    """
    wrong = _wrong_arguments(argv)
    if wrong is not None:
        return argv, wrong
    try:
        added = evaluator_flags.named(overrides(argv), _evaluators(argv))
    except ValueError as error:
        return argv, str(error)
    try:
        plain, moved = evaluator_flags.split(argv, added)
        if moved:  # the flag has read all of the command line
            delattr(values, "config")
            _define_config(values, plain)
        rest = values(_located(plain))
        if config_argument(argv) is not None:
            evaluator_flags.add(values["config"].value, added, moved)
            wrong = _wrong_config(argv, values["config"].value)
    except (Exception, SystemExit) as error:  # a recipe of yours may raise any
        return argv, _explain(error, argv)
    return rest, wrong


def command() -> str:
    """Returns how the program was started: 'litevit', or 'python main.py'."""
    script = pathlib.Path(sys.argv[0])
    if script.name == "main.py":
        return f"python {shlex.quote(sys.argv[0])}"
    inside = script.name == "__main__.py" and script.parent.name == "litevit_jax"
    return "python -m litevit_jax" if inside else "litevit"


def _as_started(text: str) -> str:
    """Returns `text` with its commands as this program was started."""
    start = command()
    if start == "python main.py":
        return text
    text = re.sub(r"(?<=--config=)configs/(\w+)\.py", r"\1", text)
    return text.replace("python main.py", start)


def usage(text: str) -> int:
    print(f"error: {text}\n({command()} --help shows the flags)", file=sys.stderr)
    return EXIT_USAGE


def _help() -> str:
    """Returns the text of --help: what the program is, its flags, all recipes."""
    program = pathlib.Path(__file__).with_name("__main__.py")
    values = flags_for(["main.py"])
    rows = [(f"--{name}", values[name].help) for name in ("config", *FLAGS)]
    wide = max(len(name) for name, _ in rows)
    return "\n".join(
        [
            _as_started(recipes.docstring(program)),
            "\nflags:",
            *(f"  {name:{wide}}  {text}" for name, text in rows),
            "\nrecipes:",
            recipes.overview(),
            *(["\nplug-ins:", *listed] if (listed := plugins.overview()) else []),
            f"\n{_FIELDS_HELP.format(command(), 'NAME')}.",
        ]
    )


def _recipe_help(argv: list[str], config: Any) -> str:
    """Returns the text of --config=RECIPE --help: docstring, variants, fields."""
    path = recipes.locate(config_path(argv))
    return "\n".join(
        [
            _as_started(recipes.docstring(path)),
            f"\nvariants: --config={config_path(argv)}:VARIANT,...",
            f"  {recipes.variants(path)}",
            f"\nfields of {config_argument(argv)}: --config.NAME=VALUE",
            recipes.describe(path, config),
        ]
    )


def _located(argv: list[str]) -> list[str]:
    """Replaces the recipe's name in `argv` by its file."""
    path, colon, variant = (config_argument(argv) or "").partition(":")
    return with_config(argv, recipes.locate(path) + colon + variant)


def _wrong_arguments(argv: list[str]) -> str | None:
    """Returns the first mistake in the unparsed arguments, or None."""
    given = [a for a in argv[1:] if a.startswith("-")]
    twice = [a for a in given if a.lstrip("-").partition("=")[0] == "config"]
    if len(twice) > 1:
        return f"--config is given {len(twice)} times; give one recipe"
    config = config_argument(argv)
    if config is None:
        return recipes.unflagged(argv[1:]) or (MISSING if overrides(argv) else None)
    early = argv[1 : argv.index(twice[0])]
    if fields := [a for a in early if is_override(a)]:
        return f"{fields[0]} stands before --config={config}; give --config first"
    path = config_path(argv)
    if not path:
        return f"--config={config} names no recipe; {recipes.unknown('')}"
    if not pathlib.Path(recipes.locate(path)).is_file():
        return f"--config={path}: no such config file; {recipes.unknown(path)}"
    for argument in given:
        name = argument.partition("=")[0].lstrip("-")
        known = name in FLAGS or name.startswith("config.")
        if known and argument.endswith("=") and name != "config.data.name":
            return f"{argument} has no value (an unset variable?); give one or omit it"
    return None


def _wrong_config(argv: list[str], config: Any) -> str | None:
    """Returns the first mistake in the config made of `argv`; else completes it."""
    if not isinstance(config, ConfigDict):
        return _no_recipe(_recipe(argv), argv)
    given = overrides(argv)
    for name, value in given:
        if hasattr(_part(config, name), "keys"):  # a whole block would be replaced
            return _wrong_value(name, value, _recipe(argv))
        path, _, field = name.rpartition(".")
        if path and field == "variant":
            _take_named_sizes(_part(config, path), path, dict(given))
    return None


def _part(config: Any, name: str) -> Any:
    """Returns the block or value of a config that a dotted name says."""
    return functools.reduce(operator.getitem, name.split("."), config)


def _take_named_sizes(block: ConfigDict, path: str, given: dict[str, Any]) -> None:
    """Drops the recipe's sizes where an override names a variant of an encoder.

    A size beside a name overrides the name's. The recipe's own were not meant so: with
    `:digits` they make the small encoder, for which one is named. `given`: overrides.
    """
    sizes = ("width", "depth", "num_heads") if block.variant is not None else ()
    for size in sizes:
        if size in block and f"{path}.{size}" not in given:
            block[size] = None


def _explain(error: BaseException, argv: list[str]) -> str:
    """Explains a command line's mistake: where it is, and what would be right."""
    if config_argument(argv) is None:  # --confg: what was meant is the flag's name
        return _with_flags(error)
    recipe = _recipe(argv)
    if not isinstance(recipe, ConfigDict):
        return _no_recipe(recipe, argv)
    added = evaluator_flags.named(overrides(argv), recipe.get("evals"))
    evaluator_flags.add(recipe, added, keep_open=True)
    for name, value in overrides(argv):
        wrong = _wrong_field(name, recipe)
        old = choices.about_old(name)
        if wrong is not None and old is not None:
            return f"--config.{old}"
        if wrong is not None:
            return wrong + _evaluator_hint(name, recipe, argv)
        if f"--config.{name}={value}: " in str(error):
            return _wrong_value(name, value, recipe)
    return _with_flags(error)


def _no_recipe(loaded: Any, argv: list[str]) -> str:
    """Explains why a file of --config gives no config: what it raised or returned."""
    path = config_path(argv)
    if isinstance(loaded, SyntaxError):
        text = f"--config={path}: {type(loaded).__name__}: {loaded.msg}"
        where = f" (line {loaded.lineno}: {(loaded.text or '').strip()})"
        return text + (where if loaded.lineno else "")
    if isinstance(loaded, AttributeError) and "'get_config'" in str(loaded):
        return f"--config={path}: has no get_config(arg); {recipes.unknown(path)}"
    if isinstance(loaded, ValueError | flags.Error):  # of a variant: its own words
        return f"--config={config_argument(argv)}: {_last_line(loaded)}"
    if isinstance(loaded, Exception | SystemExit):
        rows = traceback.extract_tb(loaded.__traceback__)
        lines = [row.lineno for row in rows if row.filename == recipes.locate(path)]
        at = f", line {lines[-1]}" if lines else ""
        text = f"{type(loaded).__name__}: {_last_line(loaded)}{at}"
        if isinstance(loaded, ModuleNotFoundError) and loaded.name == "configs":
            text += "; take recipes from litevit_jax.configs"
        return f"--config={config_argument(argv)}: {text}"
    return (
        f"--config={path}: get_config() returned {type(loaded).__name__}; expected a "
        "ml_collections.ConfigDict"
    )


def _with_flags(error: BaseException) -> str:
    hint = ""
    if isinstance(error, flags.UnrecognizedFlagError):
        others = ", ".join(f"--{name}=" for name in FLAGS)
        hint = f"; the flags are --config=, --config.FIELD=, {others}"
    return _last_line(error) + hint


def _last_line(error: BaseException) -> str:
    last = ["", *str(error).strip().splitlines()][-1].strip()
    return last.removeprefix("ValueError: ") or type(error).__name__


def _recipe(argv: list[str]) -> Any:
    """Loads what --config names, without overrides; returns an error it raises."""
    argv = _located(["main.py", f"--config={config_argument(argv) or ''}"])
    try:
        (values := flags_for(argv))(argv)
        config: Any = values["config"].value
        if isinstance(config, ConfigDict):
            return config
        return getattr(config, "_error", config)  # an OSError is kept for later
    except (Exception, SystemExit) as error:  # a file of yours may raise any
        return error


def flags_for(argv: list[str]) -> flags.FlagValues:
    """The flags of the program, for `argv`."""
    values = flags.FlagValues()
    define(values, argv)
    return values


def _wrong_field(name: str, block: Any) -> str | None:
    """Explains the field `a.b.c` of --config.a.b.c= if it does not exist, else None."""
    path = "config"
    for key in name.split("."):
        keys = sorted(block) if hasattr(block, "keys") else []
        if key not in keys:
            hint = choices.hint(key, keys)
            nothing = "it is empty" if hasattr(block, "keys") else "it is a value"
            has = f"it has {', '.join(keys)}" if keys else nothing
            return f"--config.{name}: {path} has no field {key!r}; {hint}{has}"
        block, path = block[key], f"{path}.{key}"
    return None


def _evaluators(argv: list[str]) -> Any:
    """Returns the recipe's block `evals`; None if it has none or nothing adds to it."""
    if not any(name.startswith("evals.") for name, _ in overrides(argv)):
        return None
    recipe = _recipe(argv)
    return recipe.get("evals") if isinstance(recipe, ConfigDict) else None


def _evaluator_hint(name: str, recipe: ConfigDict, argv: list[str]) -> str:
    """Names the variant that adds the evaluator of a field that the recipe lacks."""
    block, _, rest = name.partition(".")
    if block != "evals" or "evals" not in recipe:
        return ""
    title = rest.partition(".")[0]
    argv = with_variant(argv, title)
    other = _recipe(argv)
    if isinstance(other, ConfigDict) and _wrong_field(name, other) is None:
        return f"; the variant {title} adds it: --config={config_argument(argv)}"
    if title in recipe.evals:
        return ""
    hint = f"; to add an evaluator, name it: --config.evals.{title}.name=NAME, of "
    hint += ", ".join(registry.choices("evaluators"))
    if recipe.evals:
        return hint
    text = recipes.variants(recipes.locate(config_path(argv)))
    return f"; variants add evaluators: {text.removeprefix('`arg`: ')}{hint}"


def _wrong_value(name: str, value: str, block: Any) -> str:
    *parents, key = name.split(".")
    for parent in parents:
        block = block[parent]
    old = block[key]
    if hasattr(old, "keys"):
        if renamed := choices.about_old(name):
            return f"--config.{renamed}"
        fields = ", ".join(f"--config.{name}.{field}=" for field in sorted(old))
        return f"--config.{name}={value}: expected one of its fields: {fields}"
    example = "" if old is None else f", as in --config.{name}={old}"
    kind = block.get_type(key)
    expected = _KINDS.get(kind, f"a {kind.__name__}")
    return f"--config.{name}={value}: expected {expected}{example}, got {value!r}"
