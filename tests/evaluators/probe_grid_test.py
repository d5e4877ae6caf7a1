"""The best of a grid: chosen on held-out images, counted on the test images."""

import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax.evaluators import probe_grid
from tests.evaluators import common

LRS, FEATURES = (0.1, 1.0, 10.0), ("cls", "avg")
COUNT = {"select": 21, "eval": 37}


def tables():
    """Split and feature -> rank and loss [n, G]."""
    rng = np.random.default_rng(0)
    return {
        (split, name): (
            rng.integers(0, 9, (n, 3)).astype(np.int32),
            rng.random((n, 3)).astype(np.float32),
        )
        for split, n in COUNT.items()
        for name in FEATURES
    }


def evaluate(found, labels=None, *, lrs=LRS, batch_size=8):
    labels = labels or {s: np.zeros(n, int) for s, n in COUNT.items()}
    sources = {s: common.Images(label, 10) for s, label in labels.items()}
    # The splits have images of different sums; the first pixel row tells them apart.
    first = jnp.asarray(sources["select"].images)

    def predict(params, model_state, batch):
        del params, model_state
        same = (batch["image"][:, None] == first[None]).all(axis=(2, 3, 4)).any(axis=1)
        out = {}
        for name in FEATURES:
            for place, kind in enumerate(("grid_rank", "grid_loss")):
                a, b = (jnp.asarray(found[s, name][place]) for s in ("select", "eval"))
                index = batch["index"]
                rows = jnp.where(same[:, None], a[index % len(a)], b[index % len(b)])
                out[f"{kind}/{name}"] = rows
        return out

    made = common.context(predict, num_classes=10, batch_size=batch_size, **sources)
    evaluator = probe_grid.make(context=made, features=FEATURES, lrs=lrs)
    evaluator.check_data()
    return evaluator.run(common.state(None), step=0)


def test_the_winner_is_best_on_the_held_out_images_and_counted_on_the_others():
    found = tables()
    got = evaluate(found)
    top1 = {
        (split, name, g): 100 * (found[split, name][0][:, g] < 1).mean()
        for split, name in found
        for g in range(3)
    }
    places = [(name, g) for name in FEATURES for g in range(3)]
    name, g = max(places, key=lambda p: top1["select", *p])
    assert (got["feature"], got["lr"]) == (name, LRS[g])
    assert got["top1"] == pytest.approx(top1["eval", name, g])
    assert got["top1"] < max(top1["eval", *p] for p in places)  # it is not the best
    assert got["top5"] == pytest.approx(100 * (found["eval", name][0][:, g] < 5).mean())
    assert got["loss"] == pytest.approx(found["eval", name][1][:, g].mean(), rel=1e-6)
    assert (got["n"], got["select_n"]) == (37, 21)
    assert [(r["feature"], r["lr"]) for r in got["table"]] == [
        (name, lr) for name in FEATURES for lr in LRS
    ]
    for row in got["table"]:
        place = (row["feature"], LRS.index(row["lr"]))
        assert row["top1"] == pytest.approx(top1["eval", *place])
        assert row["select_top1"] == pytest.approx(top1["select", *place])
    assert got == evaluate(found, batch_size=16)


def test_of_heads_that_are_right_as_often_the_one_of_lower_loss_wins():
    found = tables()
    for name in FEATURES:
        found["select", name][0][:] = 0
    found["select", "avg"][1][:, 1] = 0.0
    got = evaluate(found)
    assert (got["feature"], got["lr"]) == ("avg", 1.0)


def test_images_without_a_label_are_not_counted():
    found = tables()
    found["eval", "cls"][0][:] = found["eval", "avg"][0][:] = 3
    for name in FEATURES:
        found["eval", name][0][5:] = 0
    label = np.zeros(37, int)
    label[:5] = -1
    got = evaluate(found, {"select": np.zeros(21, int), "eval": label})
    assert (got["n"], got["top1"]) == (32, 100.0)


def test_another_number_of_learning_rates_is_refused():
    with pytest.raises(ValueError, match=r"trains 3 learning rates, .* was given 2"):
        evaluate(tables(), lrs=(0.1, 1.0))


def test_choosing_on_the_test_images_is_refused():
    with pytest.raises(ValueError, match="split and select are both 'eval'"):
        probe_grid.make(
            context=common.context(None), features=("cls",), lrs=(1.0,), select="eval"
        )
