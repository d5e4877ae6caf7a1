"""Few-shot evaluation: what is drawn, what is fitted, what is refused."""

import numpy as np
import pytest

from litevit_jax.evaluators import fewshot, frozen
from tests.evaluators import common

K = 4
TRAIN_LABEL, LABEL = np.arange(80) % K, np.arange(37) % K


def features(count, seed=0):
    rng = np.random.default_rng(seed)
    centres = 1.2 * np.random.default_rng(7).normal(size=(K, 6))
    noise = rng.normal(size=(count, 6))
    return (centres[np.arange(count) % K] + noise).astype(np.float32)


# The label of an image is its row modulo K in both splits, and so are its features:
# they are looked up by the pixels' sum, which `Images` makes different.
TABLE = {80: features(80, 1), 37: features(37, 2)}


def context(train=TRAIN_LABEL, label=LABEL, **kwargs):
    splits = {
        "train": common.Images(train, K),
        "eval": common.Images(label, K),
    }
    return common.context(
        by_pixels([(s.images, TABLE[len(s)]) for s in splits.values()]),
        num_classes=K,
        **splits,
        **kwargs,
    )


def by_pixels(pairs):
    """A predict function: features of the image that has these pixels."""
    import jax.numpy as jnp

    images = np.concatenate([images for images, _ in pairs]).reshape(-1, 16)
    rows = jnp.asarray(np.concatenate([table for _, table in pairs]))

    def predict(params, model_state, batch):
        del params, model_state
        flat = batch["image"].reshape(-1, 1, 16)
        place = (flat == jnp.asarray(images)[None]).all(axis=-1).argmax(axis=1)
        return {"features": rows[place]}

    return predict


def evaluate(made=None, **kwargs):
    fields = {"shots": (5, 1), "seeds": 3, "held_out": 4}
    evaluator = fewshot.make(context=made or context(), **(fields | kwargs))
    evaluator.check_data()
    return evaluator, evaluator.run(common.state(None), step=0)


def test_numbers_are_those_of_fits_to_what_was_drawn():
    evaluator, got = evaluate()
    train, test = TABLE[80], TABLE[37]
    assert got["n"] == 37 and len(got["table"]) == 6
    for row in got["table"]:
        drawn = evaluator.draws[row["seed"]]
        assert (TRAIN_LABEL[drawn] == np.arange(K)[:, None]).all()
        assert len(set(drawn.ravel())) == K * 9  # no image twice, held out or not
        few, held = drawn[:, : row["shots"]], drawn[:, 5:]
        label = np.repeat(np.arange(K), row["shots"])
        ridge = frozen.fit(train[few.ravel()], label, K, evaluator.l2)
        label = np.repeat(np.arange(K), 4)
        place, _ = frozen.choose(ridge, train[held.ravel()], label)
        assert row["l2"] == evaluator.l2[place]
        right = ridge.scores(test, place).argmax(axis=1) == LABEL
        assert row["top1"] == pytest.approx(100 * right.mean())
    for shots in (1, 5):
        top1 = [row["top1"] for row in got["table"] if row["shots"] == shots]
        assert len(set(top1)) > 1  # drawings differ
        assert got[f"top1_{shots}"] == pytest.approx(np.mean(top1))
        assert got[f"top1_{shots}_std"] == pytest.approx(np.std(top1, ddof=1))
    assert got["top1_5"] > got["top1_1"] > 100 / K
    assert got["top1"] == pytest.approx((got["top1_5"] + got["top1_1"]) / 2)


def test_the_size_of_batches_does_not_matter():
    assert evaluate(context(batch_size=16))[1] == evaluate()[1]


def test_a_single_strength_needs_no_images_to_choose_by_and_one_drawing_no_spread():
    evaluator, got = evaluate(l2=(0.1,), seeds=1, shots=(20,))  # all there are
    assert evaluator.draws.shape == (1, K, 20)
    assert "top1_20_std" not in got and got["table"][0]["l2"] == 0.1


def test_images_without_a_label_are_neither_drawn_nor_counted():
    label, train = LABEL.copy(), TRAIN_LABEL.copy()
    label[:7], train[:8] = -1, -1
    evaluator, got = evaluate(context(train, label))
    assert got["n"] == 30
    assert evaluator.draws.min() >= 8


def test_a_class_with_too_few_images_is_named():
    train = TRAIN_LABEL.copy()
    train[train == 2] = 1
    train[:3] = 2
    message = (
        r"fewshot: shots=5 and held_out=4 \(to choose l2\) of each class, but class "
        r"'2' has only 3 images \(1 of 4 classes have too few\); lower the eval"
    )
    with pytest.raises(ValueError, match=message):
        evaluate(context(train))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shots": ()}, r"shots=\(\)"),
        ({"shots": (0, 5)}, r"each at least 1"),
        ({"seeds": 0}, r"seeds=0"),
        ({"held_out": 0}, r"held_out=0"),
        ({"l2": (0.0,)}, r"fewshot: l2=.*positive"),
    ],
)
def test_settings_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        fewshot.make(context=common.context(None), **fields)
