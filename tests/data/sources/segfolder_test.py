"""Folders of images and label maps: ADE20K's, PASCAL VOC's and users' own."""

import pathlib
import pickle
import re

import numpy as np
import PIL.Image
import pytest

from litevit_jax.data import pipeline, splits, survey, transforms
from litevit_jax.data.sources import base, segfolder


def _write(root, image, labels, value=0, *, palette=False):
    """Writes an image and a map of `value` with one pixel of 255."""
    for name in (image, labels):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
    size = (12, 8)
    PIL.Image.new("RGB", size, (value * 9, 50, 60)).save(root / image)
    picture = PIL.Image.new("P" if palette else "L", size, value)
    if palette:
        picture.putpalette([x for i in range(256) for x in (255 - i, i // 2, 7)])
    picture.putpixel((3, 2), 255)
    picture.save(root / labels)


def _values(source):
    """The label of each example's first pixel, by name."""
    return {
        pathlib.PurePath(source.name_of(i)).stem: int(source.label_map(i)[0, 0])
        for i in range(len(source))
    }


@pytest.fixture
def ade(tmp_path):
    for split, names in (("training", "abc"), ("validation", "de")):
        for i, name in enumerate(names):
            _write(
                tmp_path,
                f"images/{split}/{name}.jpg",
                f"annotations/{split}/{name}.png",
                i + 1,
            )
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    lines += [
        f"{i}\t0.1\t9\t9\t1\t{x}" for i, x in enumerate(["wall", "sky, air", "bed"])
    ]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(lines))
    return tmp_path


def test_ade20k_is_read(ade):
    source = segfolder.make(split="train", dir=str(ade), reduce_zero_label=True)
    assert source.classes == ["wall", "sky, air", "bed"]
    assert source.annotations == ("label_map",) and not source.labelled
    assert _values(source) == {"a": 0, "b": 1, "c": 2}
    assert source[1]["label_map"][2, 3] == 255 and source[1]["label"] == -1
    assert source.name_of(0) == "images/training/a.jpg"
    assert source.summary() == (
        "3 images, label maps of 3 classes (wall, sky, air, bed); from "
        f"{ade}; other splits: validation"
    )
    for name in ("validation", "val", "test"):
        other = segfolder.make(split=name, dir=str(ade), reduce_zero_label=True)
        assert _values(other) == {"d": 0, "e": 1}


def test_it_travels_to_worker_processes(ade):
    source = segfolder.make(split="train", dir=str(ade), reduce_zero_label=True)
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[2]["label_map"], source[2]["label_map"])
    assert copy.fingerprint() == source.fingerprint()


def test_the_fingerprint_has_what_labels_mean(ade, tmp_path_factory):
    def fingerprint(**fields):
        fields = {"reduce_zero_label": True, "classes": 4} | fields
        return segfolder.make(split="train", dir=str(ade), **fields).fingerprint()

    prints = {
        fingerprint(),
        fingerprint(reduce_zero_label=False),
        fingerprint(classes=5),
        fingerprint(classes="a,b,c,d"),
    }
    assert len(prints) == 4
    with (ade / "annotations/training/a.png").open("ab") as file:
        file.write(b"more")
    assert fingerprint() not in prints


@pytest.fixture
def voc(tmp_path):
    for i, name in enumerate(["2007_1", "2007_2", "2007_3"]):
        _write(
            tmp_path,
            f"JPEGImages/{name}.jpg",
            f"SegmentationClass/{name}.png",
            i,
            palette=True,
        )
    PIL.Image.new("RGB", (12, 8)).save(tmp_path / "JPEGImages/2008_9.jpg")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_3\n2007_1\n\n")
    (lists / "val.txt").write_text("2007_2\n")
    (lists / "trainval.txt").write_text("2007_1\n2007_2\n2007_3\n")
    return tmp_path


def test_voc_is_read_by_its_lists_and_the_indices_of_palettes(voc):
    fields = {"dir": str(voc), "classes": 21, "reduce_zero_label": False}
    train = segfolder.make(split="train", **fields)
    assert _values(train) == {"2007_3": 2, "2007_1": 0}
    assert train[0]["label_map"][2, 3] == 255
    assert train.classes == [str(i) for i in range(21)]
    assert _values(segfolder.make(split="val", **fields)) == {"2007_2": 1}
    assert len(segfolder.make(split="trainval", **fields)) == 3


def test_a_list_that_names_what_is_not_there_is_refused(voc):
    with (voc / "ImageSets/Segmentation/train.txt").open("a") as file:
        file.write("2008_9\n2099_1\n")
    message = (
        r"2 of 4 names of a split's list are not in .*2008_9, 2099_1; the first is "
    )
    with pytest.raises(ValueError, match=message + "not in SegmentationClass"):
        segfolder.make(split="train", dir=str(voc), classes=21, reduce_zero_label=False)


@pytest.fixture
def own(tmp_path):
    for i, name in enumerate(["x/1", "x/2", "y/1", "y/3"]):
        _write(tmp_path, f"images/{name}.png", f"labels/{name}.png", i)
    (tmp_path / "classes.txt").write_text("sky\nroad\n\ncar\ntree\n")
    return tmp_path


def _own(root, split="train", **fields):
    return segfolder.make(
        split=split, dir=str(root), **{"reduce_zero_label": False} | fields
    )


def test_own_folders_are_paired_by_their_whole_names(own):
    source = _own(own)
    assert source.classes == ["sky", "road", "car", "tree"]
    assert [source.label_map(i)[0, 0] for i in range(4)] == [0, 1, 2, 3]


def test_a_share_is_held_out_where_nothing_names_a_split(own):
    for i in range(40):
        _write(own, f"images/z/{i}.png", f"labels/z/{i}.png", 1)
    train, test = (_own(own, x, holdout=0.25) for x in ("train", "test"))
    names = [{x.name_of(i) for i in range(len(x))} for x in (train, test)]
    assert not names[0] & names[1] and len(names[0] | names[1]) == 44
    with pytest.raises(ValueError, match="has no 'test' split"):
        _own(own, "test")


@pytest.mark.parametrize("where", [".", "splits"])
def test_own_lists_name_splits(own, where):
    (own / where).mkdir(exist_ok=True)
    (own / where / "train.txt").write_text("x/1.png\ny/3\n")
    (own / where / "val.txt").write_text("x/2\n")
    assert [int(_own(own).label_map(i)[0, 0]) for i in range(2)] == [0, 3]
    assert len(_own(own, "val")) == len(_own(own, "test")) == 1


def test_images_without_labels_are_counted(own):
    PIL.Image.new("RGB", (12, 8)).save(own / "images" / "x" / "lonely.png")
    source = _own(own)
    assert len(source) == 4
    assert (
        "left out, as they have no label map: 1 images (x/lonely)" in source.summary()
    )


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ("a, b,c,d", ["a", "b", "c", "d"]),
        (("a", "b", "c", "d"), ["a", "b", "c", "d"]),
        ("4", ["0", "1", "2", "3"]),
        ("FILE", ["n1", "n2", "n3", "n4"]),
    ],
)
def test_classes_are_named_in_several_ways(own, tmp_path, classes, expected):
    if classes == "FILE":
        (tmp_path / "names.txt").write_text("n1\nn2\nn3\nn4\n")
        classes = str(tmp_path / "names.txt")
    assert _own(own, classes=classes).classes == expected


def test_what_is_not_said_is_asked(own):
    with pytest.raises(
        ValueError, match=r"is label 0 a class\? Say .*reduce_zero_label"
    ):
        segfolder.make(split="train", dir=str(own))
    (own / "classes.txt").unlink()
    with pytest.raises(ValueError, match=r"no classes\.txt .*options\.classes=N"):
        _own(own)
    with pytest.raises(ValueError, match=r"configs/segment\.py:folder,path=DIR"):
        segfolder.make(split="train", reduce_zero_label=False)
    with pytest.raises(ValueError, match="expected 1 to 255, as labels are bytes"):
        _own(own, classes=256)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("a,b,a,c", "classes a, b, a, c: 'a' stands there twice"),
        ("a,,b,c", "one has no name; expected a different name for each"),
        ("", "one has no name"),
        ("-4", "classes=-4: expected a whole number of classes"),
        (4.0, "classes=4.0: expected a whole number of classes"),
        (0, "0 classes; expected 1 to 255"),
    ],
)
def test_classes_without_a_name_of_their_own_are_refused(own, classes, message):
    with pytest.raises(ValueError, match=message):
        _own(own, classes=classes)


def test_what_label_0_means_is_said_in_no_other_way(own):
    with pytest.raises(ValueError, match=r"Say .*reduce_zero_label=.* got 'False'"):
        _own(own, reduce_zero_label="False")
    with pytest.raises(FileNotFoundError, match=r"classes=no\.txt: no such file; give"):
        _own(own, classes="no.txt")


def test_what_is_left_out_is_told(own):
    for name in ("train/a", "train/b", "val/c"):
        _write(own, f"images/{name}.png", f"labels/{name}.png", 1)
    (own / "labels" / "train" / "b.png").rename(own / "labels" / "train" / "b_m.png")
    summary = _own(own).summary()
    assert "in no split: 4 images (x/1, x/2, y/1, y/3)" in summary
    assert "left out, as they have no label map: 1 images (train/b)" in summary
    assert "label maps without an image: 1 (train/b_m)" in summary


def test_a_name_counts_once_in_a_list(own):
    (own / "train.txt").write_text("x/1.png\ny/3\nx/1\n")
    (own / "val.txt").write_text("x/2\r\n")
    source = _own(own)
    assert [source.name_of(i) for i in range(len(source))] == [
        "images/x/1.png",
        "images/y/3.png",
    ]
    assert "named again in train.txt: 1 images" in source.summary()
    assert len(_own(own, "val")) == 1


def test_label_maps_of_another_kind_of_file_are_named(own):
    for path in (own / "labels").rglob("*.png"):
        path.rename(path.with_suffix(".jpg"))
    with pytest.raises(ValueError, match=r"got images, labels, but labels has files "):
        _own(own)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ((0, 255), "have no label but 0; is 255 a class in yours"),
        ((255, 255), "have no label at all; is 255 a class in yours"),
        ((1, 1), r"have no label but 1 \('road'\)"),
        ((0, 1), None),
    ],
)
def test_label_maps_that_tell_nothing_apart_are_told(own, values, told):
    picture = PIL.Image.new("L", (12, 8), values[0])
    picture.paste(values[1], (0, 0, 6, 8))
    for path in (own / "labels").rglob("*.png"):
        picture.save(path)
    lines = survey.check(_own(own), channels=3, range="full")
    assert len(lines) == (told is not None)
    if told:
        assert re.search(f"the 4 label maps looked at {told}", lines[0])


def test_other_layouts_are_refused_with_what_is_there(tmp_path, own):
    for name in ("labels", "masks"):
        (own / name).mkdir(exist_ok=True)
    PIL.Image.new("L", (12, 8)).save(own / "masks" / "a.png")
    with pytest.raises(
        ValueError, match=r"one folder of label maps .*got labels, masks"
    ):
        _own(own)
    (tmp_path / "empty" / "pictures").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"one folder of images, named .*got pictures"):
        _own(tmp_path / "empty", classes=3)


def test_names_that_do_not_match_are_shown(own):
    for path in (own / "labels").rglob("*.png"):
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    message = r"no image has a label map: 4 images, 4 .* as x/1\.jpg and x/1\.png, not "
    with pytest.raises(ValueError, match=message + "x/1_mask"):
        _own(own)


def test_two_images_of_one_name_are_refused(own):
    PIL.Image.new("RGB", (12, 8)).save(own / "images" / "x" / "1.jpg")
    with pytest.raises(ValueError, match="two pictures of one name"):
        _own(own)


BAD = {
    "colours": (PIL.Image.new("RGB", (12, 8)), "in colours"),
    "size": (PIL.Image.new("L", (12, 9)), "label map of 12 x 9 pixels"),
    "class": (PIL.Image.new("L", (12, 8), 4), "label 4 in 96 of 96 pixels"),
}


@pytest.mark.parametrize("kind", BAD)
def test_wrong_label_maps_name_the_file(own, kind):
    picture, message = BAD[kind]
    picture.save(own / "labels" / "x" / "2.png")
    expected = rf"{own}/labels/x/2\.png: .*{message}"
    source = _own(own)
    with pytest.raises(base.AnnotationError, match=expected):
        source[1]
    # Before anything is compiled ...
    with pytest.raises(ValueError, match=expected):
        survey.check(source, channels=3, range="full")
    # ... and where the survey did not look: the run ends, whatever may be unreadable.
    transform = transforms.for_training(
        image_size=(8, 8), joint={"annotations": ("label_map",), "short_side": 8}
    )
    stream = pipeline.train_batches(
        source, transform, batch_size=4, seed=0, threads=2, max_bad_fraction=1.0
    )
    with pytest.raises(ValueError, match=message):
        next(stream)


def test_a_damaged_label_map_counts_as_a_damaged_image(own):
    (own / "labels" / "x" / "2.png").write_bytes(b"nothing")
    transform = transforms.for_training(
        image_size=(8, 8), joint={"annotations": ("label_map",), "short_side": 8}
    )
    stream = pipeline.train_batches(
        _own(own), transform, batch_size=8, seed=0, threads=2, max_bad_fraction=0.3
    )
    batch = next(stream)
    stream.close()
    assert list(stream.bad) == ["images/x/2.png"]
    assert 1 not in batch["index"]


def test_parts_and_joined_splits_keep_their_label_maps(ade):
    data = {
        **{"source": "segfolder", "dir": str(ade), "name": "", "channels": 3},
        **{"train_split": "training+validation", "eval_split": "validation"},
        **{"holdout": {"test": 0, "eval": 0, "select": 0.4, "select_at_most": 9}},
        **{"shots": None, "fraction": 1.0, "fraction_of": None, "long_tail": None},
        **{"subset_seed": 0, "range": None, "max_pixels": 10**6, "cache": True},
        **{"cache_gib": 1.0, "threads": 2, "options": {"reduce_zero_label": True}},
    }
    opened = splits.open_splits(data)
    train, select = opened("train"), opened("select")
    assert len(train) == 3 and len(select) == 2
    for source in (train, select):
        assert source.annotations == ("label_map",)
        assert source.label_map(0).shape == (8, 12)
