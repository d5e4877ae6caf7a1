"""launch/offline.sh with a Python that writes down what pip is asked for."""

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

import pytest

from tests import processes

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "offline.sh"

# pip download brings a wheel and a source, of which pip wheel makes a wheel.
PYTHON = """#!/usr/bin/env bash
[[ $1 == -m ]] || exec "$PYTHON" "$@"
printf '%s|' "$@" >>"$LOG"; echo >>"$LOG"
case "$*" in
  *"pip download "*)
    touch "$5"/{one-1-py3-none-any.whl,two-2.tar.gz,litevit_jax-0.zip} ;;
  *"pip wheel "*) touch "$6/two-2-py3-none-any.whl" ;;
  *"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
esac
"""


@pytest.fixture
def machine(tmp_path):
    """A folder with a Python, and how a script is run in it."""
    python = tmp_path / "python3"
    python.write_text(PYTHON)
    python.chmod(0o755)
    log = tmp_path / "log"

    def run(script, *arguments):
        log.write_text("")
        told = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log)}
        told["PYTHON"] = sys.executable
        done = subprocess.run(
            [script, *arguments],
            cwd=tmp_path, env={**os.environ, **told}, capture_output=True, text=True,
            timeout=processes.PATIENCE_S,
        )  # fmt: skip
        asked = [line.split("|")[:-1] for line in log.read_text().splitlines()]
        return done, asked

    return run


TESTED = "constraints/" + ("py311" if sys.version_info < (3, 12) else "py312") + ".txt"


@pytest.mark.parametrize("extra", ["", "cuda13", "tpu,gcs"])
def test_what_is_fetched_here_is_installed_there(extra, machine, tmp_path):
    named = [f"--extra={extra}"] if extra else []
    bracket = f"[{extra}]" if extra else ""
    done, asked = machine(SCRIPT, "fetch", "all", *named)
    assert done.returncode == 0, done.stderr
    packages = tmp_path / "all" / "packages"
    constraint = f"{ROOT}/{TESTED}"
    assert asked == [
        ["-m", "pip", "download", "--dest", str(packages), "-c", constraint,
         f"{ROOT}{bracket}", "setuptools>=77", "wheel"],
        ["-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(packages),
         str(packages / "two-2.tar.gz")],
    ]  # fmt: skip
    wheels = ["one-1-py3-none-any.whl", "two-2-py3-none-any.whl"]
    assert sorted(path.name for path in packages.iterdir()) == wheels
    with tarfile.open(tmp_path / "all" / "litevit.tar.gz") as code:
        assert "main.py" in code.getnames()

    shutil.move(tmp_path / "all", tmp_path / "copy of all")  # the other machine
    done, asked = machine("copy of all/offline.sh", "install", "copy of all")
    assert done.returncode == 0, done.stderr
    assert asked == [
        ["-m", "venv", "litevit/.venv"],
        ["-m", "pip", "--disable-pip-version-check", "install", "--no-index",
         "--find-links", str(tmp_path / "copy of all" / "packages"), "-c", TESTED,
         "--editable", f".{bracket}"],
    ]  # fmt: skip
    assert (tmp_path / "litevit" / "main.py").is_file()
    again, asked = machine("copy of all/offline.sh", "install", "copy of all")
    assert again.returncode == 2 and "litevit exists" in again.stderr and not asked


def test_packages_for_another_python_are_refused(machine, tmp_path):
    machine(SCRIPT, "fetch", "all")
    (tmp_path / "all" / "kind").write_text("Python 2.7 on linux-x86_64\n")
    done, asked = machine("all/offline.sh", "install", "all")
    assert done.returncode == 2 and not asked
    assert "all is for Python 2.7 on linux-x86_64, this is Python 3." in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["get", "all"], "unknown command get: fetch or install"),
        (["fetch"], "fetch which FOLDER?"),
        (["fetch", "--extra=tpu"], "fetch which FOLDER?"),
        (["fetch", "all", "--extras=tpu"], "unknown option --extras=tpu"),
        (["install", "nowhere"], "nowhere was not made by"),
    ],
)
def test_a_mistake_is_told_before_anything_is_fetched(arguments, message, machine):
    done, asked = machine(SCRIPT, *arguments)
    assert done.returncode == 2 and not asked
    assert message in done.stderr


def test_help_is_the_head_of_the_file(machine):
    done, _ = machine(SCRIPT, "--help")
    assert done.stdout.startswith("Installs litevit_jax on a machine without network.")
    assert done.stdout.rstrip().endswith("kind of system here and there")
