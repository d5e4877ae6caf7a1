"""Evaluators on data of their own: they change no bit, say what they cost."""

import json

import jax
import numpy as np
import pytest

from litevit_jax import checkpoint, sharding
from litevit_jax.train import loop, setup
from tests import jobs


@pytest.fixture(autouse=True, scope="module")
def one_device():
    """One device compiles sooner."""
    make_mesh, one = sharding.make_mesh, jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda **_: make_mesh(1, 1, one))
        yield


def rows(workdir):
    text = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in text]


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
    outcome = loop.run(config(f"smoke,knn={labelled}"), tmp_path / "voted")
    return tmp_path / "voted", outcome.results["knn"]


def test_a_vote_on_another_set_during_training_changes_no_bit(voted, tmp_path):
    loop.run(config(), tmp_path / "plain")
    with_votes, plain = voted[0], tmp_path / "plain"
    assert losses(with_votes) == losses(plain) and len(losses(plain)) == 3
    a, b = (checkpoint.read_params(str(run)).params for run in (with_votes, plain))
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


def prepare(tmp_path, data, **fields):
    made = config()
    knn = {"name": "knn", "split": "eval", "every_steps": 0, "data": data, **fields}
    with made.unlocked():
        made.evals.knn = knn
    return setup.prepare(made, tmp_path / "run")


def test_the_block_says_which_data_and_the_run_how_they_are_read(labelled, tmp_path):
    job = prepare(tmp_path, {"source": "folder", "dir": str(labelled)})
    context = job.evaluators["knn"][0].context
    assert (len(context.source("eval")), context.num_classes) == (5, 2)
    (batch,) = context.batches(context.source("eval"))
    assert batch["image"].shape[1:] == (8, 8, 1)
    assert job.config["derived"]["num_classes"] == 10  # the digits' own


def test_parts_of_the_training_set_are_not_asked_of_the_other_set(labelled, tmp_path):
    made = config(data__fraction=0.5, data__validation_share=0.2)
    knn = {"name": "knn", "split": "eval", "every_steps": 0}
    with made.unlocked():
        made.evals.knn = {**knn, "data": {"source": "folder", "dir": str(labelled)}}
    job = setup.prepare(made, tmp_path / "run")
    context = job.evaluators["knn"][0].context
    assert len(context.source("train")) == 12 and len(context.source("eval")) == 5
    assert job.config["derived"]["train_examples"] == round(0.5 * (1438 - 288))


MISTAKES = {
    "no source": ({"dir": "x"}, r"evals.knn.data names no source; choose from .*digi"),
    "field": ({"source": "digits", "pth": "x"}, r"field of evals.knn.data 'pth' unkn"),
    "source's name": ({"source": "digts"}, r"source 'digts' unknown; did you mean dig"),
    "split": ({"source": "digits", "eval_split": "tets"},
        r"'tets' unknown; did you mean test\? choose from test, train"),
    "size": ({"source": "digits", "image_size": 9},
        r"evals.knn.data: images of 9x9, but the model learns from 8x8"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_block_is_refused_before_the_run(name, tmp_path):
    data, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path, data)
    assert not (tmp_path / "run").exists()


def test_a_classifier_is_not_asked_of_other_classes(labelled, tmp_path):
    made = jobs.tiny("deit_tiny", "smoke")
    with made.unlocked():
        made.evals.test.data = {"source": "folder", "dir": str(labelled)}
    message = (
        r"evals.test: the data has 2 classes, but the classifier was trained on 10"
    )
    with pytest.raises(ValueError, match=message):
        setup.prepare(made, tmp_path / "run")
