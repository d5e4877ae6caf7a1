"""COCO-style files: layouts of the tools that write them, and all that may be wrong."""

import base64
import gzip
import io
import json
import pickle

import numpy as np
import PIL.Image
import pytest

from litevit_jax import registry
from litevit_jax.data import coco_file, objects, pipeline, splits, subsets, transforms
from litevit_jax.data.sources import base, cocojson

SQUARE = [[4, 4, 12, 4, 12, 12, 4, 12]]


def _picture(path, size=(40, 30), exif=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = PIL.Image.Exif()
    data[0x0112] = exif
    PIL.Image.new("RGB", size, (200, 90, 10)).save(path, exif=data)


def _annotation(id, image_id=1, **changes):
    fields = {
        "id": id,
        "image_id": image_id,
        "category_id": 3,
        "bbox": [4, 4, 8, 8],
        "area": 64,
        "iscrowd": 0,
        "segmentation": SQUARE,
    }
    return {k: x for k, x in (fields | changes).items() if x != "leave out"}


def _content(*annotations, names=("a.jpg", "b.jpg"), **changes):
    return {
        "images": [
            {"id": i, "file_name": name, "width": 40, "height": 30}
            for i, name in enumerate(names, 1)
        ],
        "categories": [{"id": 17, "name": "cat"}, {"id": 3, "name": "car"}],
        "annotations": list(annotations or (_annotation(5), _annotation(9, 2))),
    } | changes


def _write(root, content, json_name="annotations/instances_default.json", images=None):
    path = root / json_name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    for image in content["images"]:
        _picture(root / (images or "images") / image["file_name"])
    return str(root)


def _make(dir, split="train", **options):
    return cocojson.make(split=split, dir=dir, **options)


def _read(content, masks=True):
    return coco_file.read(content, "x.json", masks=masks, read_png=None)


LAYOUTS = {
    "coco": ("annotations/instances_{}2017.json", "{}2017", "{}2017", ""),
    "coco, images": ("annotations/instances_{}2017.json", "images/{}2017", "", ""),
    "roboflow": ("{}/_annotations.coco.json", "{}", "", ""),
    "cvat": ("annotations/instances_{}.json", "images/{}", "", ""),
    "own": ("{}.json", "images", "", ""),
    "file names with folders": ("labels/{}.json", "", "", "{}/"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_with_splits_are_read(layout, tmp_path):
    file, images, _, prefix = LAYOUTS[layout]
    for split, count in (("train", 3), ("val", 2)):
        names = [f"{prefix.format(split)}{split}{i}.jpg" for i in range(count)]
        those = [_annotation(i, i) for i in range(1, count + 1)]
        content = _content(*those, names=names)
        _write(tmp_path, content, file.format(split), images.format(split) or ".")
    if "coco" in layout:
        captions = tmp_path / "annotations" / "captions_train2017.json"
        captions.parent.mkdir(exist_ok=True)
        captions.write_text("{}")
    train, test = (_make(str(tmp_path), split) for split in ("train", "test"))
    assert len(train) == 3 and len(test) == 2
    assert train.classes == ["car", "cat"] and train.class_ids == [3, 17]
    assert train[1]["objects"].ids == [2] and train[1]["label"] == -1
    assert train.name_of(0).endswith("train0.jpg")
    assert "other splits: val" in train.summary()
    assert "3 images, boxes and masks of objects of 2 classes" in train.summary()


@pytest.mark.parametrize(
    ("json_name", "named"),
    [
        ("annotations/instances_default.json", "a.jpg"),  # CVAT
        ("result.json", "images/a.jpg"),  # Label Studio
        ("result.json", "images\\a.jpg"),
        ("result.json", "../../label-studio/data/media/upload/1/a.jpg"),
        ("result.json", "/data/upload/a.jpg"),
    ],
)
def test_undivided_files_of_labelling_tools_are_read(json_name, named, tmp_path):
    content = _content(names=("a.jpg", "b.jpg"))
    dir = _write(tmp_path, content, json_name)
    content["images"][0]["file_name"] = named
    (tmp_path / json_name).write_text(json.dumps(content))
    source = _make(dir)
    assert [source.name_of(i) for i in range(2)] == ["images/a.jpg", "images/b.jpg"]
    with pytest.raises(ValueError, match=r"holdout\.test"):
        _make(dir, "test")


def test_a_file_and_a_folder_elsewhere_are_named(tmp_path):
    _write(tmp_path, _content(), "exports/march.json", "pictures/all")
    with pytest.raises(ValueError, match="no JSON file of objects; expected"):
        _make(str(tmp_path))
    dir = {"json": "exports/march.json", "images": "pictures/all"}
    source = registry.make(
        "data.sources", "cocojson", split="train", dir=str(tmp_path), **dir
    )
    assert len(source) == 2
    with pytest.raises(ValueError, match=r"none of its 2 images exists.*options\.im"):
        _make(str(tmp_path), json="exports/march.json", images="exports")
    with pytest.raises(ValueError, match="none of its 2 images exists"):
        _make(str(tmp_path), json="exports/march.json", images="nothing")
    with pytest.raises(ValueError, match=r"march\.txt does not exist"):
        _make(str(tmp_path), json="march.txt")


def test_a_share_is_held_out_of_an_undivided_file(tmp_path):
    names = [f"{i}.jpg" for i in range(20)]
    those = [_annotation(i, i) for i in range(1, 21)]
    dir = _write(tmp_path, _content(*those, names=names))
    train, test = (_make(dir, x, holdout=0.3) for x in ("train", "test"))
    ids = [[x.objects(i).image_id for i in range(len(x))] for x in (train, test)]
    assert sorted(ids[0] + ids[1]) == list(range(1, 21)) and 1 < len(ids[1]) < 9


def test_numbers_of_the_file_are_kept(tmp_path):
    crowd = {"size": [30, 40], "counts": [100, 60, 1040]}
    those = [
        _annotation(12, 9, category_id=17, bbox=[4.25, 4.5, 7.75, 7.5], area=60.5),
        _annotation(901, 4),
        _annotation(3, 9, iscrowd=1, segmentation=crowd, bbox=[3, 0, 3, 30]),
    ]
    content = _content(*those, names=("a.jpg", "b.jpg", "c.jpg"))
    for image, key in zip(content["images"], (9, 4, 7), strict=True):
        image["id"] = key
    _write(tmp_path, content, "val.json")
    source = pickle.loads(pickle.dumps(_make(str(tmp_path), "val")))
    assert [source.objects(i).image_id for i in range(3)] == [9, 4, 7]
    mine = [x for i in range(3) for x in source.objects(i).records(source.class_ids)]
    assert mine == [those[0], those[2], those[1]]


def test_masks_of_all_kinds_are_the_same(tmp_path):
    mask = np.zeros((30, 40), np.uint8)
    mask[4:12, 4:12] = 255
    masks, file = objects.pycocotools(), io.BytesIO()
    packed = masks.encode(np.asfortranarray(mask // 255))
    PIL.Image.fromarray(mask).save(file, "PNG")
    kinds = [
        SQUARE,
        SQUARE[0],
        {"size": [30, 40], "counts": packed["counts"].decode()},
        objects.runs(mask),
        "masks/one.png",
        "data:image/png;base64," + base64.b64encode(file.getvalue()).decode(),
    ]
    those = [_annotation(i, segmentation=x) for i, x in enumerate(kinds, 1)]
    dir = _write(tmp_path, _content(*those))
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "one.png").write_bytes(file.getvalue())
    made = _make(dir).objects(0)
    assert len(made) == len(kinds)
    for shape in made.shapes[2:]:
        np.testing.assert_array_equal(objects.bitmap(shape), mask > 0)
    assert made.shapes[1] == made.shapes[0]
    small = {**those[4], "segmentation": "masks/two.png"}
    PIL.Image.new("1", (9, 8)).save(tmp_path / "masks" / "two.png")
    PIL.Image.new("LA", (40, 30)).save(tmp_path / "masks" / "four.png")
    for name, told in (
        ("two", r"size \[8, 9\]"),
        ("three", "not a readable mask PNG"),
        ("four", "mode LA; expected one channel, without alpha"),
    ):
        small["segmentation"] = f"masks/{name}.png"
        (tmp_path / "annotations/instances_default.json").write_text(
            json.dumps(_content(small))
        )
        with pytest.raises(ValueError, match=rf"annotation 5 of image 1.*{told}"):
            _make(dir)


def test_images_without_objects_are_left_out_of_training_alone(tmp_path):
    crowd = objects.runs(np.eye(30, 40) > 0)
    those = (_annotation(1), _annotation(2, 3, iscrowd=1, segmentation=crowd))
    content = _content(*those, names=("a.jpg", "b.jpg", "c.jpg"))
    for split in ("train", "val"):
        _write(tmp_path, content, f"{split}.json")
    train, test = (_make(str(tmp_path), split) for split in ("train", "val"))
    assert len(train) == 1 and len(test) == 3
    told = r"left out, as they have no objects: 2 (images/b.jpg, images/c.jpg)"
    assert told in train.summary() and "keep_empty=True keeps" in train.summary()
    assert "crowds, which are no targets: 1" in test.summary()
    assert test.objects(2).crowd.all() and not len(test.objects(1))
    assert len(_make(str(tmp_path), keep_empty=True)) == 3
    assert len(_make(str(tmp_path), "val", keep_empty=False)) == 1


def test_crowds_are_objects_if_asked_for(tmp_path):
    """CVAT exports each mask with iscrowd=1."""
    mask = objects.runs(np.eye(30, 40) > 0)
    those = [_annotation(i, i, iscrowd=1, segmentation=mask) for i in (1, 2)]
    dir = _write(tmp_path, _content(*those))
    message = (
        r"none of its 2 .*of them crowds.*: 2 .*expected at least one.*=False take"
    )
    with pytest.raises(ValueError, match=message):
        _make(dir)
    source = _make(dir, crowds=False)
    assert len(source) == 2 and not source.objects(0).crowd.any()
    assert len(source.objects(0)) == 1 and "of them crowds" not in source.summary()


def test_images_of_cvat_are_found_below_its_folder(tmp_path):
    content = _content(names=("x/a.jpg", "y/a.jpg"))
    _write(tmp_path, content, images="images/default")
    source = _make(str(tmp_path))
    names = [source.name_of(i) for i in range(2)]
    assert names == ["images/default/x/a.jpg", "images/default/y/a.jpg"]
    assert "missing" not in source.summary()


NAN = float("nan")
HUGE = [[4, 4, 12, 4, 12, 12, 4, 12, 400]]


@pytest.mark.parametrize(
    ("change", "left", "told"),
    [
        ({"segmentation": [[1, 2, 3, 4], *SQUARE]}, 1, "polygons left out"),
        ({"segmentation": [*HUGE, *SQUARE]}, 1, "polygons left out"),
        ({"segmentation": [[1, 2, NAN, 4, 5, 6], *SQUARE]}, 1, "polygons left out"),
        (
            {"segmentation": [[1, 2, 3, 4]]},
            0,
            "objects left out, without a valid polygon",
        ),
        (
            {"segmentation": [[50, 4, 60, 4, 60, 12]]},
            0,
            "left out, empty or outside their image",
        ),
        ({"bbox": [20, 20, 8, 8]}, 1, "boxes more than 2 pixels off their masks"),
        ({"bbox": [4, 4, 0, 8]}, 1, "boxes more than 2 pixels off their masks"),
        ({"area": 99999}, 1, "areas that no object can have, counted anew: 1 (annot"),
        ({"id": 0}, 1, "annotations with id 0, renumbered: 1 (now 10)"),
    ],
    ids=str,
)
def test_what_is_empty_or_doubtful_is_counted(change, left, told):
    file = _read(_content(_annotation(**{"id": 7} | change), _annotation(9, 2)))
    assert len(file.images[0].objects) == left
    [note] = [line for line in file.notes if told in line]
    if "id" not in change:
        assert "annotation 7 of image 1 ('a.jpg')" in note
    if left and "segmentation" in change:
        assert file.images[0].objects.shapes[0] == SQUARE
    if "id" in change:
        assert file.images[0].objects.ids == [10]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([-5, -5, 15, 15], (0, 0, 10, 10)),
        ([35, 25, 50, 50], (35, 25, 40, 30)),
        ([4, 4, 8, 8], (4, 4, 12, 12)),
        ([50, 4, 8, 8], None),
        ([4, 4, -8, 8], None),
        ([4, 4, 8, 0], None),
    ],
)
def test_boxes_are_cut_to_the_image(box, expected):
    one = _annotation(7, bbox=box, segmentation="leave out")
    file = _read(_content(one, _annotation(8)), masks=False)
    boxes = file.images[0].objects.boxes[:-1]
    assert boxes.tolist() == ([list(expected)] if expected else [])
    assert bool(file.notes) == (expected is None)


def test_a_box_and_an_area_that_are_missing_follow_from_the_mask():
    one = _annotation(7, bbox="leave out", area="leave out")
    made = _read(_content(one)).images[0].objects
    np.testing.assert_array_equal(made.boxes, [(4, 4, 12, 12)])
    assert made.areas[0] == 64


SAYS = r"x\.json: annotation 7 of image 1 \('a\.jpg'\) has "
RUNS = {"size": [30, 40], "counts": [1200]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmentation": []}, SAYS + r"a box but no segm.*detect\.py:boxes"),
        ({"segmentation": [[[4, 4], [9, 4], [9, 9]]]}, SAYS + "segm.*expected polygo"),
        ({"segmentation": [{"size": [30, 40]}]}, SAYS + "segm.*expected polygons"),
        ({"segmentation": "leave out"}, SAYS + "a box but no segmentation"),
        (
            {"segmentation": RUNS | {"size": [40, 30]}},
            SAYS + r"a mask of size \[40",
        ),
        ({"segmentation": RUNS | {"counts": [1, 2]}}, SAYS + "a damaged RLE: 3 pixels"),
        (
            {"segmentation": RUNS | {"counts": "P"}},
            SAYS + "a damaged RLE: it ends",
        ),
        ({"segmentation": RUNS | {"counts": [-1, 1201]}}, SAYS + "a damaged RLE"),
        ({"segmentation": 5}, SAYS + "segmentation 5; expected polygons"),
        (
            {"bbox": [4, 4, NAN, 8]},
            SAYS + r"bbox \[4, 4, nan, 8\]; expected four",
        ),
        ({"bbox": [4, 4, float("inf"), 8]}, SAYS + r"bbox \[4, 4, inf"),
        ({"bbox": [4, 4, 8]}, SAYS + r"bbox \[4, 4, 8\]"),
        (
            {"category_id": 4},
            SAYS + "category_id 4; expected one of the ids.*: 3, 17",
        ),
        ({"image_id": 77}, "annotation 7 is of image 77; which is not in 'images'"),
        ({"image_id": [1]}, r"annotation 7 is of image \[1\]"),
        ({"iscrowd": 2}, SAYS + "iscrowd 2; expected 0 or 1"),
        ({"id": 9}, "two annotations have id 9; expected another id for each"),
        ({"id": "7"}, "has id '7'; expected a whole number"),
    ],
    ids=str,
)
def test_annotations_that_contradict_themselves_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        _read(_content(_annotation(**{"id": 7} | change), _annotation(9, 2)))


IMAGE = {"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": [IMAGE, IMAGE]}, "two images have id 1: 'a.jpg' and 'a.jpg'"),
        ({"images": [IMAGE | {"id": None}]}, "image id None; expected a whole number"),
        (
            {"images": [IMAGE | {"file_name": ""}]},
            "image 1 has file_name ''; expected the name",
        ),
        (
            {"images": [IMAGE | {"width": 0}]},
            r"height 30 and width 0; expected its",
        ),
        ({"images": [7]}, "image 7 has file_name None; expected"),
        (
            {"images": None},
            "is not a COCO file of objects: expected an object with the",
        ),
        ({"categories": []}, "x.json has no categories"),
        ({"categories": [{"id": 1}]}, "category {'id': 1}; expected a whole number"),
        ({"categories": [{"id": 1, "name": "a"}] * 2}, "have the same id, 1"),
    ],
    ids=str,
)
def test_files_that_contradict_themselves_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        _read(_content(**change))
    with pytest.raises(ValueError, match="is not a COCO file of objects"):
        _read([1])


def test_a_damaged_file_is_named(tmp_path):
    dir = _write(tmp_path, _content(), "result.json")
    (tmp_path / "result.json").write_text('{"images": [')
    with pytest.raises(
        ValueError, match=r"result\.json is not valid JSON: .*export it again"
    ):
        _make(dir)
    (tmp_path / "result.json").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(ValueError, match=r"result\.json is compressed; unpack it"):
        _make(dir)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="2 JSON files that no split tells apart"):
        _make(dir)


def test_the_umbrella_of_roboflow_is_no_class():
    entries = [{"id": 0, "name": "things", "supercategory": "none"}]
    entries += [
        {"id": i, "name": name, "supercategory": "things"}
        for i, name in ((3, "car"), (17, "cat"))
    ]
    assert _read(_content(categories=entries)).classes == ["car", "cat"]
    for other in ("others", ["things"]):
        entries[1]["supercategory"] = other
        assert len(_read(_content(categories=entries)).classes) == 3
    # Of a group that has the name of its only class.
    entries = [
        {"id": 0, "name": "face", "supercategory": "none"},
        {"id": 3, "name": "face", "supercategory": "face"},
    ]
    content = _content(_annotation(1), _annotation(2), categories=entries)
    assert _read(content).classes == ["face"]
    entries[0]["supercategory"] = "face"
    with pytest.raises(ValueError, match="two categories are called 'face'; merge or"):
        _read(content)


@pytest.mark.parametrize(
    ("size", "exif"), [((30, 40), 1), ((40, 30), 6), ((40, 31), 1)]
)
def test_pictures_of_another_size_are_refused_before_a_run(size, exif, tmp_path):
    dir = _write(tmp_path, _content())
    _picture(tmp_path / "images" / "b.jpg", size, exif)
    message = r"images/b\.jpg \(image 2\): its objects are of an image of 40 x 30 pix"
    with pytest.raises(base.AnnotationError, match=message):
        _make(dir)


def test_turned_pictures_of_the_right_size_are_read(tmp_path):
    dir = _write(tmp_path, _content())
    _picture(tmp_path / "images" / "b.jpg", (30, 40), 6)
    assert _make(dir)[1]["objects"].size == (30, 40)[::1]


def test_missing_pictures_count_as_unreadable(tmp_path):
    dir = _write(tmp_path, _content())
    (tmp_path / "images" / "b.jpg").unlink()
    source = _make(dir)
    assert "missing images: 1 (b.jpg)" in source.summary()
    assert source.fingerprint()
    transform = transforms.for_training(
        image_size=(16, 16), joint={"annotations": ("objects",), "mask_size": 16}
    )
    how = {"batch_size": 4, "seed": 0}
    with pytest.raises(pipeline.BadDataError, match=r"b\.jpg"):
        next(pipeline.train_batches(source, transform, max_bad_fraction=0.0, **how))
    stream = pipeline.train_batches(source, transform, **how)  # one is allowed
    assert next(stream)["index"].tolist() == [0] * 4
    stream.close()


def test_boxes_alone_are_read_if_asked_for(tmp_path):
    those = _annotation(1, segmentation=[]), _annotation(2, 2)
    dir = _write(tmp_path, _content(*those))
    with pytest.raises(ValueError, match=r"annotation 1 of image 1 \('a\.jpg'\)"):
        _make(dir)
    source = _make(dir, masks=False)
    assert source.annotations == ("boxes",)
    assert "2 images, boxes of objects of 2 classes" in source.summary()
    assert source[1]["objects"].shapes == [None]


def test_parts_and_joined_splits_keep_their_objects(tmp_path):
    dir = _write(tmp_path, _content())
    whole = _make(dir)
    part = subsets.Subset(whole, np.array([1]))
    joined = subsets.join([whole, part])
    for source, index in ((part, 0), (joined, 1), (joined, 2)):
        assert source.objects(index).ids == [9]
        assert source.class_ids == [3, 17] and source.annotations == whole.annotations
    assert list(joined.object_counts) == [1, 1, 1]


def test_a_picture_that_is_named_twice_keeps_the_entry_with_objects(tmp_path):
    source = _make(_write(tmp_path, _content(_annotation(1, 2), names=("a.jpg",) * 2)))
    assert len(source) == 1 and source.objects(0).image_id == 2
    assert "named twice: 1 (images/a.jpg)" in source.summary()


def test_the_fingerprint_follows_from_images_and_objects(tmp_path):
    one = _make(_write(tmp_path / "one", _content())).fingerprint()
    assert _make(_write(tmp_path / "two", _content())).fingerprint() == one
    moved = _content(_annotation(5, bbox=[4, 4, 8, 7]), _annotation(9, 2))
    assert _make(_write(tmp_path / "two", moved)).fingerprint() != one


def test_too_many_objects_are_told_before_a_run(tmp_path):
    those = [_annotation(i, 1 + i // 7) for i in range(1, 10)]
    source = _make(_write(tmp_path, _content(*those)))
    data = {"joint": {"annotations": ("objects",), "max_objects": 4}}
    [line] = splits._left_out(source, data)
    assert line.startswith("1 of 2 images have more than data.joint.max_objects=4 obj")
    assert "(up to 6)" in line and "2 are no targets" in line
    assert splits._left_out(source, {"joint": {"annotations": ("objects",)}}) == []
    data["joint"]["max_objects"] = 6
    assert not splits._left_out(source, data)


def test_without_pycocotools_the_extra_is_named(tmp_path, monkeypatch):
    dir = _write(tmp_path, _content())
    monkeypatch.setitem(__import__("sys").modules, "pycocotools.mask", None)
    with pytest.raises(ModuleNotFoundError, match=r'install "litevit_jax\[dense\]"'):
        _make(dir)
    assert len(_make(dir, masks=False)) == 2


def test_a_missing_image_is_not_that_of_another_split_or_entry(tmp_path):
    for split, names in (("train", ("0.jpg", "b.jpg")), ("test", ("0.jpg",))):
        path = tmp_path / split / "_annotations.coco.json"
        path.parent.mkdir()
        path.write_text(json.dumps(_content(_annotation(5), names=names)))
    _picture(tmp_path / "train" / "b.jpg")
    _picture(tmp_path / "test" / "0.jpg")
    source = _make(str(tmp_path), keep_empty=True)
    assert [source.name_of(i) for i in range(2)] == ["train/0.jpg", "train/b.jpg"]
    assert "missing images: 1 (0.jpg)" in source.notes
    lone = tmp_path / "lone"
    lone.mkdir()
    content = _content(names=("p/a.jpg", "q/a.jpg"))
    (lone / "result.json").write_text(json.dumps(content))
    _picture(lone / "images" / "p" / "a.jpg")
    assert "missing images: 1 (q/a.jpg)" in _make(str(lone)).notes
    content = _content(names=("p/a.jpg", "q/a.jpg", "b.jpg"))
    (lone / "result.json").write_text(json.dumps(content))
    (lone / "images" / "p" / "a.jpg").rename(lone / "images" / "a.jpg")
    _picture(lone / "images" / "b.jpg")
    [note] = [x for x in _make(str(lone)).notes if x.startswith("missing")]
    assert note.startswith("missing images: 2")  # nothing tells whose it is


@pytest.mark.parametrize("area", [-1, 0, 1e300, 10**400, None, "leave out"])
def test_an_area_that_is_none_is_that_of_the_mask(area):
    overhanging = [[-100, -100, 10, -100, 10, 10, -100, 10]]
    read = _read(
        _content(
            _annotation(5, area=area),
            _annotation(6, area=area, bbox=[0, 0, 10, 10], segmentation=overhanging),
        )
    )
    assert read.images[0].objects.areas.tolist() == [64, 100]


def test_polygons_far_outside_are_cut_to_their_image():
    far = [[4, 4, 2e9, 4, 2e9, 12, 4, 12], [1e12, 5, 2e12, 5, 2e12, 9]]
    [those] = [
        x.objects
        for x in _read(_content(_annotation(5, segmentation=far))).images
        if len(x.objects)
    ]
    [shape] = those.shapes
    assert len(shape) == 1 and max(shape[0]) == 40 and those.boxes[0, 2] == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segmentation": [[1, 1, 10**400, 1, 6, 6]]}, None),
        ({"bbox": [1, 1, 10**400, 5]}, "expected four finite numbers"),
    ],
)
def test_numbers_that_no_float_holds_are_none(changes, message):
    content = _content(_annotation(5, **changes), _annotation(9, 2))
    if message is None:
        assert any("polygons left out" in x for x in _read(content).notes)
        return
    with pytest.raises(ValueError, match=message):
        _read(content)


@pytest.mark.parametrize("name", ["a\0.jpg", "a\ud800.jpg", "..", "/"])
def test_names_that_no_file_has_are_refused(name):
    with pytest.raises(
        ValueError, match=r"has file_name .* expected the name of an image file"
    ):
        _read(_content(names=(name, "b.jpg")))


def test_a_category_0_with_objects_is_a_class():
    entries = [{"id": 0, "name": "things", "supercategory": "none"}]
    entries += [{"id": 3, "name": "car", "supercategory": "things"}]
    content = _content(_annotation(5), _annotation(6, category_id=0))
    assert _read(content | {"categories": entries}).classes == ["things", "car"]


def test_a_file_without_images_says_so(tmp_path):
    (tmp_path / "result.json").write_text(
        json.dumps(_content() | {"images": [], "annotations": []})
    )
    with pytest.raises(ValueError, match="lists no images"):
        _make(str(tmp_path))


def test_folders_and_files_that_options_confuse_are_named(tmp_path):
    dir = _write(tmp_path, _content())
    with pytest.raises(ValueError, match="images does not exist"):
        _make(dir, json="images")
    with pytest.raises(ValueError, match="none of its 2 images exists"):
        _make(dir, images="annotations/instances_default.json")


def test_a_broken_picture_of_a_mask_is_named():
    def broken(name):
        raise SyntaxError("broken PNG file")  # as PIL does

    content = _content(_annotation(5, segmentation="m.png"))
    with pytest.raises(
        ValueError, match=r"annotation 5 .*not a readable mask PNG \(broken"
    ):
        coco_file.read(content, "x.json", masks=True, read_png=broken)
