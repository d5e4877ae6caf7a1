"""The report of a run: whole numbers, no network, small, honest about gaps."""

import json
import re
import shutil

import markupsafe
import pytest
from PIL import Image

from litevit_jax import paths
from litevit_jax.report import build, page, plots, render, run_figures, run_record
from litevit_jax.train import eval_runner
from litevit_jax.train import workdir as workdirs
from tests.report import examples


@pytest.fixture(scope="module")
def drawn(run):
    """(page, report.json) of the run."""
    out = build.run_report([run_record.read("one", run)], run / "report", title="One")
    return out.read_text(), json.loads((run / "report" / "report.json").read_text())


def test_the_page_asks_nothing_of_any_network(drawn):
    shown = examples.Page(drawn[0])
    assert shown.addresses
    for address in shown.addresses:
        assert address.startswith(("data:", "#")), address
    inside = [a for a in shown.addresses if a.startswith("#")]
    inside += re.findall(r"url\(([^)]*)\)", drawn[0])
    assert all(a[0] == "#" and a[1:] in shown.ids for a in inside)
    assert len(set(shown.ids)) == len(shown.ids)
    assert drawn[0].count("<style>") == 1 and "@import" not in drawn[0]
    # The namespace of SVG is a name, not an address that is asked for.
    rest = drawn[0].replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r'(src|href|action)="?(https?:)?//', rest)


def test_the_page_is_small(drawn):
    assert len(drawn[0].encode()) < 5 * 2**20


def recorded(run, source):
    """The number that a source names, read anew from the run's files."""
    kind, _, rest = source.partition(" ")
    if kind == "metrics.jsonl":
        rows = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
        rows = [row for row in rows if "loss" in row]
        if rest == "last step":
            return rows[-1]["step"]
        _, step, key = rest.split()
        return next(row[key] for row in rows if row["step"] == int(step))
    assert kind == "result.json"
    evaluation, path = rest.split()
    title = evaluation.partition("/")[2]
    value = json.loads((run / "evals" / title / "result.json").read_text())
    for key in path.split("."):
        value = value[key]
    return value


def test_every_number_of_the_page_is_the_one_that_was_recorded(run, drawn):
    numbers = examples.Page(drawn[0]).numbers
    checked = 0
    for exact, source, shown in numbers:
        if source.startswith("published.py"):
            continue
        value = recorded(run, source)
        assert float(exact) == value and repr(value) == exact, source
        assert float(shown.replace(",", "")) == pytest.approx(value, rel=5e-4)
        checked += 1
    assert checked >= 8
    assert {"result.json one/knn last.top1", "result.json one/knn best.top1"} <= {
        source for _, source, _ in numbers
    }


def test_results_and_what_they_should_be_are_in_its_tables(drawn):
    rows = [dict(row) for row in examples.Page(drawn[0]).rows if row]
    results = [row for row in rows if row.get("evaluation") == "knn"]
    assert [row["number"] for row in results] == ["top1", "top5"]
    top1 = next(
        row for row in examples.Page(drawn[0]).rows if row and row[1][1] == "top1"
    )
    assert [x for _, x in top1[2:]] == ["38.33", "40", "63.33", "30"]
    (published,) = (row for row in rows if "expected" in row)
    assert published["expected"] == "78" and "README" in published["source"]
    assert published["reached"] == "not measured by this run"
    assert published["to be compared?"].startswith("no: fine-tune this run")
    commits = [r["started 2026-01-01"] for r in rows if r.get("one") == "commit"]
    assert commits == ["f00", "f02"]  # of the first start and of the last


def test_the_first_numbers_are_those_that_came_last(run, drawn):
    shown = {source: text for _, source, text in examples.Page(drawn[0]).numbers}
    read = run_record.read("one", run)
    assert shown["metrics.jsonl last step"] == "40"
    assert shown["metrics.jsonl one 40 loss"] == page.rounded(read.steps["loss"][40])
    assert "metrics.jsonl one 40 images_per_s" in shown
    assert shown["result.json one/knn last.top1"] == "38.33"


def test_every_point_of_a_curve_is_one_that_was_logged(run, drawn):
    rows = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    logged = {(row["step"], k): v for row in rows for k, v in row.items()}
    seen = set()
    for figure in drawn[1]["figures"]:
        if figure["data"].get("source") != "metrics.jsonl":
            continue
        for name, points in figure["data"]["series"].items():
            key = figure["data"].get("metric", name)
            seen.add(key)
            for step, value in zip(points["steps"], points["values"], strict=True):
                assert logged[step, key] == value
    assert {"loss", "lr", "images_per_s", "data_wait", "attn_entropy/head_01"} <= seen
    history = next(f for f in drawn[1]["figures"] if f["section"] == "probes")
    result = json.loads((run / "evals" / "knn" / "result.json").read_text())
    points = history["data"]["series"]["one"]
    assert points["values"] == [row["top1"] for row in result["history"]]


def test_results_in_the_numbers_are_those_of_the_files(run, drawn):
    result = json.loads((run / "evals" / "knn" / "result.json").read_text())
    got = drawn[1]["runs"][0]["results"]["knn"]
    assert got == {k: result[k] for k in ("metric", "last", "best", "history")}


def test_a_picture_of_every_figure_lies_beside(run, drawn):
    for figure in drawn[1]["figures"]:
        with Image.open(run / "report" / figure["file"]) as picture:
            assert min(picture.size) > 100


def test_tables_of_classes_are_folded_up_in_the_page(tmp_path):
    directory = examples.write_run(tmp_path / "run")
    table = [
        {"class": "sky <b>", "iou": 62.5, "acc": 75.0, "pixels": 12},
        {"class": "tree", "iou": None, "acc": None, "pixels": 0},
    ]
    row = {"step": 40, "miou": 62.5, "table": table, "params": "abc", "time": 1.0}
    eval_runner.record_result(directory, "dense", row, "miou", {"metric": "miou"})
    read = [run_record.read("one", directory)]
    text = build.run_report(read, tmp_path / "out", title="One").read_text()
    rows = [dict(row) for row in examples.Page(text).rows if row]
    classes = {row["class"]: row for row in rows if "class" in row}
    assert classes["sky <b>"]["iou"] == "62.5" and classes["tree"]["acc"] == "–"
    assert "dense, by class" in text


def test_photographs_that_would_make_the_page_large_lie_beside_it(
    run, tmp_path, monkeypatch
):
    read = [run_record.read("one", run)]
    figures = run_figures.of_runs(read, {"one": "#000000"}, [])
    first = next(figure.picture() for figure in figures if figure.pixels is not None)
    monkeypatch.setattr(build, "_MOST_PHOTOS", len(first.photo))
    text = build.run_report(read, tmp_path / "out", title="One").read_text()
    assert text.count("<img") == 1
    assert "pictures-one-40.png</a> lies beside this page." in text
    links = [a for a in examples.Page(text).addresses if not a.startswith("data:")]
    [file] = [link for link in links if not link.startswith("#")]
    assert (tmp_path / "out" / file).is_file() and file == "pictures-one-40.png"


def test_an_unfinished_run_is_reported_so_far_and_says_so(tmp_path):
    run = run_record.read(
        "half", examples.write_run(tmp_path / "half", logged=15, total=40)
    )
    assert any("Unfinished: 15 of 40 updates" in note for note in run.notes)
    text = build.run_report([run], tmp_path / "out", title="Half").read_text()
    assert "Unfinished: 15 of 40 updates" in text and "<svg" in text


def test_a_run_without_any_update_has_a_report_that_says_so(tmp_path):
    examples.write_run(tmp_path / "none", logged=0)
    run = run_record.read("none", tmp_path / "none")
    text = build.run_report([run], tmp_path / "out", title="None").read_text()
    assert "No update was logged yet" in text
    assert "metrics.jsonl is not there" in text


def test_names_from_a_run_are_escaped(tmp_path):
    place = examples.write_run(tmp_path / "odd", name="mae_tiny")
    config = json.loads((place / "config.json").read_text())
    config["teacher"] = '<img src=x onerror="alert(1)">'
    workdirs.write_json(place / "config.json", config)
    run = run_record.read("odd", place)
    text = build.run_report([run], tmp_path / "out", title="<b>").read_text()
    assert "<img src=x" not in text and "<title>&lt;b&gt;</title>" in text


def test_departures_from_the_recipe_are_counted_and_listed(tmp_path):
    place = examples.write_run(tmp_path / "own", logged=1, epochs=5, seed=3)
    read = run_record.read("own", place)
    text = build.run_report([read], tmp_path / "out", title="Own").read_text()
    assert "3 fields differ from configs/mae_tiny.py" in text
    rows = [dict(row) for row in examples.Page(text).rows if row]
    listed = {r["field"]: (r["recipe"], r["this run"]) for r in rows if "recipe" in r}
    assert listed == {
        "epochs": ("400", "5"),
        "log.writers": ('["jsonl", "tensorboard"]', '["jsonl"]'),
        "seed": ("0", "3"),
    }
    log = read.config["log"] | {"writers": ["jsonl", "tensorboard"]}
    config = read.config | {"log": log}
    workdirs.write_json(place / "config.json", config | {"epochs": 400, "seed": 0})
    read = run_record.read("own", place)
    text = build.run_report([read], tmp_path / "out", title="Own").read_text()
    assert "configs/mae_tiny.py as it stands, nothing changed." in text
    assert build._short("x" * 118) == '"' + "x" * 118 + '"'
    assert len(build._short("x" * 300)) == 120


@pytest.fixture
def namesakes(tmp_path):
    """Two runs whose directories have the same name, and their analyses."""
    runs = []
    for place, value in (("one", 0.25), ("two", 0.75)):
        run = examples.write_run(tmp_path / place / "run", logged=3)
        examples.write_analysis(run, "run", value=value)
        runs.append(run_record.read(place, run))
    return runs


def test_analyses_of_namesakes_stand_side_by_side(namesakes, tmp_path):
    text = build.run_report(namesakes, tmp_path / "out", title="Both").read_text()
    found = examples.Page(text)
    assert len(set(found.ids)) == len(found.ids)
    numbers = json.loads((tmp_path / "out" / "report.json").read_text())
    drawn = {figure["name"]: figure["data"] for figure in numbers["figures"]}
    assert len(drawn) == len(numbers["figures"])
    ranks = drawn["features-effective_rank"]
    assert ranks == {"one": [0.25] * 3, "two": [0.75] * 3}
    assert drawn["cka-two-two"]["values"][0][1] == 0.75
    assert drawn["attention-distance-one"]["layers"] == [[0.25] * 2] * 2
    red = []
    for name in ("one", "two"):
        with Image.open(tmp_path / f"out/attention-{name}-layer2-cls.png") as picture:
            red.append(picture.getpixel((0, 0)))
    assert red == [(62, 0, 0), (187, 0, 0)]
    second = plots.color_of(1)
    for name in ("curves-loss", "features-spectrum", "attention-entropy-two"):
        assert second in text.split(f'id="{name}"')[1].split("</figure>")[0]
    assert f'background:{second}"></span>two' in text
    assert second not in text.split('id="attention-entropy-one"')[1].split("<fig")[0]
    assert "two: CKA: 4 of 16 images" in text
    assert "one: no reconstructions" in text and "run: no reconstructions" not in text
    assert list(numbers["analysis"]["models"]) == ["one", "two"]


def test_analyses_that_mean_something_else_are_left_out(namesakes, tmp_path):
    other = examples.write_run(tmp_path / "paper", logged=3)
    examples.write_analysis(other, "paper", compat="paper")
    runs = [*namesakes, run_record.read("paper", other)]
    text = build.run_report(runs, tmp_path / "out", title="Three").read_text()
    assert "paper: its analysis was made with other settings" in text
    assert "attention_compat paper" in text and 'id="cka-paper' not in text


def test_what_every_block_knows_is_drawn(tmp_path):
    place = examples.write_run(tmp_path / "probe", logged=0)
    table = [{"block": i + 1, "linear": 50.0 + i, "knn": 40.0 - i} for i in range(3)]
    numbers = {"top1": 52.0, "block": 3, "n": 359, "table": table, "step": 7}
    eval_runner.record_result(place, "layers", numbers, "top1", {"metric": "top1"})
    run = run_record.read("probe", place)
    build.run_report([run], tmp_path / "out", title="Probe")
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    data = next(f for f in found["figures"] if f["section"] == "blocks")["data"]
    assert data["series"]["probe"] == {
        "block": [1, 2, 3],
        "linear": [50.0, 51.0, 52.0],
        "knn": [40.0, 39.0, 38.0],
    }


def edited(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def rows(*added):
    """Adds lines to metrics.jsonl."""

    def change(run):
        for row in added:
            paths.append_line(run / "metrics.jsonl", row)

    return change


def result(change):
    return lambda run: edited(run / "evals" / "knn" / "result.json", change)


def cut_in_the_middle(run):
    path = run / "pictures" / "reconstruction_0000040.png"
    data = path.read_bytes()
    path.write_bytes(data[:60] + bytes(500) + data[560:])


def long_names(run):
    shutil.copytree(run / "evals" / "knn", run / "evals" / ("e" * 250))
    rows({"step": 1, "m" * 300: 1.0}, {"step": 2, "m" * 300: 2.0})(run)


HOSTILE = {
    "the largest floats": (
        rows({"step": 41, "loss": 1e308, "lr": -1e308}, {"step": 42, "loss": 10**400}),
        "3 numbers beyond 1e+100 are left out",
    ),
    "the smallest floats": (rows({"step": 1, "x": 5e-324}, {"step": 2, "x": 0}), ""),
    "large, but drawn": (rows({"step": 1, "x": -9e99}, {"step": 2, "x": 9e99}), ""),
    "steps that are none": (
        rows(*({"step": s, "loss": 1.0} for s in (-1, True, 10**30, "x", None))),
        "5 lines without a step from 0 on are left out",
    ),
    "names that are no letters": (rows({"step": 1, "\ud800$<b>\0": 1.0}), ""),
    "names of 250 and 300 letters": (long_names, ""),
    "a deep line": (
        lambda run: (run / "metrics.jsonl").write_text("[" * 100_000),
        "metrics.jsonl: 1 lines could not be read",
    ),
    "a folder for a file": (
        lambda run: [(run / "metrics.jsonl").unlink(), (run / "metrics.jsonl").mkdir()],
        "metrics.jsonl cannot be read: Is a directory",
    ),
    "a result of 1e308": (
        result(lambda of: of["last"].update(top1=1e308)),
        "evals/knn/result.json cannot be read",
    ),
    "a best that is none": (
        result(lambda of: of["best"].update(top1="nan")),
        "evals/knn/result.json cannot be read",
    ),
    "a history that is none": (
        result(lambda of: of.update(history=[1, 2])),
        "evals/knn/result.json cannot be read",
    ),
    "a table that is none": (
        result(lambda of: of["last"].update(block=1, table=7)),
        "the blocks of evaluation knn is left out: ",
    ),
    "a metric that is no word": (result(lambda of: of.update(metric=[])), ""),
    "a picture with a hole": (
        cut_in_the_middle,
        "pictures/reconstruction_0000040.png of hostile is left out: ",
    ),
    "a picture of no step": (
        lambda run: shutil.copy(
            run / "pictures" / "reconstruction_0000040.png",
            run / "pictures" / "reconstruction_last.png",
        ),
        "pictures/reconstruction_last.png is damaged and left out",
    ),
    "an analysis of another form": (
        lambda run: edited(
            run / "analysis" / "analysis.json", lambda a: a.update(maps=1)
        ),
        "analysis.json cannot be read",
    ),
    "an analysis without its pictures": (
        lambda run: shutil.rmtree(run / "analysis" / "figures"),
        "a picture of the analysis, is left out: ",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_in_a_runs_files_ends_the_drawing_and_a_line_names_what_is_left_out(
    name, tmp_path, monkeypatch
):
    monkeypatch.setattr(render, "svg", lambda *_, **__: "<svg></svg>")
    monkeypatch.setattr(render, "_DPI", 20)
    if not re.search("float|large|letters", name):  # there is nothing odd in figures
        monkeypatch.setattr(render, "png", lambda _: b"")
    change, note = HOSTILE[name]
    place = examples.write_run(tmp_path / "hostile", logged=10)
    examples.write_analysis(place, "hostile")
    change(place)
    run = run_record.read("hostile", place)
    text = build.run_report([run], tmp_path / "out", title="Hostile").read_text()
    numbers = json.loads((tmp_path / "out" / "report.json").read_text())
    notes = [*run.notes, *numbers["left_out"]]
    assert examples.Page(text).ids and len(numbers["figures"]) > 3
    if note:
        [line] = [one for one in notes if note in one]
        assert str(markupsafe.escape(line)) in text
    else:
        assert not numbers["left_out"]
