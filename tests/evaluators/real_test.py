"""Accuracy by sets of labels: which images count, and which set is whose."""

import json

import numpy as np
import pytest

from litevit_jax.evaluators import base, real
from tests.evaluators import common


class Named(common.Images):
    """Images with names of their own."""

    def __init__(self, names, num_classes):
        super().__init__(np.zeros(len(names), int), num_classes)
        self.names = names

    def name_of(self, index):
        return self.names[index]


def evaluate(path, logits, source):
    made = common.context(
        common.look_up("logits"), num_classes=logits.shape[1], eval=source
    )
    evaluator = real.make(context=made, labels=str(path))
    return evaluator.run(common.state(logits), step=0)


@pytest.fixture
def write(tmp_path):
    def write(lists):
        path = tmp_path / "real.json"
        path.write_text(lists if isinstance(lists, str) else json.dumps(lists))
        return path

    return write


def test_a_prediction_in_the_set_is_right_and_an_empty_set_does_not_count(write):
    logits = np.eye(5, dtype=np.float32)[[0, 1, 2, 3, 4, 0, 1]]
    sets = [[0], [2, 1], [0, 1], [], [4, 3, 2], [1], []]
    got = evaluate(write(sets), logits, common.Images(np.zeros(7, int), 5))
    assert got == {"top1": 60.0, "n": 5, "unlabelled": 2}


def test_numbered_images_find_their_set_in_any_order(write):
    order = [3, 1, 4, 2]
    names = [f"imagenet2012/validation[x] ILSVRC2012_val_{n:08d}.JPEG" for n in order]
    logits = np.eye(5, dtype=np.float32)[order]  # image n is called class n
    sets = [[1], [2], [3], [0], [], []]  # right but for image 4
    got = evaluate(write(sets), logits, Named(names, 5))
    assert got == {"top1": 75.0, "n": 4, "unlabelled": 0}


def test_an_image_without_its_number_is_named(write):
    names = ["ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000009.JPEG"]
    with pytest.raises(ValueError, match=r"val_00000009.JPEG tells no place among 2"):
        evaluate(write([[0], [1]]), np.eye(2, dtype=np.float32), Named(names, 2))


BAD = {
    "no JSON": ("[[1], [2]", r"real.json: cannot be read as JSON"),
    "a dict": ({"a": [1]}, r"real.json: a dict without labels; expected a list with"),
    "no labels": ([[], []], r"a list without labels"),
    "numbers": ([1, 2], r"entry 0 is 1; expected a list of labels from 0 to 2"),
    "too high": ([[0], [3]], r"entry 1 is \[3\]; expected .* from 0 to 2"),
    "fraction": ([[0], [1.0]], r"entry 1 is \[1.0\]"),
    "too short": ([[0], [1]], r"labels of 2 images, split 'eval' has 3"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_such_list_is_refused(name, write):
    lists, message = BAD[name]
    made = common.context(None, num_classes=3, eval=common.Images(np.zeros(3, int), 3))
    with pytest.raises(ValueError, match=message):
        real.make(context=made, labels=str(write(lists)))


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "real.json").write_bytes(b"\xff\xfe\x00\x80")
    made = common.context(None, num_classes=3, eval=common.Images(np.zeros(3, int), 3))
    with pytest.raises(ValueError, match=r"real.json: cannot be read as JSON"):
        real.make(context=made, labels=str(tmp_path / "real.json"))


def test_an_absent_file_is_an_error_that_says_where_to_get_it(tmp_path):
    made = common.context(None, num_classes=3)
    with pytest.raises(FileNotFoundError, match=r"nope.json: no file .*reassessed-im"):
        real.make(context=made, labels=str(tmp_path / "nope.json"))
    with pytest.raises(ValueError, match=r"'real' needs the file .*labels=real.json"):
        real.make(context=made, labels=None)


def test_it_needs_logits(write):
    made = common.context(None, num_classes=3, eval=common.Images(np.zeros(1, int), 3))
    evaluator = real.make(context=made, labels=str(write([[0]])))
    with pytest.raises(ValueError, match=r"'real' reads 'logits', objective 'mae'"):
        base.check("real", evaluator, {"features": 0}, "mae")
