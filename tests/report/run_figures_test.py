"""Figures of a run hold what it logged."""

import json

import pytest
from PIL import Image

from litevit_jax.report import page, results, run_figures, run_record
from litevit_jax.train import eval_runner
from tests.report import examples


@pytest.fixture(scope="module")
def figures(run):
    read = [run_record.read("one", run)]
    drawn = run_figures.of_runs(read, {"one": "#0072b2"}, [])
    return {figure.name: figure for figure in drawn}


def test_a_curve_goes_through_every_logged_number(run, figures):
    rows = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    for key, section in (("loss", "curves"), ("lr", "curves"), ("data_wait", "speed")):
        logged = [[row["step"], row[key]] for row in rows if key in row]
        [axes] = figures[f"{section}-{key}"].plot.axes
        [line] = axes.get_lines()
        assert line.get_xydata().tolist() == logged and len(logged) == 40
        assert line.get_color() == "#0072b2" and axes.get_xlabel() == "update"
    assert figures["speed-data_wait"].plot.axes[0].get_ylim() == (0, 100)
    units = {name: figures[name].plot.axes[0].get_ylabel() for name in figures
             if figures[name].plot is not None}  # fmt: skip
    assert units["speed-data_wait"] == "% of the time"
    assert units["curves-lr"] == "learning rate"
    assert units["probes-knn"] == "top1, %"
    assert all(units.values())


def test_heads_are_told_apart(figures):
    [axes] = figures["curves-attn_entropy-one"].plot.axes
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["head 01", "head 02"] and axes.get_ylabel() == "nats"
    first, second = axes.get_lines()
    assert set(first.get_ydata()) == {1.5} and second.get_ydata()[4] == 5.0
    assert first.get_color() != second.get_color()


def test_an_evaluation_over_time_has_all_its_results(run, figures):
    result = json.loads((run / "evals" / "knn" / "result.json").read_text())
    [axes] = figures["probes-knn"].plot.axes
    want = [[row["step"], row["top1"]] for row in result["history"]]
    assert axes.get_lines()[0].get_xydata().tolist() == want and len(want) == 4


def test_a_layer_study_has_a_figure_for_each_kind_of_parts():
    curves = {
        "random": {"rich": {0: 9.0}, "poor": {0: 8.0}},
        "keep_first": {"rich": {2: 30.0, 0: 10.0}, "poor": {0: 5.0, 2: 7.0}},
    }
    shares = {"rich": 1.0, "poor": 0.05}
    [figure] = run_figures.of_study(curves, shares, "top1")
    assert figure.name == "layers-keep_first"
    assert figure.data["rich"] == {"k": [0, 2], "values": [10.0, 30.0]}
    [axes] = figure.plot.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("k, blocks", "top1, %")
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    assert drawn == {
        "rich: 100 % of the images": [[0, 10.0], [2, 30.0]],
        "poor: 5 % of the images": [[0, 5.0], [2, 7.0]],
    }


def test_accuracy_over_blocks_counts_from_one():
    rows = [{"block": i, "linear": 50.0 + i, "knn": 40.0 - i} for i in range(3)]
    figure = run_figures.of_blocks("layers", {"a": rows}, "source")
    linear, knn = figure.plot.axes[0].get_lines()
    assert linear.get_xydata().tolist() == [[1, 50.0], [2, 51.0], [3, 52.0]]
    assert knn.get_ydata().tolist() == [40.0, 39.0, 38.0]
    assert [line.get_label() for line in (linear, knn)] == ["linear", "k-NN"]


def _confusions(directory, matrix):
    """What the evaluator `confusion` leaves in the directory of a run."""
    classes = [{"class": row["class"], "images": 4, "recall": 75.0} for row in matrix]
    table = [{"class": "cat", "called": "dog", "count": 3, "percent": 25.0}]
    row = {"top1": 50.0, "n": 4, "step": 40, "params": "abc", "time": 1.0}
    row |= {"table": table, "classes": classes, "matrix": matrix}
    about = {"name": "confusion", "metric": "top1"}
    eval_runner.record_result(directory, "confusion", row, None, about)
    return run_record.read("one", directory)


def test_a_confusion_matrix_has_a_line_for_each_class_with_its_name(tmp_path):
    matrix = [
        {"class": "cat", "called": {"cat": 1, "dog": 3}},
        {"class": "dog", "called": {"dog": 5, "not a number": 5}},
        {"class": "a very long name of a class", "called": {}},
    ]
    run = _confusions(examples.write_run(tmp_path / "run"), matrix)
    notes = []
    shown = {f.name: f for f in run_figures.of_runs([run], {"one": "#000000"}, notes)}
    figure = shown["confusion-one-confusion"]
    cells, bar = figure.plot.axes
    drawn = cells.get_images()[0].get_array().filled(-1)
    assert drawn[0].tolist() == [25.0, 75.0, 0.0, 0.0]
    assert drawn[1].tolist() == [0.0, 50.0, 0.0, 50.0] and (drawn[2] == -1).all()
    names = [text.get_text() for text in cells.get_yticklabels()]
    assert names == ["cat", "dog", "a very long nam…"]
    assert [text.get_text() for text in cells.get_xticklabels()][-1] == "not a number"
    assert cells.yaxis_inverted() and "images" in bar.get_ylabel()
    assert figure.section == "classes" and not notes and figure.png()
    parts = [x for x in results.tables([run]) if isinstance(x, page.Folded)]
    assert [part.title for part in parts] == [
        "confusion, most confused pairs",
        "confusion, by class",
    ]


def test_a_matrix_of_many_classes_is_not_drawn(tmp_path):
    many = [{"class": str(k), "called": {str(k): 1}} for k in range(41)]
    run = _confusions(examples.write_run(tmp_path / "run"), many)
    shown = run_figures.of_runs([run], {"one": "#000000"}, [])
    assert not [figure for figure in shown if figure.section == "classes"]


def test_pictures_of_each_kind_are_shown_first_and_last(tmp_path):
    directory = examples.write_run(tmp_path / "run")
    for step in (3, 5, 7):
        picture = directory / "pictures" / f"segmentation_{step:07d}.png"
        Image.new("RGB", (160, 160)).save(picture)
    Image.new("RGB", (160, 160)).save(directory / "pictures" / "notes_1.png")
    run = run_record.read("one", directory)
    shown = {f.name: f for f in run_figures.of_runs([run], {"one": "#000000"}, [])}
    names = {name for name, figure in shown.items() if figure.section == "pictures"}
    kinds = ("one-10", "one-40", "one-segmentation-3", "one-segmentation-7")
    assert names == {f"pictures-{kind}" for kind in kinds}
    assert "prediction" in shown["pictures-one-segmentation-7"].caption
    assert "reconstructed" in shown["pictures-one-40"].caption


def test_a_figure_is_saved_beside_the_page(figures, tmp_path):
    for name in ("curves-loss", "pictures-one-40"):
        (tmp_path / figures[name].file).write_bytes(figures[name].png())
        with Image.open(tmp_path / figures[name].file) as picture:
            assert picture.format == "PNG"
            assert picture.width == (880 if name == "curves-loss" else 160)


def test_a_photograph_without_room_is_named_instead(figures):
    sheet = figures["pictures-one-40"]
    shown = sheet.picture()
    assert shown.photo.startswith("data:image/jpeg;base64,") and shown.wide
    size = len(shown.photo)
    assert sheet.picture(size).photo and sheet.picture(size - 1).photo is None
    assert sheet.picture(0).file == "pictures-one-40.png"
    assert figures["curves-loss"].picture(0).svg  # what is drawn stays


def test_long_names_make_short_names_of_files_that_differ():
    one, other = (run_figures.file_name(300 * "a" + end) for end in "bc")
    assert one != other and max(len(one), len(other)) <= 60
    assert run_figures.file_name("a/b c") == "a_b_c"
