"""The k-NN vote against brute force in NumPy."""

import numpy as np
import pytest

from litevit_jax.evaluators import knn
from tests.evaluators import common


def features(count, seed):
    return np.random.default_rng(seed).normal(size=(count, 6)).astype(np.float32)


def evaluate(bank, bank_label, query, label, *, num_classes, **kwargs):
    """Both splits are rows of one table, since features are looked up by index."""
    table = {"train": bank, "eval": query}
    made = common.context(
        None,
        num_classes=num_classes,
        train=common.Images(bank_label, num_classes),
        eval=common.Images(label, num_classes),
    )

    def over(state, split, reads):
        del state
        (name,) = reads
        for start in range(0, len(table[split]) + 3, 8):  # padded at the end
            index = np.arange(start, start + 8)
            inside = index < len(table[split])
            rows = np.where(inside, index, 0)
            labels = made.source(split).labels[rows]
            yield (
                {"mask": inside.astype(np.float32), "label": labels, "index": rows},
                {name: table[split][rows]},
            )

    object.__setattr__(made, "over", over)
    return knn.make(context=made, **kwargs).run(None, step=0)


def brute_force(bank, bank_label, query, k, temperature, num_classes):
    votes = np.zeros((len(query), num_classes))
    for row, q in enumerate(query):
        cosine = bank @ q / np.linalg.norm(bank, axis=1) / np.linalg.norm(q)
        for place in np.argsort(-cosine)[:k]:
            votes[row, bank_label[place]] += np.exp(cosine[place] / temperature)
    return np.argsort(-votes, axis=1, kind="stable")


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (3, 0.07), (20, 0.07)])
def test_votes_are_those_of_brute_force(k, temperature):
    bank, query = features(53, 0), features(29, 1)
    bank_label, label = np.arange(53) % 7, np.arange(29) % 7
    got = evaluate(
        bank, bank_label, query, label, num_classes=7, k=k, temperature=temperature
    )
    hits = brute_force(bank, bank_label, query, k, temperature, 7) == label[:, None]
    flat = brute_force(bank, bank_label, query, k, 100.0, 7) == label[:, None]
    assert k == 1 or hits[:, 0].sum() != flat[:, 0].sum()  # the weights matter here
    assert (got["n"], got["bank_n"]) == (29, 53)
    assert got["top1"] == pytest.approx(100 * hits[:, 0].mean())
    assert got["top5"] == pytest.approx(100 * hits[:, :5].any(axis=1).mean())


def test_an_image_that_is_in_the_bank_finds_itself():
    bank = features(40, 2)
    label = np.arange(40) % 10
    assert evaluate(bank, label, 3 * bank, label, num_classes=10, k=1)["top1"] == 100


def test_more_neighbours_than_images_are_all_of_them():
    bank, label = features(6, 3), np.arange(6) % 3
    got = evaluate(bank, label, bank, label, num_classes=3, k=20)
    assert got == evaluate(bank, label, bank, label, num_classes=3, k=6)


def test_images_without_a_label_neither_vote_nor_count():
    bank = features(12, 4)
    label = np.where(np.arange(12) < 6, np.arange(12) % 3, -1)
    got = evaluate(bank, label, bank, label, num_classes=3, k=1)
    assert (got["n"], got["bank_n"], got["top1"]) == (6, 6, 100.0)


@pytest.mark.parametrize("setting", [{"k": 0}, {"temperature": 0.0}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match=r"knn: k=.* >= 1 and temperature=.* > 0"):
        knn.make(context=common.context(None), **setting)


def test_features_are_read_through_the_mesh():
    bank = features(21, 5)
    label = np.arange(21) % 3
    source = common.Images(label, 3)
    made = common.context(
        common.look_up("tokens"), num_classes=3, train=source, eval=source
    )
    evaluator = knn.make(context=made, features="tokens", k=1)
    assert evaluator.reads == ("tokens",)
    got = evaluator.run(common.state(bank), step=0)
    assert got == {"top1": 100.0, "n": 21, "bank_n": 21}  # no top5 of three classes


def test_more_queries_than_are_compared_at_a_time():
    bank, query = features(20, 6), features(1500, 7)
    bank_label = np.arange(20) % 3
    settings = {"k": 3, "temperature": 0.07, "num_classes": 3}
    got = knn.votes(query, bank, bank_label, **settings)
    want = brute_force(bank, bank_label, query, 3, 0.07, 3)
    assert got.shape == (1500, 3)
    np.testing.assert_array_equal(np.argmax(got, axis=1), want[:, 0])


def test_features_that_are_no_numbers_are_not_called_right():
    bank, label = features(8, 8), np.zeros(8, int)
    broken = np.full_like(bank, np.nan)
    got = evaluate(bank, label, broken, label, num_classes=7, k=1)
    assert (got["top1"], got["top5"]) == (0.0, 0.0)
