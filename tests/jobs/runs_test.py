"""The list of runs: what is done of each, and which of them is running."""

import json
import pathlib
import socket

import pytest

from litevit_jax import cli
from litevit_jax.jobs import ledger, runs
from litevit_jax.train import lock

# ml_collections loads recipes in a way that Python will drop.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture
def write(tmp_path):
    """(name, total, step, results by title at their steps) -> a run's directory."""

    def make(name, total=None, step=0, results=None, evals=("test",), **files):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        derived = {} if total is None else {"total_steps": total}
        config = {"name": f"recipe-{folder.name}", "derived": derived}
        config["evals"] = {title: {"name": "knn"} for title in evals}
        (folder / "config.json").write_text(json.dumps(config))
        if step:
            rows = [{"step": n, "loss": 1.0} for n in range(1, step + 1)]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / "metrics.jsonl").write_text(text + '{"step": 9')  # cut by a kill
        for title, (at, value) in (results or {}).items():
            path = folder / "evals" / title / "result.json"
            path.parent.mkdir(parents=True)
            last = {"step": at, "top1": value}
            path.write_text(json.dumps({"metric": "top1", "last": last}))
        for file, content in files.items():
            (folder / f"{file}.json").write_text(json.dumps(content))
        return folder

    return make


def listed(folder):
    return {row.name: row[1:] for row in runs.list_runs(folder)}


def test_steps_states_and_results_are_those_of_each_run(write, tmp_path):
    write("a", 4, 4, {"test": (4, 81.234)})
    write("b", 4, 4, {"test": (2, 70.0)})  # stopped before the last evaluation
    write("in/c", 2000, 3)
    (tmp_path / "in/c/checkpoints/40").mkdir(parents=True)
    write("in/c/points/d", 4)  # a run in a run
    write("e", None, results={"test": (0, 50.0)})
    write("f", None)
    write("in/c/analysis/g")  # belongs to the run above
    (tmp_path / "nothing").mkdir()
    assert listed(tmp_path) == {
        "a": ("recipe-a", "4 of 4", "finished", "test top1 81.23"),
        "b": ("recipe-b", "4 of 4", "stopped", "test top1 70"),
        "e": ("recipe-e", "-", "finished", "test top1 50"),
        "f": ("recipe-f", "-", "stopped", ""),
        "in/c": ("recipe-c", "40 of 2,000", "stopped", ""),
        "in/c/points/d": ("recipe-d", "0 of 4", "stopped", ""),
    }


def test_jobs_of_several_runs_count_their_parts(write, tmp_path):
    points = [{"name": "x"}, {"name": "y"}]
    whole = {"points": points, ledger.PLANNED: 2}
    write("done", evals=(), sweep=whole)
    write("half", evals=(), layers={"points": points[:1], ledger.PLANNED: 2})
    write("old", evals=(), sweep={"points": points})
    write("transfer", evals=(), sweep={**whole, "metric": "top1"})
    write("tested", evals=(), sweep={**whole, "metric": "top1", "test": {}})
    rows = listed(tmp_path)
    assert {name: row[1:3] for name, row in rows.items()} == {
        "done": ("2 of 2 parts", "finished"),
        "half": ("1 of 2 parts", "stopped"),
        "old": ("2 parts", "stopped"),
        "transfer": ("2 of 2 parts", "stopped"),
        "tested": ("2 of 2 parts", "finished"),
    }


def test_a_ledger_records_how_many_parts_were_asked_for(tmp_path):
    parts = ledger.Parts(tmp_path / "sweep.json", recipe="x")

    class Part:
        def __init__(self, name):
            self.name = name

    def work(part):
        parts.add(part.name)

    parts.finish([Part("a"), Part("b")], "point", work)
    again = ledger.Parts(tmp_path / "sweep.json", recipe="x")
    assert again.rest == {}
    again.finish(
        [Part("a"), Part("b"), Part("c")], "point", lambda p: again.add(p.name)
    )
    content = json.loads((tmp_path / "sweep.json").read_text())
    assert content[ledger.PLANNED] == 3 and len(content["points"]) == 3


def test_a_run_is_running_while_its_process_has_the_lock(write, tmp_path):
    folder = write("a", 4, 4, {"test": (4, 80.0)})
    lock.take(folder)
    try:
        assert listed(tmp_path)["a"][2] == "running"
        left = (folder / lock.NAME).read_text()
    finally:
        lock.release(folder)
    assert listed(tmp_path)["a"][2] == "finished"
    # A killed process leaves the file, not the kernel's lock: on this host it is gone.
    (folder / lock.NAME).write_text(left)
    assert listed(tmp_path)["a"][2] == "finished"
    dead = json.dumps({"host": socket.gethostname(), "pid": 2**22 + 1, "count": 0})
    (folder / lock.NAME).write_text(dead)
    assert listed(tmp_path)["a"][2] == "finished"


def test_of_another_host_a_count_that_goes_on_tells(write, tmp_path, monkeypatch):
    files = [write(name, 4) / lock.NAME for name in "ab"]
    owner = {"host": "elsewhere", "pid": 1}

    def save(file, count):
        file.write_text(json.dumps({**owner, "count": count}))

    for file in files:
        save(file, 3)
    waited = []

    def sleep(seconds):
        waited.append(seconds)
        save(files[0], 4)

    monkeypatch.setattr(runs.time, "sleep", sleep)
    states = {name: row[2] for name, row in listed(tmp_path).items()}
    assert states == {"a": "running", "b": "stopped"} and len(waited) == 1


def test_damage_is_named_and_ends_nothing(write, tmp_path):
    (write("a", 4) / "config.json").write_text("{")
    write("b", 4, 1)
    (tmp_path / "b/evals/test").mkdir(parents=True)
    (tmp_path / "b/evals/test/result.json").write_text("{")
    rows = listed(tmp_path)
    assert "is damaged" in rows["a"][3] and rows["b"][1] == "1 of 4"


def run(*argv):
    with pytest.raises(SystemExit) as ended:
        cli.parse(["main.py", *argv])
    return ended.value.code


def test_the_commands_print_their_lists(write, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("runs") == 2
    assert "runs is no folder; give the one that holds" in capsys.readouterr().err
    pathlib.Path("runs").mkdir()
    assert run("runs") == 0 and "no run below runs" in capsys.readouterr().out
    write("runs/a", 4, 4, {"test": (4, 80.0)})
    assert run("runs") == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "recipe", "step", "state", "last", "results"]
    assert row == "a    recipe-a  4 of 4  finished  test top1 80"
    assert run("recipes") == 0
    assert "  predict              The likeliest classes" in capsys.readouterr().out
    assert run("fields", "predict:digits") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(x.split("#")[0].split() == ["overlay", "=", "0.5"] for x in lines)
    assert any("# opacity of masks in pictures of objects" in x for x in lines)
    assert run("fields", "predict", "--names") == 0
    assert {"top", "data.dir"} <= set(capsys.readouterr().out.split())
    assert run("fields", "predic") == 2
    assert "did you mean predict?" in capsys.readouterr().err


def test_a_config_of_another_program_is_no_run(write, tmp_path):
    write("mine")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"hidden_size": 32}')
    assert [row.name for row in runs.list_runs(tmp_path)] == ["mine"]
