"""What is advised follows from the numbers, and does not say more than they do."""

import json

import pytest

from litevit_jax.jobs import analyse
from litevit_jax.report import advice
from litevit_jax.train import eval_runner
from litevit_jax.train import workdir as workdirs
from tests import jobs


def probe(linear, n=1000, **fields):
    table = [{"block": i, "linear": x} for i, x in enumerate(linear, 1)]
    best = max(table, key=lambda row: row["linear"])
    stamp = {"step": 0, "n": n, "pool": "cls", "select_top1": 50.0} | fields
    return {"top1": best["linear"], "block": best["block"], "table": table} | stamp


def test_the_better_encoder_is_named_with_its_lead():
    text, rows = advice.of_probes(
        {"moco": probe([20.0, 45.0, 50.0]), "mae": probe([30.0, 60.0, 70.0])}
    )
    assert text.startswith(
        "Start from mae: the class token after block 3 tells 70.0 %, 20.0 points more "
        "than moco, where two standard errors of the difference of 1,000 images are 4.3"
    )
    assert [row["name"] for row in rows] == ["mae", "moco"]
    error = 100 * (0.7 * 0.3 / 1000) ** 0.5
    assert rows[0]["standard_error"] == pytest.approx(error)
    assert (rows[0]["block"], rows[0]["last"]) == (3, 70.0)


def test_random_parameters_are_what_others_must_beat_and_never_advised():
    low, high = probe([20.0, 30.0]), probe([50.0, 52.0])
    text, rows = advice.of_probes({"a": low}, {"b": [high]})
    assert text.startswith("None of these is worth starting from: the best, a (30.0 %")
    assert "is worse than random parameters (b, 52.0 %) on 1,000 images" in text
    assert [row["random"] for row in rows] == [True, False]
    text, _ = advice.of_probes({"a": probe([20.0, 53.0])}, {"b": [high]})
    assert "cannot be told from random parameters (b, 52.0 %)" in text
    assert "tune" not in text
    text, _ = advice.of_probes({"a": high}, {"b": [low]})
    assert text.startswith("Start from a: ")
    assert "where random parameters (b) give 30.0 %" in text
    assert "b (30" not in text and "more than b" not in text
    with pytest.raises(ValueError, match=r"no probe of an encoder that has learned"):
        advice.of_probes({}, {"b": [high]})


def test_random_parameters_are_read_by_the_same_tokens_as_the_best_encoder():
    tokens = probe([20.0, 30.0]), probe([50.0, 52.0], pool="avg")
    text, rows = advice.of_probes(
        {"a": probe([50.0, 53.0], pool="avg")}, {"b": [*tokens]}
    )
    assert "cannot be told from random parameters (b, 52.0 %)" in text
    assert [row["pool"] for row in rows] == ["avg", "avg"]
    text, _ = advice.of_probes({"a": probe([50.0, 53.0])}, {"b": [*tokens]})
    assert "where random parameters (b) give 30.0 %" in text


def test_a_lead_within_the_error_is_no_lead():
    few = advice.of_probes(
        {"a": probe([50.0, 61.0], 200), "b": probe([50.0, 60.0], 200)}
    )
    many = advice.of_probes(
        {"a": probe([50.0, 61.0], 90_000), "b": probe([50.0, 60.0], 90_000)}
    )
    assert "but b (60.0 %) cannot be told from it on 200 images" in few[0]
    assert "1.0 points more than b" in many[0]
    # Two standard errors of one accuracy are less than those of the difference.
    text = advice.of_probes({"a": probe([54.0], 1000), "b": probe([50.0], 1000)})[0]
    assert "b (50.0 %) cannot be told from it on 1,000 images" in text
    assert "of the difference are 4.5 points" in text


def test_how_many_layers_follow_from_where_the_accuracy_stops_rising():
    text, rows = advice.of_probes({"a": probe([40.0, 70.0, 71.0, 60.0], 500)})
    assert "block 2 of 4 cannot be told from the best, and the last tells 11.0" in text
    assert "tune the last 2 blocks and keep the first 2" in text
    assert rows[0]["enough"] == 2 and rows[0]["block"] == 3
    text, _ = advice.of_probes({"a": probe([40.0, 50.0, 60.0, 80.0], 500)})
    assert "rises up to the last of 4 blocks" in text and "tune little" in text


def test_errors_of_all_and_of_none_are_not_zero():
    for top1 in (0.0, 100.0):
        want = 100 * (0.01 * 0.99 / 100) ** 0.5
        assert advice.standard_error(100, top1) == pytest.approx(want)
        assert advice.margin(100, top1, top1) == pytest.approx(2 * 2**0.5 * want)
    assert advice.standard_error(1, 100.0) == advice.standard_error(1, 0.0) == 50.0


def test_the_best_block_is_the_one_that_was_chosen():
    chosen = probe([50.0, 70.0, 40.0], 1000)
    assert advice.of_probes({"a": chosen})[1][0]["top1"] == 70.0
    less = advice.of_probes({"a": probe([69.0, 70.0, 69.5], 500)})[0]
    assert "no difference shows in those after it" in less  # half a point is nothing


def test_a_last_block_above_the_chosen_one_loses_nothing():
    last = probe([40.0, 70.0, 71.0, 71.4], 500)
    text, _ = advice.of_probes({"a": last | {"top1": 71.0, "block": 3}})
    assert "no difference shows in those after it (71.4 % after the last)" in text
    assert "points less" not in text and text.count(". ") == 1


def study(start, kept, n=10_000):
    """The sentence of a study's one setting."""
    curves = {
        "random": {"rich": {0: start}},
        "keep_first": {"rich": dict(enumerate(kept))},
    }
    (sentence,) = advice.of_layers(curves, len(kept) - 1, n)
    return sentence


def test_layers_that_are_enough_are_counted():
    text = study(40.0, [41.0, 59.0, 60.0])
    assert text.startswith(
        "With many images the checkpoint is better than a random start: 60.0 % of "
        "10,000 test images against 40.0 %, and the first 1 of 2 blocks alone cannot "
        "be told from all of it: 59.0 %; two standard errors of the difference are 1.4"
    )
    text = study(40.0, [41.0, 55.0, 60.0])
    assert "takes more than the first 1 of 2 blocks: with these alone it is 55" in text
    text = study(40.0, [59.5, 55.0, 60.0])  # those before a worse one are luck
    assert "takes more than the first 1 of 2 blocks" in text
    text = study(40.0, [59.5, 59.0, 60.0])
    assert "its embeddings alone cannot be told from all of it: 59.5 %" in text
    assert advice.of_layers({}, 2, 100) == []


def test_nothing_is_concluded_inside_the_error():
    text = study(12.8, [11.0, 11.0, 10.9], 359)
    assert text == (
        "With many images the checkpoint cannot be told from a random start: 10.9 % of "
        "359 test images against 12.8 %; two standard errors of the difference are 4.8."
    )
    assert "cannot be told" in study(10.9, [11.0, 11.0, 12.8], 359)
    assert "is worse than a random start: 5.0 %" in study(12.8, [5.0, 5.0, 5.0], 359)
    text = study(10.0, [10.0, 13.5, 17.0], 359)
    assert "is better than a random start" in text
    assert "Which blocks it takes cannot be told: with the first 1 of 2 blocks" in text
    whole = {"random": {"poor": {0: 10.0}}, "keep_first": {"poor": {2: 30.0}}}
    assert advice.of_layers(whole, 2, 359) == [
        "With few images the checkpoint is better than a random start: 30.0 % of 359 "
        "test images against 10.0 %; two standard errors of the difference are 5.8."
    ]


def write(place, linear, dir="a", init="run", title="layers", **fields):
    made = jobs.config("layer_probe", "digits", data__dir=dir, init=init).to_dict()
    workdirs.write_json(place / "config.json", workdirs.plain(made))
    last = probe(linear, **fields)
    eval_runner.record_result(place, title, last, "top1", {"metric": "top1"})
    return place


def test_the_command_advises_from_directories_of_probes(tmp_path):
    write(tmp_path / "mae", [30.0, 60.0])
    write(tmp_path / "moco", [20.0, 40.0])
    named = f"mae={tmp_path}/mae,moco={tmp_path}/moco"
    made = jobs.config("analysis", "advice", models=named)
    said = analyse.run("advise", made, str(tmp_path / "out")).text
    found = json.loads((tmp_path / "out" / "advice.json").read_text())
    assert found["advice"] in said and found["advice"].count(". ") >= 1
    assert [row["top1"] for row in found["encoders"]] == [60.0, 40.0]
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "Start from mae" in page and 'value="60.0"' in page
    write(tmp_path / "none", [20.0, 90.0], init="random")
    made.models = f"{named},b={tmp_path}/none"
    text = analyse.run("advise", made, str(tmp_path / "out")).text
    assert (
        text.startswith("None of these is worth") and "parameters (b, 90.0 %)" in text
    )


def test_which_tokens_are_read_is_chosen_on_images_held_out(tmp_path):
    write(tmp_path / "a", [30.0, 60.0])
    tokens = {"title": "layers_avg", "pool": "avg", "select_top1": 51.0}
    write(tmp_path / "a", [30.0, 59.0], **tokens)
    made = jobs.config("analysis", "advice", models=f"a={tmp_path}/a")
    text = analyse.run("advise", made, str(tmp_path / "out")).text
    assert text.startswith("Start from a: the mean of the patches after block 2 tells")
    made.probe = "layers"
    text = analyse.run("advise", made, str(tmp_path / "out")).text
    assert text.startswith("Start from a: the class token after block 2 tells 60.0 %")
    path = tmp_path / "a" / "evals" / "layers" / "result.json"
    path.write_text(path.read_text().replace('"pool"', '"pol"'))
    with pytest.raises(ValueError, match=r"an older version wrote evals/layers/res"):
        analyse.run("advise", made, str(tmp_path / "out"))


def test_probes_of_other_images_and_missing_ones_are_refused(tmp_path):
    write(tmp_path / "a", [30.0, 60.0])
    write(tmp_path / "b", [30.0, 60.0], dir="b")
    for named, message in (
        (f"a={tmp_path}/a,b={tmp_path}/b", r"of different data cannot be compared"),
        (f"a={tmp_path}/a", None),
    ):
        made = jobs.config("analysis", "advice", models=named)
        if message:
            with pytest.raises(ValueError, match=message):
                analyse.run("advise", made, str(tmp_path / "out"))
        made.probe = "layers_avg"
        with pytest.raises(ValueError, match=r"no evals/layers_avg/result.json"):
            analyse.run("advise", made, str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"x: no result of the evaluator 'layers'"):
        advice.of_probes({"x": {"top1": 50.0, "n": 5}})
