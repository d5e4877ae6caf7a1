"""The arguments of a command line before they are parsed: --config and --config.X."""

from __future__ import annotations


def config_argument(argv: list[str]) -> str | None:
    """Returns 'FILE:VARIANT' of --config, or None."""
    for index, argument in enumerate(argv):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":
            return value if equals else "".join(argv[index + 1 : index + 2])
    return None


def config_path(argv: list[str]) -> str:
    return (config_argument(argv) or "").partition(":")[0]


def with_variant(argv: list[str], variant: str) -> list[str]:
    """Returns `argv` with `variant` added to the argument of --config."""
    text = config_argument(argv) or ""
    return with_config(argv, text + ("," if ":" in text else ":") + variant)


def with_config(argv: list[str], text: str) -> list[str]:
    """Returns `argv` with `text` as the argument of --config, if it has one."""
    joined = []
    rest = iter(argv)
    for argument in rest:
        name = argument.lstrip("-").partition("=")[0]
        if argument.startswith("-") and name == "config":
            if "=" not in argument:
                next(rest, None)
            argument = f"--config={text}"
        joined.append(argument)
    return joined


def overrides(argv: list[str]) -> list[tuple[str, str]]:
    """Lists ('a.b', 'value') for each --config.a.b=value or --config.a.b value."""
    pairs = []
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if is_override(argument):
            name, equals, value = argument.lstrip("-").partition("=")
            value = value if equals else following
            pairs.append((name.partition("config.")[2], value))
    return pairs


def is_override(argument: str) -> bool:
    """Returns whether an argument overrides a field of the config."""
    name = argument.lstrip("-").removeprefix("no")
    return argument.startswith("-") and name.startswith("config.")
