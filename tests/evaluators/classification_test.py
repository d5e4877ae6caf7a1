"""Top-1, top-5 and loss against NumPy."""

import numpy as np
import pytest

from litevit_jax.evaluators import classification
from tests.evaluators import common


def evaluate(logits, labels):
    source = common.Images(labels, logits.shape[1])
    made = common.context(
        common.look_up("logits"), num_classes=logits.shape[1], eval=source
    )
    return classification.make(context=made).run(common.state(logits), step=0)


@pytest.mark.parametrize("count", [1, 7, 8, 37])
@pytest.mark.parametrize("num_classes", [3, 12])
def test_numbers_are_those_of_numpy(count, num_classes):
    rng = np.random.default_rng(count)
    logits = rng.normal(size=(count, num_classes)).astype(np.float32) * 3
    labels = rng.integers(num_classes, size=count)
    order = np.argsort(-logits, axis=1)
    hits = order == labels[:, None]
    exact = logits.astype(np.float64)
    probability = np.exp(exact) / np.exp(exact).sum(axis=1, keepdims=True)
    got = evaluate(logits, labels)
    assert got["n"] == count
    assert got["top1"] == pytest.approx(100 * hits[:, 0].mean())
    if num_classes > 5:
        assert got["top5"] == pytest.approx(100 * hits[:, :5].any(axis=1).mean())
    loss = -np.log(probability[np.arange(count), labels]).mean()
    assert got["loss"] == pytest.approx(loss, rel=1e-6)


def test_constant_logits_are_right_as_often_as_a_guess():
    got = evaluate(np.zeros((40, 10), np.float32), np.arange(40) % 10)
    assert (got["top1"], got["top5"]) == (10.0, 50.0)
    assert got["loss"] == pytest.approx(np.log(10))


def test_logits_that_are_no_numbers_are_not_called_right():
    got = evaluate(np.full((16, 10), np.nan, np.float32), np.arange(16) % 10)
    assert (got["top1"], got["top5"]) == (0.0, 0.0)


@pytest.mark.parametrize(("num_classes", "there"), [(2, False), (5, False), (6, True)])
def test_there_is_no_top_five_of_five_classes_or_fewer(num_classes, there):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(9, num_classes)).astype(np.float32)
    got = evaluate(logits, np.arange(9) % num_classes)
    assert ("top5" in got) == there and "top1" in got


def test_huge_logits_do_not_overflow_the_loss():
    logits = np.array([[1e4, 0.0], [0.0, 1e4]], np.float32)
    assert evaluate(logits, np.array([0, 0]))["loss"] == pytest.approx(5e3)


def test_examples_without_a_label_are_not_counted():
    logits = np.eye(4, dtype=np.float32)
    got = evaluate(logits, np.array([0, -1, 3, -1]))
    assert (got["n"], got["top1"]) == (2, 50.0)


def test_mean_per_class_weighs_classes_alike_and_leaves_out_those_without_examples():
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1, 3, -1])
    called = np.array([0, 0, 0, 0, 0, 0, 1, 0, 2, 2])
    got = evaluate(np.eye(5, dtype=np.float32)[called], labels)
    assert got["n"] == 9
    assert got["top1"] == pytest.approx(100 * 7 / 9)
    assert got["mean_per_class"] == pytest.approx(100 * (1 + 0.5 + 0) / 3)


def test_the_primary_metric_is_the_one_asked_for():
    made = common.context(None, num_classes=3)
    for metric in ("top1", "mean_per_class"):
        assert classification.make(context=made, metric=metric).best == metric
    assert classification.make(context=made).best == "top1"
    with pytest.raises(ValueError, match=r"'top2' unknown; did you mean top1"):
        classification.make(context=made, metric="top2")
