"""Predictions: probabilities by hand, rows in order, both formats, what is refused."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from litevit_jax.evaluators import base, predict
from tests.evaluators import common, embed_test

COUNT = embed_test.COUNT
NAMES = ("ant", "bee, or wasp", "ä")


def logits():
    table = np.random.default_rng(1).normal(size=(COUNT, 3)).astype(np.float32)
    table[0] = (90.0, -90.0, 90.0)  # a tie: the lower number comes first
    return table


def run(path, *, names=NAMES, **kwargs):
    context = dataclasses.replace(embed_test.context(), names=names)
    evaluator = predict.make(context=context, target=str(path), **kwargs)
    return evaluator.run(common.state({"logits": logits()}), step=0)


def wanted(row, top):
    odds = np.exp(logits()[row].astype(float) - logits()[row].max())
    order = sorted(range(3), key=lambda k: (-odds[k], k))[:top]
    return [(NAMES[k], odds[k] / odds.sum()) for k in order]


@pytest.mark.parametrize(("ending", "top"), [(".csv", 2), (".jsonl", 5)])
def test_rows_have_the_likeliest_classes_and_what_cannot_be_read_keeps_its_own(
    ending, top, tmp_path
):
    path = tmp_path / f"a{ending}"
    assert run(path, top=top) == {"n": COUNT, "unreadable": 2, "file": str(path)}
    rows = predict.read(path, 1000)
    assert len(rows) == COUNT
    for number, row in enumerate(rows):
        assert row.path == f"folder, of {number}/ä.png"
        assert row.label == ("" if number == 5 else str(number % 3))
        broken = number in embed_test.Images.broken
        assert row.error == (f"image {number} is cut off" if broken else "")
        want = [] if broken else wanted(number, top)
        assert [name for name, _ in row.top] == [name for name, _ in want]
        np.testing.assert_allclose(
            [p for _, p in row.top], [p for _, p in want], rtol=1e-6, atol=1e-30
        )
    assert rows[0].top[:2] == [("ant", 0.5), ("ä", 0.5)]
    assert predict.read(path, 2) == rows[:2]


def test_files_are_plain_csv_and_json_lines(tmp_path):
    run(tmp_path / "a.csv", top=2)
    with (tmp_path / "a.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head[3:] == ["class_1", "probability_1", "class_2", "probability_2"]
    assert {len(row) for row in rows} == {7}
    run(tmp_path / "a.jsonl", top=1)
    rows = [json.loads(x) for x in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert set(rows[0]) == {"path", "label", "error", "top"} and rows[3]["top"] == []
    assert set(rows[0]["top"][0]) == {"class", "probability"}


def test_a_model_without_names_says_numbers(tmp_path):
    run(tmp_path / "a.csv", names=(), top=1)
    assert predict.read(tmp_path / "a.csv", 1)[0].top == [("0", 0.5)]


def test_without_a_target_the_file_in_the_run_directory_is_replaced(tmp_path):
    context = dataclasses.replace(embed_test.context(), outdir=tmp_path / "pictures")
    for _ in range(2):
        made = predict.make(context=context)
        made.run(common.state({"logits": logits()}), step=0)
    assert made.path == tmp_path / "predictions.csv"
    assert len(predict.read(made.path, 1000)) == COUNT
    assert not made.path.with_name("predictions.csv.parts").exists()


def test_what_cannot_be_written_or_predicted_is_refused_first(tmp_path):
    (tmp_path / "there.csv").write_text("")
    for kwargs, error, message in (
        (
            {"target": "a.json"},
            ValueError,
            r"ends in '\.json', expected one of \.csv, ",
        ),
        ({"target": str(tmp_path / "there.csv")}, FileExistsError, "there already"),
        ({"top": 0}, ValueError, "top=0; expected 1 or more"),
    ):
        with pytest.raises(error, match=message):
            predict.make(context=embed_test.context(), **kwargs)
    made = predict.make(context=embed_test.context(), target=str(tmp_path / "a.csv"))
    with pytest.raises(ValueError, match=r"predicts features; it has no head .* Train"):
        base.check("predict", made, {"features": None}, "mae")


def test_a_model_of_several_labels_answers_for_each_class_alone(tmp_path):
    context = dataclasses.replace(embed_test.context(), names=NAMES, multi_label=True)
    path = tmp_path / "a.csv"
    evaluator = predict.make(context=context, target=str(path), top=3)
    evaluator.run(common.state({"logits": logits()}), step=0)
    for number, row in enumerate(predict.read(path, 1000)):
        if number not in embed_test.Images.broken:
            own = 1 / (1 + np.exp(-logits()[number].astype(float)))
            want = [own[NAMES.index(name)] for name, _ in row.top]
            np.testing.assert_allclose([p for _, p in row.top], want, rtol=1e-6)


def test_no_prediction_is_remembered_so_that_memory_stays_the_same(
    tmp_path, monkeypatch
):
    made = dataclasses.replace(embed_test.context(), names=NAMES, last=base.LastPass())
    monkeypatch.setattr(base.LastPass, "over", lambda *_: pytest.fail("remembered"))
    evaluator = predict.make(context=made, target=str(tmp_path / "a.csv"))
    assert evaluator.run(common.state({"logits": logits()}), step=0)["n"] == COUNT
