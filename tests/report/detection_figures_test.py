"""Figures of detections hold what an evaluation recorded, for few and many classes."""

import itertools
import json

import pytest

from litevit_jax.report import build, detection_figures, run_record
from litevit_jax.train import eval_runner
from tests.report import examples


def record(directory, count, masks=True, title="test", **changed):
    """What the evaluator `coco` leaves of `count` classes, the last without objects."""
    table, curves = [], []
    for k in range(count):
        ap = None if k == count - 1 else 100 * k / count
        row = {"class": f"class number {k}", "ap": ap}
        row |= {"mask_ap": ap} if masks else {}
        table.append(row | {"objects": 1000 * k})
    for of in ("boxes", "masks")[: 1 + masks]:
        for iou in ("0.5", "0.75", "0.5 to 0.95"):
            curve = [100.0 - recall for recall in range(101)]
            curves.append({"of": of, "class": None, "iou": iou, "precision": curve})
        for k in (2, 0):
            name = table[k]["class"]
            curve = [float(k)] * 101
            curves.append({"of": of, "class": name, "iou": "0.5", "precision": curve})
    row = {"ap": 40.0, "ap50": 60.0, "ap75": 30.0, "ap_small": 20.0, "ap_large": 50.0}
    if masks:
        row |= {f"mask_{name}": x - 1 for name, x in row.items()}
    row |= {"n": 9, "table": table, "curves": curves, "time": 1.0, "params": "a"}
    for step in (20, 40):
        about = {"name": title, "metric": "ap"}
        content = row | {"step": step} | changed
        eval_runner.record_result(directory, title, content, "ap", about)


@pytest.fixture
def directory(tmp_path):
    return examples.write_run(tmp_path / "run")


def drawn(directory, several=False):
    run, notes = run_record.read("one", directory), []
    runs = [run, run_record.read("two", directory)] if several else [run]
    figures = detection_figures.of_runs(runs, notes)
    return {figure.name: figure for figure in figures}, notes


def points(figure):
    """The dots or curves of a figure: name -> [(x, y), ...]."""
    lines = figure.plot.axes[0].get_lines()
    return {line.get_label(): line.get_xydata().tolist() for line in lines}


def test_precision_is_shown_by_size_by_class_and_over_recall(directory):
    record(directory, 4)
    figures, notes = drawn(directory)
    assert not notes and len(figures) == 5
    size = figures["objects-size-one-test"]
    assert points(size) == {
        "boxes": [[40.0, 0.0], [20.0, 1.0], [50.0, 3.0]],
        "masks": [[39.0, 0.0], [19.0, 1.0], [49.0, 3.0]],
    }
    classes = figures["objects-class-one-test"]
    names = [x.get_text() for x in classes.plot.axes[0].get_yticklabels()]
    assert names == [f"class number {k} ({k and f'{k},000'})" for k in (2, 1, 0)]
    assert points(classes)["boxes"] == [[50.0, 0.0], [25.0, 1.0], [0.0, 2.0]]
    curves = points(figures["objects-recall-one-test"])
    assert list(curves)[:2] == ["boxes, IoU 0.5", "boxes, IoU 0.75"]
    assert len(curves) == 6 and curves["masks, IoU 0.75"][30] == [30.0, 70.0]
    best = points(figures["objects-recall-masks-one-test"])
    assert list(best) == ["class number 2", "class number 0"]
    assert figures["objects-recall-boxes-one-test"].data["run"] == "one"


def test_many_classes_make_a_long_figure_whose_names_do_not_overlap(directory):
    record(directory, 81, masks=False)
    figures, notes = drawn(directory)
    assert not notes and len(figures) == 4
    figure = figures["objects-class-one-test"].plot
    axes = figure.axes[0]
    labels = axes.get_yticklabels()
    assert len(labels) == 80 and list(points(figures["objects-class-one-test"])) == [
        "boxes"
    ]
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in labels]
    assert all(a.y0 >= b.y1 - 1 for a, b in itertools.pairwise(boxes))
    assert min(box.x0 for box in boxes) >= 0


def test_several_runs_are_told_apart(directory):
    record(directory, 3)
    figures, _ = drawn(directory, several=True)
    assert figures["objects-size-two-test"].title.startswith("two, test")


def test_the_page_has_them_and_damage_is_named(directory):
    record(directory, 4)
    record(directory, 3, title="nothing", curves=[], table=[])
    record(directory, 4, title="damaged", curves=[{"of": "boxes"}])
    record(directory, 4, title="older", curves=None)
    run = run_record.read("one", directory)
    page = build.run_report([run], directory / "report", title="t").read_text()
    assert "by size of the objects" in page and "test, by class" in page
    assert ">ap, %<" in page  # over time
    content = json.loads((directory / "report" / "report.json").read_text())
    names = {x["name"] for x in content["figures"] if x["section"] == "objects"}
    assert {"objects-size-one-test", "objects-class-one-damaged"} <= names
    assert not any("older" in name or "nothing" in name for name in names)
    [note] = content["left_out"]
    assert "precision over recall of damaged is left out" in note
