"""launch/local.py: several processes as one command."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from launch import local
from tests import processes

ROOT = pathlib.Path(__file__).parents[2]


def python(code):
    return [sys.executable, "-c", code]


def test_each_process_is_told_who_it_is_and_where_they_meet():
    lines = local.commands(3, 1234, ["--config=c.py", "--workdir=w"])
    for index, line in enumerate(lines):
        assert line[1:] == [
            str(ROOT / "main.py"),
            "--config=c.py",
            "--workdir=w",
            "--coordinator=localhost:1234",
            "--num_processes=3",
            f"--process_id={index}",
        ]


def test_their_output_stands_behind_their_numbers(capfd):
    tell = "import os; print(os.environ['JAX_NUM_CPU_DEVICES'], 'devices')"
    assert local.run([python(tell)] * 2, devices=4, grace_s=3600) == 0
    assert sorted(capfd.readouterr().out.splitlines()) == [
        "[0] 4 devices",
        "[1] 4 devices",
    ]


def test_one_that_fails_ends_the_others_with_its_code(tmp_path):
    """They are told to stop, and can save."""
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    works = (
        "import pathlib, signal, time\n"
        "def stop(*_):\n"
        f"    pathlib.Path({str(saved)!r}).touch()\n"
        "    raise SystemExit(42)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        "time.sleep(3600)"
    )
    fails = (
        "import pathlib, time\n"
        f"while not pathlib.Path({str(ready)!r}).exists(): time.sleep(0.05)\n"
        "raise SystemExit(7)"
    )
    assert local.run([python(works), python(fails)], devices=1, grace_s=3600) == 7
    assert saved.exists()


def test_one_that_does_not_end_is_killed_after_its_grace(capfd):
    deaf = (
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('deaf', flush=True)\n"
        "time.sleep(3600)"
    )
    late = "import time; time.sleep(0.5); raise SystemExit(3)"
    assert local.run([python(deaf), python(late)], devices=1, grace_s=0.5) == 3


def test_sigterm_reaches_all_and_their_code_comes_back(tmp_path):
    saving = (
        "import pathlib, signal, sys, time\n"
        "def stop(*_): raise SystemExit(42)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "print('ready', flush=True)\n"
        "time.sleep(3600)"
    )
    code = (
        "import sys; from launch import local\n"
        f"line = [sys.executable, '-c', {saving!r}]\n"
        "sys.exit(local.run([line] * 2, devices=1, grace_s=3600))"
    )
    process = subprocess.Popen(
        python(code), cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ
    )
    for _ in range(2):
        assert "ready" in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(processes.PATIENCE_S) == 42
    process.stdout.close()


@pytest.mark.parametrize("arguments", [[], ["--processes=0", "--", "x"]])
def test_a_command_without_sense_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as refused:
        local.main(arguments)
    assert refused.value.code == 2
