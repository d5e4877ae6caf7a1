"""Commands of the program beside recipes, as `litevit check DIR`.

Each is a module with `main(argv) -> exit code`, imported when it is asked for.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from litevit_jax import choices, exits

MODULES = {
    "check": "litevit_jax.jobs.check",
    "completion": "litevit_jax.jobs.completion",
    "fields": "litevit_jax.jobs.fields",
    "recipes": "litevit_jax.recipes",
    "runs": "litevit_jax.jobs.runs",
    "stats": "litevit_jax.jobs.stats",
}


def run(argv: Sequence[str]) -> None:
    """Runs the command that `argv` names, if it names one.

    Args:
      argv: the command line, with the program in front.

    Raises:
      SystemExit: a command ran, whose code it has; or `argv` misspells one.
    """
    name = argv[1] if len(argv) > 1 else "-"
    if name in MODULES:
        main = importlib.import_module(MODULES[name]).main
        raise SystemExit(main(argv[2:]))
    if not name.startswith("-") and choices.near(name, MODULES, cutoff=0.6):
        hint = choices.suggest(name, MODULES)
        print(f"error: command {name!r} unknown; {hint}", file=sys.stderr)
        raise SystemExit(exits.USAGE)
