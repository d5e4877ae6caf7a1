"""Evaluators on data of their own: they change no bit, say what they cost."""

import json
import types

import jax
import numpy as np
import pytest

from litevit_jax import sharding
from litevit_jax.data import splits
from litevit_jax.evaluators import frozen
from litevit_jax.jobs import train
from litevit_jax.train import eval_runner, eval_setup
from litevit_jax.warm_start import read
from tests import jobs
from tests.records import rows

pytestmark = pytest.mark.usefixtures("shared_designs", "one_device")

MAKE_MESH = sharding.make_mesh


def losses(workdir):
    return [
        (r["step"], r["loss"], r["grad_norm"]) for r in rows(workdir) if "loss" in r
    ]


def config(arg="smoke", **overrides):
    made = jobs.tiny("mae_tiny", arg, **({"steps": 3} | overrides))
    with made.unlocked():
        del made.evals.reconstruction
        if "knn" in made.evals:
            made.evals.knn.every_steps = 1
    return made


@pytest.fixture
def labelled(image_folder):
    """A folder of two classes, of other images than the digits that are learned."""
    return image_folder(train=12, test=5)


@pytest.fixture
def voted(labelled, tmp_path):
    """A run that votes on `labelled` after each of its steps."""
    outcome = train.run(config(f"smoke,knn={labelled}"), tmp_path / "voted")
    return tmp_path / "voted", outcome.results["knn"]


def test_a_vote_on_another_set_during_training_changes_no_bit(voted, tmp_path):
    train.run(config(), tmp_path / "plain")
    with_votes, plain = voted[0], tmp_path / "plain"
    assert losses(with_votes) == losses(plain) and len(losses(plain)) == 3
    a, b = (read.read_params(str(run)).params for run in (with_votes, plain))
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)
    workdir, result = voted
    assert [row["step"] for row in result["history"]] == [1, 2, 3]
    assert result["last"]["n"] == 5  # of the folder's test split, not the digits'
    check_what_a_result_says(workdir, result)


def check_what_a_result_says(workdir, result):
    assert json.loads((workdir / "evals/knn/result.json").read_text()) == result
    said = {k: result[k] for k in ("name", "evaluator", "metric", "n", "seed", "step")}
    assert said == {
        "name": "knn",
        "evaluator": "knn",
        "metric": "top1",
        "n": 5,
        "seed": 0,
        "step": 3,
    }
    assert result["config"] == json.loads((workdir / "config.json").read_text())
    assert result["time"] == result["last"]["time"] > 1.6e9
    prints = [row["params"] for row in result["history"]]
    assert len(set(prints)) == 3 and result["params"] == prints[-1]
    assert result["best"]["top1"] == max(row["top1"] for row in result["history"])
    logged = [row for row in rows(workdir) if "knn/top1" in row]
    assert [row["step"] for row in logged] == [1, 2, 3]
    for row, said in zip(logged, result["history"], strict=True):
        assert row["knn/seconds"] == said["seconds"] > 0
        assert 0 < row["knn/percent_of_run"] == said["percent_of_run"] < 100


def prepared(made, workdir):
    """A job that never trains."""
    with jobs.without_steps():
        return train.prepare(made, workdir)


def prepare(tmp_path, data, **fields):
    made = config()
    knn = {"name": "knn", "split": "eval", "every_steps": 0, "data": data, **fields}
    with made.unlocked():
        made.evals.knn = knn
    return prepared(made, tmp_path / "run")


def test_the_block_says_which_data_and_the_run_how_they_are_read(labelled, tmp_path):
    job = prepare(tmp_path, {"source": "folder", "dir": str(labelled)})
    context = job.evaluators["knn"][0].context
    assert (len(context.source("eval")), context.num_classes) == (5, 2)
    (batch,) = context.batches(context.source("eval"))
    assert batch["image"].shape[1:] == (8, 8, 1)
    assert job.config["derived"]["num_classes"] == 10  # the digits' own


def test_parts_of_the_training_set_are_not_asked_of_the_other_set(labelled, tmp_path):
    made = config(data__fraction=0.5, data__holdout__eval=0.2)
    knn = {"name": "knn", "split": "eval", "every_steps": 0}
    with made.unlocked():
        made.evals.knn = {**knn, "data": {"source": "folder", "dir": str(labelled)}}
    job = prepared(made, tmp_path / "run")
    context = job.evaluators["knn"][0].context
    assert len(context.source("train")) == 12 and len(context.source("eval")) == 5
    assert job.config["derived"]["train_examples"] == round(0.5 * (1438 - 288))


MISTAKES = {
    "no source": ({"dir": "x"}, r"evals.knn.data names no source; choose from .*digi"),
    "field": ({"source": "digits", "pth": "x"}, r"field of evals.knn.data 'pth' unkn"),
    "source's name": ({"source": "digts"}, r"source 'digts' unknown; did you mean dig"),
    "split": ({"source": "digits", "eval_split": "tets"},
        r"'tets' unknown; did you mean test\? choose from test, train"),
    "no test split": ({"source": "folder", "dir": "train"},
        r"evals.knn.data: .*no 'test' split.* --config.evals.knn.data.holdout.test=0"),
    "no folder": ({"source": "folder", "dir": "x"}, r"evals.knn.data: data.dir=.* doe"),
    "size": ({"source": "digits", "image_size": 9},
        r"evals.knn.data: images of 9x9, but the model learns from 8x8"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_block_is_refused_before_the_run(name, labelled, tmp_path):
    data, message = MISTAKES[name]
    if "dir" in data:
        data = data | {"dir": str(labelled / data["dir"])}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        prepare(tmp_path, data)
    assert not (tmp_path / "run").exists()


def test_a_classifier_is_not_asked_of_other_classes(labelled, tmp_path):
    made = jobs.tiny("deit_tiny", "smoke")
    with made.unlocked():
        made.evals.test.data = {"source": "folder", "dir": str(labelled)}
    message = r"evals.test: 'a', 'b': 2 of 2 classes .* none that the model was trained"
    with pytest.raises(ValueError, match=message):
        prepared(made, tmp_path / "run")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A job of the quick start's encoder at random, and its initial state."""
    job = prepared(jobs.config("mae_tiny"), tmp_path_factory.mktemp("encoder"))
    return job, jax.device_get(job.create())


def gathered(encoder, batch_size, devices):
    """Features [n, D] of the test digits, evaluated so."""
    job, state = encoder
    made = jobs.config("mae_tiny", batch_size=batch_size)
    with made.unlocked():
        made.data.eval_split = "test"
        made.derived = {"num_classes": 10}
        made.evals = {"knn": {"name": "knn", "split": "eval", "every_steps": 0}}
    mesh = MAKE_MESH(devices, 1, jax.devices()[:devices])
    variables = types.SimpleNamespace(**vars(state))
    made_evaluators = eval_setup.make(
        made,
        job.objective,
        variables,
        splits.open_splits(made.data),
        mesh=mesh,
        workdir=job.workdir,
    )
    return frozen.gather(made_evaluators["knn"][0].context, state, "eval", "features")


def test_features_are_the_same_bits_at_every_batch_and_on_every_mesh(encoder):
    want = gathered(encoder, 32, 1)
    assert want[0].shape == (359, 64)
    for batch_size, devices in ((1, 1), (100, 1), (256, 1), (48, 4)):
        got = gathered(encoder, batch_size, devices)
        for ours, theirs in zip(got, want, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_what_a_device_evaluates_at_once_follows_from_the_image_size_alone():
    mesh = MAKE_MESH(2, 1, jax.devices()[:2])
    sizes = {8: 64, 224: 64, 256: 32, 384: 16, 512: 8, 4096: 2}
    for size, count in sizes.items():
        assert splits.evaluation_rows({"image_size": size}, mesh) == count


# Neither classes of pixels nor objects are features.
WITH_FEATURES = sorted({*jobs.RECIPES} - {"detect", "segmentation"})


@pytest.mark.parametrize("objective", WITH_FEATURES)
def test_features_are_computed_in_float32_whatever_trains(objective, tmp_path):
    arg = jobs.VARIANTS.get(objective, "smoke")
    fields = {"objective__dtype": "bfloat16"}
    made = jobs.tiny(jobs.RECIPES[objective], arg, **fields)
    job = prepared(made, tmp_path / "run")
    batch = {"image": jax.ShapeDtypeStruct((4, 8, 8, 1), "float32")}

    def features(params, model_state, batch):
        return job.objective.predict(params, model_state, batch)["features"]

    state = job.state
    lowered = jax.jit(features).lower(state.params, state.model_state, batch)
    assert "bf16" not in lowered.as_text()


@pytest.mark.parametrize(
    ("numbers", "best"), [(3.0, None), ({}, None), ({"x": 1.0}, "top1"), (None, None)]
)
def test_an_evaluator_has_to_return_numbers_by_name(numbers, best):
    with pytest.raises(
        TypeError, match=r"evals.mine: run .* returned .*, expected a d"
    ):
        eval_runner._check_numbers("mine", numbers, best)
    eval_runner._check_numbers("mine", {"top1": 1.0, "n": 3}, "top1")


def test_a_result_that_was_cut_short_is_named_with_a_way_out(tmp_path):
    row = {"step": 3, "top1": 1.0}
    eval_runner.record_result(tmp_path, "knn", row, "top1")
    path = tmp_path / "evals" / "knn" / "result.json"
    path.write_text(path.read_text()[:-9])
    for again in (
        lambda: eval_runner.read_result(tmp_path, "knn"),
        lambda: eval_runner.record_result(tmp_path, "knn", row, "top1"),
    ):
        with pytest.raises(ValueError, match=r"knn/result.json is damaged .*move it"):
            again()


def test_a_result_keeps_last_best_and_history(tmp_path):
    for step, top1 in ((10, 50.0), (20, 80.0), (30, 70.0)):
        eval_runner.record_result(tmp_path, "t", {"step": step, "top1": top1}, "top1")
    result = eval_runner.read_result(tmp_path, "t")
    assert result["last"] == {"step": 30, "top1": 70.0}
    assert result["best"] == {"step": 20, "top1": 80.0}
    assert [row["step"] for row in result["history"]] == [10, 20, 30]


def test_a_resumed_run_forgets_results_of_the_steps_it_repeats(tmp_path):
    for step, top1 in ((10, 50.0), (20, 80.0), (20, 60.0)):
        eval_runner.record_result(tmp_path, "t", {"step": step, "top1": top1}, "top1")
    result = eval_runner.read_result(tmp_path, "t")
    assert result["best"] == {"step": 20, "top1": 60.0}
    assert len(result["history"]) == 2


def test_a_long_history_is_thinned_and_keeps_what_was_best_at_any_step(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(eval_runner, "_MOST_ROWS", 20)
    top1 = {step: float(step * 37 % 101) for step in range(1, 101)}
    for step, value in top1.items():
        row = {"step": step, "top1": value}
        result = eval_runner.record_result(tmp_path, "t", row, "top1")
        steps = [row["step"] for row in result["history"]]
        assert len(steps) <= 20 and steps == sorted(set(steps))
        assert steps[0] == 1 and steps[-1] == step
        assert result["best"]["top1"] == max(list(top1.values())[:step])
    # A run that goes on from an earlier step finds the best of the steps before it.
    row = {"step": 60, "top1": 0.0}
    result = eval_runner.record_result(tmp_path, "t", row, "top1")
    assert result["best"]["top1"] == max(top1[step] for step in range(1, 60))


def test_without_a_number_to_maximise_there_is_no_best(tmp_path):
    assert "best" not in eval_runner.record_result(tmp_path, "t", {"step": 1}, None)
    assert eval_runner.read_result(tmp_path, "other") is None


def test_of_many_numbers_the_line_shows_those_a_step_is_chosen_by():
    numbers = {"n": 9, "ap": 50.0, "table": [1]} | {f"ap{i}": 1.0 for i in range(20)}
    line = eval_runner.numbers_line(numbers, {"ap": True})
    assert line == "n 9  ap 50  and 20 more"
    assert "ap19 1" in eval_runner.numbers_line(numbers)
