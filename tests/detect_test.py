"""A detection run as a whole: trained, resumed, evaluated."""

import importlib
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import litevit_jax
from litevit_jax import sharding
from litevit_jax.analysis import models
from litevit_jax.data.sources import cocojson
from litevit_jax.jobs import evaluate, next_steps, train
from litevit_jax.warm_start import read
from tests import jobs
from tests.jobs import convert_test

pytestmark = pytest.mark.usefixtures("shared_designs", "one_device")


def tiny():
    made = jobs.tiny("detect", steps=4, checkpoint__every_steps=2, log__report=False)
    with made.unlocked():
        made.evals.test.every_steps = 2
        made.objective.rules.min_score = 0.01
    return made


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny run of four steps, saved and evaluated at every second."""
    workdir = tmp_path_factory.mktemp("detect") / "run"
    train.run(tiny(), workdir)
    return workdir


def result_of(workdir):
    return json.loads((workdir / "evals" / "test" / "result.json").read_text())


def test_results_name_every_class_and_detections_are_written(trained):
    last = result_of(trained)["last"]
    assert [row["class"] for row in last["table"]] == list("0123456789")
    assert 0 <= last["ap"] <= last["ap50"] <= 100 and 0 <= last["mask_ap"] <= 100
    assert last["n"] == 16 and last["left_out"] == 0
    rows = json.loads((trained / "detections.json").read_text())
    assert len(rows) == last["detections"] > 0
    assert {row["image_id"] for row in rows} <= set(range(1, 17))
    assert {row["category_id"] for row in rows} <= set(range(10))
    for row in rows:
        left, top, width, height = row["bbox"]
        assert 0 <= left < left + width <= 48.001 and 0 <= top < top + height <= 48.001
        assert row["segmentation"]["size"] == [48, 48]


def test_a_run_that_was_cut_goes_on_to_the_same_bits(trained, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(trained, cut)
    shutil.rmtree(cut / "checkpoints" / "4")
    shutil.rmtree(cut / "evals")
    (cut / "detections.json").unlink()
    train.run(tiny(), cut)
    one, other = (read.read_params(str(place)).params for place in (cut, trained))
    assert one.keys() == other.keys()
    for name, value in other.items():
        np.testing.assert_array_equal(one[name], value, err_msg=name)
    own = (trained / "detections.json").read_text()
    assert (cut / "detections.json").read_text() == own


def test_a_batch_without_objects_trains_neither_offsets_nor_masks(tmp_path):
    job = train.prepare(tiny(), tmp_path / "run")
    batch = next(iter(job.stream(0)))
    empty = {**batch, "valid": np.zeros_like(batch["valid"])}
    state, metrics = job.step(job.create(), sharding.global_batch(empty, job.mesh))
    values = {name: float(x) for name, x in metrics.items()}
    assert batch["valid"].any() and np.isfinite(list(values.values())).all()
    assert values["loss_objectness"] > 0 and values["loss_classes"] > 0
    assert values["loss_anchors"] == values["loss_boxes"] == values["loss_masks"] == 0
    moments = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x)
        for path, x in jax.tree_util.tree_leaves_with_path(state.opt_state)
    }
    still = ("rpn/offsets/", "box_head/offsets/", "mask_head/")
    seen = {part: [x for name, x in moments.items() if part in name] for part in still}
    for part, arrays in seen.items():
        assert len(arrays) > 1 and not any(x.any() for x in arrays), part
    assert all(
        x.any() for name, x in moments.items() if "box_head/logits" in name
    )  # of background


def test_a_run_is_evaluated_as_it_was_in_training(trained, tmp_path):
    made = importlib.import_module("litevit_jax.configs.evaluate").get_config()
    with made.unlocked():
        made.init = str(trained)
    got = evaluate.run(made, tmp_path / "run")["test"]["last"]
    own = result_of(trained)["last"]
    for name in ("ap", "ap50", "mask_ap", "n", "table", "params", "step"):
        assert got[name] == own[name], name


def coco_folder(folder, names):
    """A picture with an object of each class, and its JSON file."""
    (folder / "val").mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(folder / "val" / "a.png")
    box = {"bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0, "image_id": 1}
    square = {"segmentation": [[0, 0, 9, 0, 9, 9, 0, 9]]}
    classes = list(enumerate(names, start=5))
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
        "categories": [{"id": k, "name": name} for k, name in classes],
        "annotations": [
            {"id": k, "category_id": k, **box, **square} for k, _ in classes
        ],
    }
    (folder / "val" / "_annotations.coco.json").write_text(json.dumps(content))
    return folder


def test_boxes_alone_are_trained_scored_and_drawn(tmp_path):
    rng, content = np.random.default_rng(0), {"categories": [{"id": 4, "name": "cat"}]}
    for split in ("train", "test"):
        folder = tmp_path / "set" / split
        folder.mkdir(parents=True)
        files = [f"{number}.png" for number in range(8)]
        for name in files:
            pixels = rng.integers(0, 255, (30, 40, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name)
        content["images"] = [
            {"id": i, "file_name": name, "width": 40, "height": 30}
            for i, name in enumerate(files)
        ]
        content["annotations"] = [
            {"id": i, "image_id": i, "category_id": 4, "bbox": [4, 6, 9, 8]}
            for i in range(8)
        ]
        (folder / "_annotations.coco.json").write_text(json.dumps(content))
    made = jobs.tiny(
        "detect",
        f"boxes,folder,path={tmp_path / 'set'},smoke",
        steps=2,
        log__report=False,
        **{f"objective__rules__{name}": 32 for name in ("proposals", "box_samples")},
    )
    train.run(made, tmp_path / "run")
    last = result_of(tmp_path / "run")["last"]
    assert last["n"] == 8 and 0 <= last["ap"] <= 100 and "mask_ap" not in last
    other = importlib.import_module("litevit_jax.configs.evaluate")
    other = other.get_config(f"coco,boxes,data=cocojson,path={tmp_path / 'set'}")
    with other.unlocked():
        other.update(init=str(tmp_path / "run"), batch_size=8)
    again = evaluate.run(other, tmp_path / "again")["coco"]["last"]
    assert (again["ap"], again["table"]) == (last["ap"], last["table"])
    predict = importlib.import_module("litevit_jax.configs.predict").get_config(None)
    with predict.unlocked():
        predict.update(init=str(tmp_path / "run"), images=str(tmp_path / "set/test"))
        predict.update(target=str(tmp_path / "out.json"), min_score=0.0)
    evaluate.main(predict, str(tmp_path / "w"), "litevit")
    found = json.loads((tmp_path / "out.json").read_text())
    assert len(found["images"]) == 8 and found["annotations"]
    assert "segmentation" not in found["annotations"][0]


def test_other_data_are_matched_by_the_names_of_their_classes(trained, tmp_path):
    def prepared(names, split="val"):
        folder = coco_folder(tmp_path / "-".join(names) / split[:3], names)
        made = importlib.import_module("litevit_jax.configs.evaluate")
        made = made.get_config(f"coco,data=cocojson,path={folder}")
        with made.unlocked():
            made.init, made.data.eval_split = str(trained), split
        return evaluate.prepare(made, tmp_path / "w")

    job = prepared(["7", "0"])
    assert any(
        "2 of the 10 classes of the model, matched by name" in x for x in job.notes
    )
    test = job.evaluators["coco"][0]
    called = test._called(test.context.source("eval"), (5, 6))
    assert (called[7], called[0], called[1]) == (5, 6, None)
    with pytest.raises(ValueError, match=r"'cat': 1 of 2 classes of the data are none"):
        prepared(["7", "cat"])
    with pytest.raises(ValueError, match=r"split .* 'val\[:1\]'"):
        prepared(["7"], "val[:1]")


def test_objects_on_pictures_of_any_kind_are_written_drawn_and_shown(
    trained, tmp_path, capsys
):
    pictures, turned = tmp_path / "in", Image.Exif()
    turned[0x112] = 6  # a quarter to the right
    rng = np.random.default_rng(0)
    kinds = {"a": (90, 60, 3), "b": (40, 40), "c": (50, 30, 4), "d": (60, 1, 3)}
    for name, shape in kinds.items():
        image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        (pictures / "sub").mkdir(parents=True, exist_ok=True)
        image.save(pictures / f"{'sub/' * (name == 'd')}{name}.png", exif=turned)
    (pictures / "broken.jpg").write_text("no picture")
    made = importlib.import_module("litevit_jax.configs.predict").get_config()
    target = tmp_path / "out.json"
    with made.unlocked():
        made.update(init=str(trained), images=str(pictures), target=str(target))
        made.update(min_score=0.0, top=2)
    evaluate.main(made, str(tmp_path / "w"), "litevit")
    content = json.loads(target.read_text())
    sizes = {x["file_name"]: (x["width"], x["height"]) for x in content["images"]}
    upright = {"a.png": (90, 60), "b.png": (40, 40), "c.png": (50, 30)}
    assert sizes == upright | {"sub/d.png": (60, 1)}
    assert "not an image" in content["unreadable"][0]["error"]
    images = {x["id"]: x for x in content["images"]}
    assert {x["image_id"] for x in content["annotations"]} >= {1, 2, 4}
    for each in content["annotations"]:
        image = images[each["image_id"]]
        left, top, width, height = each["bbox"]
        assert 0 <= left < left + width <= image["width"] * 1.0001
        assert 0 <= top < top + height <= image["height"] * 1.0001
        assert each["segmentation"]["size"] == [image["height"], image["width"]]
    assert [x["name"] for x in content["categories"]] == list("0123456789")
    read = {"dir": str(tmp_path), "json": "out.json", "images": "in"}
    again = cocojson.make(split="test", holdout=0.9, **read)
    assert list(again.classes) == list("0123456789") and sum(again.object_counts) > 0
    assert len(list((tmp_path / "out.pictures").iterdir())) == 4
    page = target.with_suffix(".html").read_text()
    assert page.count('<img src="data:image/jpeg;base64,') == 4
    printed = capsys.readouterr().out
    assert "broken.jpg  not read: not an image (10 bytes)" in printed
    assert "1 of 5 images could not be read; the list 'unreadable'" in printed


def test_objects_of_a_labelled_set_have_its_ids(trained, tmp_path):
    made = importlib.import_module("litevit_jax.configs.predict")
    made = made.get_config("data=digit_scenes")
    with made.unlocked():
        made.data.options.update(
            json.loads((trained / "config.json").read_text())["data"]["options"]
        )
        made.update(init=str(trained), target=str(tmp_path / "o.json"), sheet_images=0)
        made.update(min_score=0.0, overlay=0.0)
    evaluate.main(made, str(tmp_path / "w"), "litevit")
    content = json.loads((tmp_path / "o.json").read_text())
    detected = json.loads((trained / "detections.json").read_text())
    assert [x["id"] for x in content["categories"]] == list(range(10))
    for got, want in zip(content["annotations"], detected, strict=True):
        assert {k: got[k] for k in want} == want


def test_a_file_of_a_detector_is_evaluated_as_its_run(trained, tmp_path):
    path = tmp_path / "detector.safetensors"
    convert_test.converted(trained, path, format="detectron2")
    variant = importlib.import_module("litevit_jax.configs.evaluate")
    made = variant.get_config("data=digit_scenes,smoke")
    with made.unlocked():
        made.init, made.batch_size = str(path), 8
        made.data.options.update(objects=True, scenes=64, test_scenes=16)
    got = evaluate.run(made, tmp_path / "run")["test"]["last"]
    own = result_of(trained)["last"]
    for name in ("ap", "ap50", "mask_ap", "n", "table"):
        assert got[name] == own[name], name


def test_a_detector_is_no_encoder_of_single_images(trained):
    with pytest.raises(ValueError, match=r"evaluate\(config, DIR\) .*'predict'"):
        litevit_jax.load(trained)


def test_an_encoder_with_windows_is_not_analysed(trained):
    with pytest.raises(
        ValueError, match="'detect': its encoder attends within windows"
    ):
        models.read("run", str(trained), normalize={})


def test_positions_have_the_grid_of_the_encoder_that_is_loaded(tmp_path):
    """They are interpolated in every pass, not when they are loaded."""
    made = jobs.tiny(data__image_size=4, objective__encoder__patch_size=1)
    run = jobs.saved_run(tmp_path / "run", made, noise=True)
    made = jobs.tiny("detect", init=str(run), data__channels=1)
    with made.unlocked():
        for name in ("width", "depth", "num_heads", "patch_size"):
            made.objective.encoder[name] = None
        made.data.image_size = 8
    job = train.prepare(made, tmp_path / "detect")
    encoder = job.objective.detector.encoder
    assert encoder.pos_grid == (4, 4) and encoder.grid == (8, 8)
    state = job.create()
    loaded = read.read_params(str(run)).params
    for name in ("patch_embed/kernel", "blocks_0/attn/qkv/kernel"):
        part = state.params["encoder"]
        for key in name.split("/"):
            part = part[key]
        np.testing.assert_array_equal(part, loaded[f"encoder/{name}"])
    assert state.params["encoder"]["pos_embed"].shape == (1, 17, encoder.width)
    assert not np.asarray(
        state.params["encoder"]["blocks_0"]["attn"]["rel_pos_h"]
    ).any()


def test_what_can_follow_a_detector_draws_what_it_sees(trained):
    made = importlib.import_module("litevit_jax.configs.evaluate").get_config()
    with made.unlocked():
        made.init, made.objective = str(trained), {"name": "detect"}
    [line] = next_steps.lines(made, "runs/x", "litevit")
    assert "--config=predict:data=folder,path=DIR" in line and str(trained) in line


def test_a_classifier_takes_no_windows_from_a_detector(trained, tmp_path):
    made = jobs.tiny(
        "finetune", init=str(trained), data__image_size=12, data__channels=3
    )
    with made.unlocked():
        for name in ("width", "depth", "num_heads", "patch_size"):
            made.objective.encoder[name] = None
        made.augment.normalize.update(mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(ValueError, match="a detector's encoder, without class token"):
        train.prepare(made, tmp_path / "run").create()
