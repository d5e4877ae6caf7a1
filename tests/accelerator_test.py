"""The accelerator's benchmark: every part in its small form, its time, its tables."""

import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
import time

import pytest

from benchmarks.parts import common, learning, numerics, peers, steps

ROOT = pathlib.Path(__file__).parents[1]


def part_of(name, out, seconds=3600.0):
    return common.Part(name, out, time.time() + seconds, "yes")


def test_rows_are_written_at_once_and_measured_once(tmp_path):
    part = part_of("steps", tmp_path)
    part.row("first", lambda: {"ms": 1.5})
    assert common.load(tmp_path, "steps")["rows"]["first"]["ms"] == 1.5

    def fail():
        raise MemoryError("it does not fit")

    part.row("second", fail)
    part.finish()
    state = common.load(tmp_path, "steps")
    assert state["complete"] and "it does not fit" in state["rows"]["second"]["error"]
    again = part_of("steps", tmp_path)
    again.row("first", lambda: pytest.fail("measured twice"))
    assert again.rows["first"]["ms"] == 1.5


def test_a_part_whose_time_is_over_is_not_complete_and_goes_on(tmp_path):
    part = part_of("steps", tmp_path)
    part.row("first", lambda: {"ms": 1})
    late = part_of("steps", tmp_path, seconds=-1.0)
    late.row("second", lambda: {"ms": 2})
    late.finish()
    assert not common.load(tmp_path, "steps")["complete"]
    more = part_of("steps", tmp_path)
    more.row("second", lambda: {"ms": 2})
    more.finish()
    state = common.load(tmp_path, "steps")
    assert state["complete"] and list(state["rows"]) == ["first", "second"]


def test_tables_have_a_column_for_each_figure(tmp_path):
    part = part_of("steps", tmp_path)
    speed = {"median": 38055.4, "min": 38016.0, "max": 38261.0}
    part.row("MAE", lambda: {"images/s": speed, "GiB": 8.2441})
    part.row("probe", lambda: {"GiB": 1.0, "ok": True})
    part.finish()
    text = common.write_tables(tmp_path).splitlines()
    assert text[0] == "## steps"
    assert text[2:] == [
        "|  | images/s | GiB | ok |",
        "| --- | --- | --- | --- |",
        "| MAE | 38,055 (38,016..38,261) | 8.244 |  |",
        "| probe |  | 1 | True |",
    ]
    assert json.loads((tmp_path / "results.json").read_text())["steps"]["complete"]


@pytest.mark.parametrize("name", common.PARTS)
def test_every_part_runs_in_its_small_form(name, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")  # of main.py, where a part runs it
    if name in ("steps", "peers"):
        module = {"steps": steps, "peers": peers}[name]
        first = dict(list(module.STEPS.items())[:1])
        monkeypatch.setattr(module, "STEPS", first)
    if name == "profile":
        monkeypatch.setattr(common, "PARTS", {"profile": 1.0})
    part = part_of(name, tmp_path)
    part.torch_python = sys.executable
    importlib.import_module(f"benchmarks.parts.{name}").run(part)
    part.finish()
    assert common.load(tmp_path, name)["complete"] and part.rows
    errors = {key: row["error"] for key, row in part.rows.items() if "error" in row}
    assert not [e for e in errors.values() if isinstance(e, str)], errors
    wrong = {key: row for key, row in part.rows.items() if not row.get("ok", True)}
    assert not wrong
    assert name in common.write_tables(tmp_path)


def test_a_wrong_value_is_not_ok(monkeypatch):
    monkeypatch.setattr(numerics, "MAE_LOSS", 1.09)
    assert not numerics._checked(abs(1.081296 / numerics.MAE_LOSS - 1), 1e-5)["ok"]
    assert not numerics._checked(float("nan"), 1.0)["ok"]


def test_steps_cover_what_recipes_train():
    jobs = {spec.job for spec in steps.STEPS.values()}
    assert jobs == {"mae", "distill", "finetune", "mocov3", "probe"}
    assert {s.batch for s in steps.STEPS.values() if s.job == "mae"} == {
        256,
        1024,
        4096,
    }


def test_learning_reads_arrays_or_a_folder(tmp_path):
    part = part_of("learning", tmp_path)
    part._small = "no"
    part.data = "images.npz"
    assert learning._recipe(part)[0].startswith(":data=arrays,path=")
    part.data = str(tmp_path)
    assert learning._recipe(part)[0] == f":data=folder,path={tmp_path}"
    part.data = None
    assert learning._recipe(part) == [":digits"]


def test_what_a_part_started_ends_with_it():
    code = (
        "import subprocess, sys, time\n"
        "sleep = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "child = subprocess.Popen(sleep)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with parent:
        grandchild = int(parent.stdout.readline())
        common.end_group(parent)
    for _ in range(600):
        if not pathlib.Path(f"/proc/{grandchild}").exists() or _is_dead(grandchild):
            return
        time.sleep(0.1)
    pytest.fail("what the part had started is still running")


def _is_dead(pid):
    try:
        return "\nState:\tZ" in pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def run(*flags):
    command = [sys.executable, "benchmarks/accelerator.py", *flags]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_the_command_ends_in_its_time_and_goes_on(tmp_path):
    done = run(f"--out={tmp_path}", "--minutes=0.1", "--small=yes")
    assert done.returncode == 0, done.stderr
    assert "identity: at most" in done.stdout
    (seconds,) = re.findall(r"^(\d+) s; tables are in", done.stdout, re.MULTILINE)
    assert int(seconds) <= 0.1 * 60 * 1.1 + 1
    done = run(f"--out={tmp_path}", "--minutes=9", "--parts=identity", "--small=yes")
    assert common.load(tmp_path, "identity")["complete"], done.stderr
    done = run(f"--out={tmp_path}", "--minutes=9", "--parts=identity", "--small=yes")
    assert "identity: measured already" in done.stdout


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--parts=stepz", "choose from identity, numerics"),
        ("--minutes=0", "expected more than 0"),
    ],
)
def test_a_wrong_flag_is_refused(flag, words, tmp_path):
    done = run(f"--out={tmp_path}", flag)
    assert done.returncode and words in done.stdout + done.stderr
