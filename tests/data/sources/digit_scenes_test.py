"""Scenes of real digits: known labels, splits that share nothing, the same bits."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from litevit_jax import registry
from litevit_jax.data import objects
from litevit_jax.data.sources import digit_scenes, digits


@pytest.fixture(scope="module")
def train():
    return digit_scenes.make(split="train", size=48, scenes=60)


def test_a_scene_follows_from_its_number(train):
    again = pickle.loads(pickle.dumps(train))
    backwards = [again[i] for i in reversed(range(60))][::-1]
    for one, two in zip((train[i] for i in range(60)), backwards, strict=True):
        np.testing.assert_array_equal(one["image"], two["image"])
        np.testing.assert_array_equal(one["label_map"], two["label_map"])
    more = digit_scenes.make(split="train", size=48, scenes=90)
    np.testing.assert_array_equal(more[59]["image"], train[59]["image"])


@pytest.mark.parametrize("change", [{"seed": 1}, {"split": "test"}, {"size": 50}])
def test_seed_split_and_size_give_other_scenes(train, change):
    other = digit_scenes.make(**{"split": "train", "size": 48} | change)
    assert other.fingerprint() != train.fingerprint()
    if "size" not in change:
        assert (other[0]["image"] != train[0]["image"]).any()


def test_the_scenes_never_change():
    made = digit_scenes.make(split="test", size=48, test_scenes=3)
    assert made.fingerprint() == "cfb180e935ff2b4b"
    # Of labels alone: versions of libjpeg may differ by a level of the photographs.
    assert [int(made[i]["label_map"].astype(int).sum()) for i in range(3)] == [
        2872,
        923,
        1746,
    ]


def test_labels_are_those_of_the_digits(train):
    assert train.classes == ["background", *"0123456789"]
    counts = []
    for index in range(60):
        scene = train.scene(index)
        labels = scene.label_map
        assert labels.dtype == np.uint8 and labels.shape == (48, 48)
        counts.append(len(scene.digits))
        for mask, digit in zip(scene.masks, scene.digits, strict=True):
            assert (labels[mask] == digit + 1).all() and mask.any()
        assert (labels[~scene.masks.any(axis=0)] == 0).all()
        np.testing.assert_array_equal(train[index]["label_map"], labels)
    assert set(counts) == {1, 2, 3, 4}


def test_digits_do_not_touch(train):
    for index in range(60):
        masks = train.scene(index).masks
        grown = [ndimage.binary_dilation(mask, np.ones((3, 3))) for mask in masks]
        assert np.sum(masks, axis=0).max() == 1
        for i, mask in enumerate(grown):
            assert not (mask & np.delete(masks, i, axis=0).any(axis=0)).any()


@pytest.mark.parametrize(("size", "low", "high"), [(48, 14, 24), (96, 20, 56)])
def test_digits_grow_with_the_scene(size, low, high):
    assert digit_scenes._sides(size) == (low, high)
    made = digit_scenes.make(split="train", size=size, scenes=20)
    heights = [
        np.flatnonzero(mask.any(axis=1))
        for i in range(20)
        for mask in made.scene(i).masks
    ]
    assert max(x[-1] - x[0] + 1 for x in heights) <= high


def test_splits_share_no_digit_and_no_background(monkeypatch):
    images, _ = digits.load()
    train_digits, test_digits = (digit_scenes._digits(x)[0] for x in ("train", "test"))
    assert len(train_digits) == 1400 and len(test_digits) == 397
    np.testing.assert_array_equal(np.concatenate([train_digits, test_digits]), images)
    # Photographs whose pixels tell their column, in steps of three.
    columns = np.broadcast_to((np.arange(640) // 3).astype(np.uint8), (427, 640))
    pictures = (np.repeat(columns[..., None], 3, axis=2),) * 2
    monkeypatch.setattr(digit_scenes, "_photographs", lambda: pictures)
    monkeypatch.setattr(digit_scenes, "_DARK", 1.0)
    seen = {}
    for split in ("train", "test"):
        rng = np.random.RandomState(0)
        crops = [digit_scenes._background(rng, split, 48) for _ in range(200)]
        seen[split] = np.unique(crops)
    assert seen["train"].max() <= 480 // 3 < 520 // 3 <= seen["test"].min()


def test_scenes_larger_than_a_strip_of_the_photograph_are_drawn():
    made = digit_scenes.make(split="test", size=160, test_scenes=2)
    assert made[1]["image"].shape == (160, 160, 3)
    assert made[1]["label_map"].any()


def test_nothing_is_read_that_can_be_left_out():
    code = (
        "import sys; from litevit_jax.data.sources import digit_scenes; "
        "digit_scenes.make(split='test')[0]; print('sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_the_source_says_what_it_is(train):
    assert train.summary() == (
        "60 images, label maps of 11 classes (background, 0, 1, 2, 3, ...); other "
        "splits: test"
    )
    assert train.name_of(7) == "digit_scenes/train[7]"
    assert train.label_of(0) == -1 and not train.labelled
    np.testing.assert_array_equal(train.label_map(5), train[5]["label_map"])
    made = registry.make("data.sources", "digit_scenes", split="test", test_scenes=5)
    assert len(made) == 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"split": "val"}, "choose from test, train"),
        ({"dir": "somewhere"}, "reads no directory"),
        ({"size": 16}, "expected 32 to 1024 pixels"),
        ({"scenes": 0}, "at least one scene"),
    ],
)
def test_mistakes_are_explained(fields, message):
    with pytest.raises(ValueError, match=message):
        digit_scenes.make(**{"split": "train"} | fields)


def test_digits_are_objects_if_asked_for(train):
    made = digit_scenes.make(split="train", size=48, scenes=60, objects=True)
    assert made.annotations == ("objects", "boxes") and len(made.classes) == 10
    assert made.fingerprint() != train.fingerprint()
    assert made.summary().startswith("60 images, boxes and masks of objects of 10 cla")
    ids = []
    for index in range(60):
        scene, example = train.scene(index), made[index]
        np.testing.assert_array_equal(example["image"], train[index]["image"])
        those = example["objects"]
        assert "label_map" not in example and those.image_id == index + 1
        assert those.classes == scene.digits.tolist() and not those.crowd.any()
        for i, mask in enumerate(scene.masks):
            np.testing.assert_array_equal(objects.bitmap(those.shapes[i]), mask)
            assert those.areas[i] == mask.sum()
            x1, y1, x2, y2 = those.boxes[i].astype(int)
            assert mask[y1:y2, x1:x2].sum() == mask.sum()
            assert mask[[y1, y2 - 1], x1:x2].any(axis=1).all()
            assert mask[y1:y2, [x1, x2 - 1]].any(axis=0).all()
        ids += those.ids
    assert len(set(ids)) == len(ids) and 0 not in ids
