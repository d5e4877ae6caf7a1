"""Per-layer probes: which block knows the classes, and how the best one is chosen."""

import numpy as np
import pytest

from litevit_jax.evaluators import frozen, layers
from tests.evaluators import common, fewshot_test

K, L = fewshot_test.K, 3
TRAIN_LABEL, LABEL = fewshot_test.TRAIN_LABEL, fewshot_test.LABEL
# Noise, classes, and classes with more noise.
STRENGTH = (0.0, 4.0, 1.0)


def table(count, seed):
    rng = np.random.default_rng(seed)
    signal = np.eye(K, 8)[np.arange(count) % K]
    noise = rng.normal(size=(count, L, 8))
    made = np.stack([s * signal for s in STRENGTH], axis=1) + noise
    return made.astype(np.float32)


TABLE = {80: table(80, 1), 37: table(37, 2)}


def evaluate(batch_size=8, name="features_blocks", **kwargs):
    splits = {"train": common.Images(TRAIN_LABEL, K), "eval": common.Images(LABEL, K)}
    look_up = fewshot_test.by_pixels(
        [(s.images, TABLE[len(s)]) for s in splits.values()]
    )

    def predict(*args):
        return {name: look_up(*args)["features"]}

    made = common.context(predict, batch_size=batch_size, num_classes=K, **splits)
    evaluator = layers.make(context=made, k=5, **kwargs)
    evaluator.check_data()
    return evaluator, evaluator.run(common.state(None), step=0)


def test_numbers_are_those_of_the_blocks():
    evaluator, got = evaluate()
    order = np.random.default_rng(0).permutation(80)
    train, label = TABLE[80][order], TRAIN_LABEL[order]
    assert [row["block"] for row in got["table"]] == [1, 2, 3]
    for row in got["table"]:
        block = row["block"]
        x = train[:, block - 1]
        ridge = frozen.fit(x[8:], label[8:], K, evaluator.l2)
        place, accuracy = frozen.choose(ridge, x[:8], label[:8])
        assert row["select_top1"] == accuracy
        ridge = frozen.fit(x, label, K, (evaluator.l2[place],))
        right = ridge.scores(TABLE[37][:, block - 1], 0).argmax(axis=1) == LABEL
        assert got[f"linear_{block:02d}"] == pytest.approx(100 * right.mean())
        assert got[f"knn_{block:02d}"] == row["knn"]
    assert (got["n"], got["select_n"], got["pool"]) == (37, 8, "cls")
    assert got["block"] == 2 and got["top1"] == got["linear_02"] > 95
    assert got["select_top1"] == max(row["select_top1"] for row in got["table"])
    assert got["knn_02"] > got["knn_03"] > got["knn_01"]


def test_the_size_of_batches_does_not_matter():
    assert evaluate(batch_size=16)[1] == evaluate()[1]


def test_average_features_and_fewer_images():
    evaluator, got = evaluate(name="features_blocks_avg", pool="avg", examples=20)
    assert evaluator.reads == ("features_blocks_avg",)
    assert (
        got["n"] == 37
        and got["pool"] == "avg"
        and got["linear_02"] < evaluate()[1]["linear_02"]
    )


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_a_share_that_leaves_nothing_is_refused(share):
    with pytest.raises(ValueError, match=r"layers: holdout=.* of 80 .*leaves n"):
        evaluate(holdout=share)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pool": "max"}, r"pool 'max' unknown; choose from cls, avg"),
        ({"examples": 1}, r"examples=1"),
        ({"holdout": 1.0}, r"holdout=1.0"),
        ({"k": 0}, r"k=0 must be >= 1"),
        ({"l2": ()}, r"layers: l2=\(\); expected"),
    ],
)
def test_settings_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        layers.make(context=common.context(None), **fields)
