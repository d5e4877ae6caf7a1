"""What is advised follows from the numbers, and does not say more than they do."""

import json

import pytest

from litevit_jax.analysis import advice, job
from litevit_jax.train import workdir as workdirs
from tests import jobs


def probe(linear, n=1000):
    table = [{"block": i, "linear": x} for i, x in enumerate(linear)]
    best = max(range(len(linear)), key=lambda i: linear[i])
    return {"top1": linear[best], "block": best, "n": n, "table": table, "step": 0}


def test_the_better_encoder_is_named_with_its_lead():
    text, rows = advice.of_probes(
        {"moco": probe([20.0, 45.0, 50.0]), "mae": probe([30.0, 60.0, 70.0])}
    )
    assert text.startswith("Start from mae: its best block tells 70.0 %, 20.0 points")
    assert [row["name"] for row in rows] == ["mae", "moco"]
    assert rows[0]["margin"] == pytest.approx(2 * 100 * (0.7 * 0.3 / 1000) ** 0.5)


def test_a_lead_within_the_error_is_no_lead():
    few = advice.of_probes(
        {"a": probe([50.0, 61.0], 200), "b": probe([50.0, 60.0], 200)}
    )
    many = advice.of_probes(
        {"a": probe([50.0, 61.0], 90_000), "b": probe([50.0, 60.0], 90_000)}
    )
    assert "b cannot be told from it on 200 images" in few[0]
    assert "1.0 points more than b" in many[0]


def test_how_many_layers_follow_from_where_the_accuracy_stops_rising():
    text, rows = advice.of_probes({"a": probe([40.0, 70.0, 71.0, 60.0], 500)})
    assert "block 2 of 4 already tells as much" in text
    assert "tune the last 2 blocks and keep the first 2" in text
    assert rows[0]["enough"] == 2 and rows[0]["block"] == 3
    text, _ = advice.of_probes({"a": probe([40.0, 50.0, 60.0, 80.0], 500)})
    assert "rises up to the last of 4 blocks" in text and "tune little" in text


def test_margins_of_all_and_of_none_are_not_zero():
    for top1 in (0.0, 100.0):
        want = 200 * (0.01 * 0.99 / 100) ** 0.5
        assert advice.margin(100, top1) == pytest.approx(want)


def test_the_best_block_is_the_one_that_was_chosen():
    chosen = probe([50.0, 70.0, 40.0], 1000)
    assert advice.of_probes({"a": chosen})[1][0]["top1"] == 70.0
    less = advice.of_probes({"a": probe([69.0, 70.0, 69.5], 500)})[0]
    assert "those after it add nothing" in less  # half a point is within the error


def test_a_last_block_above_the_chosen_one_loses_nothing():
    last = probe([40.0, 70.0, 71.0, 71.4], 500)
    text, _ = advice.of_probes({"a": last | {"top1": 71.0, "block": 2}})
    assert "those after it add nothing (71.4 % after the last)" in text
    assert "points less" not in text and text.count(". ") == 1


def test_layers_that_carry_the_gain_are_counted():
    found = {
        "random": {"rich": {0: 40.0}, "poor": {0: 20.0}},
        "keep_first": {
            "rich": {0: 41.0, 1: 59.0, 2: 60.0},
            "poor": {0: 21.0, 1: 25.0, 2: 30.0},
        },
    }
    rich, poor = advice.of_layers(found, 2)
    assert rich.startswith("With many images the first 1 of 2 blocks carry 95 %")
    assert poor.startswith("With few images the first 2 of 2 blocks carry 100 %")
    found["keep_first"]["poor"][2] = 19.0
    assert "does not help: 19.0" in advice.of_layers(found, 2)[1]
    found["keep_first"]["poor"][2] = 20.0  # as much as the random start
    assert "does not help: 20.0" in advice.of_layers(found, 2)[1]
    assert advice.of_layers({}, 2) == []


def write(place, linear, dir="a"):
    made = jobs.config("layer_probe", "digits", data__dir=dir).to_dict()
    workdirs.write_json(place / "config.json", workdirs.plain(made))
    workdirs.record_result(place, "layers", probe(linear), "top1", {"metric": "top1"})
    return place


def test_the_command_advises_from_directories_of_probes(tmp_path):
    write(tmp_path / "mae", [30.0, 60.0])
    write(tmp_path / "moco", [20.0, 40.0])
    named = f"mae={tmp_path}/mae,moco={tmp_path}/moco"
    made = jobs.config("analysis", "advice", models=named)
    said = job.run("advise", made, str(tmp_path / "out")).text
    found = json.loads((tmp_path / "out" / "advice.json").read_text())
    assert found["advice"] in said and found["advice"].count(". ") >= 1
    assert [row["top1"] for row in found["encoders"]] == [60.0, 40.0]
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "Start from mae" in page and 'value="60.0"' in page


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
                job.run("advise", made, str(tmp_path / "out"))
        made.probe = "layers_avg"
        with pytest.raises(ValueError, match=r"no evals/layers_avg/result.json"):
            job.run("advise", made, str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"x: no result of the evaluator 'layers'"):
        advice.of_probes({"x": {"top1": 50.0, "n": 5}})
