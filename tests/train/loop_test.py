"""Laws of whole runs: resume, signals, one compile, results, damaged checkpoints."""

import dataclasses
import itertools
import json
import pathlib
import re
import shutil
import signal
import threading
import time

import jax
import numpy as np
import pytest

from litevit_jax import checkpoint
from litevit_jax.data import device
from litevit_jax.evaluators import base
from litevit_jax.jobs import train
from litevit_jax.train import build, lock, log, loop
from tests import jobs
from tests.records import losses, params, rows, same

# On one device; tests/objectives/laws_test.py resumes every objective on eight.
pytestmark = pytest.mark.usefixtures("shared_designs", "one_device", "given_starts")


def tiny(**overrides):
    """With the chance that the device deals out, too."""
    return jobs.tiny(data__flip=0.5, **overrides)


@pytest.fixture(scope="module", autouse=True)
def _as_users():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "FUSED", True)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of 6 steps, saved at 3 and 6."""
    workdir = tmp_path_factory.mktemp("whole")
    outcome = train.run(tiny(), workdir)
    assert outcome.step == 6 and outcome.signal is None
    assert not (workdir / lock.NAME).exists()
    return workdir


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of the run that a test may damage."""
    return pathlib.Path(shutil.copytree(whole, tmp_path / "copy"))


def forget(workdir, *steps):
    for step in steps:
        shutil.rmtree(workdir / "checkpoints" / str(step))


def test_a_run_leaves_what_the_readme_says(whole):
    assert sorted(p.name for p in whole.iterdir()) == [
        "checkpoints",
        "config.json",
        "environment.jsonl",
        "evals",
        "metrics.jsonl",
        "parameters.txt",
        "pictures",
    ]
    assert [r["step"] for r in rows(whole) if "loss" in r] == [1, 2, 3, 4, 5, 6]
    environment = json.loads((whole / "environment.jsonl").read_text())
    assert len(environment["devices"]) == 8
    assert environment["versions"]["jax"] == jax.__version__
    assert environment["variables"]["JAX_NUM_CPU_DEVICES"] == "8"
    assert "encoder/cls_token" in (whole / "parameters.txt").read_text()
    result = json.loads((whole / "evals/reconstruction/result.json").read_text())
    assert [r["step"] for r in result["history"]] == [3, 6]
    assert result["last"]["n"] == 359


def test_tensorboard_events_are_written_when_asked_for(tmp_path):
    train.run(tiny(log__writers=("jsonl", "tensorboard"), evals={}), tmp_path)
    assert list((tmp_path / "tensorboard").glob("events.out.*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_resumes_to_the_same_bits(number, whole, tmp_path, monkeypatch):
    ticks = []

    def tick(self, wait_s, steps=1):
        ticks.append(wait_s)
        self._steps += 1
        if len(ticks) == 4:
            signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(log.Throughput, "tick", tick)
        outcome = train.run(tiny(), tmp_path)
    assert (outcome.step, outcome.signal) == (4, number)
    outcome = train.run(tiny(), tmp_path)
    assert (outcome.step, outcome.signal) == (6, None)
    same(params(tmp_path), params(whole))
    assert losses(tmp_path) == losses(whole)
    assert [r["step"] for r in rows(tmp_path) if r.get("event") == "resume"] == [4]


def test_a_run_whose_data_do_not_come_saves_and_stops(whole, tmp_path, monkeypatch):
    never, stream = threading.Event(), build._stream

    def stuck(*args):
        yield from itertools.islice(stream(*args), 5)
        signal.raise_signal(signal.SIGTERM)
        never.wait()

    with monkeypatch.context() as patch:
        patch.setattr(build, "_stream", stuck)
        patch.setattr(device, "_PATIENCE_S", 0.1)
        outcome = train.run(tiny(), tmp_path)
    never.set()
    assert outcome.signal == signal.SIGTERM and not (tmp_path / lock.NAME).exists()
    assert 1 <= outcome.step <= 5  # a few batches may have been read ahead
    assert (tmp_path / "checkpoints" / str(outcome.step)).exists()
    assert train.run(tiny(), tmp_path).step == 6
    same(params(tmp_path), params(whole))


def test_a_second_ctrl_c_saves_nothing_more_and_loses_nothing_else(
    tmp_path, monkeypatch
):
    tick = log.Throughput.tick

    def twice(self, wait_s, steps=1):
        tick(self, wait_s, steps)
        if self._steps == 5:
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)
                while loop.preemption._preemption._heard_s is None:
                    time.sleep(0.01)
            while not loop.preemption._preemption.urgent:
                time.sleep(0.01)

    monkeypatch.setattr(log.Throughput, "tick", twice)
    made = tiny(checkpoint__every_steps=4, evals={}, log__every_steps=100)
    outcome = train.run(made, tmp_path)
    assert (outcome.step, outcome.signal) == (4, signal.SIGINT)
    assert not (tmp_path / "corrupt").exists()


def test_a_stop_in_an_evaluation_is_obeyed_and_the_evaluation_made_on_resuming(
    whole, tmp_path, monkeypatch
):
    over = base.Context.over

    def signalled(self, *args, **kwargs):
        for count, batch in enumerate(over(self, *args, **kwargs)):
            assert not count, "it goes on"
            signal.raise_signal(signal.SIGTERM)  # nohup would ignore SIGHUP
            yield batch

    def steps(workdir):
        path = workdir / "evals" / "reconstruction" / "result.json"
        return [row["step"] for row in json.loads(path.read_text())["history"]]

    with monkeypatch.context() as patch:
        patch.setattr(base.Context, "over", signalled)
        outcome = train.run(tiny(), tmp_path)
    assert (outcome.step, outcome.signal) == (steps(whole)[0], signal.SIGTERM)
    assert train.run(tiny(), tmp_path).signal is None
    assert steps(tmp_path) == steps(whole)
    same(params(tmp_path), params(whole))


def test_a_run_resumes_from_any_of_its_checkpoints_to_the_same_bits(whole, copy):
    forget(copy, 6)
    assert train.run(tiny(), copy).step == 6
    same(params(copy), params(whole))


def test_a_complete_run_does_nothing_more(copy):
    before = (copy / "metrics.jsonl").read_text()
    outcome = train.run(tiny(), copy)
    assert outcome.results["reconstruction"]["last"]["step"] == 6
    added = (copy / "metrics.jsonl").read_text().removeprefix(before)
    assert [json.loads(line)["event"] for line in added.splitlines()] == ["resume"]


def test_a_complete_run_makes_up_for_a_missing_evaluation(copy):
    shutil.rmtree(copy / "evals")
    outcome = train.run(tiny(), copy)
    assert outcome.results["reconstruction"]["last"]["step"] == 6


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(whole, copy, caplog):
    files = [p for p in (copy / "checkpoints/6/params").rglob("*") if p.is_file()]
    for file in files:
        if file.parent.name == "d":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    outcome = train.run(tiny(), copy)
    assert outcome.step == 6
    assert "checkpoint of step 6 is damaged" in caplog.text
    assert (copy / "corrupt" / "6-0").is_dir()
    same(params(copy), params(whole))


def test_a_checkpoint_whose_bits_changed_is_noticed(copy, monkeypatch, caplog):
    meta = json.loads((copy / "checkpoints/6/meta/metadata").read_text())
    meta["fingerprints"]["params.encoder.cls_token"] ^= 1
    (copy / "checkpoints/6/meta/metadata").write_text(json.dumps(meta))
    assert train.run(tiny(), copy).step == 6
    assert "bits differ from those saved in params.encoder.cls_token" in caplog.text


def test_a_run_without_any_readable_checkpoint_says_so(copy):
    for step in (3, 6):
        shutil.rmtree(copy / f"checkpoints/{step}/params")
    with pytest.raises(checkpoint.CorruptCheckpoint, match=r"no checkpoint .*\[6, 3\]"):
        train.run(tiny(), copy)


def test_another_config_is_refused_with_the_keys_that_differ(copy):
    with pytest.raises(ValueError, match=r"(?s)lr.base: 0.003 -> 0.1.*seed: 0 -> 7"):
        train.prepare(tiny(seed=7, lr__base=0.1), copy)


def test_changes_that_cannot_matter_are_allowed(copy):
    made = tiny(log__every_steps=2, checkpoint__keep=5, data__workers=1)
    assert train.prepare(made, copy).resumes
    assert json.loads((copy / "config.json").read_text())["log"]["every_steps"] == 2


def test_the_step_compiles_once(tmp_path):
    job, lowered = jobs.prepare(tmp_path, tiny()), []

    class Step:
        """Can be compiled, and not called: that would compile it anew, unsaid."""

        def lower(self, *arguments):
            lowered.append(job.step.lower(*arguments))
            return lowered[-1]

    loop_run = loop.Run(dataclasses.replace(job, step=Step()))
    state = loop_run.train(job.create(), loop.preemption.Preemption())
    loop_run.close()
    assert int(state.step) == 6
    assert len(lowered) == 1 and job.step._cache_size() == 0


def test_what_is_shown_does_not_depend_on_what_is_logged(whole, tmp_path, capsys):
    train.run(tiny(log__every_steps=5), tmp_path)
    said = capsys.readouterr().out.splitlines()
    compiling = next(i for i, line in enumerate(said) if "compiling the step" in line)
    assert "(first time: about " in said[compiling]
    first = said[compiling + 1]  # told when done, before anything of the second
    assert first.startswith("step 1/6 ") and "(compiled in " in first
    shown = [line for line in said if re.match(r"step \d+/6 ", line)]
    assert [line.split("/")[0] for line in shown] == [
        f"step {n}" for n in (1, 2, 4, 5, 6)
    ]
    assert sum("(compiled in " in line for line in shown) == 1
    evaluated = [line for line in said if "reconstruction: evaluating" in line]
    assert len(evaluated) == 1  # later ones are as quick as the first was
    assert [r["step"] for r in rows(tmp_path) if "loss" in r] == [5, 6]
    same(params(tmp_path), params(whole))


def test_evaluation_does_not_change_training_by_a_bit(whole, tmp_path):
    made = tiny(evals__reconstruction__every_steps=1)
    train.run(made, tmp_path)
    same(params(tmp_path), params(whole))


def test_workers_and_threads_do_not_change_training_by_a_bit(whole, tmp_path):
    train.run(tiny(data__threads=1, data__workers=2, evals={}), tmp_path)
    same(params(tmp_path), params(whole))


def test_health_is_logged_with_the_rest_and_changes_no_bit(whole, tmp_path):
    train.run(tiny(log__every_steps=4, log__health=True, evals={}), tmp_path)
    logged = [r for r in rows(tmp_path) if "loss" in r]
    assert [r["step"] for r in logged] == [4, 6]
    for row in logged:  # a number that is not finite would be a string
        assert 1 <= row["effective_rank"] <= 24 and 0 <= row["feature_std"] <= 1.5
        assert 0 <= row["attn_entropy/head_01"] <= np.log(17)
    assert not any("effective_rank" in r for r in rows(whole))
    same(params(tmp_path), params(whole))


@pytest.fixture
def quick(monkeypatch):
    """Programs compile in a fraction of the time; no other run's bits are compared."""
    monkeypatch.setattr(jobs, "FUSED", False)


def test_numbers_that_stay_nonfinite_stop_the_run_and_lose_nothing(quick, tmp_path):
    made = tiny(lr__base=1e30, lr__warmup_epochs=0.0, nonfinite__max_in_a_row=2)
    made.evals = {}
    with pytest.raises(FloatingPointError, match="2 updates in a row"):
        train.run(made, tmp_path)
    assert (tmp_path / "checkpoints").is_dir()
    for step in checkpoint.Checkpoints(tmp_path, keep=3).steps():
        assert all(np.isfinite(v).all() for v in params(tmp_path, step).values())
    skipped = [r for r in rows(tmp_path) if r.get("event") == "nonfinite"]
    assert len(skipped[0]["examples"]) == 32


def test_bad_data_stops_the_run_with_its_name_and_saves_first(
    quick, tmp_path, image_folder
):
    folder = image_folder(train=400)
    arg = f"smoke,data=folder,path={folder}"
    made = jobs.tiny("mae_tiny", arg, steps=40, evals={})
    for name in ("003.png", "004.png"):  # one is allowed
        (folder / "train" / "a" / name).write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"00[34].png"):
        train.run(made, tmp_path / "run")
    assert checkpoint.Checkpoints(tmp_path / "run", keep=3).steps()
