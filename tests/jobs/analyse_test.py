"""What the end of a run draws, and the jobs of the command line."""

import json
import shutil

import pytest

from litevit_jax.analysis import measure
from litevit_jax.jobs import analyse, train
from litevit_jax.train import loop
from tests import jobs
from tests.analysis import conftest
from tests.report import examples


@pytest.fixture(scope="module")
def ended(checkpoints, tmp_path_factory):
    """(config, workdir) of a run that is complete, and its report."""
    made = conftest.shared()
    workdir = tmp_path_factory.mktemp("runs") / "mae run"
    shutil.copytree(checkpoints / "0", workdir)
    return made, workdir, analyse.after_training(str(workdir))


def test_a_run_ends_with_a_report_of_all_that_it_is(ended):
    _, workdir, page = ended
    assert page == workdir / "report" / "index.html"
    found = json.loads((page.parent / "report.json").read_text())
    sections = {figure["section"] for figure in found["figures"]}
    assert sections == {
        "curves", "speed", "pictures", "attention", "maps", "patches", "cka",
        "features",
    }  # fmt: skip
    analysis = json.loads((workdir / "analysis" / "analysis.json").read_text())
    assert analysis["images"] == 16 and list(analysis["models"]) == ["mae_run"]
    cka = next(f for f in found["figures"] if f["section"] == "cka")
    assert cka["data"] == analysis["cka"]["pairs"][0]
    boxes = next(f for f in found["figures"] if f["name"].startswith("attention-dist"))
    assert boxes["data"]["layers"] == analysis["attention"]["mae_run"]["distance"]


def test_an_analysis_is_made_anew_in_its_own_directory_alone(ended):
    workdir = ended[1]
    saved = json.loads((workdir / "config.json").read_text())
    saved["log"]["report_images"] = 8
    (workdir / "config.json").write_text(json.dumps(saved))
    analyse.after_training(str(workdir))
    analysis = json.loads((workdir / "analysis" / "analysis.json").read_text())
    assert analysis["images"] == 8
    small = analyse._small(analyse.run_record.read("mae", workdir))
    with pytest.raises(ValueError, match="holds a run with another config"):
        measure.prepare(small, workdir)


def test_without_images_there_is_no_analysis(ended, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (copy / name).write_bytes((ended[1] / name).read_bytes())
    saved = json.loads((copy / "config.json").read_text())
    saved["log"]["report_images"] = 0
    (copy / "config.json").write_text(json.dumps(saved))
    text = analyse.after_training(str(copy)).read_text()
    assert not (copy / "analysis").exists() and "Similarity of layers" not in text


def test_a_report_that_cannot_be_drawn_does_not_fail_a_complete_run(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(train, "run", lambda *_, **__: loop.RunOutcome(6, {}))
    ending = train.main(jobs.tiny(), str(tmp_path / "gone"), "litevit")
    assert ending.result == str(tmp_path / "gone")
    said = capsys.readouterr()
    assert "the report could not be drawn (" in said.err and "done: step 6" in said.out
    assert "litevit --config=analysis:report --config.models=" in said.err
    train.main(jobs.tiny(log__report=False), str(tmp_path), "litevit")
    assert not capsys.readouterr().err


def test_the_job_prints_where_the_report_is(ended, tmp_path, capsys):
    made = jobs.config("analysis", "report", models=f"mae={ended[1]}")
    analyse.main(made, str(tmp_path / "out"), "litevit")
    assert f"report: {tmp_path}/out/report/index.html" in capsys.readouterr().out
    assert (tmp_path / "out" / "report" / "report.json").exists()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return examples.write_run(tmp_path_factory.mktemp("runs") / "one")


def analysis_config(models, word="report"):
    made = jobs.config("analysis", word, models=models)
    made.name = "side" if word == "report" else made.name
    return made


def draw(config):
    return analyse.draw(config.models, None, recipe=config.name)


def test_several_runs_stand_side_by_side(run, tmp_path, monkeypatch):
    other = examples.write_run(
        tmp_path / "other", logged=20, total=50, name="mocov3_tiny"
    )
    monkeypatch.chdir(tmp_path)
    config = analysis_config(f"mae={run},moco={other}/checkpoints/20")
    (other / "checkpoints").mkdir()
    out = draw(config)
    assert out.resolve() == (tmp_path / "runs/side/report/index.html").resolve()
    found = json.loads((out.parent / "report.json").read_text())
    loss = next(f for f in found["figures"] if f["name"] == "curves-loss")
    assert set(loss["data"]["series"]) == {"mae", "moco"}
    assert [r["recipe"] for r in found["runs"]] == ["mae_tiny", "mocov3_tiny"]
    text = out.read_text()
    assert "Unfinished: 20 of 50" in text and "mae, moco side by side" in text
    rows = [dict(row) for row in examples.Page(text).rows if row]
    between = {row["field"]: row for row in rows if "mae" in row and "field" in row}
    assert between["name"]["mae"] == '"mae_tiny"'
    assert between["name"]["moco"] == '"mocov3_tiny"'
    assert between["objective.mask_ratio"]["moco"] == "–"
    assert "seed" not in between and "data.name" not in between
    assert not any(field.startswith("derived") for field in between)
    assert [row["run"] for row in rows if row.get("number") == "top1"] == [
        "mae",
        "moco",
    ]


def test_a_report_of_one_run_is_put_into_its_directory(tmp_path):
    place = examples.write_run(tmp_path / "mine")
    out = draw(analysis_config(str(place)))
    assert out == place / "report" / "index.html"


def test_a_report_of_a_file_of_weights_is_refused(tmp_path):
    file = tmp_path / "vit.pth"
    file.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"a report is of runs; to look into a file"):
        draw(analysis_config(f"vit={file}"))


def test_a_comparison_of_one_run_is_refused(run):
    made = analysis_config(str(run), "compare")
    with pytest.raises(ValueError, match=r"one run has nothing to be compared with"):
        draw(made)
    with pytest.raises(ValueError, match=r"variants advice and compare: give one"):
        analysis_config(str(run), "compare,advice")
    assert analysis_config(str(run), "compare").name == "compare"
