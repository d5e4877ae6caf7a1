"""A pass over a split: every example once, on any size; what evaluators need."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax.evaluators import base, classification, knn, reconstruction
from tests.evaluators import common


@pytest.mark.parametrize("count", [1, 7, 8, 9, 37])
@pytest.mark.parametrize("batch_size", [8, 16])
def test_each_example_is_seen_exactly_once(count, batch_size):
    source = common.Images(np.arange(count) % 3, 3)
    made = common.context(common.look_up("x"), batch_size=batch_size, eval=source)
    table = np.arange(count, dtype=np.float32) * 10
    seen = []
    for batch, out in made.over(common.state(table), "eval", ("x",)):
        keep = batch["mask"] > 0
        assert set(batch) == {"label", "index", "mask"}
        np.testing.assert_array_equal(batch["label"][keep], batch["index"][keep] % 3)
        np.testing.assert_array_equal(out["x"][keep], batch["index"][keep] * 10.0)
        seen += batch["index"][keep].tolist()
    assert seen == list(range(count))


def test_images_come_along_when_asked_for_and_a_limit_ends_the_pass():
    source = common.Images(np.zeros(37, int), 1)
    made = common.context(common.look_up("x"), eval=source)
    state, seen = common.state(np.zeros(37)), []
    for batch, _ in made.over(state, "eval", ("x",), images=True, limit=10):
        np.testing.assert_array_equal(batch["image"], source.images[batch["index"]])
        seen += batch["index"].tolist()
    assert seen == list(range(16))  # whole batches


def test_an_evaluator_that_reads_what_is_not_predicted_is_refused():
    made = classification.make(context=common.context(None, num_classes=3))
    predicted = {"reconstruction": 0, "features": 0}
    message = (
        "evaluator 'classification' reads 'logits', objective 'mae' predicts "
        "features, reconstruction"
    )
    with pytest.raises(ValueError, match=message):
        base.check("classification", made, predicted, "mae")
    base.check("classification", made, {"logits": 0}, "supervised")


@pytest.mark.parametrize("module", [classification, knn])
def test_an_evaluator_that_needs_labels_says_so(module):
    made = module.make(context=common.context(None, num_classes=0))
    predicted = {"logits": 0, "features": 0}
    with pytest.raises(ValueError, match=r"'t' needs labels.*one subfolder per class"):
        base.check("t", made, predicted, "supervised")


def test_reconstruction_needs_no_labels():
    made = reconstruction.make(context=common.context(None, num_classes=0))
    assert not made.labelled
    base.check("r", made, dict.fromkeys(made.reads), "mae")


def test_predictions_are_remembered_as_long_as_all_that_they_follow_from():
    calls = []

    def predict(params, model_state, batch):
        jax.debug.callback(lambda: calls.append(1))
        return {"features": jnp.asarray(params)[batch["index"]]}

    images = common.Images(list(range(12)), 12)
    plain = common.context(predict, eval=images)
    context = dataclasses.replace(plain, last=base.LastPass())
    state = common.state(np.arange(24.0).reshape(12, 2))

    def features(of, *, limit=None):
        pairs = context.over(of, "eval", ("features",), limit=limit)
        made = np.concatenate([out["features"] for _, out in pairs])
        jax.effects_barrier()
        return made

    first = features(state)
    count = len(calls)
    np.testing.assert_array_equal(features(state), first)
    assert len(calls) == count > 0
    features(state, limit=8)  # other images
    assert len(calls) > count
    np.testing.assert_array_equal(features(common.state(-state.params)), -first)
    count = len(calls)
    features(state)  # it is the last pass no more
    assert len(calls) > count
    del state
    assert not context.last._pairs


def test_a_pass_that_is_too_large_or_cut_short_is_not_remembered(monkeypatch):
    images = common.Images(list(range(12)), 12)
    plain = common.context(common.look_up("features"), eval=images)
    context = dataclasses.replace(plain, last=base.LastPass())
    state = common.state(np.zeros((12, 2)))
    next(context.over(state, "eval", ("features",)))
    assert not context.last._pairs
    monkeypatch.setattr(base.LastPass, "MOST", 200)
    assert len([*context.over(state, "eval", ("features",))]) == 2
    assert not context.last._pairs
