"""Lists the fields of a recipe: names, values and what they mean.

litevit fields mae_tiny
litevit fields linear_probe:digits
litevit fields FILE.py --names
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from litevit_jax import commandline, exits, recipes


def main(argv: Sequence[str]) -> int:
    """Prints the list; returns the exit code."""
    parser = argparse.ArgumentParser("litevit fields", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("recipe", help="NAME, NAME:VARIANT or FILE.py")
    parser.add_argument("--names", action="store_true", help="print names alone")
    args = parser.parse_args(argv)
    try:
        config = commandline.config_of(args.recipe, {})
    except ValueError as error:
        return exits.report(error, begun=False)
    if args.names:
        print("\n".join(name for name, _ in recipes.fields(config)))
    else:
        path = recipes.locate(args.recipe.partition(":")[0])
        print(recipes.describe(path, config))
    return exits.OK
