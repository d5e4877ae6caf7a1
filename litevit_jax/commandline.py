"""The flags of main.py, and what is wrong with a command line that cannot be used."""

from __future__ import annotations

import difflib
import pathlib
import sys
from typing import Any

from absl import flags
from ml_collections import config_flags

EXIT_USAGE = 2

# Of main.py, besides --config.
_FLAGS = ("workdir", "plan", "plan_out", "coordinator", "num_processes", "process_id")

_ROOT = pathlib.Path(__file__).parents[1]
MISSING = "--config is missing, for example --config=configs/mae_tiny.py"


def define(values: flags.FlagValues = flags.FLAGS, argv: Any = None) -> None:
    """Defines the flags of main.py in `values`; `argv`: None is the program's."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "Recipe: configs/NAME.py[:variant].",
        flag_values=values,
        sys_argv=argv,
    )
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
    text = "Seconds that all processes have to come."
    flags.DEFINE_float("join_timeout_s", 300.0, text, flag_values=values)


def parse(argv: list[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses `argv` into `values`; a mistake is told in one message, without trace.

    Raises:
      SystemExit: the command line cannot be used.
    """
    try:
        rest = values(argv)
        if values["config"].value is not None:
            values["config"].value.get("name")  # a file that could not be read raises
    except (flags.Error, AttributeError, KeyError, OSError, ValueError, TypeError) as e:
        raise SystemExit(usage(_explain(e, argv))) from None
    if len(rest) > 1:
        raise SystemExit(usage(f"unexpected argument {rest[1]!r}"))
    return rest


def usage(text: str) -> int:
    print(f"error: {text}\n(python main.py --help shows the flags)", file=sys.stderr)
    return EXIT_USAGE


def _explain(error: Exception, argv: list[str]) -> str:
    """What is wrong with the command line, where, and what would be right."""
    if _config_argument(argv) is None and _overrides(argv):
        return MISSING
    if _config_argument(argv) is None:  # --confg: what was meant is the flag's name
        return _with_flags(error)
    path = config_path(argv)
    recipe = _recipe(argv)
    if isinstance(recipe, OSError):
        return f"--config={path}: no such config file; {_config_files(path)}"
    if isinstance(recipe, AttributeError):
        return f"--config={path}: has no get_config(arg); {_config_files(path)}"
    if isinstance(recipe, Exception):
        return f"--config={_config_argument(argv)}: {_last_line(recipe)}"
    for name, value in _overrides(argv):
        wrong = _wrong_field(name, recipe)
        if wrong is None and f"--config.{name}={value}: " in str(error):
            wrong = _wrong_value(name, value, recipe)
        if wrong is not None:
            return wrong
    return _with_flags(error)


def _with_flags(error: Exception) -> str:
    hint = ""
    if isinstance(error, flags.UnrecognizedFlagError):
        others = ", ".join(f"--{name}=" for name in _FLAGS)
        hint = f"; the flags are --config=, --config.FIELD=, {others}"
    return _last_line(error) + hint


def _last_line(error: Exception) -> str:
    last = ["", *str(error).strip().splitlines()][-1].strip()
    return last.removeprefix("ValueError: ") or type(error).__name__


def _overrides(argv: list[str]) -> list[tuple[str, str]]:
    """('a.b', 'value') for each --config.a.b=value."""
    given = (a.lstrip("-").partition("=") for a in argv if _is_override(a))
    return [(name.partition("config.")[2], value) for name, _, value in given]


def _is_override(argument: str) -> bool:
    name = argument.lstrip("-").removeprefix("no")
    return argument.startswith("-") and name.startswith("config.")


def _config_argument(argv: list[str]) -> str | None:
    """'FILE:VARIANT' of --config, or None."""
    for place, argument in enumerate(argv):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":
            return value if equals else "".join(argv[place + 1 : place + 2])
    return None


def config_path(argv: list[str]) -> str:
    return (_config_argument(argv) or "").partition(":")[0]


def _config_files(path: str) -> str:
    names = sorted(p.name for p in (_ROOT / "configs").glob("[!_]*.py"))
    known = [f"configs/{name}" for name in names if name != "common.py"]
    near = difflib.get_close_matches(path, known, n=2)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{hint}choose from {', '.join(known)}"


def _recipe(argv: list[str]) -> Any:
    """The config that --config names, without overrides, or why there is none."""
    values = flags_for(argv := ["main.py", f"--config={_config_argument(argv) or ''}"])
    try:
        values(argv)
        config: Any = values["config"].value
        config.get("name")
        return config
    except (flags.Error, AttributeError, OSError, ValueError, TypeError) as error:
        return error


def flags_for(argv: list[str]) -> flags.FlagValues:
    """The flags of main.py, for `argv`."""
    values = flags.FlagValues()
    define(values, argv)
    return values


def _wrong_field(name: str, block: Any) -> str | None:
    """What is wrong with the field `a.b.c` of --config.a.b.c=, if it does not exist."""
    place = "config"
    for key in name.split("."):
        keys = sorted(block) if hasattr(block, "keys") else []
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            has = f"it has {', '.join(keys)}" if keys else "it is a value"
            return f"--config.{name}: {place} has no field {key!r}; {hint}{has}"
        block, place = block[key], f"{place}.{key}"
    return None


def _wrong_value(name: str, value: str, block: Any) -> str:
    *parents, key = name.split(".")
    for parent in parents:
        block = block[parent]
    old = block[key]
    if hasattr(old, "keys"):
        fields = ", ".join(f"--config.{name}.{field}=" for field in sorted(old))
        return f"--config.{name}={value}: expected one of its fields: {fields}"
    example = "" if old is None else f", as in --config.{name}={old}"
    expected = block.get_type(key).__name__
    return f"--config.{name}={value}: {value!r} is no {expected}{example}"


def with_variant(argv: list[str], variant: str) -> list[str]:
    """`argv` with `variant` added to the argument of --config."""
    joined = []
    rest = iter(argv)
    for argument in rest:
        if argument in ("--config", "-config"):
            argument = f"--config={next(rest)}"
        if argument.lstrip("-").startswith("config="):
            argument += ("," if ":" in argument else ":") + variant
        joined.append(argument)
    return joined
