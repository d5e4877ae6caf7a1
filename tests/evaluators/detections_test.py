"""Files of detections: every image a row, in each format; stopped and continued."""

import csv
import dataclasses
import functools
import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from litevit_jax.data import decode, jitter, joint, pipeline
from litevit_jax.evaluators import base, detection_files, instances, predict
from tests.evaluators import coco_test, common

NAMES = ("one", "two", "three")
BROKEN = 3


class Pictures(coco_test.Ellipses):
    """Pictures without objects that are known, of which one cannot be read."""

    annotations, classes, class_ids = (), (), ()

    def __getitem__(self, index):
        if index == BROKEN:
            raise decode.DecodeError("it is cut off")
        return {"image": super().__getitem__(index)["image"], "label": -1}

    def name_of(self, index):
        return f"in/{index}, ä.png"


def lookup(params, model_state, batch):
    """Row k of every table for the image whose pixels are k."""
    del model_state
    row = batch["image"][:, 0, 0, 0].astype(int)
    return {name: jnp.asarray(x)[row] for name, x in params.items()}


def context(tmp_path, source, predicts, **kwargs):
    fit = functools.partial(jitter.whole, size=(96, 96))
    transform = joint.Canvas(decode.Decode(), (96, 96), fit)
    made = common.context(lookup, tmp_path=tmp_path / "pictures", num_classes=0)
    return dataclasses.replace(
        made,
        source={"eval": source}.__getitem__,
        batches=functools.partial(
            pipeline.eval_batches,
            transform=transform,
            batch_size=8,
            threads=2,
            max_bad_fraction=1.0,
        ),
        mean=(0.5, 0.5, 0.5),
        names=NAMES,
        predicts=tuple(predicts),
        **kwargs,
    )


def run(tmp_path, target=None, *, source=None, masks=True, table=None, **kwargs):
    table = table or coco_test.perfect(coco_test.Ellipses(), 96)
    if not masks:
        table = {k: x for k, x in table.items() if k != "masks"}
    made = context(tmp_path, source or Pictures(), table)
    target = None if target is None else str(target)
    evaluator = predict.make(context=made, target=target, **kwargs)
    return evaluator, evaluator.run(common.state(table), step=0)


@pytest.mark.parametrize("ending", detection_files.WRITERS)
def test_every_image_has_its_objects_or_its_error(ending, tmp_path):
    path = tmp_path / f"a{ending}"
    evaluator, got = run(tmp_path, path)
    assert got == {"n": 6, "unreadable": 1, "objects": 8, "file": str(path)}
    rows = detection_files.read(path, 99)
    assert [row.number for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row.path for row in rows] == [f"in/{i}, ä.png" for i in range(6)]
    assert [row.error for row in rows] == ["", "", "", "it is cut off", "", ""]
    assert not rows[3].objects and not rows[4].objects
    pairs = [(NAMES[1], pytest.approx(0.9)), (NAMES[2], pytest.approx(0.8))]
    assert rows[1].objects == pairs
    assert detection_files.read(path, 2) == rows[:2]
    assert not path.with_name(f"a{ending}.parts").exists()
    drawn = sorted(file.name for file in evaluator.folder.iterdir())
    assert drawn == [f"00000{i}-{i - 1}ä.jpg" for i in (1, 2, 3, 5, 6)]
    with Image.open(evaluator.drawn(2)) as picture:
        assert picture.size == (300, 480)


def test_boxes_and_masks_are_those_of_the_picture(tmp_path):
    run(tmp_path, tmp_path / "a.jsonl")
    rows = [json.loads(x) for x in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert (rows[1]["width"], rows[1]["height"]) == coco_test.SIZES[1][::-1]
    assert rows[3]["width"] is None and rows[3]["error"] == "it is cut off"
    truth = coco_test.Ellipses()
    for index, row in enumerate(rows):
        if index == BROKEN:
            continue
        want = truth.objects(index)
        boxes = [[a, b, c - a, d - b] for a, b, c, d in want.boxes]
        assert len(row["objects"]) == len(boxes)
        for one, box, mask in zip(row["objects"], boxes, want.masks, strict=True):
            np.testing.assert_allclose(one["box"], box, atol=1e-3)
            seen = instances.decode(one["mask"], coco_test.SIZES[index])
            both = (seen & mask).sum() / (seen | mask).sum()
            assert both > 0.85
    run(tmp_path, tmp_path / "b.csv")
    with (tmp_path / "b.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    one = rows[2]["objects"][1]
    [line] = [x for x in lines if (x["image"], x["class"]) == ("3", one["class"])]
    box = [float(line[name]) for name in detection_files.BOX]
    np.testing.assert_allclose(box, one["box"], rtol=1e-6)
    assert line["mask"] == one["mask"]["counts"] and line["image_width"] == "150"
    content = json.loads(_coco(tmp_path).read_text())
    assert [x["id"] for x in content["images"]] == [1, 2, 3, 5, 6]
    assert content["unreadable"][0]["file_name"] == "in/3, ä.png"
    assert [x["id"] for x in content["annotations"]] == list(range(1, 9))
    assert {x["category_id"] for x in content["annotations"]} == {1, 2, 3}
    assert content["annotations"][0]["segmentation"] == rows[0]["objects"][0]["mask"]


def _coco(tmp_path, **kwargs):
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
    run(tmp_path, path, **kwargs)
    return path


class Known(coco_test.Ellipses):
    """Pictures whose classes are called as the detector's, in another order."""

    classes = ("three", "four", "one")


def test_a_coco_file_has_the_ids_of_the_data_by_the_names_of_the_classes(tmp_path):
    content = json.loads(_coco(tmp_path, source=Known()).read_text())
    assert [x["id"] for x in content["images"]] == [100, 99, 98, 97, 96, 95]
    names = {x["name"]: x["id"] for x in content["categories"]}
    assert names == {"one": 90, "two": 91, "three": 3}
    first = content["annotations"][0]
    assert (first["image_id"], first["category_id"]) == (100, 90)


def test_the_least_score_and_the_number_of_objects_are_those_asked_for(tmp_path):
    _, got = run(tmp_path, tmp_path / "a.csv", min_score=0.85, overlay=0.0)
    assert got["objects"] == 4 and not (tmp_path / "a.pictures").exists()
    _, got = run(tmp_path, tmp_path / "b.csv", top=1)
    assert got["objects"] == 4
    rows = detection_files.read(tmp_path / "b.csv", 3)
    assert [x.objects[0][1] for x in rows] == pytest.approx([0.9] * 3)
    table = coco_test.perfect(coco_test.Ellipses(), 96)
    table["valid"] = np.zeros_like(table["valid"])
    assert run(tmp_path, tmp_path / "c.json", table=table)[1]["objects"] == 0
    assert len(detection_files.read(tmp_path / "c.json", 9)) == 6


def test_a_stopped_command_goes_on_after_its_last_whole_line(tmp_path, monkeypatch):
    path, whole = tmp_path / "a.jsonl", tmp_path / "whole.jsonl"
    run(tmp_path, whole)

    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(detection_files, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, path)
    monkeypatch.undo()
    journal = tmp_path / "a.jsonl.parts" / detection_files.JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:2]) + lines[2][:20])
    read = []
    monkeypatch.setattr(
        Pictures, "name_of", lambda self, i: read.append(i) or f"in/{i}, ä.png"
    )
    run(tmp_path, path)
    assert path.read_bytes() == whole.read_bytes()
    assert min(read) == 2  # the first two are not looked at again
    journal.parent.mkdir()
    (journal.parent / "about.json").write_text('{"params": "others"}')
    path.unlink()
    with pytest.raises(ValueError, match="holds a part of a file with other params"):
        run(tmp_path, path)


def test_boxes_alone_need_no_pycocotools_and_masks_name_the_extra(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    for ending in detection_files.WRITERS:
        _, got = run(tmp_path, tmp_path / f"{ending[1:]}{ending}", masks=False)
        assert got["objects"] == 8
    content = json.loads((tmp_path / "json.json").read_text())
    assert "segmentation" not in content["annotations"][0]
    with pytest.raises(ModuleNotFoundError, match=r"litevit_jax\[dense\]"):
        run(tmp_path, tmp_path / "b.csv")


def test_without_a_target_the_last_files_are_replaced(tmp_path):
    for _ in range(2):
        evaluator, _ = run(tmp_path)
        stale = evaluator.folder / "999999-old.jpg"
        assert not stale.exists()
        stale.write_bytes(b"")
    assert evaluator.path == tmp_path / "predictions.csv"
    assert len(detection_files.read(evaluator.path, 99)) == 6


def test_what_cannot_be_written_is_refused_first(tmp_path):
    (tmp_path / "a.pictures").mkdir()
    with pytest.raises(FileExistsError, match=r"a\.pictures, the folder of the"):
        run(tmp_path, tmp_path / "a.csv")
    with pytest.raises(ValueError, match=r"expected one of \.csv, \.jsonl, \.json"):
        run(tmp_path, tmp_path / "a.txt")


def test_models_of_other_kinds_are_told_apart(tmp_path):
    made = context(tmp_path, Pictures(), ["logits"])
    with pytest.raises(ValueError, match=r"min_score=0\.5 is of a detector's objects"):
        predict.make(context=made, min_score=0.5)
    made = context(tmp_path, Pictures(), ["segmentation_logits"])
    with pytest.raises(ValueError, match=r"configs/evaluate\.py:label_maps"):
        predict.make(context=made)


def test_no_prediction_is_remembered_so_that_memory_stays_the_same(
    tmp_path, monkeypatch
):
    table = coco_test.perfect(coco_test.Ellipses(), 96)
    made = context(tmp_path, Pictures(), table, last=base.LastPass())
    monkeypatch.setattr(base.LastPass, "over", lambda *_: pytest.fail("remembered"))
    evaluator = predict.make(context=made, target=str(tmp_path / "a.csv"))
    assert evaluator.run(common.state(table), step=0)["n"] == 6
