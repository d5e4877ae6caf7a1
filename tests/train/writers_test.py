"""Writers: what services are told, that a resumed run stays one, and what may fail."""

import errno
import importlib.util
import json
import math
import os
import signal
import sys
import time
import types

import pytest

from litevit_jax import distributed
from litevit_jax.jobs import train
from litevit_jax.train import log, services, writers
from tests import jobs


def rows(workdir):
    text = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in text]


def test_rows_are_appended_also_after_a_cut_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"st')
    writer = writers.Writer(tmp_path)
    writer.write(2, {"loss": 0.5, "grad_norm": math.nan, "event": "x"})
    writer.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines[1] == '{"st'
    row = {"step": 2, "loss": 0.5, "grad_norm": "nan", "event": "x"}
    assert json.loads(lines[2]) == row


def test_unknown_writers_and_missing_packages_are_named_at_once(monkeypatch):
    with pytest.raises(
        ValueError, match=r"'wandbb' unknown; did you mean wandb\? .*ml"
    ):
        services.check(("jsonl", "wandbb"))
    services.check(("jsonl", "tensorboard"))
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ModuleNotFoundError, match="pip install wandb trackio, or leave"
    ):
        services.check(("wandb", "trackio", "jsonl"))
    made = jobs.tiny(log__writers=("wandb",), data__source="folder", data__dir="/none")
    with pytest.raises(ModuleNotFoundError, match=r"wandb needs a package"):
        train.prepare(made, "unused")  # before the data are looked for


def test_the_old_field_names_the_new_one():
    made = jobs.tiny()
    with made.unlocked():
        made.log.tensorboard = True
    with pytest.raises(ValueError, match=r"log.tensorboard is gone: .*log.writers="):
        train.prepare(made, "unused")


class Library:
    """Takes the place of wandb, mlflow and trackio; `calls` are in their order."""

    def __init__(self):
        self.calls, self.metrics = [], []
        self.fails = False
        run = types.SimpleNamespace(
            log=self.log, finish=lambda: self.calls.append("finish"),
            define_metric=lambda *args, **kwargs: None,
        )  # fmt: skip

        def init(**kwargs):
            if self.fails:
                raise ConnectionError("no\nroute")
            self.calls.append(kwargs)
            return run

        self.wandb = types.ModuleType("wandb")
        self.wandb.init, self.wandb.Settings = init, lambda **kwargs: kwargs
        self.trackio = types.ModuleType("trackio")
        self.trackio.init = init
        self.mlflow = types.ModuleType("mlflow")
        entities = types.SimpleNamespace(
            Metric=lambda *args: args, Param=lambda *args: args
        )
        self.mlflow.entities = entities
        self.mlflow.get_tracking_uri = lambda: "sqlite:///here"
        self.mlflow.MlflowClient = lambda uri: Client(self, uri)

    def log(self, numbers, step=None):
        if self.fails:
            raise ConnectionError("no\nroute")
        self.metrics.append({**numbers, "step": numbers.get("step", step)})


class Client:
    """The part of mlflow's client that is used."""

    def __init__(self, library, uri):
        self.library, self.uri = library, uri

    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name):
        return f"id of {name}"

    def create_run(self, experiment, run_name):
        self.library.calls.append({"experiment": experiment, "uri": self.uri})
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="7"))

    def update_run(self, run, status):
        self.library.calls.append({"run": run, "status": status, "uri": self.uri})

    def log_batch(self, run, metrics=(), params=()):
        assert run == "7" and len(params) <= 100
        if metrics:
            assert all(isinstance(time, int) for _, _, time, _ in metrics)
            numbers = {name: value for name, value, _, _ in metrics}
            self.library.log(numbers, metrics[0][3])

    def set_terminated(self, run):
        self.library.calls.append("finish")


@pytest.fixture
def library(monkeypatch):
    made = Library()
    for name in ("wandb", "mlflow", "trackio"):
        monkeypatch.setitem(sys.modules, name, getattr(made, name))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return made


def config(*names):
    fields = {f"field{n}": n for n in range(150)}
    return {"name": "mae", "log": {"writers": names, "project": "litevit"}, **fields}


def opened(workdir, *names):
    return writers.open_writer(workdir, config(*names))


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_resumed_run_goes_on_in_the_same_run_of_a_service(name, library, tmp_path):
    for first in (1, 3):
        writer = opened(tmp_path, "jsonl", name, name)
        row = {"loss": 0.5, "time": 9.0, "event": "x", "whole": True}
        writer.write(first, row)
        writer.write(first + 1, {"event": "y"})  # no number: nothing to show
        writer.close()
    assert library.metrics == [{"loss": 0.5, "step": n} for n in (1, 3)]
    one, end, other, again = library.calls
    assert end == again == "finish"
    recorded = json.loads((tmp_path / "writers.json").read_text())[name]
    if name == "mlflow":
        assert one == {"experiment": "id of litevit", "uri": "sqlite:///here"}
        assert other == {"run": "7", "status": "RUNNING", "uri": "sqlite:///here"}
        assert recorded == {"id": "7", "uri": "sqlite:///here"}
        return
    key = "id" if name == "wandb" else "name"
    assert one[key] == other[key] == recorded[key] and len(one[key]) >= 6
    assert one["resume"] == "allow" and one["project"] == "litevit"
    assert one["config"]["field3"] == 3
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4]


def test_runs_of_two_directories_are_two(library, tmp_path):
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        opened(tmp_path / place, "trackio").close()
    names = [call["name"] for call in library.calls if call != "finish"]
    assert len(set(names)) == 2


def test_a_service_that_fails_is_named_once_and_costs_no_row(library, tmp_path, caplog):
    writer = opened(tmp_path, "trackio", "wandb")
    writer.write(1, {"loss": 1.0})
    time.sleep(0.2)
    library.fails = True
    for step in range(2, 50):
        writer.write(step, {"loss": 1.0})
        writer.flush()
    writer.close()
    for name in ("trackio", "wandb"):
        text = (
            f"log.writers: {name} failed (ConnectionError: no route); the run goes on"
        )
        assert caplog.text.count(text) == 1
    assert len(rows(tmp_path)) == 49


def test_a_service_that_hangs_is_left_behind(library, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(writers, "_CLOSING_S", 0.2)
    monkeypatch.setattr(writers, "_MOST_CALLS", 4)
    monkeypatch.setattr(library, "log", lambda *args, **kwargs: time.sleep(3))
    library.wandb.init().log = library.log
    writer = opened(tmp_path, "wandb")
    started = time.monotonic()
    for step in range(20):
        writer.write(step, {"loss": 1.0})
    writer.close()
    assert time.monotonic() - started < 2
    assert caplog.text.count("log.writers: wandb does not keep up with the run") == 1
    assert len(rows(tmp_path)) == 20


def test_a_service_that_does_not_start_ends_a_new_run_and_not_a_resumed_one(
    library, tmp_path, caplog
):
    library.fails = True
    message = r"wandb did not start \(Conn.*WANDB_MODE=offline"
    for _ in range(2):  # a directory alone is no run that could go on
        with pytest.raises(ValueError, match=message):
            opened(tmp_path, "jsonl", "wandb")
    writers.Writer(tmp_path).write(1, {"loss": 1.0})
    opened(tmp_path, "jsonl", "wandb").close()
    assert (
        "wandb did not start (ConnectionError: no route); the run goes" in caplog.text
    )


def test_other_processes_than_the_first_have_no_service(library, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "run_on_primary", lambda call: None)
    opened(tmp_path, "wandb").close()
    assert not library.calls


def test_events_that_a_full_disk_refuses_cost_the_run_nothing(
    tmp_path, monkeypatch, caplog
):
    (tmp_path / "tensorboard").mkdir()
    service = services.TensorBoard(tmp_path)

    def refuse(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    events = service._events.file_writer.event_writer._ev_writer
    monkeypatch.setattr(events, "_py_recordio_writer", types.SimpleNamespace(
        write=refuse, flush=lambda: None, close=lambda: None))  # fmt: skip
    writer = writers.Writer(tmp_path, [writers.Aside("tensorboard", service)])
    deadline = time.monotonic() + 30
    while "failed" not in caplog.text and time.monotonic() < deadline:
        writer.write(1, {"loss": 1.0})
        time.sleep(0.001)
    writer.close()
    assert caplog.text.count("log.writers: tensorboard failed (OSError: ") == 1
    assert "No space left" in caplog.text and "events.out" in caplog.text


@pytest.mark.usefixtures("shared_designs", "one_device", "given_starts")
def test_a_run_that_is_stopped_shows_each_update_in_one_run(
    library, tmp_path, monkeypatch
):
    made = jobs.tiny(log__writers=("jsonl", "trackio"), evals={})
    tick = log.Throughput.tick

    def stopped(self, wait_s, steps=1):
        tick(self, wait_s, steps)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(log.Throughput, "tick", stopped)
        assert train.run(made, tmp_path).signal == signal.SIGTERM
    assert train.run(made, tmp_path).step == 6
    shown = {row["step"]: row["loss"] for row in library.metrics if "loss" in row}
    logged = {row["step"]: row["loss"] for row in rows(tmp_path) if "loss" in row}
    assert shown == logged and sorted(shown) == [1, 2, 3, 4, 5, 6]
    names = {call["name"] for call in library.calls if call != "finish"}
    assert len(names) == 1 and library.calls.count("finish") == 2


def real(name, workdir, monkeypatch):
    """Writes with the library itself, twice; (step, loss) of the run that it keeps."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workdir}/mlflow.db")
    monkeypatch.setenv("TRACKIO_DIR", str(workdir / "trackio"))
    for first in (1, 3):
        writer = opened(workdir, name)
        for step in (first, first + 1):
            writer.write(step, {"loss": 1 / step, "knn/top1": 50.0, "event": "x"})
        writer.close()
    return json.loads((workdir / "writers.json").read_text())[name]


def installed(name):
    return pytest.mark.skipif(
        importlib.util.find_spec(name) is None, reason=f"{name} is not installed"
    )


LOSSES = [(step, 1 / step) for step in (1, 2, 3, 4)]


@installed("mlflow")
@pytest.mark.filterwarnings("ignore")
def test_mlflow_keeps_one_run(tmp_path, monkeypatch):
    names = real("mlflow", tmp_path, monkeypatch)
    import mlflow

    client = mlflow.MlflowClient(names["uri"])
    history = client.get_metric_history(names["id"], "loss")
    assert [(metric.step, metric.value) for metric in history] == LOSSES
    run = client.get_run(names["id"])
    assert run.info.status == "FINISHED" and run.data.params["field7"] == "7"
    assert run.data.metrics["knn/top1"] == 50.0


@installed("trackio")
@pytest.mark.filterwarnings("ignore")
def test_trackio_keeps_one_run(tmp_path, monkeypatch):
    names = real("trackio", tmp_path, monkeypatch)
    from trackio.sqlite_storage import SQLiteStorage

    logged = SQLiteStorage.get_logs(names["project"], names["name"])
    assert [(row["step"], row["loss"]) for row in logged] == LOSSES


@installed("wandb")
@pytest.mark.filterwarnings("ignore")
def test_wandb_offline_keeps_two_parts_of_one_run(tmp_path, monkeypatch):
    names = real("wandb", tmp_path, monkeypatch)
    folders = [path for path in os.listdir(tmp_path / "wandb") if "offline-run" in path]
    assert len(folders) == 2  # `wandb sync` joins them by their id
    assert all(path.endswith(names["id"]) for path in folders)
