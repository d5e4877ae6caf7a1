"""The embedded digits: a fixed, stratified split."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from sklearn import datasets

from litevit_jax import registry
from litevit_jax.data.sources import digits


def _all(split):
    source = digits.make(split=split)
    examples = [source[i] for i in range(len(source))]
    images = np.stack([e["image"] for e in examples])
    return images, np.array([e["label"] for e in examples])


def test_split_is_stratified_and_disjoint():
    (train, train_labels), (test, test_labels) = _all("train"), _all("test")
    assert len(train) + len(test) == 1797
    counts = np.bincount(train_labels), np.bincount(test_labels)
    assert np.allclose(counts[1] / (counts[0] + counts[1]), 0.2, atol=0.005)
    seen = {image.tobytes() for image in train}
    assert not any(image.tobytes() in seen for image in test)


def test_images_use_the_whole_range_of_8_bits():
    images, _ = _all("train")
    assert images.dtype == np.uint8 and images.shape[1:] == (8, 8)
    expected = [round(ink * 255 / 16) for ink in range(17)]
    assert np.unique(images).tolist() == expected


def test_split_never_changes():
    assert digits.make(split="train").fingerprint() == "6328e23c8e7c497c"


def test_source_is_picklable_and_named():
    source = registry.make("data.sources", "digits", split="test")
    copy = pickle.loads(pickle.dumps(source))
    assert np.array_equal(copy[7]["image"], source[7]["image"])
    assert copy.name_of(7) == "digits/test[7]"
    assert copy.classes == list("0123456789")


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match="choose from test, train"):
        digits.make(split="validation")
    with pytest.raises(ValueError, match="reads no directory"):
        digits.make(split="train", dir="somewhere")


def test_the_digits_are_those_of_scikit_learn_which_is_not_imported(monkeypatch):
    digits.table.cache_clear()
    code = (
        "import sys; from litevit_jax.data.sources import digits; "
        "digits.make(split='test'); print('sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
    read = digits.table()
    want = datasets.load_digits()
    np.testing.assert_array_equal(read[:, :-1], want.data)
    np.testing.assert_array_equal(read[:, -1], want.target)
    # Where a version of scikit-learn keeps the file elsewhere, it is asked itself.
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda _: None)
    np.testing.assert_array_equal(digits.table.__wrapped__(), read)
