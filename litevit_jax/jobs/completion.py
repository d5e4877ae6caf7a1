"""Prints a script by which a shell completes commands, recipes and their fields.

eval "$(litevit completion bash)"      # in ~/.bashrc
eval "$(litevit completion zsh)"       # in ~/.zshrc
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from litevit_jax import commandline, exits, recipes, subcommands

SHELLS = ("bash", "zsh")

# Both shells take the same function: zsh reads bash's completions. `:` and `=` may end
# words in bash (COMP_WORDBREAKS), so words are cut from the line, and what stands
# before the last of these is taken off the answers again.
_SCRIPT = r"""
_litevit() {
    local line word first recipe words before IFS=$' \t\n'
    line="${COMP_LINE:0:$COMP_POINT}"
    word="${line##* }"
    first="${line#* }"; first="${first%% *}"
    recipe="${line##*--config=}"
    [ "$recipe" = "$line" ] && recipe="${line##*--config }"
    [ "$recipe" = "$line" ] && recipe=""
    recipe="${recipe%% *}"
    if [ "$first" = "$word" ] && [ "${word:0:1}" != "-" ]; then
        words="@COMMANDS@"
    elif [ "$first" = "fields" ]; then
        words="@RECIPES@ --names"
    elif [ "$first" = "completion" ]; then
        words="@SHELLS@"
    elif [ "${word#--*.*=}" != "$word" ] || [ "${word#--workdir=}" != "$word" ]; then
        COMPREPLY=( $(compgen -f -- "${word#*=}") )  # of zsh, it takes none
        return
    elif [ "${word:0:9}" = "--config=" ]; then
        words="@CONFIGS@"
    elif [ "${word:0:9}" = "--config." ] && [ -n "$recipe" ]; then
        if [ "$recipe" != "$_litevit_recipe" ]; then
            _litevit_fields="$(@PROGRAM@ fields "$recipe" --names 2>/dev/null |
                sed -e 's/^/--config./' -e 's/$/=/' | tr '\n' ' ')"
            _litevit_recipe="$recipe"
        fi
        words="$_litevit_fields"
    elif [ "${word:0:1}" = "-" ] || [ -z "$word" ]; then
        words="@FLAGS@"
    else
        words=""
    fi
    if [ -z "$words" ]; then
        COMPREPLY=( $(compgen -f -- "$word") )
        return
    fi
    COMPREPLY=( $(compgen -W "$words" -- "$word") )
    before="${word%"${word##*[=:]}"}"
    [ -n "$BASH_VERSION" ] && COMPREPLY=( "${COMPREPLY[@]#"$before"}" )
}
complete -o nospace -F _litevit litevit
"""
_OF_ZSH = (
    "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit"
)


def main(argv: Sequence[str]) -> int:
    """Prints the script; returns the exit code."""
    parser = argparse.ArgumentParser("litevit completion", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("shell", choices=SHELLS)
    print(script(parser.parse_args(argv).shell))
    return exits.OK


def script(shell: str, program: str = "litevit") -> str:
    """Returns the script for one of SHELLS; `program` lists the fields of a recipe."""
    names = recipes.names()
    words = {
        "COMMANDS": subcommands.MODULES,
        "CONFIGS": [f"--config={name}" for name in names],
        "FLAGS": ["--config=", *(f"--{name}=" for name in commandline.FLAGS), "--help"],
        "PROGRAM": [program],
        "RECIPES": names,
        "SHELLS": SHELLS,
    }
    text = _SCRIPT
    for key, values in words.items():
        text = text.replace(f"@{key}@", " ".join(values))
    return text.strip() if shell == "bash" else f"{_OF_ZSH}\n{text.strip()}"
