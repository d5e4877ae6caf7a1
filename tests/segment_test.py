"""A segmentation run as a whole: trained, resumed, evaluated, predicted, exported."""

import importlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from litevit_jax import weights
from litevit_jax.data import splits
from litevit_jax.evaluators import segmentation
from litevit_jax.jobs import convert, evaluate, train
from litevit_jax.warm_start import read
from tests import jobs

pytestmark = pytest.mark.usefixtures("shared_designs", "one_device")


def tiny():
    made = jobs.tiny("segment", steps=4, checkpoint__every_steps=2, log__report=False)
    with made.unlocked():
        made.evals.test.update(every_steps=2, images=2)
    return made


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny run of four steps, saved and evaluated at every second."""
    workdir = tmp_path_factory.mktemp("segment") / "run"
    train.run(tiny(), workdir)
    return workdir


def result_of(workdir, title="test"):
    return json.loads((workdir / "evals" / title / "result.json").read_text())


def config_of(name, arg=None, **fields):
    made = importlib.import_module(f"litevit_jax.configs.{name}").get_config(arg)
    with made.unlocked():
        made.update(fields)
    return made


def test_results_name_every_class_and_pictures_are_drawn(trained):
    last = result_of(trained)["last"]
    assert [row["class"] for row in last["table"]] == ["background", *"0123456789"]
    assert 0 <= last["miou"] <= 100 and last["n"] == 16
    source = splits.open_split(result_of(trained)["config"]["data"], "eval")
    labels = np.concatenate([source.label_map(i).ravel() for i in range(16)])
    pixels = np.bincount(labels, minlength=256)[:11]
    assert [row["pixels"] for row in last["table"]] == pixels.tolist()
    names = sorted(file.name for file in (trained / "pictures").iterdir())
    assert names == ["segmentation_0000002.png", "segmentation_0000004.png"]


def test_a_run_that_was_cut_goes_on_to_the_same_bits(trained, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(trained, cut)
    shutil.rmtree(cut / "checkpoints" / "4")
    shutil.rmtree(cut / "evals")
    train.run(tiny(), cut)
    assert result_of(cut)["last"]["params"] == result_of(trained)["last"]["params"]
    one, other = (read.read_params(str(place)) for place in (cut, trained))
    for name, value in other.model_state.items():
        np.testing.assert_array_equal(one.model_state[name], value, err_msg=name)


def test_a_run_is_evaluated_as_it_was_in_training(trained, tmp_path):
    got = evaluate.run(config_of("evaluate", init=str(trained)), tmp_path / "run")
    last, own = got["test"]["last"], result_of(trained)["last"]
    for name in ("miou", "aacc", "macc", "n", "table", "params", "step"):
        assert last[name] == own[name], name


@pytest.mark.parametrize("inside", ["", "test", "holiday"])
def test_label_maps_are_predicted_for_a_folder_of_images(inside, trained, tmp_path):
    rng, folder = np.random.default_rng(0), tmp_path / "images" / inside
    folder.mkdir(parents=True)
    sizes = [(48, 48), (60, 100), (30, 90)]
    for number, size in enumerate(sizes):
        pixels = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"p{number}.png")
    arg = f"label_maps,data=folder,path={tmp_path / 'images'}"
    asked = config_of("evaluate", arg, init=str(trained))
    got = evaluate.run(asked, tmp_path / "run")["label_maps"]["last"]
    assert got["n"] == 3
    colours = segmentation.palette(11)
    for number, (rows, cols) in enumerate(sizes):
        start = tmp_path / "run" / "pictures" / "label_maps" / f"{number:06d}-p{number}"
        with Image.open(f"{start}.png") as picture:
            assert picture.mode == "P" and picture.size == (cols, rows)
            assert np.asarray(picture).max() < 11
            np.testing.assert_array_equal(
                np.asarray(picture.convert("RGB")), colours[np.asarray(picture)]
            )
        with Image.open(f"{start}-overlay.png") as picture:
            assert picture.mode == "RGB" and picture.size == (cols, rows)


def test_an_encoder_goes_to_mmsegmentation_and_back_bit_for_bit(trained, tmp_path):
    target = tmp_path / "backbone.safetensors"
    made = config_of("convert", source=str(trained), target=str(target), format="mmseg")
    with made.unlocked():
        made.latency.heads = ()
    assert "decode_head" in convert.run(made)
    params = read.read_params(str(trained)).params
    encoder = {k: v for k, v in params.items() if k.startswith("encoder/")}
    got = weights.read(target)
    assert got.params.keys() == encoder.keys()
    for name, value in encoder.items():
        np.testing.assert_array_equal(got.params[name], value, err_msg=name)


def test_predict_names_what_writes_label_maps(trained, tmp_path):
    made = config_of("predict", init=str(trained), images=str(tmp_path))
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"configs/evaluate\.py:label_maps"):
        evaluate.run(made, tmp_path / "w")
