"""The package in a program: each public name, and that its numbers are the run's."""

import dataclasses
import doctest
import io
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import litevit_jax
from litevit_jax.evaluators import frozen
from litevit_jax.jobs import evaluate
from litevit_jax.weights import export, safetensors
from tests import jobs
from tests.weights import export_test, reader_test

ROOT = pathlib.Path(__file__).parents[1]
RUN = "runs/mae_tiny-smoke"
EXAMPLES = {name: name for name in litevit_jax.__all__} | {"recipes": "recipes.get"}


class Checker(doctest.OutputChecker):
    """Lines of a run's progress may follow an example that expects no output."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


def example(name):
    """Runs the docstring's examples of a public name; (how many, what failed)."""
    value = litevit_jax
    for part in EXAMPLES[name].split("."):
        value = getattr(value, part)
    names = {"litevit_jax": litevit_jax, "np": np, "jnp": jnp}
    test = doctest.DocTestParser().get_doctest(
        value.__doc__, names, name, "api", lineno=0
    )
    failed = io.StringIO()
    doctest.DocTestRunner(Checker()).run(test, out=failed.write)
    return len(test.examples), failed.getvalue()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the run that the example of `train` makes; how that ended."""
    folder = tmp_path_factory.mktemp("api")
    with pytest.MonkeyPatch.context() as patch, jobs.on_one_device():
        patch.chdir(folder)
        with jobs.given_starts():
            ended = example("train")
        jobs.saved_run(folder / "runs/deit_tiny-smoke", jobs.tiny("deit_tiny"))
        yield folder, ended


@pytest.fixture
def encoder(trained):
    return litevit_jax.load(RUN)


@pytest.mark.parametrize("name", litevit_jax.__all__)
def test_the_example_of_every_public_name_runs(name, trained):
    count, failed = trained[1] if name == "train" else example(name)
    assert count and not failed


def test_the_package_lists_its_public_names():
    assert sorted(litevit_jax.__all__) == sorted(set(litevit_jax.__all__))
    assert {*litevit_jax.__all__, "__version__"} <= set(dir(litevit_jax))
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        litevit_jax.trian  # noqa: B018


def test_an_accelerator_that_is_missing_is_an_error_here_too(tmp_path):
    """JAX alone would train on CPUs without a word."""
    code = (
        "import jax, litevit_jax\n"  # JAX has read its platforms: it is not asked
        "config = litevit_jax.recipes.get('mae_tiny', 'smoke')\n"
        f"litevit_jax.train(config, {str(tmp_path / 'run')!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "JAX_PLATFORMS": "cuda,cpu"},
        capture_output=True,
        text=True,
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith("RuntimeError: CUDA is asked for (JAX_PLATFORMS=cuda,cpu)")
    assert not (tmp_path / "run").exists()


def test_importing_it_is_quick_and_train_is_the_function_whoever_comes_first(trained):
    folder, _ = trained
    code = (
        "import sys, litevit_jax\n"
        "assert not {'jax', 'numpy', 'ml_collections'} & set(sys.modules)\n"
        "import litevit_jax.train.lock\n"
        "from litevit_jax.train import lock\n"
        "encoder = litevit_jax.load('runs/mae_tiny-smoke')\n"
        "import litevit_jax.train.loop\n"
        "from litevit_jax import train\n"
        "from litevit_jax.train import loop\n"
        "assert train is litevit_jax.train is litevit_jax.api.train\n"
        "assert loop.__name__ == 'litevit_jax.train.loop' and lock.take\n"
        "print(encoder.image_size, callable(train))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.stdout == "(8, 8) True\n", done.stderr


def pictures(folder):
    """Class folders of images that need everything: a turn, a palette, 16 bits."""
    rng, files = np.random.default_rng(0), []
    for split in ("train", "test"):
        for number in range(4):
            pixels = rng.integers(0, 255, (30 + number, 41, 3), dtype=np.uint8)
            image = PIL.Image.fromarray(pixels)
            path = folder / split / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if number == 0:
                exif = PIL.Image.Exif()
                exif[0x0112] = 6
                path = path.with_suffix(".jpg")
                image.save(path, exif=exif, quality=95)
            elif number == 1:
                image.quantize(16).save(path, transparency=3)
            elif number == 2:
                deep = rng.integers(0, 65535, (20, 50), dtype=np.uint16)
                PIL.Image.fromarray(deep).save(path)
            else:
                image.save(path)
            files += [path] if split == "test" else []
    return sorted(files, key=lambda path: path.relative_to(folder).parts)


def test_features_are_those_that_the_nearest_neighbours_see(encoder, tmp_path):
    files = pictures(tmp_path / "images")
    variant = f"knn,data=folder,path={tmp_path / 'images'}"
    config = litevit_jax.recipes.get("evaluate", variant)
    config.init = RUN
    config.data.eval_crop_fraction = 0.7
    job = evaluate.prepare(config, tmp_path / "eval")
    evaluator, _ = job.evaluators["knn"]
    expected, _, _ = frozen.gather(evaluator.context, job.create(), "eval", "features")
    encoder = dataclasses.replace(encoder, crop=0.7)
    got = litevit_jax.features(encoder, files)
    assert got.dtype == np.float32 and got.shape == (4, 24)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    opened = [PIL.Image.open(path) for path in files]
    same = litevit_jax.features(encoder, opened)
    np.testing.assert_allclose(same, expected, atol=1e-5)
    palette = next(image for image in opened if image.mode == "P")
    assert "transparency" in palette.info  # the caller's image is left alone
    average, _, _ = frozen.gather(
        evaluator.context, job.create(), "eval", "features_avg"
    )
    got = litevit_jax.features(encoder, iter(files), "avg")
    np.testing.assert_allclose(got, average, atol=1e-5)
    prepared = np.stack([encoder.preprocess(str(path)) for path in files])
    got = litevit_jax.features(encoder, prepared, pool="cls")
    np.testing.assert_allclose(got, expected, atol=1e-5)
    one = litevit_jax.features(encoder, np.asarray(PIL.Image.open(files[-1])))
    np.testing.assert_allclose(one[0], expected[-1], atol=1e-5)


def test_many_images_are_encoded_in_parts(encoder, monkeypatch):
    images = np.random.default_rng(0).integers(0, 255, (7, 8, 8, 1), dtype=np.uint8)
    whole = litevit_jax.features(encoder, images)
    monkeypatch.setattr("litevit_jax.encoder._ROWS", 3)
    np.testing.assert_allclose(litevit_jax.features(encoder, images), whole, atol=1e-5)


def test_tokens_and_intermediates_are_the_modules(encoder):
    image = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    tokens, inside = encoder.apply(image)
    expected, _ = jax.jit(encoder.module.apply)({"params": encoder.params}, image)
    np.testing.assert_allclose(tokens, expected, atol=1e-5)
    assert {"patch_embed", "pre_norm", "block_00/out"} <= set(inside)
    twice = jax.tree.map(lambda x: 2 * x, encoder.params)
    other = dataclasses.replace(encoder, params=twice).apply(image)[0]
    assert abs(other - tokens).max() > 1e-3


def equal(one, other):
    flat, rest = (dict(jax.tree.leaves_with_path(x)) for x in (one, other))
    assert flat.keys() == rest.keys()
    for path, array in flat.items():
        np.testing.assert_array_equal(array, rest[path], err_msg=str(path))


def test_a_file_gives_the_encoder_back_bit_for_bit(encoder, tmp_path):
    target = tmp_path / "a.safetensors"
    images = np.random.default_rng(0).integers(0, 255, (2, 20, 30), dtype=np.uint8)
    encoder = dataclasses.replace(encoder, crop=0.6, range="0,4095")
    litevit_jax.save(encoder, target)
    back = litevit_jax.load(target)
    equal(encoder.params, back.params)
    for field in ("image_size", "channels", "mean", "std", "crop", "range", "classes"):
        assert getattr(back, field) == getattr(encoder, field), field
    got, expected = (litevit_jax.features(x, list(images)) for x in (back, encoder))
    np.testing.assert_array_equal(got, expected)
    with pytest.raises(FileExistsError, match="is there already; remove it or name"):
        litevit_jax.save(encoder, target)
    with pytest.raises(ValueError, match="'detectron2' holds a detector"):
        litevit_jax.save(encoder, tmp_path / "a.pth")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A file of a classifier that averages its tokens, and the exported model."""
    path = tmp_path_factory.mktemp("files") / "classifier.safetensors"
    notes = {"mean": "[0.5, 0.4, 0.3]", "std": "[0.2, 0.2, 0.2]"}
    notes["classes"] = str([f"c{k}" for k in range(10)]).replace("'", '"')
    model = dataclasses.replace(export_test.model_of("avg"), notes=notes)
    path.write_bytes(export.write(model, "timm", decoder={}).data)
    return path, model


def test_features_of_a_classifier_are_what_its_last_layer_reads(classifier, tmp_path):
    path, model = classifier
    encoder = litevit_jax.load(path)
    assert encoder.mean == (0.5, 0.4, 0.3) and encoder.classes[:2] == ("c0", "c1")
    image = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    expected = jax.jit(model.without_classifier().apply)(image)
    got = litevit_jax.features(encoder, image)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    copy = tmp_path / "copy.safetensors"
    litevit_jax.save(encoder, copy)
    arrays, about = safetensors.load(copy.read_bytes())
    assert "head.weight" in arrays and "c9" in about["classes"]
    again = litevit_jax.load(copy)
    np.testing.assert_array_equal(litevit_jax.features(again, image), got)
    assert again.classes == encoder.classes


def test_what_a_file_does_not_tell_is_said(tmp_path):
    file = reader_test.to_file(
        tmp_path / "a.safetensors", reader_test.encoder_only("avg")
    )
    with pytest.raises(ValueError, match=r"a.safetensors: .*num_heads"):
        litevit_jax.load(file)
    with pytest.warns(UserWarning, match=r"does not say how .*std.*are assumed; data"):
        encoder = litevit_jax.load(file, num_heads=4)
    assert encoder.mean == (0.485, 0.456, 0.406) and encoder.crop == 0.875
    bare = dataclasses.replace(encoder, mean=None)
    with pytest.raises(ValueError, match=r"channels were normalised; give a number "):
        bare.preprocess(np.zeros((16, 16, 3), np.uint8))


def test_the_first_lines_of_the_page_run(trained, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "python.md").read_text()
    lines = re.search(r"```python\n(.*?)```", page, re.S)[1]
    assert len([line for line in lines.splitlines() if line]) <= 10
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits").symlink_to(trained[0] / RUN)
    pictures(tmp_path / "images")[-1].rename(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    runs = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(litevit_jax, "train", lambda *given: runs.append(given))
    names = {}
    exec(lines, names)
    assert runs[0][0].data.source == "digits" and runs[0][1] == "runs/digits"
    assert names["features"].shape == (2, 24) and names["tokens"].shape == (1, 17, 24)
    assert (tmp_path / "digits.safetensors").is_file()


MISTAKES = {
    "no file": (lambda e: e.preprocess("no.png"), "no.png is not there"),
    "folder": (lambda e: litevit_jax.features(e, "runs"), "runs is a folder; list it"),
    "no image": (lambda e: e.preprocess(__file__), r"api_test.py: not an image"),
    "channels": (lambda e: e.preprocess(np.zeros((8, 8, 4), np.uint8)), "4 channels"),
    "normalised": (lambda e: e.preprocess(np.zeros((8, 8))), "got an array of float64"),
    "bytes": (lambda e: e.apply(np.zeros((1, 8, 8, 1), np.uint8)), r"got images uint8"),
    "one image": (lambda e: e.apply(np.zeros((8, 8, 1))), r"expected floats \[B, 8, 8"),
    "wide integers": (
        lambda e: e.preprocess(np.zeros((8, 8), np.int64)),
        r"got array int64\[8, 8\]; expected uint8 or uint16",
    ),
    "no pixels": (lambda e: e.preprocess(PIL.Image.new("L", (0, 4))), "without pixels"),
    "pool": (lambda e: litevit_jax.features(e, "x", "mean"), "pool 'mean' unknown"),
    "nothing": (lambda e: litevit_jax.features(e, []), "at least one image"),
    "a number": (lambda e: litevit_jax.features(e, 3), "got int, expected paths"),
    "heads": (lambda e: litevit_jax.load(RUN, num_heads=3), "but it records 2; leave"),
    "no run": (lambda e: litevit_jax.load("nowhere"), "nowhere: no run directory"),
    "job": (
        lambda e: litevit_jax.train(litevit_jax.recipes.get("evaluate"), "w"),
        "'evaluate', expected 'train'; use litevit_jax.evaluate",
    ),
    "another job": (
        lambda e: litevit_jax.evaluate(litevit_jax.recipes.get("transfer"), "w"),
        "use the command line: litevit --config=transfer",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_explained(name, encoder):
    call, message = MISTAKES[name]
    with pytest.raises((ValueError, OSError), match=message):
        call(encoder)


def wrong(call):
    """The message of a call that is none."""
    with pytest.raises(ValueError) as error:
        call()
    return str(error.value)


def test_wrong_calls_say_what_was_given_and_what_is_expected(encoder, tmp_path):
    config = litevit_jax.recipes.get("mae_tiny", "smoke")
    calls = {
        r"load: got 5, expected the path of a run": lambda: litevit_jax.load(5),
        r"load: got '', expected the path": lambda: litevit_jax.load(""),
        r"got num_heads='3', expected 1 or more": lambda: litevit_jax.load(
            tmp_path, num_heads="3"
        ),
        r"features: got str as the encoder, expected what .*load\(PATH\)": lambda: (
            litevit_jax.features("run", ["a.png"])
        ),
        r"features: got dict, expected paths, PIL images or arrays": lambda: (
            litevit_jax.features(encoder, {"a": "a.png"})
        ),
        r"with numbers that are not finite; expected what encoder.pre": lambda: (
            litevit_jax.features(encoder, np.full((1, 8, 8, 1), np.nan, np.float32))
        ),
        r"several images are a list, or an array \[B, H, W, C\]": lambda: (
            litevit_jax.features(encoder, np.zeros((9, 8, 8), np.uint8))
        ),
        r"got list, expected an array of images: np.stack": lambda: encoder.apply(
            ["a.png"]
        ),
        r"got mean=0.5, expected a finite number for each of its 1 chan": lambda: (
            dataclasses.replace(encoder, mean=0.5)
        ),
        r"got std=\[0.0\], expected a positive number": lambda: dataclasses.replace(
            encoder, std=[0.0]
        ),
        r"save: got str as the encoder": lambda: litevit_jax.save("a", encoder),
        r"save: got None, expected the path of a new file": lambda: litevit_jax.save(
            encoder, None
        ),
        r"dir has no ending, expected one of .safe": lambda: litevit_jax.save(
            encoder, "dir"
        ),
        r"recipes.get: got name None, expected text": lambda: litevit_jax.recipes.get(
            None
        ),
        r"got variant \['digits'\], expected text": lambda: litevit_jax.recipes.get(
            "mae_tiny", ["digits"]
        ),
        r"write recipes.get\('mae_tiny', 'digits'\)": lambda: litevit_jax.recipes.get(
            "mae_tiny:digits"
        ),
        r"train: got dict, expected a config, as litevit_jax.recipes": lambda: (
            litevit_jax.train({}, tmp_path)
        ),
        r"train: got None, expected the path of the run's dir": lambda: (
            litevit_jax.train(config, None)
        ),
        r"config.batch_size=a; expected an integer": lambda: litevit_jax.train(
            changed(config, "batch_size", "a"), tmp_path
        ),
    }
    for message, call in calls.items():
        assert re.search(message, wrong(call)), message


def changed(config, name, value):
    with config.unlocked(), config.ignore_type():
        config[name] = value
    return config


def test_a_public_name_that_is_misspelt_is_suggested():
    with pytest.raises(AttributeError, match=r"no attribute 'lod'; did you mean load"):
        litevit_jax.lod  # noqa: B018


def test_a_list_gives_numbers_for_each_channel(encoder):
    listed = dataclasses.replace(encoder, mean=list(encoder.mean), std=[0.5])
    assert listed.mean == encoder.mean and listed.std == (0.5,)


def test_predictions_are_the_softmax_of_the_classifiers_logits(classifier):
    path, model = classifier
    encoder = dataclasses.replace(litevit_jax.load(path), classes=tuple("abcdefghij"))
    images = np.random.default_rng(0).normal(size=(35, 16, 16, 3)).astype("f4")
    odds = np.exp(np.asarray(jax.jit(model.apply)(images), float))
    share = odds / odds.sum(axis=1, keepdims=True)
    got = litevit_jax.predict(encoder, images, top=3)  # more than one batch
    assert len(got) == 35
    for pairs, row in zip(got, share, strict=True):
        order = np.argsort(-row)[:3]
        assert [name for name, _ in pairs] == ["abcdefghij"[k] for k in order]
        np.testing.assert_allclose([p for _, p in pairs], row[order], rtol=1e-4)
    unnamed = dataclasses.replace(encoder, classes=())
    [pairs] = litevit_jax.predict(unnamed, images[0], top=99)
    assert {name for name, _ in pairs} == set("0123456789")
    assert sum(p for _, p in pairs) == pytest.approx(1)


def test_predictions_need_a_head_and_a_number_of_classes(encoder):
    image = np.zeros((8, 8), np.uint8)
    with pytest.raises(
        ValueError, match=r"predicts no 'logits' .*load a classifier: a"
    ):
        litevit_jax.predict(encoder, image)
    with pytest.raises(ValueError, match=r"predict: got top=0, expected 1"):
        litevit_jax.predict(encoder, image, top=0)
    with pytest.raises(ValueError, match=r"predict: got str as the encoder"):
        litevit_jax.predict("runs", image)
    with pytest.raises(ValueError, match=r"predict of no images"):
        litevit_jax.predict(encoder, [])
