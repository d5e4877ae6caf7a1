"""The table of confused classes against counts written out, and in a run."""

import collections
import json

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

from litevit_jax.evaluators import confusion
from tests.evaluators import common


def evaluate(called, labels, num_classes=5, tmp_path=None, **kwargs):
    """The numbers if every image `[N]` is called as told; -1: not a number."""
    kwargs.setdefault("images", 0)
    logits = np.eye(num_classes, dtype=np.float32)[called]
    logits[np.array(called) < 0, 2] = np.nan
    source = common.Images(np.array(labels), num_classes)
    made = common.context(
        common.look_up("logits"),
        tmp_path=tmp_path,
        num_classes=num_classes,
        eval=source,
    )
    return confusion.make(context=made, **kwargs).run(common.state(logits), step=0)


def triples(result):
    return [(r["class"], r["called"], r["count"]) for r in result["table"]]


def test_pairs_are_counted_in_order_of_frequency_and_direction_matters():
    labels = [0, 0, 0, 0, 1, 1, 1, 2, 3]
    called = [0, 1, 1, 3, 0, 1, 1, 2, 0]
    got = evaluate(called, labels)
    assert triples(got) == [("0", "1", 2), ("0", "3", 1), ("1", "0", 1), ("3", "0", 1)]
    shares = [row["percent"] for row in got["table"]]
    assert shares == pytest.approx([50.0, 25.0, 100 / 3, 100.0])
    assert (got["n"], got["pairs"]) == (9, 4)
    assert got["top1"] == pytest.approx(100 * 4 / 9)


@pytest.mark.parametrize("count", [1, 7, 8, 37])
def test_every_image_counts_once_whatever_the_batch(count):
    rng = np.random.default_rng(count)
    labels, called = rng.integers(5, size=(2, count))
    got = evaluate(called, labels, k=25)
    pairs = zip(map(str, labels), map(str, called), strict=True)
    want = collections.Counter(pair for pair in pairs if pair[0] != pair[1])
    assert {(a, b): n for a, b, n in triples(got)} == want
    assert got["pairs"] == len(want) and got["n"] == count
    assert got["top1"] == pytest.approx(100 * np.mean(labels == called))


def test_the_table_has_at_most_k_pairs_and_none_where_all_is_right():
    labels = np.arange(5)
    got = evaluate(np.roll(labels, 1), labels, k=2)
    assert triples(got) == [("0", "4", 1), ("1", "0", 1)] and got["pairs"] == 5
    assert evaluate(labels, labels)["table"] == []


def test_images_without_a_label_are_not_counted():
    got = evaluate([1, 1, 4, 2], [0, -1, 4, -1])
    assert triples(got) == [("0", "1", 1)]
    assert (got["n"], got["top1"]) == (2, 50.0)


def test_logits_that_are_no_numbers_are_a_class_of_their_own():
    got = evaluate([-1, -1, 2], [0, 0, 2])
    assert triples(got) == [("0", "not a number", 2)]
    assert got["top1"] == pytest.approx(100 / 3)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.parametrize("seed", range(3))
def test_matrix_and_scores_of_each_class_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    labels, called = rng.integers(5 - seed, size=(2, 60))  # the last are nowhere
    got = evaluate(called, labels)
    names = [str(k) for k in range(5)]
    matrix = [[row["called"].get(name, 0) for name in names] for row in got["matrix"]]
    np.testing.assert_array_equal(
        matrix, metrics.confusion_matrix(labels, called, labels=range(5))
    )
    scores = metrics.precision_recall_fscore_support(
        labels, called, labels=range(5), zero_division=0
    )
    keys = ("precision", "recall", "f1")
    for key, want in zip(keys, scores, strict=False):
        values = [row[key] or 0 for row in got["classes"]]
        np.testing.assert_allclose(values, 100 * want, rtol=1e-12)
    assert [row["images"] for row in got["classes"]] == list(scores[3])
    macro = metrics.f1_score(labels, called, average="macro")
    assert got["macro_f1"] == pytest.approx(100 * macro)
    balanced = metrics.balanced_accuracy_score(labels, called)
    recalls = [row["recall"] for row in got["classes"] if row["recall"] is not None]
    assert np.mean(recalls) == pytest.approx(100 * balanced)


def test_classes_without_images_or_calls_have_no_score():
    got = evaluate([0, 0, 1], [0, 1, 1], num_classes=4)
    assert got["classes"][1] == {
        **{"class": "1", "images": 2, "recall": 50.0, "precision": 100.0},
        **{"f1": pytest.approx(200 / 3), "called": 1},
    }
    assert [row["f1"] for row in got["classes"][2:]] == [None, None]
    assert got["classes"][3]["recall"] is got["classes"][3]["precision"] is None
    assert got["matrix"][3] == {"class": "3", "called": {}}


def test_the_most_confused_pairs_are_drawn_with_their_images(tmp_path):
    labels, called = [0, 0, 0, 1, 1], [1, 1, 1, 0, 1]
    evaluate(called, labels, tmp_path=tmp_path, images=2)
    [path] = tmp_path.iterdir()
    assert path.name == "confusion_0000000.png"
    with Image.open(path) as image:
        assert image.size == (2 * 100, 2 * 116)  # two pairs, two images at most
        pixels = np.asarray(image)
    source = common.Images(np.array(labels), 5)
    for row, column, index in ((0, 0, 0), (0, 1, 1), (1, 0, 3)):
        tile = pixels[row * 116 + 16 :][:96, column * 100 :][:, :96, 0]
        whole = Image.fromarray(source.images[index, :, :, 0])
        want = np.asarray(whole.resize((96, 96), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(tile, want)
    assert (pixels[116 + 16 :, 100:] == 255).all()  # there is no second one
    evaluate(labels, labels, tmp_path=tmp_path / "none", images=2)
    assert not (tmp_path / "none").exists()


def test_a_table_of_no_pairs_is_refused():
    with pytest.raises(ValueError, match=r"'confusion': k=0 pairs; expected 1 or more"):
        confusion.make(context=common.context(None, num_classes=3), k=0)


def test_it_leaves_the_best_step_to_others_and_its_result_is_json():
    assert confusion.Confusion.best is None and confusion.Confusion.labelled
    result = evaluate([1, 0], [0, 0])
    assert json.loads(json.dumps(result)) == result
