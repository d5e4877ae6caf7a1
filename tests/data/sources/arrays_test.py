"""NumPy files: the accepted names and types, and what is refused."""

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


def test_holdout_divides(save):
    path = save(image=_images(100), label=np.arange(100))
    labels = {}
    for split in ("train", "test"):
        source = arrays.make(split=split, dir=path, holdout=0.2)
        labels[split] = {source[i]["label"] for i in range(len(source))}
    assert not labels["train"] & labels["test"]
    assert labels["train"] | labels["test"] == set(range(100))
    with pytest.raises(ValueError, match=r"data\.holdout=0\.1"):
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
        ({"image": np.zeros((2, 4, 4), np.float32)}, "float32.*expected uint8"),
        ({"image": np.zeros((2, 4), np.uint8)}, r"uint8 \(2, 4\)"),
        ({"picture": np.zeros((2, 4, 4), np.uint8)}, "its arrays are picture"),
        ({"image": np.array([None, 1])}, "saved by np.save"),
        ({"image": _images(2), "label": np.zeros(3, int)}, r"expected integers \[2\]"),
        ({"image": _images(2), "label": np.zeros(2)}, "float64"),
        ({"test_image": _images(2)}, "no 'train' split"),
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
