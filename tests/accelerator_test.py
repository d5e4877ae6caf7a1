"""The accelerator's benchmark: every part in its small form, its time, its tables."""

import contextlib
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
import time

import pytest

from benchmarks import sides
from benchmarks.parts import (
    attention,
    common,
    learning,
    numerics,
    peers,
    profile,
    small,
    steps,
)
from tests import processes

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
    part.about("gpu: NVIDIA H200")
    part.save()
    text = common.write_tables(tmp_path).splitlines()
    assert text[0] == "## steps (gpu: NVIDIA H200)"


@contextlib.contextmanager
def forked(command, **_):
    """As `common.process`; the package is imported already."""
    with processes.start(command) as child:
        try:
            yield child
        finally:
            child.kill()


# Part -> tables whose first row stands for all: the others run the same code.
FIRST = {
    "steps": [(steps, "STEPS")],
    "peers": [(peers, "STEPS")],
    "attention": [(attention, "SHAPES")],
    "profile": [(profile, "NAMES")],
}


@pytest.mark.parametrize("name", common.PARTS)
def test_every_part_runs_in_its_small_form(
    name, one_device, tmp_path, tmp_path_factory, monkeypatch
):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")  # of main.py, where a part runs it
    for module, table in FIRST.get(name, []):
        whole = getattr(module, table)
        first = dict(list(whole.items())[:1]) if isinstance(whole, dict) else whole[:1]
        monkeypatch.setattr(module, table, first)
    if name == "profile":
        monkeypatch.setattr(common, "PARTS", {"profile": 1.0})
    # Programs that the commands keep: JAX's folder is nobody's but JAX's.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setattr(common, "process", forked)
    part = part_of(name, tmp_path)
    part.torch_python = sys.executable
    importlib.import_module(f"benchmarks.parts.{name}").run(part)
    part.finish()
    assert common.load(tmp_path, name)["complete"] and part.rows
    errors = {key: row["error"] for key, row in part.rows.items() if "error" in row}
    assert not [e for e in errors.values() if isinstance(e, str)], errors
    wrong = {key: row for key, row in part.rows.items() if not row.get("ok", True)}
    assert not wrong
    text = common.write_tables(tmp_path)
    assert name in text
    assert ("](learning-loss.png)" in text) == (name == "learning")


def test_a_small_set_must_reach_its_share_of_the_bare_step():
    share = {"median": 0.96, "min": 0.9, "max": 1.0}
    figures = {
        "images/s": {"bare": {}},
        "ratios": {"device/bare": share, "host/bare": share},
        "wait %": {"device": {"median": 1.0}},
        "updates": 4,
    }
    row = small.row("cifar", figures)
    assert row["ok"] and row["device of bare"] is share
    for other in ({"ratios": {"device/bare": {"median": 0.94}}},
                  {"wait %": {"device": {"median": 3.5}}}):  # fmt: skip
        assert not small.row("cifar", figures | other)["ok"]
    assert "ok" not in small.row("short", figures)


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
        if _is_dead(grandchild):
            return
        time.sleep(0.1)
    pytest.fail("what the part had started is still running")


def _is_dead(pid):
    try:
        return "\nState:\tZ" in pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


COMMAND = [sys.executable, str(ROOT / "benchmarks" / "accelerator.py")]


def run(*flags, cwd=ROOT, **environ):
    return subprocess.run(
        [*COMMAND, *flags],
        cwd=cwd,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1", **environ},
        capture_output=True,
        text=True,
        timeout=600,
    )


def measured(out, *names, **row):
    """Writes complete parts with one row each."""
    for name in names:
        rows = {"first": {"ms": 1, **row, "took_s": 1}}
        common.store(out, name, {"complete": True, "rows": rows})


def test_the_command_ends_in_its_time(tmp_path):
    done = run(f"--out={tmp_path}", "--minutes=0.1", "--small=yes")
    assert done.returncode == 0, done.stderr
    assert "identity: at most" in done.stdout
    (seconds,) = re.findall(r"^(\d+) s; tables are in", done.stdout, re.MULTILINE)
    assert int(seconds) <= 0.1 * 60 * 1.1 + 1


def test_what_is_missing_gets_all_the_time_and_what_is_there_none(tmp_path):
    """From any folder: paths are those of the one who gives them."""
    measured(tmp_path, *(name for name in common.PARTS if name != "identity"))
    flags = (f"--out=../{tmp_path.name}", "--minutes=9", "--small=yes")
    done = run(*flags, cwd=tmp_path)
    share = int(re.search(r"identity: at most (\d+) s", done.stdout)[1])
    assert share > 0.9 * 9 * 60
    assert common.load(tmp_path, "identity")["complete"], done.stderr
    assert done.stdout.count("measured already") == len(common.PARTS) - 1
    assert "## identity (small form)" in done.stdout
    done = run(*flags, cwd=tmp_path)
    assert "identity: measured already" in done.stdout


def test_the_command_takes_its_part_along_when_it_ends(tmp_path):
    flags = [f"--out={tmp_path}", "--minutes=9", "--small=yes", "--parts=numerics"]
    with subprocess.Popen(
        [*COMMAND, *flags], stdout=subprocess.PIPE, text=True
    ) as command:
        assert any("at most" in line for line in command.stdout)
        children = pathlib.Path(f"/proc/{command.pid}/task/{command.pid}/children")
        end = time.monotonic() + processes.PATIENCE_S
        while not children.read_text() and time.monotonic() < end:
            time.sleep(0.05)
        (part,) = children.read_text().split()
        command.kill()
    while not _is_dead(part):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("torch", [True, False])
def test_peers_are_measured_again_once_there_is_torch(torch, tmp_path):
    measured(tmp_path, "peers", **{common.WITHOUT_TORCH: "No module named 'torch'"})
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexit {int(not torch)}\n")
    python.chmod(0o755)
    done = run(
        f"--out={tmp_path}", "--parts=peers", "--small=yes", "--minutes=0.02",
        "--torch_python=./python", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ("peers: measured already" in done.stdout) is not torch


def test_figures_of_two_devices_are_not_mixed(tmp_path):
    state = {"complete": True, "device": "gpu: Tesla T4", "rows": {}}
    common.store(tmp_path, "steps", state)
    done = run(f"--out={tmp_path}", "--small=yes")
    assert done.returncode == 2
    assert "another device (gpu: Tesla T4), and this is small form" in done.stderr


def test_a_missing_device_is_an_error_before_anything_is_measured(tmp_path):
    done = run(f"--out={tmp_path / 'new'}", JAX_PLATFORMS="cuda,cpu")
    assert done.returncode == 2
    assert done.stderr.startswith("error: a GPU is asked for")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--parts=stepz", "choose from identity, numerics"),
        ("--parts=", "choose from identity, numerics"),
        ("--minutes=0", "expected more than 0"),
        ("--minutes=nan", "expected more than 0"),
        ("--data=nowhere", "--data=nowhere does not exist"),
        ("--torch_python=nowhere", "--torch_python=nowhere is no program"),
    ],
)
def test_a_wrong_flag_is_refused(flag, words, tmp_path):
    done = run(f"--out={tmp_path}", flag)
    assert done.returncode == 2 and words in done.stderr


def run_script(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


# A part's process that breaks at its second row, needs a new one, and is then through.
BREAKING = """
import pathlib, sys, time
from absl import flags
from benchmarks import accelerator
from benchmarks.parts import common

out, codes = pathlib.Path(sys.argv[1]), [-6, common.AGAIN, 0]

def run_part(name, until, out, device):
    part = common.Part(name, out, until, "yes")
    part.row("first", lambda: {"ms": 1})
    if len(codes) == 3:
        part._state["at"] = "second"
        part.save()
    else:
        part.row("second", lambda: {"ms": 2})
    if len(codes) == 1:
        part.row("third", lambda: {"ms": 3})
        part.finish()
    return codes.pop(0)

accelerator.run_part = run_part
accelerator.finish_part("steps", time.time() + 60, out, "")
assert not codes
"""


def test_a_row_that_ends_its_process_does_not_end_its_part(tmp_path):
    done = run_script(BREAKING, tmp_path)
    assert done.returncode == 0, done.stderr
    rows = common.load(tmp_path, "steps")["rows"]
    assert list(rows) == ["first", "second", "third"]
    assert rows["second"]["error"].startswith("the process ended with exit code -6")


def test_runs_get_a_process_that_holds_no_device(tmp_path, monkeypatch):
    """On a TPU a second process is refused, and on a GPU finds no memory."""
    monkeypatch.setattr(numerics, "_in_process", lambda part: {"a": lambda: {"ok": 1}})
    monkeypatch.setattr(numerics, "_resume", lambda part: {"error": 0.0})
    part = common.Part("numerics", tmp_path, time.time() + 60, "no")
    with pytest.raises(SystemExit) as ended:
        numerics.run(part)
    assert ended.value.code == common.AGAIN
    assert list(common.load(tmp_path, "numerics")["rows"]) == ["a"]
    part = common.Part("numerics", tmp_path, time.time() + 60, "no")
    numerics.run(part)
    assert list(part.rows) == ["a", "resume, same bits"]


# Parts that start programs of their own, up to the point where they start them.
STARTING = """
import pathlib, subprocess, sys, time
from jax._src import xla_bridge
from benchmarks import sides
from benchmarks.parts import common, inputs, learning, numerics, peers, small

seen = []

def start(self, *arguments, **options):
    seen.append(xla_bridge.backends_are_initialized())
    return subprocess.CompletedProcess(arguments, 1, "")

def side(self, *arguments, **options):
    start(self)
    raise RuntimeError

common.Part.run, sides.Side.__init__ = start, side
numerics._in_process, numerics._interrupted = lambda part: {}, lambda *_: 42
for module in (inputs, learning, numerics, peers, small):
    out, name = pathlib.Path(sys.argv[1]), module.__name__.rpartition(".")[2]
    module.run(common.Part(name, out, time.time() + 600, "yes"))
print(len(seen), any(seen))
"""


def test_parts_leave_the_device_to_the_programs_that_they_start(tmp_path):
    done = run_script(STARTING, tmp_path)
    assert done.stdout.split() == ["9", "False"], done.stderr


def test_pytorchs_side_needs_no_other_package():
    """--torch_python may be an interpreter that has torch and NumPy alone."""
    code = (
        "import sys\n"
        "for name in ('absl', 'flax', 'jax', 'ml_collections', 'optax', 'PIL'):\n"
        "    sys.modules[name] = None\n"
        "from benchmarks import sides, torch_models\n"
        "print(sides.images(sides.Spec(batch=1, image_size=8)).shape)"
    )
    done = run_script(code)
    assert done.stdout == "(1, 8, 8, 3)\n", done.stderr


def test_learning_goes_on_with_the_passes_that_it_began_with(tmp_path):
    part = common.Part("learning", tmp_path, time.time() + 120, "no")
    part.data = "images.npz"
    assert learning._epochs(part, tmp_path) == ["epochs=19"]
    (tmp_path / "config.json").write_text('{"epochs": 33}')
    assert learning._epochs(part, tmp_path) == ["epochs=33"]


@pytest.mark.parametrize(
    ("device", "other"), [("gpu: NVIDIA H200", "slices of 128"), ("tpu: v5e", "whole")]
)
def test_steps_are_timed_whole_and_in_slices(device, other, tmp_path, monkeypatch):
    """`auto` takes the whole batch on a GPU, and slices elsewhere."""
    monkeypatch.setattr(steps, "_compiled", lambda spec: 1 / 0)
    part = part_of("steps", tmp_path)
    part.about(device)
    steps.run(part)
    assert list(part.rows)[:2] == ["MAE 1,024, auto", f"MAE 1,024, {other}"]
    counts = [sum(name.endswith(o) for name in part.rows) for o in ("auto", other)]
    assert counts == [5, 3] and len(part.rows) == 10


def test_a_step_that_does_not_fit_leaves_the_profile_of_the_others(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(sides, "our_step", lambda spec: 1 / 0)
    part = part_of("profile", tmp_path)
    profile.run(part)
    part.finish()
    assert common.load(tmp_path, "profile")["complete"]
    assert {"ZeroDivisionError: division by zero"} == {
        row["error"] for row in part.rows.values()
    }
    assert {name.partition(",")[0] for name in part.rows} == {
        "MAE 1",
        "fine-tuning 512",
    }
