"""Evaluation without training: the numbers are the run's, the files' their own."""

import importlib
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import litevit_jax
from litevit_jax import checkpoint, weights
from litevit_jax.data.sources import digits
from litevit_jax.jobs import evaluate, train
from litevit_jax.objectives import supervised
from litevit_jax.train import state as states
from litevit_jax.warm_start import predictor, read
from litevit_jax.weights import exportable as models
from tests import bad_input_test, jobs
from tests.weights import reader_test

pytestmark = pytest.mark.usefixtures("shared_designs", "one_device")

FILES = pathlib.Path(__file__).parents[1] / "weights" / "fixtures"
SAME = ("top1", "top5", "mean_per_class", "n", "params", "step")


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    """A linear probe with running statistics, at steps 1 and 2; its results."""
    workdir = tmp_path_factory.mktemp("probe") / "run"
    sizes = {"fallback__encoder__width": 24, "fallback__encoder__depth": 1}
    sizes |= {"steps": 2, "checkpoint__every_steps": 1}
    made = jobs.config("linear_probe", "smoke", **sizes)
    with made.unlocked():
        del made.evals.knn
        made.evals.test.every_steps = 1
    return workdir, train.run(made, workdir).results["test"]


def config(arg=None, **overrides):
    return _config(arg, overrides)


def _config(arg, overrides, name="evaluate"):
    made = importlib.import_module(f"litevit_jax.configs.{name}").get_config(arg)
    with made.unlocked():
        for name, value in overrides.items():
            made[name] = value
    return made


def same(row, other):
    for key in SAME:
        assert row[key] == other[key], key
    # Batches of another size are added up in another order.
    assert row["loss"] == pytest.approx(other["loss"], rel=1e-7)


def test_a_run_is_evaluated_as_it_was_in_training(probe, tmp_path):
    run, trained = probe
    got = evaluate.run(config(init=str(run)), tmp_path / "last")["test"]
    same(got["last"], trained["last"])
    assert got["config"]["init"] == str(run) and got["metric"] == "top1"
    assert json.loads((tmp_path / "last/evals/test/result.json").read_text()) == got
    first = config(init=str(run / "checkpoints" / "1"))
    got = evaluate.run(first, tmp_path / "first")["test"]
    same(got["last"], trained["history"][0])
    classes = got["config"]["derived"]["classes"]
    assert classes == read.read_params(str(run)).config["derived"]["classes"]
    assert len(classes) == 10
    assert trained["history"][0]["params"] != trained["last"]["params"]
    assert not (tmp_path / "last" / "checkpoints").exists()


def test_running_statistics_are_read_with_the_parameters(probe):
    found = read.read_params(str(probe[0]))
    assert set(found.model_state) == {"head/bn/mean", "head/bn/var"}
    assert (found.model_state["head/bn/mean"] != 0).any()


@pytest.fixture
def images(tmp_path):
    """(labels) -> file of as many 16 x 16 images, of five classes; their pixels."""

    def make(labels):
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (len(labels), 16, 16, 3), dtype=np.uint8)
        arrays = {"image": pixels, "label": np.asarray(labels) % 5}
        splits = {f"{s}_{k}": v for s in ("train", "test") for k, v in arrays.items()}
        np.savez(tmp_path / "images.npz", **splits)
        return tmp_path / "images.npz", pixels

    return make


@pytest.mark.parametrize(
    "name", ["mae_lite_classifier.pth.tar", "timm.pth", "deit.pth"]
)
def test_a_file_is_the_classifier_that_it_is_elsewhere(name, images, tmp_path):
    found = weights.read(FILES / name, num_heads=4)
    reference = models.make(found.params, found.encoder, image_size=(16, 16))
    assert reference.output == "logits"
    path, pixels = images(range(40))
    made = config(f"data=arrays,path={path}", init=str(FILES / name))
    mean, std = (np.array(made.fallback[key]) for key in ("mean", "std"))
    normal = jax.numpy.asarray((pixels / 255 - mean) / std, "float32")
    logits, label = np.asarray(reference.apply(normal), float), np.arange(40) % 5
    log_sum = np.log(np.exp(logits).sum(axis=1))
    with made.unlocked():
        made.objective.encoder.num_heads = 4
        made.data.eval_crop_fraction = 1.0  # the images as they are
    got = evaluate.run(made, tmp_path / "run")["test"]["last"]
    assert (got["n"], got["step"]) == (40, 0)
    hits = logits.argmax(axis=1) == label
    assert got["top1"] == pytest.approx(100 * hits.mean())
    loss = (log_sum - logits[np.arange(40), label]).mean()
    assert got["loss"] == pytest.approx(loss, rel=1e-5)


def test_a_file_without_a_head_is_compared_by_its_features(images, tmp_path):
    path, _ = images(range(40))
    made = config(f"data=arrays,path={path}", init=str(FILES / "mae_encoder.pth"))
    with made.unlocked():
        made.objective.encoder.num_heads = 4
        made.evals.nearest = {"name": "knn", "k": 1, "split": "eval", "every_steps": 0}
    got = evaluate.run(made, tmp_path / "run")
    assert set(got) == {"nearest"}
    assert got["nearest"]["last"]["top1"] == 100.0  # the bank holds the same images


@pytest.fixture
def refuse(tmp_path):
    """(config, message): refused so, before compiling, leaving no trace."""

    def check(made, message):
        bad_input_test.COMPILED.clear()
        with pytest.raises((ValueError, OSError), match=message):
            evaluate.prepare(made, tmp_path / "refused")
        # Reading a checkpoint compares its bits, by a program of its own.
        names = {info["fun_name"] for info in bad_input_test.COMPILED}
        assert not names
        assert not (tmp_path / "refused").exists()

    return check


def test_what_is_evaluated_must_be_said_and_there(refuse, tmp_path):
    refuse(config(), r"what is evaluated\? Give a run with --config.init=RUN_DIR")
    refuse(config(init="random"), r"what is evaluated\?")
    refuse(config(init=str(tmp_path / "nope")), r"nope: no run directory there")
    file = config(init=str(FILES / "mae_lite_classifier.pth.tar"))
    with file.unlocked():
        file.objective.encoder.num_heads = 4
    refuse(
        file, r"a file of weights says nothing about data; name some: .*evaluate.py:"
    )


def test_data_of_other_classes_are_refused(refuse, probe, image_folder):
    root = image_folder(train=4, test=2)
    made = config(f"classification,data=folder,path={root}", init=str(probe[0]))
    refuse(made, r"'a', 'b': 2 of 2 classes .* none that the model was trained on, wh")


def test_a_test_split_without_labels_is_refused(refuse, probe, image_folder):
    root = image_folder(train=4, test=2)
    for path in list((root / "test").rglob("*.png")):
        path.rename(root / "test" / path.name)
    for name in "ab":
        shutil.rmtree(root / "test" / name)
    made = config(f"knn,data=folder,path={root}", init=str(probe[0]))
    refuse(made, r"evals.knn: split 'eval' needs labels, but none of its 2 images has")


def test_named_files_that_are_absent_are_refused(refuse, probe, tmp_path):
    made = config(f"digits,real={tmp_path}/real.json", init=str(probe[0]))
    refuse(made, r"real.json: no file of ReaL labels there")
    made = config(f"digits,v2={tmp_path}/v2", init=str(probe[0]))
    refuse(made, r"v2' does not exist; expected a folder")
    (tmp_path / "real.json").write_text("[[1], [")
    made = config(f"digits,real={tmp_path}/real.json", init=str(probe[0]))
    refuse(made, r"real.json: cannot be read as JSON")


def test_an_evaluator_that_the_checkpoint_has_nothing_for_is_refused(refuse, probe):
    made = config("reconstruction", init=str(probe[0]))
    refuse(made, r"'reconstruction' reads 'mae_loss', .* 'supervised' predicts feature")


def test_another_checkpoint_does_not_get_the_same_directory(probe, tmp_path):
    run = probe[0]
    evaluate.prepare(config(init=str(run)), tmp_path / "run")
    other = config(init=str(run / "checkpoints" / "1"))
    with pytest.raises(ValueError, match=r"(?s)another config.*\n  init: "):
        evaluate.prepare(other, tmp_path / "run")


@pytest.fixture(scope="module")
def teacher():
    return jobs.teacher()


@pytest.mark.parametrize("objective", jobs.RECIPES)
def test_a_run_of_every_objective_can_be_evaluated(
    objective, teacher, tmp_path, monkeypatch
):
    arg = jobs.VARIANTS.get(objective, "smoke")
    made = jobs.tiny(jobs.RECIPES[objective], arg)
    with jobs.without_steps():
        job = jobs.prepare(tmp_path / "run", made)
    parts = (job.state.params, job.state.model_state)
    arrays = [
        {
            name: np.zeros(x.shape, x.dtype)
            for name, x in checkpoint.flatten(part).items()
        }
        for part in parts
    ]
    made = read.Checkpoint(arrays[0], job.config, 6, tmp_path, arrays[1])
    monkeypatch.setattr(read, "read_params", lambda _: made)
    name = {"segmentation": "segmentation", "detect": "coco"}.get(objective, "knn")
    got = evaluate.prepare(config(name, init="RUN"), tmp_path / "evaluated")
    assert set(got.evaluators) == {name} and got.step == 6
    placed = got.create()
    assert checkpoint.flatten(placed.params).keys() == arrays[0].keys()
    assert got.config["objective"]["name"] == objective


CATS = ("cat", "dog", "owl")


def folder(root, split, classes, count=2):
    """`count` images of each class in `root`/`split`/CLASS."""
    rng = np.random.default_rng(0)
    for name in classes:
        for number in range(count):
            path = root / split / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    """A classifier of three animals, at random, as a run would have left it."""
    root = folder(tmp_path_factory.mktemp("animals"), "train", CATS, count=8)
    folder(root, "test", CATS)
    arg = f"smoke,data=folder,path={root}"
    made = jobs.tiny("deit_tiny", arg, batch_size=8, data__image_size=8)
    with jobs.without_steps():
        job = jobs.prepare(tmp_path_factory.mktemp("run") / "run", made)
    rng = np.random.default_rng(0)
    params = {
        name: rng.normal(size=x.shape).astype(np.float32)
        for name, x in checkpoint.flatten(job.state.params).items()
    }
    return read.Checkpoint(params, job.config, 6, job.workdir)


@pytest.fixture
def judged(animals, monkeypatch, tmp_path):
    """(variant, folder, split, fields) -> the evaluator of `animals`, and its job."""
    monkeypatch.setattr(read, "read_params", lambda _: animals)

    def prepare(root, split="train", name="classification", **fields):
        made = config(f"{name},data=folder,path={root}", init="RUN")
        with made.unlocked():
            made.data.eval_split = split
            made.evals[name].update(fields)
        job = evaluate.prepare(made, tmp_path / "evaluated")
        return job.evaluators[name][0], job

    return prepare


def labels(evaluator):
    """Class folder of each image -> the number that it is judged by."""
    source = evaluator.context.source(evaluator.split)
    assert source.classes == list(CATS) and evaluator.context.num_classes == 3
    return {
        source.name_of(row).split("/")[-2]: source.label_of(row)
        for row in range(len(source))
    }


def test_names_of_classes_are_recorded(animals):
    assert animals.config["derived"]["classes"] == list(CATS)


def test_some_of_the_classes_are_matched_by_name_and_that_is_said(judged, tmp_path):
    evaluator, job = judged(folder(tmp_path / "two", "train", ("dog", "owl")))
    assert labels(evaluator) == {"dog": 1, "owl": 2}
    said = "2 of the 3 classes of the model, matched by name"
    assert job.notes[-1] == f"evals.classification: the data has {said}"
    assert job.config["derived"]["classes"] == ["dog", "owl"]


def test_a_class_that_the_model_does_not_know_is_refused(judged, tmp_path):
    root = folder(tmp_path / "eval3", "train", ("dog", "owl", "zcat"))
    message = (
        r"evals.classification: 'zcat': 1 of 3 classes of the data \(2 of 6 images\) "
        r"are none that the model was trained on, which are 'cat', 'dog', 'owl'; give "
        r".*--config.evals.classification.unmatched=leave_out"
    )
    with pytest.raises(ValueError, match=message):
        judged(root)
    with pytest.raises(ValueError, match=r"unmatched 'leave' unknown; did you mean le"):
        judged(root, unmatched="leave")
    assert not (tmp_path / "evaluated").exists()


def test_classes_that_are_taken_by_number_must_be_those_of_the_model(
    animals, monkeypatch, tmp_path
):
    monkeypatch.setattr(read, "read_params", lambda _: animals)
    labels = tmp_path / "real.json"
    labels.write_text("[[0], [1], [2], [0], [1], [2]]")
    for names in (CATS, ("dog", "owl", "zcat")):
        root = folder(tmp_path / names[0], "train", names)
        made = config(f"real={labels},data=folder,path={root}", init="RUN")
        with made.unlocked():
            made.data.eval_split = "train"
            made.evals = {"real": made.evals.real}
        if names == CATS:
            evaluate.prepare(made, tmp_path / "evaluated")
            continue
        message = r"evals.real .* class 0 of the data is 'dog', that of the model 'cat'"
        with pytest.raises(ValueError, match=message):
            evaluate.prepare(made, tmp_path / "refused")


def test_without_a_variant_the_hint_names_the_one_that_leaves_images_out(
    animals, monkeypatch, tmp_path
):
    monkeypatch.setattr(read, "read_params", lambda _: animals)
    root = folder(tmp_path / "eval3", "train", ("dog", "owl", "zcat"))
    made = config(f"data=folder,path={root / 'train'}", init="RUN")
    whole = r"has no 'test' split\. Evaluate all of its images with --config.data."
    with pytest.raises(
        ValueError, match=whole + r"eval_split=\. .*data.holdout.test=0.1"
    ):
        evaluate.prepare(made, tmp_path / "evaluated")
    made.data.eval_split = "."
    hint = r"evaluate.py:classification,... --config.evals.classification.unmatched=lea"
    with pytest.raises(ValueError, match=rf"evals.confusion: 'zcat'.*{hint}ve_out$"):
        evaluate.prepare(made, tmp_path / "evaluated")


def test_images_of_unknown_classes_are_left_out_if_asked_and_counted(
    judged, tmp_path, monkeypatch
):
    root = folder(tmp_path / "eval3", "train", ("dog", "owl", "zcat"))
    only = folder(tmp_path / "none", "train", ("lynx",))
    with pytest.raises(ValueError, match=r"'lynx': 1 of 1 classes .* \(2 of 2 images"):
        judged(only, unmatched="leave_out")
    evaluator, job = judged(root, unmatched="leave_out")
    assert labels(evaluator) == {"dog": 1, "owl": 2, "zcat": -1}
    assert job.notes[-1].endswith("by name; 2 images of other classes are left out")
    monkeypatch.setattr(evaluate, "prepare", lambda *_: job)
    got = evaluate.run(job.config, job.workdir)["classification"]
    assert (got["last"]["n"], got["last"]["unmatched"]) == (4, 2)
    assert got["classes"] == "2 of the 3 classes of the model, matched by name"


def test_numbers_for_names_are_numbers_of_classes(judged, tmp_path):
    evaluator, job = judged(folder(tmp_path / "numbers", "train", ("0", "2")))
    assert labels(evaluator) == {"0": 0, "2": 2}
    assert "matched by number, as the data's have" in job.notes[-1]


def test_a_run_without_names_is_matched_by_number_and_that_is_said(
    judged, animals, tmp_path, monkeypatch
):
    monkeypatch.delitem(animals.config["derived"], "classes")
    root = folder(tmp_path / "three", "train", ("a", "b", "c"))
    evaluator, job = judged(root)
    source = evaluator.context.source("eval")
    assert source.classes == ["a", "b", "c"]
    assert "3 classes matched by number: those of the model have no n" in job.notes[-1]
    (tmp_path / "three/train/c").rename(tmp_path / "three/c")
    with pytest.raises(ValueError, match=r"the data has 2 classes, but the classifier"):
        judged(folder(tmp_path / "pair", "train", ("a", "b")))


def test_neighbours_of_other_data_know_the_classes_of_their_own_bank(judged, tmp_path):
    root = folder(tmp_path / "birds", "train", ("kite", "lark"))
    folder(root, "test", ("lark",))
    evaluator, job = judged(root, "test", "knn")
    source = evaluator.context.source("eval")
    assert [source.label_of(row) for row in range(2)] == [1, 1]
    assert len(job.notes) == 2
    assert job.notes[0] == "encoder: RUN, step 6 (supervised)"


FROZEN = {
    "layers": {"name": "layers", "every_steps": 0},
    "fewshot": {"name": "fewshot", "shots": (1, 5), "seeds": 2, "every_steps": 0},
}


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """A pre-training that averages its parameters, and its results."""
    workdir = tmp_path_factory.mktemp("averaged") / "run"
    made = jobs.tiny(steps=2, evals=FROZEN)
    with made.unlocked():
        made.optimizer.ema_decay = 0.5
    return workdir, train.run(made, workdir).results


def test_blocks_and_few_images_give_the_numbers_of_the_run(averaged, tmp_path, capsys):
    run, trained = averaged
    fields = {"init": str(run), "evals": FROZEN, "init_ema": True}
    got = evaluate.run(_config(None, fields, "layer_probe"), tmp_path / "run")
    assert got.keys() == trained.keys()
    for title, result in got.items():
        ours, theirs = result["last"], trained[title]["last"]
        assert theirs.pop("ema_decay") == 0.5
        assert ours["params"] == theirs["params"] and ours["n"] == 359
        numbers = {k: v for k, v in theirs.items() if k.startswith("top1")}
        assert len(numbers) >= 1
        for name, value in numbers.items():  # though batches are of another size
            assert ours[name] == value, name
    said = capsys.readouterr().out
    assert "step 2  fewshot: top1" in said and "table" not in said
    took = "step 2: the average of its parameters (decay 0.5)\n"
    assert f"--config.init={run}, {took}" in said
    assert got["layers"]["config"]["derived"]["parameters"] == "average"
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    rows = [json.loads(x) for x in lines]
    tables = [row["layers/table"] for row in rows if "layers/table" in row]
    assert tables == [got["layers"]["last"]["table"]]


def test_without_asking_the_parameters_themselves_are_evaluated(
    averaged, tmp_path, capsys
):
    run, trained = averaged
    nearest = {"knn": {"name": "knn", "every_steps": 0}}
    got = evaluate.run(config(init=str(run), evals=nearest), tmp_path / "run")
    assert got["knn"]["last"]["params"] != trained["layers"]["last"]["params"]
    said = capsys.readouterr().out
    assert "its last parameters, not the average (decay 0.5) of which its own" in said
    assert got["knn"]["config"]["derived"]["parameters"] == "last"


def test_a_model_at_random_is_that_with_which_its_run_started(averaged, tmp_path):
    run, _ = averaged
    nearest = {"knn": {"name": "knn", "every_steps": 0}}
    made = config(init="random", like=str(run), evals=nearest)
    got = evaluate.prepare(made, tmp_path / "run")
    assert got.step == 0 and set(got.evaluators) == {"knn"}
    assert len(got.notes) == 2  # it has learned nothing that could be averaged
    ours = checkpoint.flatten(got.create().params)
    with jobs.without_steps():
        job = jobs.prepare(tmp_path / "again")
    started = checkpoint.flatten(job.create().params)
    assert ours.keys() == started.keys()
    for name, value in started.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-6, err_msg=name)


def test_a_norm_behind_the_average_gives_the_features_of_a_file(images, tmp_path):
    """As timm's encoders with average pooling have it, without a last layer."""
    arrays = reader_test.encoder_only("avg")
    file = reader_test.to_file(tmp_path / "a.safetensors", arrays)
    made = config(f"data=arrays,path={images(range(16))[0]}", init=str(file))
    with made.unlocked():
        made.objective.encoder.num_heads = 4
    job = evaluate.prepare(made, tmp_path / "run")
    assert job.config["objective"]["pool"] == "avg"
    objective, state = predictor.make(job.config["objective"]), job.create()
    image = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    got = objective.predict(state.params, {}, {"image": image})["features"]
    found = weights.read(file, num_heads=4)
    exported = models.make(found.params, found.encoder, image_size=(16, 16))
    assert exported.output == "features"
    np.testing.assert_allclose(got, exported.apply(image), atol=1e-5)


def test_an_average_of_normed_tokens_needs_no_norm_behind_it():
    block = {"width": 16, "depth": 1, "num_heads": 4, "patch_size": 4}
    made = supervised.make(
        encoder={**block, "final_norm": True}, num_classes=3, pool="avg"
    )
    batch = {"image": jax.ShapeDtypeStruct((1, 8, 8, 3), "float32")}
    params = states.abstract_variables(made, batch).params
    assert "norm" in params["encoder"] and set(params["head"]) == {"fc"}


def test_an_embedding_of_a_run_has_the_features_of_its_evaluations(tmp_path):
    run = jobs.saved_run(tmp_path / "r", jobs.tiny(), noise=True)
    fields = {"init": str(run), "target": str(tmp_path / "a.npz"), "pool": "avg"}
    fields |= {"data__eval_split": "test"}
    got = evaluate.run(_config("digits", fields, "embed"), tmp_path / "run")
    last = got["embed"]["last"]
    assert (last["n"], last["unreadable"], last["width"]) == (359, 0, 24)
    written = np.load(tmp_path / "a.npz")
    encoder = litevit_jax.load(run)
    rows = [digits.make(split="test")[i] for i in range(3)]
    want = litevit_jax.features(encoder, [row["image"] for row in rows], "avg")
    np.testing.assert_allclose(written["features"][:3], want, rtol=1e-5, atol=1e-5)
    assert list(written["label"][:3]) == [str(row["label"]) for row in rows]
