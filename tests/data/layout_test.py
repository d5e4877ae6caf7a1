"""A split is never read as a class; what may be either is asked for."""

import pytest

from litevit_jax.data.sources import folder


def read(dir, split, **kwargs):
    """(names of the images, classes) of a split."""
    source = folder.make(split=split, dir=dir, **kwargs)
    return [source.name_of(i) for i in range(len(source))], source.classes


def classes_in(*splits):
    return [
        f"{split}/{name}/{split}.jpg" for split in splits for name in ("cat", "dog")
    ]


SPLITS = [
    ("train", "valid"),
    ("Train", "Test"),
    ("TRAIN", "VALIDATION"),
    ("training", "testing"),
    ("seg_train", "seg_test"),
    ("train2017", "val2017"),
    ("training_set", "test_set"),
    ("my_train", "test"),
    ("train", "dev"),
]


@pytest.mark.parametrize("train, test", SPLITS)
def test_splits_are_found_by_their_usual_names(fill, train, test):
    dir = fill(*classes_in(train, test))
    for split, top in (("train", train), ("test", test), ("val", test)):
        names = sorted(f"{top}/{name}/{top}.jpg" for name in ("cat", "dog"))
        assert read(dir, split) == (names, ["cat", "dog"])


@pytest.mark.parametrize(
    "more, note",
    [
        (("copy/train/cat/a.jpg", "copy/test/cat/b.jpg"), "not used: copy/"),
        (
            ("extra_images/cat/a.jpg", "x.jpg"),
            "not used: 1 images beside the splits; other splits: extra_images, test,",
        ),
        (
            ("valid/dog/1.jpg", "pictures/1.jpg"),
            "not used: pictures/; other splits: test, valid",
        ),
        (("archive/1.jpg", "archive2/2.jpg"), "not used: archive/, archive2/"),
    ],
)
def test_what_lies_beside_a_training_split_is_never_a_class(fill, more, note):
    dir = fill(*classes_in("train", "test"), "valid/cat/x.jpg", *more)
    assert read(dir, "train") == (
        ["train/cat/train.jpg", "train/dog/train.jpg"],
        ["cat", "dog"],
    )
    assert read(dir, "test")[0] == ["test/cat/test.jpg", "test/dog/test.jpg"]
    assert note in folder.make(split="train", dir=dir).summary()


def test_a_lone_split_to_train_on_is_divided_by_a_holdout(fill):
    dir = fill(*(f"Train/{c}/{n}.jpg" for c in ("cat", "dog") for n in range(40)))
    train, test = (read(dir, split, holdout=0.3) for split in ("train", "val"))
    assert train[1] == test[1] == ["cat", "dog"]
    assert not set(train[0]) & set(test[0]) and len(train[0] + test[0]) == 80


@pytest.mark.parametrize(
    "split, names, classes",
    [
        ("left", ["left/cat/left.jpg", "left/dog/left.jpg"], ["cat", "dog"]),
        ("LEFT", ["left/cat/left.jpg", "left/dog/left.jpg"], ["cat", "dog"]),
        ("left/cat", ["left/cat/left.jpg"], []),
        ("./right", ["right/cat/right.jpg", "right/dog/right.jpg"], ["cat", "dog"]),
        ("deep/train", ["deep/train/owl/1.jpg"], ["owl"]),
        ("deep/test", ["deep/test/owl/2.jpg"], ["owl"]),
    ],
)
def test_a_split_may_be_any_subfolder(fill, split, names, classes):
    deep = ["deep/train/owl/1.jpg", "deep/test/owl/2.jpg"]
    dir = fill(*classes_in("left", "right"), *deep)
    assert read(dir, split) == (names, classes)


def test_any_subfolder_beside_splits_has_the_classes_of_the_training_split(fill):
    dir = fill(*classes_in("train", "test"), "odd/dog/1.jpg", "wrong/owl/2.jpg")
    source = folder.make(split="odd", dir=dir)
    assert source.classes == ["cat", "dog"] and source.label_of(0) == 1
    with pytest.raises(ValueError, match=r"wrong has classes that .*has not: owl"):
        folder.make(split="wrong", dir=dir)


def test_a_split_wrapped_in_a_folder_of_its_name_is_unwrapped(fill):
    names = [f"seg_{s}/seg_{s}/{c}/{s}.jpg" for s in ("train", "test") for c in "ab"]
    dir = fill(*names)
    assert read(dir, "train") == (names[:2], ["a", "b"])
    assert read(dir, "test") == (names[2:], ["a", "b"])


@pytest.mark.parametrize(
    "names, split, message",
    [
        (["cat/1.jpg", "dog/2.jpg", "test/3.jpg"], "train",
            r"'test' reads as a split, but .* class: 'cat', 'dog'.*train_split=\. "),
        (["train/1.jpg", "plane/2.jpg", "test/3.jpg"], "train",
            r"'train' reads as a split, but .* class: 'plane'.*train_split=\./train "),
        (["1.jpg", "val/2.jpg"], "train", r"'val' reads .* class: 1 images directly"),
        (["set/train/a/1.jpg", "set/test/a/2.jpg"], "train",
            r"set holds splits of its own \(test, train\).*path=.*/set.*=set/train"),
        (["a/train/1.jpg", "a/test/2.jpg", "b/train/3.jpg", "b/test/4.jpg"], "train",
            r"a holds splits of its own"),
        (["train/train/a/1.jpg", "train/test/a/2.jpg", "test/a/3.jpg"], "train",
            r"train holds splits of its own"),
        (["train/test/1.jpg", "test/2.jpg"], "train", r"train holds splits of its own"),
        (["cat/1.jpg", "dog/2.jpg", "copy/cat/1.jpg", "copy/dog/2.jpg"], "train",
            r"copy holds folders of all of the classes beside it \(cat, dog\): it l"),
        (["cat/1.jpg", "dog/2.jpg", "owl/3.jpg", "old/Cat/1.jpg", "old/Dog/2.jpg"],
            "train", r"old holds folders of 2 of the classes beside it \(cat, dog\)"),
        (["cat/1.jpg", "dog/2.jpg", "old/a/Cat/1.jpg", "old/a/Dog/2.jpg"], "train",
            r"old/a holds folders of all of the classes beside it \(cat, dog\)"),
        (["a/b/train/cat/1.jpg", "a/b/test/cat/2.jpg"], "train",
            r"a/b holds splits of its own \(test, train\).*path=.*/a/b, .*=a/b/train"),
        (["a/b/c/train/cat/1.jpg", "a/b/c/val/cat/2.jpg", "a/d/3.jpg"], "train",
            r"a/b/c holds splits of its own"),
        (["train/cat/1.jpg", "train/dog/2.jpg", "train/test/3.jpg"], "train",
            r"train: 'test' reads as a split, .*: 'cat', 'dog'.*train_split=train/\. "),
        (["train/cat/1.jpg", "train/dog/2.jpg", "train/val/3.jpg", "test/cat/4.jpg"],
            "train", r"train: 'val' reads as a split"),
        (["test/1.jpg", "val/2.jpg"], "train",
            r"no 'train' split: its splits are test, val; .*data.train_split="),
        (["trainA/1.jpg", "trainB/2.jpg", "testA/3.jpg"], "train",
            r"trainA, trainB all name a train split; say which"),
        (["cat/1.jpg"], "cta", r"did you mean cat"),
        (["cat/1.jpg"], "cat/x", r"cat 'x' unknown"),
        (["cat/1.jpg"], "../cat", r"'\.\.' unknown"),
    ],
)  # fmt: skip
def test_what_may_be_a_split_or_a_class_is_asked_for(fill, names, split, message):
    with pytest.raises(ValueError, match=message):
        folder.make(split=split, dir=fill(*names))


def test_the_user_may_answer_that_names_of_splits_are_classes(fill):
    dir = fill("bus/1.jpg", "test/2.jpg", "train/3.jpg")
    assert read(dir, ".")[1] == ["bus", "test", "train"]
    assert read(dir, "./train") == (["train/3.jpg"], [])
    dir = fill("deep/train/4.jpg", "deep/test/5.jpg")
    assert read(dir, "deep/.")[1] == ["test", "train"]
    fill("set/train/cat/1.jpg", "set/train/test/2.jpg", "set/train/dog/x/test/3.jpg")
    assert read(f"{dir}/set", "train/.")[1] == ["cat", "dog", "test"]


def test_a_class_called_train_in_a_split_is_a_class(fill):
    names = [
        f"{split}/{c}/1.jpg" for split in ("train", "test") for c in ("bus", "train")
    ]
    dir = fill(*names, "train/orchid/1.jpg", "bullet_train/readme.txt")
    assert read(dir, "train")[1] == read(dir, "test")[1] == ["bus", "orchid", "train"]


def test_a_class_called_test_in_both_splits_is_a_class(fill):
    splits = ("seg_train/seg_train", "seg_test/seg_test")
    dir = fill(*[f"{split}/{c}/1.jpg" for split in splits for c in ("bus", "test")])
    assert read(dir, "train")[1] == read(dir, "test")[1] == ["bus", "test"]


def test_classes_below_unknown_splits_are_pointed_out(fill):
    dir = fill(*classes_in("prueba", "entrena"))
    source = folder.make(split="train", dir=dir)
    assert source.classes == ["entrena", "prueba"]
    assert "holds the same subfolders (cat, dog): if those" in source.summary()


def test_links_from_one_split_into_the_other_are_not_followed(fill, tmp_path):
    dir = fill(*classes_in("train", "test"))
    (tmp_path / "train" / "owl").symlink_to("../test/cat")
    (tmp_path / "test" / "x").symlink_to("../train")
    (tmp_path / "train" / "cat" / "2.jpg").symlink_to("../../test/cat/test.jpg")
    assert read(dir, "train") == (classes_in("train"), ["cat", "dog"])
    assert read(dir, "test") == (classes_in("test"), ["cat", "dog"])
    assert "1 link into another split" in folder.make(split="test", dir=dir).summary()
    assert "2 link into another split" in folder.make(split="train", dir=dir).summary()
