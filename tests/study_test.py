"""The study of all methods: its plan, and the check of the table that is written."""

import importlib
import json
import sys

import pytest
from PIL import Image

from benchmarks import study

PAGE = study.RESULTS.read_text()
ROWS = {
    "random": {"linear probe": [27.0, 31.5, 28.25], "k-NN": [19.5, 20.6, 20.2]},
    "mae": {"linear probe": [95.3, 91.6, 93.3], "k-NN": [88.6, 88.9, 88.9]},
}


def page(rows):
    return f"# All\n\n## Some\n\nText | more.\n\n{study.describe(rows)}\n\n## Next\n"


@pytest.mark.parametrize("table", study.HEADINGS)
def test_the_tables_of_the_page_have_the_rows_and_columns_of_the_study(table):
    methods = [study.METHODS[method] for method in study.methods_of(table)]
    columns = [name for some in study.COLUMNS[table].values() for _, name in some]
    for heading in study.HEADINGS[table].values():
        found = study.written(PAGE, heading)
        assert list(found) == methods
        for method, row in zip(study.methods_of(table), found.values(), strict=True):
            assert list(row) == columns
            left_out = study.LEFT_OUT.get((table, method), ())
            for name, some in study.COLUMNS[table].items():
                for cell in (row[column] for _, column in some):
                    assert (cell == ()) == (name in left_out)
                    assert not cell or 0 < cell[1] <= cell[0] <= cell[2] < 100


def test_the_first_table_of_a_section_is_read():
    text = page(ROWS) + "\nMore:\n\n| | other |\n|---|---|\n| x | 1.0 |\n"
    assert study.written(text, "Some") == study.written(page(ROWS), "Some")


def test_what_is_written_is_read_and_agrees_with_itself():
    found = study.written(page(ROWS), "Some")
    assert found["MAE"]["linear probe"] == (93.4, 91.6, 95.3)
    text, same = study.compare(ROWS, found, tolerance=0.0)
    assert same and "DIFFERENT" not in text
    assert "MAE, k-NN: 88.8 (88.6..88.9) in results.md, 88.8 (88.6..88.9) now" in text


@pytest.mark.parametrize(
    ("now", "same"),
    [([88.5, 88.9, 88.9], True), ([87.2, 89.7, 88.6], False), ([88.6] * 3, True)],
)
def test_a_number_that_moved_is_found(now, same):
    moved = {"mae": {"linear probe": ROWS["mae"]["linear probe"], "k-NN": now}}
    text, got = study.compare(moved, study.written(page(ROWS), "Some"), tolerance=0.3)
    assert got == same
    assert text.count("DIFFERENT") == (not same)


def test_a_cell_that_a_row_leaves_out_is_empty_and_not_compared():
    rows = {
        "mae": {"all labels": [49.0], "1 %": [39.6]},
        "distill_weak": {"all labels": [], "1 %": [40.0]},
    }
    found = study.written(page(rows), "Some")
    assert found[study.METHODS["distill_weak"]]["all labels"] == ()
    text, same = study.compare(rows, found, tolerance=0.0)
    assert same and len(text.splitlines()) == 3


def test_a_page_without_the_table_is_refused():
    for text, heading in ((PAGE, "Sheep"), ("\n## Some\nno table\n## Next\n", "Some")):
        with pytest.raises(ValueError, match=f"no section '## {heading}' with a table"):
            study.written(text, heading)


def planned(setting, table, methods, tmp_path):
    return study.plan(setting, table, 2, tmp_path, methods)


def test_the_cheapest_row_trains_no_method(tmp_path):
    runs = planned(study.digits(), "methods", ["random"], tmp_path)
    names = [run.name for run in runs]
    assert names == ["shape", *(f"{e}-random-{s}" for s in (0, 1) for e in EVALUATIONS)]
    assert "--config.steps=1" in runs[0].arguments


EVALUATIONS = ("probe", "shots")


@pytest.mark.parametrize("table", study.COLUMNS)
def test_every_run_comes_after_those_it_needs_and_has_fields_of_its_recipe(
    table, tmp_path
):
    methods = study.methods_of(table)
    for data in ("digits", "DIR"):
        setting = study.setting_of(table, data, tmp_path, 1.0)
        if set(study.COLUMNS[table]) <= set(setting.evaluations):
            runs = planned(setting, table, methods, tmp_path)
            for i, run in enumerate(runs):
                assert set(run.after) <= {before.name for before in runs[:i]}
                check_fields(run)


def check_fields(run):
    recipe, *fields = run.arguments
    path, _, variant = recipe.removeprefix("--config=configs/").partition(":")
    module = importlib.import_module(f"litevit_jax.configs.{path.removesuffix('.py')}")
    config = module.get_config(variant or None)
    for field in fields:
        *blocks, name = field.removeprefix("--config.").partition("=")[0].split(".")
        block = config
        for key in blocks:
            block = block[key]
        assert name in block, f"{run.name}: {field}"


def test_the_claims_teachers_and_tasks_are_those_of_their_rows(tmp_path):
    setting = study.claim("DIR", tmp_path, scale=0.5)
    rows = ["supervised", "distill", "distill_weak"]
    runs = {run.name: run for run in planned(setting, "claim", rows, tmp_path)}
    evaluated = {name for name in runs if name.endswith("-supervised-0")}
    assert evaluated == {"other-supervised-0"}
    for method, teacher in (("distill", "teacher"), ("distill_weak", "mae")):
        assert runs[f"{method}-0"].after == (f"{teacher}-0",)
        assert f"--config.teacher={tmp_path / f'{teacher}-0'}" in (
            runs[f"{method}-0"].arguments
        )
    assert "--config.epochs=10" in runs["teacher-0"].arguments
    assert "distill-1" in runs and "distill_weak-1" not in runs
    evaluated = {name for name in runs if name.endswith("-distill_weak-0")}
    assert evaluated == {"hundredth-distill_weak-0"}
    assert runs["supervised-0"].arguments[0].endswith("animals.csv")
    assert runs["other-distill-0"].arguments[0].endswith("vehicles.csv,shots=10")


def test_a_run_begins_once_its_teacher_has_ended(tmp_path, monkeypatch):
    setting = study.claim("DIR", tmp_path)
    runs = planned(setting, "claim", ["mae", "distill"], tmp_path)
    ended = []

    def one(self, run, cores):
        assert set(run.after) <= set(ended)
        ended.append(run.name)
        return run.name != "teacher-0"

    monkeypatch.setattr(study.Runner, "_one", one)
    runner = study.Runner(runs, tmp_path, jobs=2)
    runner.run()
    assert runner.failed == ["teacher-0"]
    assert not [name for name in ended if "distill" in name]


def test_tasks_list_the_images_of_their_classes(tmp_path):
    for path in ("train/ship/1.jpg", "train/cat/2.jpg", "test/cat/3.jpg"):
        (tmp_path / "data" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / path).touch()
    study.write_tasks(str(tmp_path / "data"), tmp_path)
    assert (tmp_path / "vehicles.csv").read_text().splitlines() == [
        "path,label,split",
        "train/ship/1.jpg,ship,train",
    ]
    animals = (tmp_path / "animals.csv").read_text().splitlines()
    assert animals[1:] == ["test/cat/3.jpg,cat,test", "train/cat/2.jpg,cat,train"]


def test_cells_that_a_row_leaves_out_are_empty():
    assert "| supervised |  | 1.0 (1.0..1.0) |" in study.describe(
        {"supervised": {"all": [], "other": [1.0]}}
    )


def test_rows_that_no_table_has_are_named():
    with pytest.raises(SystemExit, match=r"--rows=maee: expected some of random, sup"):
        study.methods_of("methods", ["mae", "maee"])
    assert study.methods_of("labels", ["mae", "random"]) == ["random", "mae"]


@pytest.mark.parametrize("table", ["labels", "claim"])
def test_curves_of_labels_are_drawn_without_pyplot(table, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # an import would fail
    for name in study.COLUMNS["labels"]:
        for method in study.methods_of("labels"):
            run = tmp_path / f"{name}-{method}-0"
            run.mkdir()
            rows = [{"step": step, "test/top1": 10.0 * step} for step in (1, 2)]
            (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    study.draw(table, 1, tmp_path)
    with Image.open(tmp_path / f"{table}.png") as picture:
        assert picture.size == (1100, 374)
