"""Detectors of runs and of detectron2's files, in and out through the program."""

import ast
import dataclasses
import pickle

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from litevit_jax import checkpoint, trees, weights
from litevit_jax.jobs import next_steps, train
from litevit_jax.train.job import TrainState
from litevit_jax.warm_start import detectors, predictor, read, start
from litevit_jax.weights import detectron2, positions, safetensors, torch_write
from tests import detect_golden, jobs
from tests.jobs import convert_test
from tests.weights import reader_test

pytestmark = pytest.mark.usefixtures("no_steps", "one_device")

SIZES = {"objective__encoder__depth": 2, "objective__encoder__window": 3}
GLOBAL = {"objective__encoder__global_blocks": (2,)}


def tiny(**fields):
    return jobs.tiny("detect", evals={}, **(SIZES | GLOBAL | fields))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a detector whose blocks see windows of 3 and a grid of 8."""
    return saved(tiny(), tmp_path_factory.mktemp("detector") / "run")


def saved(made, workdir):
    """Saves random parameters as those of a run of a config."""
    rng = np.random.default_rng(0)
    with jobs.without_steps(), jobs.on_one_device():
        job = train.prepare(made, workdir)
    shapes = trees.flatten(job.state.params)
    params = {k: jnp.asarray(rng.normal(size=x.shape), "f4") for k, x in shapes.items()}
    empty = {"model_state": {}, "teacher": {}, "opt_state": {}}
    state = TrainState(step=jnp.int32(5), params=trees.nest(params), **empty)
    saved = checkpoint.Checkpoints(workdir, keep=1)
    saved.save(state, config=job.config, skipped_steps=0)
    saved.close()
    return workdir


@pytest.fixture(scope="module")
def files(run, tmp_path_factory):
    """The run's detector as files, and its encoder, as the program writes them."""
    folder = tmp_path_factory.mktemp("files")
    paths = {name: folder / name for name in ("whole.safetensors", "whole.pth")}
    for path in paths.values():
        text = convert_test.converted(run, path, format="detectron2")
        assert "read again, they have the same bits" in text and "left out" not in text
    paths["encoder"] = folder / "encoder.safetensors"
    convert_test.converted(run, paths["encoder"], format="detectron2", part="encoder")
    return paths


def loaded_into(made, workdir):
    """Parameters that `init` gives; of the others shapes alone."""
    job = train.prepare(made, workdir)
    config = ml_collections.ConfigDict(job.config)
    run = read.read(config.init)
    filled = start.WarmStart(0, "", [], config, run, None).fill(job.state.params)
    return trees.flatten(filled)


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_a_detector_comes_back_bit_for_bit(ending, run, files, tmp_path):
    got = loaded_into(tiny(init=str(files[f"whole{ending}"])), tmp_path / "again")
    want = read.read_params(str(run)).params
    assert got["encoder/blocks_0/attn/rel_pos_h"].any() and len(got) > 80
    convert_test.same(got, want)
    again = tmp_path / f"again{ending}"
    convert_test.converted(files["whole.safetensors"], again, format="detectron2")
    convert_test.same(weights.read(again).params, want)


def test_what_shapes_do_not_tell_is_recorded(run, files):
    got = weights.read(files["whole.safetensors"])
    assert got.encoder["num_heads"] == 2 and got.grid == (8, 8)
    assert got.windows == {"window": 3, "global_blocks": (2,), "grid": (8, 8)}
    assert got.classes == list("0123456789") and len(got.normalize["mean"]) == 3
    want = read.read_params(str(run)).config["objective"]
    assert got.detector == detectors.recorded(want)
    arrays, about = safetensors.load(files["encoder"].read_bytes())
    assert all(name.startswith("backbone.net.") for name in arrays)
    assert about["image_size"] == "48x48" and not {"classes", "detector"} & {*about}


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_the_objective_of_a_run_follows_from_its_file(ending, run, files):
    """Of a file that records nothing, with the published detector's settings."""
    want = predictor.block_of(read.read_params(str(run)).config)
    loaded = read.read(str(files[f"whole{ending}"]))
    made = predictor.block_of_file(loaded)
    one, other = (predictor.make(block).detector for block in (made, want))
    if ending == ".pth":
        one = dataclasses.replace(
            one, rules=other.rules, anchor_sizes=other.anchor_sizes
        )
    assert one == other


def test_the_encoder_alone_starts_a_detector(run, files, tmp_path):
    got = loaded_into(tiny(init=str(files["encoder"])), tmp_path / "run")
    want = read.read_params(str(run)).params
    loaded = {name: x for name, x in got.items() if isinstance(x, np.ndarray)}
    convert_test.same(loaded, {k: x for k, x in want.items() if k in loaded})
    assert loaded.keys() == {k for k in want if k.startswith("encoder/")}


LAST = {"box_head/logits": 5, "box_head/offsets": 16, "mask_head/logits": 4}


def test_a_detector_of_other_classes_gives_all_but_its_last_layers(run, tmp_path):
    path, params = tmp_path / "other.pth", read.read_params(str(run)).params
    for name, count in LAST.items():
        for leaf in ("kernel", "bias"):
            params[f"{name}/{leaf}"] = params[f"{name}/{leaf}"][..., :count]
    path.write_bytes(torch_write.write(detectron2.to_detectron2(params, patch_size=6)))
    made = tiny(init=str(path))
    with pytest.raises(ValueError, match="4 classes apart, this run 10") as caught:
        loaded_into(made, tmp_path / "refused")
    advice = str(caught.value).partition("--config.init_load_if_there=")[2]
    with made.unlocked():
        made.init_load_if_there = ast.literal_eval(advice.strip("'"))
    got = loaded_into(made, tmp_path / "run")
    loaded = {name: x for name, x in got.items() if isinstance(x, np.ndarray)}
    assert {name.rpartition("/")[0] for name in got.keys() - loaded.keys()} == {*LAST}
    convert_test.same(loaded, {name: params[name] for name in loaded})


def test_tables_of_another_grid_are_interpolated(files, tmp_path):
    made = tiny(init=str(files["encoder"]), data__image_size=30)
    got = loaded_into(made, tmp_path / "run")
    want = weights.read(files["encoder"]).params
    for i, rows in enumerate((5, 9)):
        name = f"encoder/blocks_{i}/attn/rel_pos_w"
        assert got[name].shape == (rows, 12)
        expected = want[name] if i == 0 else positions.resize_offsets(want[name], rows)
        np.testing.assert_array_equal(got[name], expected)
    name = "encoder/pos_embed"  # interpolated in every pass
    np.testing.assert_array_equal(got[name], want[name])


def test_offsets_are_interpolated_between_centres_of_pixels():
    got = positions.resize_offsets(np.float32([[0, 4], [3, 5], [9, 6]]), 5)
    want = [[0, 4], [1.2, 4.4], [3, 5], [6.6, 5.6], [9, 6]]
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert got.dtype == np.float32


def test_a_plain_encoder_takes_what_it_has_when_told(files, tmp_path):
    images = {"data__channels": 3, "data__image_size": 48}
    images |= {f"augment__normalize__{x}": (0.5,) * 3 for x in ("mean", "std")}
    made = jobs.config("finetune", "digits", init=str(files["encoder"]), **images)
    message = "encoder/cls_token.*not in the checkpoint"
    with pytest.raises(ValueError, match=message) as caught:
        loaded_into(made, tmp_path / "refused")
    load, skip = str(caught.value).split("--config.init_load=")[1].split(" --config.")
    with made.unlocked():
        made.init_load = ast.literal_eval(load.strip("'"))
        made.init_skip = ast.literal_eval(skip.partition("=")[2].strip("'"))
    got = loaded_into(made, tmp_path / "run")
    for name, x in weights.read(files["encoder"]).params.items():
        if "rel_pos" not in name:
            np.testing.assert_array_equal(got[name], x, err_msg=name)


def recorded(**changes):
    """The recorded detector's arrays, by detectron2's names."""
    arrays = {**detect_golden.weights(), **changes}
    return {key: x for key, x in arrays.items() if x is not None}


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickles_of_the_model_zoo_are_read(protocol, tmp_path):
    path = tmp_path / "model_final.pkl"
    arrays = recorded(pixel_mean=np.zeros((3, 1, 1), np.float32))
    tree = {"model": arrays, "__author__": "Detectron2 Model Zoo", "iteration": 7}
    path.write_bytes(pickle.dumps(tree, protocol=protocol))
    got = weights.read(path)
    assert got.source == "detectron2" and got.unused == ("pixel_mean",)
    want = tmp_path / "same.pth"
    want.write_bytes(torch_write.write(recorded()))
    convert_test.same(got.params, weights.read(want).params)


def test_of_a_cascade_all_but_the_heads_is_read(tmp_path):
    path = tmp_path / "cascade.pth"
    head = {"roi_heads.box_head.0.fc1.weight": np.zeros((2, 2), np.float32)}
    path.write_bytes(torch_write.write(recorded(**head)))
    got = weights.read(path)
    parts = {name.split("/")[0] for name in got.params}
    assert parts == {"encoder", "neck", "rpn"} and "a cascade's" in got.notes[0]
    with pytest.raises(ValueError, match=r"cascade\.pth: .*no box head.*detect\.py"):
        predictor.block_of_file(read.read(str(path)))
    assert len(got.unused) == sum(k.startswith("roi_heads.") for k in recorded(**head))


TABLE = "backbone.net.blocks.1.attn.rel_pos_h"


@pytest.mark.parametrize(
    ("changes", "heads", "message"),
    [
        ({TABLE: None}, None, r"blocks\.1\.attn\.rel_pos_h: missing"),
        ({TABLE: np.zeros((12, 8))}, None, r"got shape \[12, 8\], expected \[2 K - 1"),
        ({TABLE: np.zeros((11, 4))}, None, r"of 2 heads .*, 4 heads .*blocks\.1\."),
        ({}, 4, r"num_heads=4 given, but it has 2 heads \(rel_pos_h, rel_pos_w\)"),
        ({"backbone.net.cls": np.zeros(3)}, None, r"cls \[3\]: unused, unknown here"),
        ({"backbone.net.norm3.bias": np.zeros(3)}, None, r"norm3\.bias \[3\]: unused"),
        ({"roi_heads.extra.weight": np.zeros(3)}, None, r"1 names.*roi_heads\.extra"),
        ({"backbone.simfp_2.0.bias": np.float32([np.nan])}, None, "is not finite"),
        ({"backbone.net.pos_embed": None}, None, "no pos_embed"),
    ],
)
def test_files_of_other_detectors_are_refused_by_name(
    changes, heads, message, tmp_path
):
    path = tmp_path / "other.pth"
    path.write_bytes(torch_write.write(recorded(**changes)))
    with pytest.raises(weights.WeightsError, match=message) as caught:
        weights.read(path, num_heads=heads)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective__encoder__num_heads": 4}, "heads"),
        (
            {"objective__encoder__global_blocks": (1,)},
            r'windows of 3 patches .*window=3 .*global_blocks="\(2,\)"',
        ),
        ({"objective__channels": 4}, r"box_head/fc/kernel: checkpoint has"),
        ({"objective__mask_convs": 0}, r"mask_head/conv_1/kernel.*in the checkpoint o"),
    ],
)
def test_a_detector_that_does_not_fit_is_refused(fields, message, files, tmp_path):
    made = tiny(**{"init": str(files["whole.safetensors"]), **fields})
    with pytest.raises(ValueError, match=message):
        train.prepare(made, tmp_path / "run")


def test_positions_need_no_square_grid(tmp_path):
    made = tiny(objective__encoder__pos_grid=(4, 6))
    source = saved(made, tmp_path / "run")
    for name, grid in (("a.safetensors", None), ("a.pth", "4x6")):
        path = tmp_path / name
        convert_test.converted(source, path, format="detectron2")
        made = tiny(init=str(path), init_grid=grid)
        job = train.prepare(made, tmp_path / f"new-{path.suffix}")
        assert job.objective.detector.encoder.pos_grid == (4, 6)
    again = tmp_path / "again.safetensors"
    with pytest.raises(ValueError, match=r"24 patches, no square.*grid=ROWSxCOLUMNS"):
        convert_test.converted(path, again, format="detectron2")
    convert_test.converted(path, again, format="detectron2", grid="4x6")
    convert_test.same(weights.read(again).params, read.read_params(str(source)).params)


def test_what_is_written_can_start_a_detector(tmp_path):
    made = jobs.config("convert", None, format="detectron2")
    [line] = next_steps.lines(made, "d.safetensors", "litevit")
    assert "--config=detect:folder,path=DIR --config.init=d.safetensors" in line


def test_formats_and_sources_that_do_not_go_together_are_refused(run, tmp_path):
    path = tmp_path / "out.safetensors"
    with pytest.raises(ValueError, match=r"windows.*--config\.format=detectron2"):
        convert_test.converted(run, path)
    with pytest.raises(ValueError, match=r"ends in '\.onnx'.*\.safetensors, \.pth"):
        convert_test.converted(run, path.with_suffix(".onnx"), format="detectron2")
    with pytest.raises(ValueError, match=r"image_size=96 does not go with"):
        convert_test.converted(run, path, format="detectron2", image_size=96)
    plain = reader_test.HERE / "timm.safetensors"
    with pytest.raises(ValueError, match=r"no detector.*--config\.format=vitdet"):
        convert_test.converted(plain, path, format="detectron2", num_heads=4)
    assert not list(tmp_path.iterdir())
