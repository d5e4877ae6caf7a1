"""The best step is kept, patience ends a run, and kills change neither."""

import json
import math
import pathlib
import shutil
import signal
import types

import numpy as np
import pytest

from litevit_jax import checkpoint
from litevit_jax.evaluators import reconstruction
from litevit_jax.jobs import runs, train
from litevit_jax.report import run_record
from litevit_jax.train import best, log
from tests import jobs
from tests.records import params, rows

pytestmark = pytest.mark.usefixtures("shared_designs", "one_device", "given_starts")

RULE = best.Rule("knn", "top1", True, 2, "validation images")


def test_the_first_of_equal_numbers_is_best_and_what_is_not_finite_never_is():
    told = best.Best(RULE)
    assert not told.over
    for step, value in enumerate((math.nan, 3.0, 5.0, 5.0, math.inf), start=1):
        told.update(step, value)
        if step == 1:
            assert told.record["step"] is None and told.record["waited"] == 1
    assert (told.record["step"], told.record["value"], told.record["at"]) == (3, 5.0, 5)
    assert told.over.startswith("stopped early at step 5: 2 evaluations without a bet")
    told.update(6, 6.0)
    assert told.record["waited"] == 0 and not told.over


def test_the_lowest_is_best_where_that_is_the_direction():
    told = best.Best(best.Rule("test", "loss", False, None, "validation images"))
    for step, value in enumerate((3.0, 2.0, 4.0, 4.0, 4.0), start=1):
        told.update(step, value)
    assert told.record["step"] == 2 and told.record["waited"] == 3 and not told.over


def test_an_evaluation_that_is_counted_already_is_not_counted_again():
    told, again = best.Best(RULE), best.Best(RULE)
    told.update(1, 3.0)
    told.update(2, 2.0)
    again.resume(json.loads(json.dumps(told.record)))
    again.update(2, 2.0)
    assert again.record == told.record and not again.over
    again.resume({**told.record, "by": "other.top1", "waited": 9})  # another number
    assert again.record == told.record


class Evaluator:
    """As much of an evaluator as the rule looks at."""

    def __init__(self, split="eval", fingerprint="other", **metrics):
        self.split, self.metrics = split, metrics
        source = types.SimpleNamespace(fingerprint=lambda: fingerprint)
        self.context = types.SimpleNamespace(source=lambda split: source)


def rule(name="knn.top1", evaluator=None, every=5, own=None, patience=None, **data):
    data = {"eval_split": "val", "train_split": "train", "holdout": {}} | data
    evaluators = {"knn": (evaluator or Evaluator(top1=True, loss=False), every)}
    if evaluator is False:
        evaluators = {}
    block = {"knn": {} if own is None else {"data": own}}
    config = {"checkpoint": {"keep_best": name}, "stop": {"patience": patience}}
    config |= {"evals": block, "data": data}
    config["derived"] = {"train_fingerprint": "digest of training"}
    return best.rule(config, evaluators)


def test_the_direction_is_the_evaluators_and_the_images_are_told():
    told = rule()
    assert (told.by, told.highest, told.images) == (
        "knn.top1",
        True,
        "validation images: split 'val'",
    )
    assert not rule("knn.loss").highest
    held = rule(eval_split="test", holdout={"eval": 0.1}).images
    assert held == "validation images: 0.1 of the training split (data.holdout)"
    own = {"source": "folder", "holdout": {"eval": 0.2}}
    assert "(evals.knn.data.holdout)" in rule(own=own).images
    assert "for choosing" in rule(evaluator=Evaluator("select", top1=True)).images
    slices = rule(train_split="train[:90%]", eval_split="train[90%:]")
    assert slices.images == "validation images: split 'train[90%:]'"
    assert rule(None) is None
    assert "highest knn.top1" in told.note()


MISTAKES = {
    "name": ({"name": "knn.top2"}, r"keep_best 'knn.top2' unknown; did you mean knn.top"
        r"1.* choose from knn.top1, knn.loss"),
    "evaluator": ({"name": "vote.top1"}, r"unknown; .*choose from knn.top1, knn.loss"),
    "form": ({"name": "top1"}, r"keep_best 'top1' unknown; .*knn.top1"),
    "none": ({"evaluator": False}, r"keep_best=knn.top1: this run has no evaluator"),
    "at the end": ({"every": 0}, r"at the end alone; .*evals.knn.every_steps=N"),
    "test": ({"eval_split": "test"}, r"eval_split='test', the test split.* --config"
        r".data.holdout.eval=0.1, or name a validation split"),
    "part of test": ({"eval_split": "val + test[:50%]"}, r"the test split"),
    "own test": ({"own": {"source": "folder"}}, r"evals.knn.data.eval_split='test', .*"
        r"--config.evals.knn.data.holdout.eval=0.1"),
    "training": ({"evaluator": Evaluator("train", top1=True)}, r"evals.knn.split=train "
        r"measures on training images"),
    "training split": ({"eval_split": "train"}, r"which are training images"),
    "same images": ({"evaluator": Evaluator("eval", "digest of training", top1=True)},
        r"eval_split='val', which are training images"),
    "patience alone": ({"name": None, "patience": 3}, r"stop.patience=3 counts .*"
        r"keep_best=EVALUATOR.METRIC, of knn.top1, knn.loss"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_choice_that_would_mislead_is_refused(name):
    fields, message = MISTAKES[name]
    with pytest.raises(ValueError, match=rf"(?s){message}"):
        rule(**fields)


LOSSES = {1: 5.0, 2: 3.0, 3: 4.0, 4: 6.0, 5: 3.0, 6: 1.0}


@pytest.fixture
def scripted(monkeypatch):
    """The evaluation of a step gives the number of LOSSES; the steps evaluated."""
    seen = []

    def run(self, state, *, step):
        seen.append(step)
        return {"mae_loss": LOSSES[step], "n": 1}

    monkeypatch.setattr(reconstruction.Reconstruction, "run", run)
    return seen


def choosing(**overrides):
    fields = {
        "data__holdout__eval": 0.1,
        "evals__reconstruction__every_steps": 1,
        "checkpoint__keep_best": "reconstruction.mae_loss",
        "checkpoint__keep": 1,
        "stop__patience": 3,
    }
    return jobs.tiny(**(fields | overrides))


def steps(workdir):
    return checkpoint.Checkpoints(workdir, keep=9).steps()


def result(workdir):
    path = workdir / "evals/reconstruction/result.json"
    return json.loads(path.read_text())


@pytest.fixture
def ended(scripted, tmp_path):
    """A run that ended early, at step 5 of 6: the best was step 2."""
    outcome = train.run(choosing(), tmp_path / "ended")
    assert (outcome.step, outcome.signal) == (5, None)
    return tmp_path / "ended"


def test_patience_ends_a_run_and_the_best_step_stays(capsys, ended):
    said = capsys.readouterr().out
    assert "chosen on validation images: 0.1 of the training split" in said
    assert "stopped early at step 5: 3 evaluations without a better recon" in said
    assert steps(ended) == [2, 5]
    record = result(ended)[best.KEY]
    assert (record["step"], record["value"], record["waited"]) == (2, 3.0, 3)
    line = best.sentence({"reconstruction": result(ended)}, ended)
    assert line.startswith(
        "best by reconstruction.mae_loss: 3 at step 2, chosen on val"
    )
    assert line.endswith(f"--config.init={ended / 'checkpoints' / '2'}")
    row = runs.list_runs(ended)[0]
    assert (row.step, row.state) == ("5 of 5", "finished")
    assert row.results.endswith("; best reconstruction.mae_loss 3 at step 2")
    notes = " ".join(run_record.read("run", ended).notes)
    assert "ended early at update 5" in notes and "3 at step 2" in notes
    assert "Unfinished" not in notes


def test_started_again_it_says_so_and_does_nothing(ended, scripted, capsys):
    scripted.clear()
    outcome = train.run(choosing(), ended)
    assert outcome.step == 5 and not scripted
    assert "stopped early at step 5" in capsys.readouterr().out
    assert steps(ended) == [2, 5]


def test_more_patience_lets_it_go_on(ended):
    outcome = train.run(choosing(stop__patience=4), ended)
    assert outcome.step == 6
    assert result(ended)[best.KEY]["step"] == 6 and steps(ended) == [6]


@pytest.mark.parametrize("last", [2, 3, 4])
def test_a_run_that_lost_its_last_steps_decides_as_before(last, ended, tmp_path):
    """As after a kill: results and logs have later steps than the checkpoints."""
    copy = tmp_path / "copy"
    made = choosing(checkpoint__keep=5, checkpoint__every_steps=last)
    train.run(made, copy)
    for step in steps(copy):
        if step > last:
            shutil.rmtree(copy / "checkpoints" / str(step))
    outcome = train.run(made, copy)
    assert outcome.step == 5 and steps(copy)[-1] == 5
    assert result(copy)[best.KEY] == result(ended)[best.KEY]
    wanted = params(ended, 5)
    for name, value in params(copy, 5).items():
        np.testing.assert_array_equal(value, wanted[name], err_msg=name)


def short(**overrides):
    """A run of 6 updates, of images that 4.5 updates pass over."""
    return jobs.tiny(data__fraction=0.1, evals={}, **overrides)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run, finished."""
    workdir = tmp_path_factory.mktemp("whole")
    with jobs.on_one_device(), jobs.given_starts():
        train.run(short(), workdir)
    return workdir


@pytest.fixture
def finished(whole, tmp_path):
    return pathlib.Path(shutil.copytree(whole, tmp_path / "finished"))


def test_a_finished_run_trains_longer_by_the_rule_that_it_prints(
    finished, tmp_path, capsys, monkeypatch
):
    killed = pathlib.Path(shutil.copytree(finished, tmp_path / "killed"))
    longer = short(extend_to=2)
    assert train.run(longer, finished).step == 9
    said = capsys.readouterr().out
    assert (
        "extended to 9 updates (planned: 6)" in said
        and "resuming at step 6 of 9" in said
    )
    config = json.loads((finished / "config.json").read_text())
    assert config["extend_to"] == 2
    warmup, peak = config["derived"]["warmup_steps"], config["derived"]["peak_lr"]
    rates = {row["step"]: row["lr"] for row in rows(finished) if "lr" in row}
    for k in (6, 7, 8):  # updates done before
        wanted = peak * np.sin(np.pi / 2 * (9 - k) / (9 - warmup)) ** 2
        assert rates[k + 1] == pytest.approx(wanted, rel=1e-5)

    tick = log.Throughput.tick

    def stopped(self, wait_s, steps=1):
        tick(self, wait_s, steps)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(log.Throughput, "tick", stopped)
        outcome = train.run(longer, killed)
    assert (outcome.step, outcome.signal) == (7, signal.SIGTERM)
    assert train.run(longer, killed).step == 9
    # A second time, from there.
    for workdir in (finished, killed):
        assert train.run(short(extend_to=3), workdir).step == 14
    wanted = params(finished, 14)
    for name, value in params(killed, 14).items():
        np.testing.assert_array_equal(value, wanted[name], err_msg=name)
    with pytest.raises(ValueError, match=r"extend_to: 3 -> null"):
        train.prepare(short(), finished)
    with pytest.raises(ValueError, match=r"extend_to: 3 -> 2"):
        train.prepare(longer, finished)


def test_an_unfinished_run_trains_longer_from_its_last_checkpoint(finished):
    shutil.rmtree(finished / "checkpoints" / "6")
    before = {row["step"]: row["lr"] for row in rows(finished) if "lr" in row}
    assert train.run(short(extend_to=2), finished).step == 9
    rates = {row["step"]: row["lr"] for row in rows(finished) if "lr" in row}
    assert rates[3] == before[3] and rates[4] > before[4]
    assert rates[4] == pytest.approx(rates[1] * np.sin(np.pi / 2 * 6 / 9) ** 2)
    resumed = [row for row in rows(finished) if row.get("event") == "resume"]
    assert [(row["step"], row["total_steps"]) for row in resumed] == [(3, 9)]


def test_a_larger_budget_alone_is_refused_with_what_extends_the_run(finished):
    with pytest.raises(ValueError, match=r"steps: 6 -> 9(?s:.)*--config.extend_to=EPO"):
        train.prepare(short(steps=9), finished)


def test_what_cannot_be_extended_is_refused(finished, tmp_path):
    message = r"extend_to=1 epochs are 4 updates, and the run has 6 without it"
    with pytest.raises(ValueError, match=message):
        train.prepare(short(extend_to=1), finished)
    with pytest.raises(
        ValueError, match=r"has no run that extend_to=2 could make long"
    ):
        train.prepare(short(extend_to=2), tmp_path / "new")
    with pytest.raises(ValueError, match=r"seed: 0 -> 1"):
        train.prepare(short(extend_to=2, seed=1), finished)
