"""COCO's numbers, and perfect detections from the network's input to the result."""

import dataclasses
import functools
import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from litevit_jax.data import decode, jitter, joint, pipeline
from litevit_jax.data.sources import base as sources
from litevit_jax.evaluators import coco, coco_scores, instances
from tests import dense_golden as golden
from tests.evaluators import common


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_numbers_are_the_recorded_ones(kind):
    values = golden.group("coco")
    truth, detected = values["ground_truth"], values["detections"]
    before = json.dumps(detected)
    numbers, each, _ = coco_scores.score(truth, detected, kind)
    prefix = {"bbox": "", "segm": "mask_"}[kind]
    recorded = dict(zip(coco_scores.NAMES, values[f"{kind}_stats"], strict=True))
    assert recorded["ap_large"] == -1
    want = {f"{prefix}{k}": 100 * x for k, x in recorded.items() if x > -1}
    assert numbers == pytest.approx(want, rel=1e-5)
    *known, none = values[f"{kind}_ap_per_category"]
    assert none == -1 and each[3] is None
    assert each[:3] == pytest.approx([100 * x for x in known], rel=1e-5)
    assert json.dumps(detected) == before


def test_without_detections_numbers_are_zero_where_there_are_objects():
    truth = golden.group("coco")["ground_truth"]
    for kind in ("bbox", "segm"):
        numbers, each, _ = coco_scores.score(truth, [], kind)
        assert set(numbers.values()) == {0.0} and len(numbers) == 10
        assert each == [0.0, 0.0, 0.0, None]


IDS = (3, 7, 90)  # of the categories
SIZES = [(40, 64), (64, 40), (100, 150), (33, 20), (64, 64), (21, 90)]


class Objects:
    """Ellipses in a picture, as sources give objects."""

    def __init__(self, image_id, size, masks, with_masks, number):
        self.image_id, self.size, self._with_masks = image_id, size, with_masks
        self.masks, self.crowd = masks, np.zeros(len(masks), bool)
        self.classes = [(number + n) % 3 for n in range(len(masks))]
        self.boxes = [box_of(mask) for mask in masks]

    def records(self, class_ids):
        return [
            {
                "id": n,  # 0, too
                "image_id": self.image_id,
                "category_id": class_ids[self.classes[n]],
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "area": float(mask.sum()),
                "iscrowd": 0,
                **(
                    {"segmentation": instances.encode(mask)} if self._with_masks else {}
                ),
            }
            for n, (box, mask) in enumerate(zip(self.boxes, self.masks, strict=True))
        ]


def box_of(mask):
    (left, *_, right), (top, *_, bottom) = (
        np.flatnonzero(mask.any(axis=axis)).tolist() for axis in (0, 1)
    )
    return [left, top, right + 1, bottom + 1]


class Ellipses(sources.Source):
    """Pictures of several sizes with ellipses of three classes, and one with none."""

    annotations = ("objects", "boxes")
    classes, class_ids = ("one", "two", "three"), IDS

    def __init__(self, masks=True):
        self._masks = masks
        if not masks:
            self.annotations = ("boxes",)

    def __len__(self):
        return len(SIZES)

    def __getitem__(self, index):
        image = np.full((*SIZES[index], 3), index, np.uint8)
        return {"image": image, "label": -1, "objects": self.objects(index)}

    def objects(self, index):
        number = 0 if index == 4 else 2
        masks = [self.mask(index, n) for n in range(number)]
        return Objects(100 - index, SIZES[index], masks, self._masks, number=index)

    def mask(self, index, number):
        """An ellipse in the left or the right half of a picture, up to its edge."""
        rows, columns = SIZES[index]
        y, x = np.mgrid[:rows, :columns] + 0.5
        centre = columns * (0.25 + 0.5 * number)
        return ((y / rows - 0.5) / 0.5) ** 2 + ((x - centre) / columns / 0.25) ** 2 <= 1

    def name_of(self, index):
        return str(index)

    def fingerprint(self):
        return ""


def perfect(source, side, bins=28):
    """What a perfect detector predicts for each image of `side` pixels; one is padding.

    Boxes are those of the resized images, masks the parts in them, `bins` on a side.
    """
    rows = {k: [] for k in ("boxes", "scores", "classes", "valid", "left_out", "masks")}
    for index, size in enumerate(SIZES):
        whole = np.zeros((3, 4), np.float32), np.zeros((3, bins, bins), np.float32)
        classes, valid = np.zeros(3, np.int32), np.zeros(3, bool)
        resized = joint.Settings(short_side=side, long_side=side).resized(size)
        factor = np.divide(resized, size)
        objects = source.objects(index)
        for n, box in enumerate(objects.boxes):
            whole[0][n] = box * np.tile(factor[::-1], 2)
            whole[1][n] = _part(objects.masks[n], box, bins)
            classes[n], valid[n] = objects.classes[n], True
        scores = np.where(valid, np.float32([0.9, 0.8, 0.0]), 0).astype(np.float32)
        values = (whole[0], scores, classes, valid, np.int32(index), whole[1])
        for name, value in zip(rows, values, strict=True):
            rows[name].append(value)
    return {name: np.stack(values) for name, values in rows.items()}


def _part(mask, box, bins):
    """The share of each of `bins` x `bins` parts of a box that is the object's."""
    part = mask[box[1] : box[3], box[0] : box[2]].astype(float)
    for axis in (0, 1):
        length = part.shape[axis]
        edges = np.linspace(0, length, bins + 1)
        low, high = edges[:-1, None], edges[1:, None]
        pixel = np.arange(length)
        weights = np.clip(np.minimum(high, pixel + 1) - np.maximum(low, pixel), 0, None)
        part = np.moveaxis(np.tensordot(weights, part, (1, axis)), 0, axis)
        part *= bins / length
    return part


def evaluator(tmp_path, source, side=96, context=None, bad=0.001, **kwargs):
    """The evaluator of a detector that looks its predictions up."""
    fit = functools.partial(jitter.whole, size=(side, side))
    transform = joint.Canvas(decode.Decode(), (side, side), fit)

    def predict(params, model_state, batch):
        del model_state
        return {name: jnp.asarray(x)[batch["index"]] for name, x in params.items()}

    made = dataclasses.replace(
        common.context(predict, tmp_path=tmp_path / "pictures", num_classes=3),
        source={"eval": source}.__getitem__,
        batches=functools.partial(
            pipeline.eval_batches,
            transform=transform,
            batch_size=8,
            threads=2,
            max_bad_fraction=bad,
        ),
        size=(side, side),
        mean=(0.5, 0.5, 0.5),
        **(context or {}),
    )
    return coco.make(context=made, **kwargs)


def test_a_picture_has_what_is_likely_or_else_the_likeliest(tmp_path, monkeypatch):
    drawn = []
    draw = coco.outlines.drawn

    def remember(image, objects, *args, **kwargs):
        drawn.append([x.get("score") for x in objects])
        return draw(image, objects, *args, **kwargs)

    monkeypatch.setattr(coco.outlines, "drawn", remember)
    context = evaluator(tmp_path, Ellipses()).context
    box = {"bbox": [3, 3, 9, 9], "category_id": IDS[0]}
    seen = [[0.2, 0.9, 0.6], [0.3, 0.4, 0.1], []]
    pictures = {
        number: ([], [box | {"score": score} for score in scores])
        for number, scores in enumerate(seen)
    }
    coco._picture(context, "eval", pictures, IDS)
    assert drawn[1::2] == [[0.9, 0.6], [0.4], []]


def test_perfect_detections_have_a_precision_of_one_hundred(tmp_path):
    source = Ellipses()
    test = evaluator(tmp_path, source)
    test.check_data()
    got = test.run(common.state(perfect(source, 96)), step=1)
    assert got["ap"] == got["ap50"] == got["ar100"] == pytest.approx(100)
    assert got["mask_ap"] == got["mask_ar100"] == pytest.approx(100)
    assert got["n"] == 6 and got["detections"] == 10
    assert got["left_out"] == sum(range(6))
    assert [row["class"] for row in got["table"]] == ["one", "two", "three"]
    assert sum(row["objects"] for row in got["table"]) == 10
    assert all(row["ap"] == row["mask_ap"] == 100 for row in got["table"])
    with Image.open(tmp_path / "pictures" / "detections_0000001.png") as picture:
        assert picture.size[0] > picture.size[1] > 320
    written = json.loads((tmp_path / "detections.json").read_text())
    assert {x["image_id"] for x in written} == {100, 99, 98, 97, 95}
    first = source.objects(0).records(IDS)[0]
    assert written[0]["category_id"] == first["category_id"] == 3
    np.testing.assert_allclose(written[0]["bbox"], first["bbox"], atol=1e-4)
    names = ["image_id", "category_id", "bbox", "score", "segmentation"]
    assert list(written[0]) == names


def test_a_wrong_class_a_shift_and_a_padded_detection_count_as_they_should(tmp_path):
    source = Ellipses(masks=False)
    test = evaluator(tmp_path, source, masks=False)
    table = perfect(source, 96)
    table["classes"] = np.where(table["valid"], (table["classes"] + 1) % 3, 0)
    got = test.run(common.state(table), step=1)
    assert got["ap"] == 0 and "mask_ap" not in got
    table = perfect(source, 96)
    table["valid"][:] = False
    got = test.run(common.state(table), step=1)
    assert got["ap"] == 0 and got["detections"] == 0
    assert json.loads((tmp_path / "detections.json").read_text()) == []
    table = perfect(source, 96)
    table["boxes"] += 12  # an eighth of the picture: some overlaps fall below
    assert 0 < test.run(common.state(table), step=1)["ap"] < 60


class Others(Ellipses):
    """The same objects without those of a class; the others are in another order."""

    classes, class_ids = ("two", "one"), (4, 9)

    def objects(self, index):
        objects = super().objects(index)
        keep = [n for n, k in enumerate(objects.classes) if k < 2]
        objects.boxes = [objects.boxes[n] for n in keep]
        objects.masks = [objects.masks[n] for n in keep]
        objects.classes = [1 - objects.classes[n] for n in keep]
        objects.crowd = objects.crowd[keep]
        return objects


def test_classes_are_matched_by_name_and_those_that_data_lack_do_not_count(tmp_path):
    test = evaluator(tmp_path, Others(), context={"names": ("one", "two", "three")})
    got = test.run(common.state(perfect(Ellipses(), 96)), step=1)
    assert got["ap"] == got["mask_ap"] == pytest.approx(100)
    assert [row["class"] for row in got["table"]] == ["two", "one"]
    written = json.loads((tmp_path / "detections.json").read_text())
    assert {x["category_id"] for x in written} == {4, 9}
    assert len(written) == got["detections"] < 10


class Again(Ellipses):
    """Pictures of which the last is the first again."""

    def objects(self, index):
        return super().objects(index % 5)

    def __getitem__(self, index):
        return super().__getitem__(index % 5)

    def name_of(self, index):
        return str(index % 5)


def test_an_image_that_comes_again_counts_once(tmp_path):
    test = evaluator(tmp_path, Again())
    test.check_data()
    table = {k: x[[0, 1, 2, 3, 4, 0]] for k, x in perfect(Ellipses(), 96).items()}
    got = test.run(common.state(table), step=1)
    assert got["ap"] == pytest.approx(100) and got["n"] == 5
    assert got["detections"] == sum(row["objects"] for row in got["table"]) == 8
    clash = Again()
    clash.name_of = str
    with pytest.raises(ValueError, match="0 and 5 have the same id, 100"):
        evaluator(tmp_path, clash).check_data()


def test_objects_of_images_that_cannot_be_read_do_not_count(tmp_path, monkeypatch):
    source, read, broken = Ellipses(), Ellipses.__getitem__, {2, 4}

    def cut(self, index):
        if index in broken:
            raise decode.DecodeError("it is cut off")
        return read(self, index)

    monkeypatch.setattr(Ellipses, "__getitem__", cut)
    table = perfect(source, 96)
    with pytest.raises(pipeline.BadDataError, match="2: "):
        evaluator(tmp_path, source).run(common.state(table), step=1)
    assert not list(tmp_path.rglob("*.*"))  # nothing is written
    broken.update(range(6))
    with pytest.raises(ValueError, match=r"no image with an object could be read \(6"):
        evaluator(tmp_path, source, bad=1.0).run(common.state(table), step=1)
    broken -= {0, 1, 3, 4, 5}  # one is allowed
    test = evaluator(tmp_path, source)
    got = test.run(common.state(table), step=1)
    assert (got["n"], got["unreadable"]) == (5, 1)
    assert got["ap"] == pytest.approx(100) and got["detections"] == 8


def test_curves_are_cocos_precision_at_every_recall():
    values = golden.group("coco")
    truth, detected = values["ground_truth"], values["detections"]
    scores = {x: coco_scores.score(truth, detected, x) for x in ("bbox", "segm")}
    rows = coco_scores.curves(scores, ["a", "b", "c", "d"])
    of_all = {(x["of"], x["iou"]): x for x in rows if x["class"] is None}
    for of, prefix in (("boxes", ""), ("masks", "mask_")):
        numbers = scores["bbox" if of == "boxes" else "segm"].numbers
        for iou, name in (("0.5", "ap50"), ("0.75", "ap75"), ("0.5 to 0.95", "ap")):
            curve = of_all[of, iou]["precision"]
            assert len(curve) == 101 and curve[0] >= curve[-1]
            # An average precision is the mean of its curve.
            assert np.mean(curve) == pytest.approx(numbers[prefix + name], abs=0.01)
    each = [x["class"] for x in rows if x["class"] and x["of"] == "boxes"]
    assert sorted(each) == ["a", "b", "c"]  # the fourth has no object
    many = [float(k) for k in range(9)] + [None]
    assert coco_scores._ends(many) == [8, 7, 6, 2, 1, 0]
    assert coco_scores._ends([50.0, None]) == []


def test_data_without_objects_are_refused(tmp_path, monkeypatch):
    source = Ellipses()
    monkeypatch.setattr(source, "annotations", ("label_map",), raising=False)
    with pytest.raises(ValueError, match=r"'eval' needs objects with boxes.*cocojson"):
        evaluator(tmp_path, source).check_data()
    monkeypatch.setattr(source, "annotations", ("boxes",), raising=False)
    with pytest.raises(
        ValueError, match=r"'eval' has boxes without masks; .*add the va"
    ):
        evaluator(tmp_path, source).check_data()
    evaluator(tmp_path, source, masks=False).check_data()
    empty = Ellipses()
    nothing = [Objects(i, SIZES[i], [], True, number=0) for i in range(6)]
    monkeypatch.setattr(empty, "objects", nothing.__getitem__)
    with pytest.raises(ValueError, match="none of its 6 images has an object"):
        evaluator(tmp_path, empty).check_data()


def test_without_pycocotools_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    with pytest.raises(ModuleNotFoundError, match=r"litevit_jax\[dense\]"):
        evaluator(tmp_path, Ellipses())


@pytest.mark.parametrize(
    ("images", "kinds"),
    [
        ((-1, 2**63 + 1), (1, 2)),
        (("a", "a\0"), (1, 2**63 + 1)),
        ((7, "b"), (-1, 2**64)),
    ],
)
def test_ids_of_any_kind_are_told_apart(images, kinds):
    boxes = [
        {"image_id": image, "category_id": kind, "bbox": [1.0, 1.0, 5.0, 5.0]}
        for image, kind in zip(images, kinds, strict=True)
    ]
    truth = {
        "images": [{"id": image, "height": 9, "width": 9} for image in images],
        "categories": [{"id": kind, "name": str(kind)} for kind in kinds],
        "annotations": [
            x | {"id": number, "area": 25.0, "iscrowd": 0}
            for number, x in enumerate(boxes, start=1)
        ],
    }
    detected = [x | {"score": 0.9} for x in boxes]
    assert coco_scores.score(truth, detected, "bbox").classes == pytest.approx(
        [100] * 2
    )
    assert coco_scores.score(truth, detected[:1], "bbox").classes[1] == 0
