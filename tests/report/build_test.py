"""The report of a run: whole numbers, no network, small, honest about gaps."""

import html.parser
import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from litevit_jax import paths
from litevit_jax.jobs import analyse
from litevit_jax.report import (
    analysis_figures,
    build,
    draw,
    page,
    plots,
    published,
    run_figures,
    run_record,
)
from litevit_jax.train import workdir as workdirs
from tests import jobs


def write_run(place, *, logged=40, total=40, name="mae_tiny", arg=None, **config):
    """A run's directory with what a run of `name:arg` writes, and no parameters."""
    made = jobs.config(name, arg, **config).to_dict()
    for key, value in made["fallback"].items():  # as a run settles it
        if key == "encoder" or value is None:
            continue
        block = made["data"] if key in made["data"] else made["augment"]["normalize"]
        block[key] = value
    made["derived"] = {"total_steps": total, "num_classes": 2}
    workdirs.write_json(place / "config.json", workdirs.plain(made))
    rng = np.random.default_rng(0)
    for step in range(1, logged + 1):
        row = {"step": step, "epoch": step / 10, "loss": float(rng.normal() + 2)}
        row |= {"lr": 1e-3 * step / total, "grad_norm": float(rng.random())}
        row |= {"attn_entropy/head_01": 1.5, "attn_entropy/head_02": float(step)}
        row |= {"images_per_s": 312.7 + step, "data_wait": 1.0, "step_s": 0.2}
        row |= {"time": 1.0e9 + step}
        paths.append_line(place / "metrics.jsonl", row)
        if step % 10 == 0:
            top1 = 100 / 3 + (step if step < 40 else 5)  # the last is not the best
            numbers = {"top1": top1, "top5": 90.5, "n": 359}
            stamp = {"step": step, "params": "abc", "time": 1.0e9 + step}
            about = {"name": "knn", "metric": "top1"}
            workdirs.record_result(place, "knn", numbers | stamp, "top1", about)
            logged_row = {f"knn/{k}": v for k, v in numbers.items()}
            paths.append_line(place / "metrics.jsonl", {"step": step, **logged_row})
    for step in (10, 40):
        picture = place / "pictures" / f"reconstruction_{step:07d}.png"
        picture.parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 255, (120, 160, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(picture)
    for commit in ("f00", "f01", "f02"):
        start = {"time": "2026-01-01", "commit": commit, "versions": {"jax": "1"}}
        start |= {"devices": ["cpu:0"], "command": ["main.py"]}
        paths.append_line(place / "environment.jsonl", start)
    return place


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "one")


@pytest.fixture(scope="module")
def drawn(run):
    """(page, report.json) of the run."""
    out = build.build([run_record.read("one", run)], run / "report", title="One")
    return out.read_text(), json.loads((run / "report" / "report.json").read_text())


class Page(html.parser.HTMLParser):
    """Every address and every number that a page holds; and that its tags close."""

    def __init__(self, markup):
        super().__init__()
        self.addresses, self.numbers, self.ids, self._open = [], [], [], []
        self.rows = []
        self.feed(markup)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.addresses += [found[k] for k in ("src", "href", "srcset") if k in found]
        self.ids += [found[k] for k in ("id",) if k in found]
        if tag in ("tr", "td"):
            target = self.rows if tag == "tr" else self.rows[-1]
            target.append([] if tag == "tr" else [found["data-head"], ""])
        if tag == "data":
            self.numbers.append([found["value"], found["data-source"], ""])
        assert tag not in ("script", "iframe", "object", "embed", "base")
        if tag not in ("meta", "link", "img", "wbr"):
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.addresses += [v for k, v in attrs if k in ("src", "href")]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] == "data":
            self.numbers[-1][2] += data
        if "td" in self._open:
            self.rows[-1][-1][1] += data


def test_the_page_asks_nothing_of_any_network(drawn):
    found = Page(drawn[0])
    assert found.addresses
    for address in found.addresses:
        assert address.startswith(("data:", "#")), address
    assert all(a[1:] in found.ids for a in found.addresses if a.startswith("#"))
    assert len(set(found.ids)) == len(found.ids)
    assert "url(" not in page.STYLE and "@import" not in page.STYLE
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
    place, path = rest.split()
    title = place.partition("/")[2]
    value = json.loads((run / "evals" / title / "result.json").read_text())
    for key in path.split("."):
        value = value[key]
    return value


def test_every_number_of_the_page_is_the_one_that_was_recorded(run, drawn):
    numbers = Page(drawn[0]).numbers
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
    rows = [dict(row) for row in Page(drawn[0]).rows if row]
    results = [row for row in rows if row.get("evaluation") == "knn"]
    assert [row["number"] for row in results] == ["top1", "top5"]
    top1 = next(row for row in Page(drawn[0]).rows if row and row[1][1] == "top1")
    assert [x for _, x in top1[2:]] == ["38.33", "40", "63.33", "30"]
    (published,) = (row for row in rows if "expected" in row)
    assert published["expected"] == "78" and "README" in published["source"]
    assert published["reached"] == "not measured by this run"
    assert published["to be compared?"].startswith("no: fine-tune this run")
    commits = [r["started 2026-01-01"] for r in rows if r.get("one") == "commit"]
    assert commits == ["f00", "f02"]  # of the first start and of the last


def test_the_first_numbers_are_those_that_came_last(run, drawn):
    shown = {source: text for _, source, text in Page(drawn[0]).numbers}
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


def test_photographs_that_would_make_the_page_large_lie_beside_it(
    run, tmp_path, monkeypatch
):
    read = [run_record.read("one", run)]
    markup = len(
        next(
            f
            for f in run_figures.of_runs(read, {"one": "#000000"})
            if f.pixels is not None
        ).embedded()
    )
    monkeypatch.setattr(build, "_MOST_PHOTOS", markup)
    text = build.build(read, tmp_path / "out", title="One").read_text()
    assert text.count("<img") == 1
    assert "<p>pictures-one-40.png lies beside this page.</p>" in text
    assert (tmp_path / "out" / "pictures-one-40.png").exists()


def test_long_curves_keep_their_ends_and_extremes():
    found = {step: math.sin(step / 50) for step in range(1, 30_001)}
    found[12_345] = 7.0
    steps, values = run_record.series(found, 1000)
    assert len(steps) <= 1000 and steps == sorted(set(steps))
    assert steps[0] == 1 and steps[-1] == 30_000
    assert max(values) == 7.0 and min(values) == min(found.values())
    assert all(found[s] == v for s, v in zip(steps, values, strict=True))


def test_an_unfinished_run_is_reported_so_far_and_says_so(tmp_path):
    run = run_record.read("half", write_run(tmp_path / "half", logged=15, total=40))
    assert any("Unfinished: 15 of 40 updates" in note for note in run.notes)
    text = build.build([run], tmp_path / "out", title="Half").read_text()
    assert "Unfinished: 15 of 40 updates" in text and "<svg" in text


def test_a_run_without_any_update_has_a_report_that_says_so(tmp_path):
    write_run(tmp_path / "none", logged=0)
    run = run_record.read("none", tmp_path / "none")
    text = build.build([run], tmp_path / "out", title="None").read_text()
    assert "No update was logged yet" in text
    assert "metrics.jsonl is not there" in text


def test_cut_lines_and_numbers_that_are_not_finite_are_gaps(tmp_path):
    place = write_run(tmp_path / "gaps")
    with open(place / "metrics.jsonl", "a") as file:
        file.write('{"step": 41, "loss": "nan"}\n{"step": 42, "loss": 1.0}\n{"step": 4')
    run = run_record.read("gaps", place)
    assert "metrics.jsonl: 1 lines could not be read and are left out." in run.notes
    assert any("1 numbers are not finite" in note for note in run.notes)
    steps, values = run_record.series(run.steps["loss"])
    assert values[steps.index(41)] is None and values[steps.index(42)] == 1.0
    assert build.build([run], tmp_path / "out", title="Gaps").exists()


def test_steps_that_were_done_again_count_as_done_last(tmp_path):
    place = write_run(tmp_path / "again")
    paths.append_line(place / "metrics.jsonl", {"step": 30, "event": "resume"})
    paths.append_line(place / "metrics.jsonl", {"step": 31, "loss": 9.5})
    run = run_record.read("again", place)
    assert run.steps["loss"][31] == 9.5 and list(run.steps["loss"])[-1] == 40
    assert any("1 logged steps were done again" in note for note in run.notes)


def test_damaged_results_are_named_and_left_out(tmp_path):
    place = write_run(tmp_path / "damaged")
    for text in ("{", "[]"):
        (place / "evals" / "knn" / "result.json").write_text(text)
        (place / "analysis.json").write_text(text)
        run = run_record.read("damaged", place)
        assert "evals/knn/result.json cannot be read." in run.notes and not run.results
        assert "analysis.json cannot be read." in run.notes


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no run directory there"):
        run_record.read("x", tmp_path)
    (tmp_path / "config.json").write_text("no")
    with pytest.raises(ValueError, match=r"config.json is damaged"):
        run_record.read("x", tmp_path)


def analysis_config(models, word="report"):
    made = jobs.config("analysis", word, models=models)
    made.name = "side" if word == "report" else made.name
    return made


def test_several_runs_stand_side_by_side(run, tmp_path, monkeypatch):
    other = write_run(tmp_path / "other", logged=20, total=50, name="mocov3_tiny")
    monkeypatch.chdir(tmp_path)
    config = analysis_config(f"mae={run},moco={other}/checkpoints/20")
    (other / "checkpoints").mkdir()
    out = analyse.draw(config, None)
    assert out.resolve() == (tmp_path / "runs/side/report/index.html").resolve()
    found = json.loads((out.parent / "report.json").read_text())
    loss = next(f for f in found["figures"] if f["name"] == "curves-loss")
    assert set(loss["data"]["series"]) == {"mae", "moco"}
    assert [r["recipe"] for r in found["runs"]] == ["mae_tiny", "mocov3_tiny"]
    text = out.read_text()
    assert "Unfinished: 20 of 50" in text and "mae, moco side by side" in text
    rows = [dict(row) for row in Page(text).rows if row]
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
    place = write_run(tmp_path / "mine")
    out = analyse.draw(analysis_config(str(place)), None)
    assert out == place / "report" / "index.html"


def test_a_report_of_a_file_of_weights_is_refused(tmp_path):
    file = tmp_path / "vit.pth"
    file.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"a report is of runs; to look into a file"):
        analyse.draw(analysis_config(f"vit={file}"), None)


def test_names_from_a_run_are_escaped(tmp_path):
    place = write_run(tmp_path / "odd", name="mae_tiny")
    config = json.loads((place / "config.json").read_text())
    config["teacher"] = '<img src=x onerror="alert(1)">'
    workdirs.write_json(place / "config.json", config)
    run = run_record.read("odd", place)
    text = build.build([run], tmp_path / "out", title="<b>").read_text()
    assert "<img src=x" not in text and "<title>&lt;b&gt;</title>" in text


def test_departures_from_the_recipe_are_counted_and_listed(tmp_path):
    place = write_run(tmp_path / "own", logged=1, epochs=5, seed=3)
    read = run_record.read("own", place)
    text = build.build([read], tmp_path / "out", title="Own").read_text()
    assert "3 fields differ from configs/mae_tiny.py" in text
    rows = [dict(row) for row in Page(text).rows if row]
    listed = {r["field"]: (r["recipe"], r["this run"]) for r in rows if "recipe" in r}
    assert listed == {
        "epochs": ("400", "5"),
        "log.tensorboard": ("true", "false"),
        "seed": ("0", "3"),
    }
    config = read.config | {"log": read.config["log"] | {"tensorboard": True}}
    workdirs.write_json(place / "config.json", config | {"epochs": 400, "seed": 0})
    read = run_record.read("own", place)
    text = build.build([read], tmp_path / "out", title="Own").read_text()
    assert "configs/mae_tiny.py as it stands, nothing changed." in text
    assert build._short("x" * 118) == '"' + "x" * 118 + '"'
    assert len(build._short("x" * 300)) == 120


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        *((None, "–"), (math.nan, "–"), (12345, "12,345"), (0.0, "0")),
        *((1.23456, "1.235"), (12345.678, "12,346"), (123456.7, "1.23e+05")),
        (0.00012345, "0.000123"),
    ],
)
def test_numbers_are_shown_to_four_digits(value, shown):
    assert page.rounded(value) == shown


def test_wide_tables_are_stacked_on_phones_and_narrow_ones_are_not():
    assert 'class="scroll flat"' in page.table(["a", "b", "c"], [[1, 2, 3]])
    assert 'class="scroll tall"' in page.table(["a", "b", "c", "d"], [[1, 2, 3, 4]])


def test_sections_without_content_are_left_out():
    text = page.page("T", "", [("a", "Alpha", "x"), ("b", "Beta", "")], "")
    assert "Alpha" in text and "Beta" not in text


def test_the_recipe_and_what_departs_from_it_are_found(run):
    config = run_record.read("one", run).config
    assert published.recipe_of(config) == "mae_tiny"
    for name, want in (
        ("mae_tiny_distill_d2-digits", "mae_tiny_distill_d2"),
        ("transfer-pets", "transfer"),
        ("finetune_rpe", "finetune_rpe"),
        ("finetune_rpe-digits", "finetune_rpe"),
        ("transferred", None),
        ("mine", None),
    ):
        assert published.recipe_of({"name": name}) == want
    assert published.differences(config) == [("log.tensorboard", True, False)]
    older = {key: value for key, value in config.items() if key != "watchdog"}
    gone = {"scan": False, "accum_steps": 4}  # fields of earlier versions
    assert published.differences(older | gone | {"remat": None}) == [
        ("log.tensorboard", True, False),
        ("remat", False, None),
    ]


def test_a_published_number_is_compared_only_where_the_recipe_is_the_same(tmp_path):
    place = write_run(tmp_path / "pre")
    row = published.of(run_record.read("pre", place))
    assert row["expected"] == 78.0 and row["reached"] is None
    assert not row["comparable"] and "configs/finetune.py" in row["why"]
    tuned = write_run(
        tmp_path / "tuned", name="finetune", arg="imagenet2012", init=str(place)
    )
    stamp = {"step": 40, "n": 50_000}
    workdirs.record_result(tuned, "test", {"top1": 77.9} | stamp, "top1", {})
    row = published.of(run_record.read("tuned", tuned))
    assert (row["expected"], row["reached"]) == (78.0, 77.9) and row["comparable"]
    config = json.loads((tuned / "config.json").read_text())
    step = config | {"init": f"{place}/checkpoints/40"}  # a step inside the run
    workdirs.write_json(tuned / "config.json", step)
    assert published.of(run_record.read("tuned", tuned))["expected"] == 78.0
    for field, value, why in (
        ("epochs", 5, "epochs"),
        ("data", config["data"] | {"name": "", "source": "folder"}, "folder"),
    ):
        workdirs.write_json(tuned / "config.json", config | {field: value})
        row = published.of(run_record.read("tuned", tuned))
        assert not row["comparable"] and why in row["why"]


def write_analysis(run, name, *, value=0.5, compat="exact"):
    """What an analysis of two blocks leaves in the directory of a run."""
    place = run / "analysis"
    (place / "figures").mkdir(parents=True)
    file = f"figures/attention-{name}-layer2-cls.png"
    Image.new("RGB", (120, 120), (int(250 * value), 0, 0)).save(place / file)
    about = {"path": str(run), "run": str(run), "step": 40, "width": 8, "depth": 2}
    about |= {"num_heads": 2, "patch_size": 2, "image_size": [8, 8], "images": 16}
    numbers = {"effective_rank": [value] * 3, "token_similarity": [value] * 3}
    pair = {"rows": name, "columns": name, "values": [[1.0, value], [value, 1.0]]}
    found = {
        "images": 16,
        "models": {name: about | {"last_norm": "norm"}},
        "notes": ["CKA: 4 of 16 images did not fill a minibatch of 12."],
        "attention": {name: {k: [[value] * 2] * 2 for k in ("entropy", "distance")}},
        "attention_compat": compat,
        "features_of": {"place": "norm1", "pool": "avg"},
        "features": {name: numbers | {"spectrum": [[1.0, value]] * 3}},
        "cka": {"minibatches": 1, "size": 12, "pairs": [pair]},
        "maps": [{"model": name, "layer": 2, "query": "cls", "file": file}],
        "picture_notes": [f"{name}: no reconstructions, as it has no decoder."],
    }
    workdirs.write_json(place / "analysis.json", found)


@pytest.fixture
def namesakes(tmp_path):
    """Two runs whose directories have the same name, and their analyses."""
    runs = []
    for place, value in (("one", 0.25), ("two", 0.75)):
        run = write_run(tmp_path / place / "run", logged=3)
        write_analysis(run, "run", value=value)
        runs.append(run_record.read(place, run))
    return runs


def test_analyses_of_namesakes_stand_side_by_side(namesakes, tmp_path):
    text = build.build(namesakes, tmp_path / "out", title="Both").read_text()
    found = Page(text)
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
    second = draw.color_of(1)
    for name in ("curves-loss", "features-spectrum", "attention-entropy-two"):
        assert second in text.split(f'id="{name}"')[1].split("</figure>")[0]
    assert f'background:{second}"></span>two' in text
    assert second not in text.split('id="attention-entropy-one"')[1].split("<fig")[0]
    assert "two: CKA: 4 of 16 images" in text
    assert "one: no reconstructions" in text and "run: no reconstructions" not in text
    assert list(numbers["analysis"]["models"]) == ["one", "two"]


def test_analyses_that_mean_something_else_are_left_out(namesakes, tmp_path):
    other = write_run(tmp_path / "paper", logged=3)
    write_analysis(other, "paper", compat="paper")
    runs = [*namesakes, run_record.read("paper", other)]
    text = build.build(runs, tmp_path / "out", title="Three").read_text()
    assert "paper: its analysis was made with other settings" in text
    assert "attention_compat paper" in text and 'id="cka-paper' not in text


def test_a_comparison_of_one_run_is_refused(run):
    made = analysis_config(str(run), "compare")
    with pytest.raises(ValueError, match=r"one run has nothing to be compared with"):
        analyse.draw(made, None)
    with pytest.raises(ValueError, match=r"variants advice and compare: give one"):
        analysis_config(str(run), "compare,advice")
    assert analysis_config(str(run), "compare").name == "compare"


@pytest.mark.parametrize(
    ("steps", "gap"),
    [
        ((10, 20, 30, 90, 100, 110), "nothing is logged between 30 and 90"),
        ((10, 20, 30, 130, 230, 330, 340), None),  # from 30 on each 100th
        ((1, 10, 20, 30, 31), None),
        ((10, 90), None),
    ],
)
def test_missing_updates_are_named(steps, gap, tmp_path):
    place = write_run(tmp_path / "run", logged=0, total=steps[-1])
    for step in steps:
        paths.append_line(place / "metrics.jsonl", {"step": step, "loss": 1.0})
    notes = " ".join(run_record.read("run", place).notes)
    assert gap in notes if gap else "nothing is logged" not in notes


def test_what_every_block_knows_is_drawn(tmp_path):
    place = write_run(tmp_path / "probe", logged=0)
    table = [{"block": i + 1, "linear": 50.0 + i, "knn": 40.0 - i} for i in range(3)]
    numbers = {"top1": 52.0, "block": 3, "n": 359, "table": table, "step": 7}
    workdirs.record_result(place, "layers", numbers, "top1", {"metric": "top1"})
    run = run_record.read("probe", place)
    build.build([run], tmp_path / "out", title="Probe")
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    data = next(f for f in found["figures"] if f["section"] == "blocks")["data"]
    assert data["series"]["probe"] == {
        "block": [1, 2, 3],
        "linear": [50.0, 51.0, 52.0],
        "knn": [40.0, 39.0, 38.0],
    }


@pytest.mark.parametrize(
    ("first", "want"), [("mae_tiny", 79.0), ("mae_tiny_distill_d2", 79.4), (None, None)]
)
def test_what_a_relative_bias_should_reach_depends_on_the_start(first, want, tmp_path):
    init = None
    if first:
        init = str(write_run(tmp_path / "first", logged=1, name=first))
    tuned = write_run(tmp_path / "tuned", logged=1, name="finetune_rpe", init=init)
    row = published.of(run_record.read("tuned", tuned))
    assert (row and row["expected"]) == want


def test_models_share_a_range_that_their_heads_fill(monkeypatch):
    """One to compare them by; from 0 on, distances of 12 to 16 pixels would be flat."""
    heads = {"a": [[12.0, 13.0], [12.5, 14.0]], "b": [[15.0, 16.0], [12.0, 15.0]]}
    every = {name: {"distance": v, "entropy": v} for name, v in heads.items()}
    ranges = []
    monkeypatch.setattr(
        plots, "boxes", lambda layers, axes, color: ranges.append(axes.y_range)
    )
    analysis_figures._attention({"attention": every}, {"a": "red", "b": "blue"})
    assert ranges == [pytest.approx((11.8, 16.2))] * 4
