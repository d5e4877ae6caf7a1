"""Average precision and scores of each class are those of scikit-learn."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn import metrics

from litevit_jax.evaluators import base, confusion, multi_label
from tests.evaluators import common


class Several(common.Images):
    """Images with the labels `[N, K]` as given."""

    multi_label = True

    def __init__(self, labels):
        super().__init__(np.full(len(labels), -1), labels.shape[1])
        self.hot = labels.astype(np.uint8)

    def __getitem__(self, index):
        return {**super().__getitem__(index), "labels": self.hot[index]}


def evaluate(logits, labels):
    made = common.context(
        common.look_up("logits"), num_classes=labels.shape[1], eval=Several(labels)
    )
    evaluator = multi_label.make(context=made)
    evaluator.check_data()
    return evaluator.run(common.state(logits.astype(np.float32)), step=0)


def drawn(seed, count=37, classes=4):
    rng = np.random.default_rng(seed)
    labels = rng.random((count, classes)) < 0.4
    logits = np.round(rng.normal(size=labels.shape) + labels, seed)  # with ties
    return logits, labels


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_scikit_learn_with_ties_and_any_last_batch(seed):
    logits, labels = drawn(seed)
    got = evaluate(logits, labels)
    called = logits > 0
    ap = metrics.average_precision_score(labels, logits, average=None)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        labels, called
    )
    wanted = {"ap": ap, "precision": precision, "recall": recall, "f1": f1}
    for key, want in wanted.items():
        values = [row[key] for row in got["table"]]
        np.testing.assert_allclose(values, 100 * want, rtol=1e-6, err_msg=key)
    assert [row["images"] for row in got["table"]] == list(support)
    macro = metrics.average_precision_score(labels, logits, average="macro")
    assert got["map"] == pytest.approx(100 * macro)
    for kind in ("macro", "micro"):
        want = metrics.f1_score(labels, called, average=kind)
        assert got[f"{kind}_f1"] == pytest.approx(100 * want)
    chance = 1 / (1 + np.exp(-logits))
    losses = [metrics.log_loss(labels[:, k], chance[:, k]) for k in range(4)]
    assert got["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    assert got["n"] == 37 and json.loads(json.dumps(got)) == got


def test_a_class_that_no_image_has_is_left_out_of_the_mean():
    logits, labels = drawn(2)
    labels[:, 1] = False
    got = evaluate(logits, labels)
    assert got["table"][1]["ap"] is None and got["table"][1]["recall"] is None
    others = metrics.average_precision_score(labels[:, [0, 2, 3]], logits[:, [0, 2, 3]])
    assert got["map"] == pytest.approx(100 * others)


def test_logits_that_are_no_numbers_rank_last():
    own = np.array([True, False, True])
    score = np.array([np.nan, 0.0, 1.0])
    assert multi_label.average_precision(score, own) == pytest.approx((1 + 2 / 3) / 2)


def test_each_kind_of_labels_is_refused_by_the_evaluators_of_the_other():
    several, one = Several(np.eye(3)), common.Images(np.arange(3), 3)
    made = common.context(None, num_classes=3, eval=one, train=several)
    with pytest.raises(ValueError, match=r"split 'eval' needs several labels an image"):
        multi_label.make(context=made).check_data()
    with pytest.raises(ValueError, match=r"split 'train' needs one label an image"):
        confusion.make(context=made, split="train").check_data()


def test_an_objective_is_refused_images_with_the_other_kind_of_labels():
    several, one = Several(np.eye(3)), common.Images(np.arange(3), 3)

    def check(wants, images):
        objective = SimpleNamespace(annotations=(), multi_label=wants)
        base.check_annotations(objective, "supervised", True, (), images)

    check(True, several)
    check(False, one)
    with pytest.raises(ValueError, match=r"needs several labels an image.*=softmax"):
        check(True, one)
    with pytest.raises(ValueError, match=r"needs one label an image.*\.loss=bce"):
        check(False, several)
