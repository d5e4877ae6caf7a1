"""What a shell completes, asked of the shells themselves."""

import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest

from litevit_jax import recipes
from litevit_jax.jobs import completion

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = shlex.join([sys.executable, str(ROOT / "main.py")])
ASK = """
ask() {
    COMP_LINE="$1"; COMP_POINT=${#1}; COMPREPLY=(); _litevit
    echo "${COMPREPLY[*]}"
}
"""
LINES = [
    "litevit ",
    "litevit ru",
    "litevit fields mae_ti",
    "litevit completion z",
    "litevit --conf",
    "litevit --config=mae_tiny --work",
    "litevit --config=predi",
    "litevit --config predict --config.sheet",
    "litevit --config=mae_tiny:digits --config.data.image_",
    "litevit --config=nothing --config.da",
    "litevit --config=predict --config.images=DIR/a",
    "litevit runs DIR/",
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "DIR").mkdir()
    (tmp_path / "DIR" / "a.png").touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_commands_recipes_fields_and_files(folder):
    script = completion.script("bash", PROGRAM) + ASK
    script += "".join(f"ask {shlex.quote(line)}\n" for line in LINES)
    done = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, check=True
    )
    assert not done.stderr
    answers = [line.split() for line in done.stdout.splitlines()]
    assert answers == [
        ["check", "completion", "fields", "recipes", "runs", "stats"],
        ["runs"],
        [name for name in recipes.names() if name.startswith("mae_ti")],
        ["zsh"],
        ["--config="],
        ["--workdir="],
        ["predict"],
        ["--config.sheet_images="],
        ["--config.data.image_size=", "--config.data.image_width="],
        [],
        ["DIR/a.png"],
        ["DIR/a.png"],
    ]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
def test_zsh_reads_the_script():
    script = completion.script("zsh", PROGRAM) + ASK + "ask 'litevit completion z'\n"
    done = subprocess.run(
        ["zsh", "-f", "-c", script], capture_output=True, text=True, check=True
    )
    assert "zsh" in done.stdout.split()


def test_the_script_is_printed_for_each_shell(capsys):
    assert completion.main(["bash"]) == 0
    assert "complete -o nospace -F _litevit litevit" in capsys.readouterr().out
    assert completion.main(["zsh"]) == 0
    assert capsys.readouterr().out.startswith("autoload")
    with pytest.raises(SystemExit):
        completion.main(["fish"])
