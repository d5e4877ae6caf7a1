"""NumPy files: the accepted names and types, and what is refused."""

import os
import pathlib
import pickle

import numpy as np
import pytest

from litevit_jax.data.sources import arrays


def _images(count=10, shape=(4, 5, 3), seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, *shape), dtype=np.uint8)


@pytest.fixture
def save(tmp_path):
    def save(name="data.npz", **contents):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if name.endswith(".npy"):
            np.save(path, contents["image"])
        else:
            np.savez(path, **contents)
        return str(path)

    return save


def _assert_holds(source, images, labels):
    assert len(source) == len(images)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        assert np.array_equal(source[i]["image"], image)
        assert source[i]["label"] == label


@pytest.mark.parametrize("image, label", [("image", "label"), ("x", "y")])
def test_images_and_labels_are_found_by_name(save, image, label):
    images, labels = _images(), np.arange(10) % 3
    path = save(**{image: images, label: labels})
    source = arrays.make(split="train", dir=path)
    _assert_holds(source, images, labels)
    assert source.classes == ["0", "1", "2"]
    assert source.name_of(4) == f"data.npz:{image}[4]"


def test_labels_may_be_absent(save):
    images = _images(shape=(4, 5))
    for name in ("data.npz", "data.npy"):
        source = arrays.make(split="train", dir=save(name, image=images))
        _assert_holds(source, images, [-1] * 10)
        assert source.classes == []


@pytest.mark.parametrize("form", ["{split}_{kind}", "{kind}_{split}"])
def test_splits_by_name(save, form):
    train, test = _images(), _images(3, seed=1)
    contents = {
        form.format(split="train", kind="image"): train,
        form.format(split="train", kind="label"): np.arange(10)[:, None],
        form.format(split="test", kind="image"): test,
        form.format(split="test", kind="label"): np.arange(3),
    }
    path = save(**contents)
    _assert_holds(arrays.make(split="train", dir=path), train, range(10))
    for name in ("test", "val"):
        source = arrays.make(split=name, dir=path, holdout=0.5)
        _assert_holds(source, test, range(3))
        assert len(source.classes) == 10


def test_splits_by_file(save, tmp_path):
    save("d/train.npz", image=_images(), label=np.arange(10))
    save("d/val.npz", image=_images(2), label=np.arange(2))
    assert len(arrays.make(split="train", dir=str(tmp_path / "d"))) == 10
    assert len(arrays.make(split="test", dir=str(tmp_path / "d"))) == 2


@pytest.mark.parametrize("kind", [int, float, bool])
def test_one_hot_labels_are_read_as_numbers_and_said_to_be(save, kind):
    labels = np.array([2, 0, 1, 0])
    path = save(image=_images(4), label=np.eye(5)[labels].astype(kind))
    source = arrays.make(split="train", dir=path)
    _assert_holds(source, _images(4), labels)
    assert source.classes == ["0", "1", "2", "3", "4"]
    assert "one-hot labels read as numbers of 5 classes" in source.summary()


def test_images_of_many_bands_with_these_last_are_accepted(save):
    for shape in (
        (8, 8, 3),
        (3, 8, 3),
        (8, 8, 12),
        (4, 4, 4),
        (9, 8, 12),
        (12, 12, 12),
    ):
        source = arrays.make(split="train", dir=save(image=_images(2, shape)))
        assert source[0]["image"].shape == shape and source.channels == shape[2]


@pytest.mark.parametrize("train, test", [("Train", "valid"), ("training", "TEST")])
def test_split_names_are_the_usual_ones_in_any_case(save, train, test):
    contents = {
        f"X_{train}": _images(4),
        f"y_{train}": np.arange(4),
        "extra": _images(1),
    }
    path = save(**contents, **{f"X_{test}": _images(2), f"y_{test}": np.arange(2)})
    for split in ("test", "val", test):
        assert len(arrays.make(split=split, dir=path)) == 2
    summary = arrays.make(split="train", dir=path).summary()
    assert summary == (
        "4 images, labelled, 4 classes (0, 1, 2, 3); from "
        f"{path}; arrays not read: extra; other splits: {test}"
    )
    save(f"d/{train}.npz", image=_images(), label=np.arange(10))
    folder = pathlib.Path(save(f"d/{test}.npy", image=_images(3))).parent
    save("d/pool.npz", image=_images())
    source = arrays.make(split="train", dir=str(folder))
    assert len(source) == 10 and "files not read: pool.npz;" in source.summary()
    assert len(arrays.make(split="test", dir=str(folder))) == 3


def test_a_split_may_have_any_name(save):
    path = save(left_image=_images(4), right_image=_images(3))
    assert len(arrays.make(split="right", dir=path)) == 3
    with pytest.raises(ValueError, match="its splits are left, right"):
        arrays.make(split="train", dir=path)


@pytest.mark.parametrize("damage", ["cut", "text", "npy", "empty"])
@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_damaged_files_are_named(save, damage, suffix):
    path = pathlib.Path(save(f"a.{suffix}", image=_images()))
    content = path.read_bytes()
    damaged = {"cut": content[:150], "text": b"hello" * 90, "npy": b"\x93NUMPY" * 9}
    path.write_bytes(damaged.get(damage, b""))
    with pytest.raises(ValueError, match=rf"a\.{suffix}: .*saved by np\.save"):
        arrays.make(split="train", dir=str(path))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="neither a regular file nor a folder"):
        arrays.make(split="train", dir=str(tmp_path / "a.npz"))


def test_holdout_divides(save):
    path = save(image=_images(100), label=np.arange(100))
    labels = {}
    for split in ("train", "test"):
        source = arrays.make(split=split, dir=path, holdout=0.2)
        labels[split] = {source[i]["label"] for i in range(len(source))}
    assert not labels["train"] & labels["test"]
    assert labels["train"] | labels["test"] == set(range(100))
    with pytest.raises(ValueError, match=r"data\.holdout\.test=0\.1"):
        arrays.make(split="test", dir=path)


def test_pickled_source_reads_the_file_again(save):
    source = arrays.make(split="train", dir=save(image=_images(), label=np.arange(10)))
    pickled = pickle.dumps(source)
    assert np.array_equal(pickle.loads(pickled)[3]["image"], source[3]["image"])
    assert source.fingerprint() == pickle.loads(pickled).fingerprint()


def test_fingerprint_follows_the_content(save):
    prints = {
        arrays.make(split="train", dir=save(image=images, label=labels)).fingerprint()
        for images in (_images(seed=0), _images(seed=1))
        for labels in (np.arange(10), np.zeros(10, int))
    }
    assert len(prints) == 4


@pytest.mark.parametrize(
    "contents, message",
    [
        ({"image": np.zeros((2, 4, 4), bool)}, "bool.*expected numbers"),
        ({"image": np.zeros((2, 4), np.uint8)}, r"uint8 \(2, 4\)"),
        ({"picture": np.zeros((2, 4, 4), np.uint8)}, "its arrays are picture"),
        ({"image": np.array([None, 1])}, "saved by np.save"),
        ({"image": _images(2), "label": np.zeros(3, int)}, r"expected integers \[2\]"),
        ({"image": _images(2), "label": np.zeros(2)}, "float64"),
        ({"test_image": _images(2)}, "no 'train' split"),
        (
            {"image": _images(2, (3, 8, 8))},
            r"channels first .*np\.moveaxis\(x, 1, -1\)",
        ),
        ({"image": _images(2, (3, 8, 9))}, "channels first"),
        ({"image": _images(2, (12, 32, 32))}, "channels first"),
        ({"image": _images(2), "label": np.full((2, 5), 2)}, r"\(2, 5\).*multi-hot"),
        ({"image": _images(2), "label": np.zeros((2, 5), int)}, "multi-hot"),
        ({"image": _images(2), "label": np.eye(2, 5) / 2}, "multi-hot"),
        ({"image": _images(2), "label": np.zeros((2, 2, 2), int)}, "expected integers"),
        ({"image": _images(2), "label": np.array([0, 2**40])}, f"from 0 to {2**40}"),
        ({"image": _images(2), "label": np.array([-7, 0])}, "from -7 to 0"),
        ({"image": _images(2), "label": np.array(["a", "b"])}, r"np\.unique"),
    ],
)
def test_wrong_contents_are_explained(save, contents, message):
    with pytest.raises(ValueError, match=message):
        arrays.make(split="train", dir=save(**contents))


def test_wrong_places_are_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a \.npz"):
        arrays.make(split="train", dir=str(tmp_path / "absent.npz"))
    with pytest.raises(ValueError, match="no 'train' split"):
        arrays.make(split="train", dir=str(tmp_path))
    (tmp_path / "x.csv").write_text("1")
    with pytest.raises(ValueError, match=r"not a \.npz or \.npy"):
        arrays.make(split="train", dir=str(tmp_path / "x.csv"))
    with pytest.raises(ValueError, match=r"needs data\.dir"):
        arrays.make(split="train")


def test_multi_hot_labels_are_several_of_an_image_in_all_splits(save):
    hot = np.array([[1, 1, 0], [0, 0, 0], [0, 0, 1]])
    arrays_ = {"train_image": _images(3), "train_label": hot}
    arrays_ |= {"test_image": _images(2), "test_label": np.eye(3)[:2]}
    path = save(**arrays_)
    train, test = (arrays.make(split=s, dir=path) for s in ("train", "test"))
    assert train.multi_label and test.multi_label and train.labelled
    assert train.classes == test.classes == ["0", "1", "2"]
    assert [train[i]["labels"].tolist() for i in range(3)] == hot.tolist()
    assert [test[i]["labels"].tolist() for i in range(2)] == [[1, 0, 0], [0, 1, 0]]
    assert train.label_of(0) == -1 and train.channels == test.channels
    assert "several labels an image, 1 on average" in train.summary()
    assert train.fingerprint() != arrays.make(split="test", dir=path).fingerprint()
    path = save(**arrays_ | {"test_label": np.array([0, 1])})
    with pytest.raises(ValueError, match=r"some splits have several labels an ima"):
        arrays.make(split="test", dir=path)
