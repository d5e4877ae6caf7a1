"""The table of confused classes against counts written out, and in a run."""

import collections
import json

import numpy as np
import pytest

from litevit_jax.evaluators import confusion
from tests.evaluators import common


def evaluate(called, labels, num_classes=5, **kwargs):
    """The numbers if every image `[N]` is called as told; -1: not a number."""
    logits = np.eye(num_classes, dtype=np.float32)[called]
    logits[np.array(called) < 0, 2] = np.nan
    source = common.Images(np.array(labels), num_classes)
    made = common.context(
        common.look_up("logits"), num_classes=num_classes, eval=source
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


def test_a_table_of_no_pairs_is_refused():
    with pytest.raises(ValueError, match=r"'confusion': k=0 pairs; expected 1 or more"):
        confusion.make(context=common.context(None, num_classes=3), k=0)


def test_it_leaves_the_best_step_to_others_and_its_result_is_json():
    assert confusion.Confusion.best is None and confusion.Confusion.labelled
    result = evaluate([1, 0], [0, 0])
    assert json.loads(json.dumps(result)) == result
