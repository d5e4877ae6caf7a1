"""What a run recorded is read as it is: no gap is filled, and every gap is named."""

import math

import pytest

from litevit_jax import paths
from litevit_jax.report import run_record
from tests.report import examples


def test_long_curves_keep_their_ends_and_extremes():
    found = {step: math.sin(step / 50) for step in range(1, 30_001)}
    found[12_345] = 7.0
    steps, values = run_record.series(found, 1000)
    assert len(steps) <= 1000 and steps == sorted(set(steps))
    assert steps[0] == 1 and steps[-1] == 30_000
    assert max(values) == 7.0 and min(values) == min(found.values())
    assert all(found[s] == v for s, v in zip(steps, values, strict=True))


def test_cut_lines_and_numbers_that_are_not_finite_are_gaps(tmp_path):
    place = examples.write_run(tmp_path / "gaps")
    with open(place / "metrics.jsonl", "a") as file:
        file.write('{"step": 41, "loss": "nan"}\n{"step": 42, "loss": 1.0}\n{"step": 4')
    run = run_record.read("gaps", place)
    assert "metrics.jsonl: 1 lines could not be read and are left out." in run.notes
    assert any("1 numbers are not finite" in note for note in run.notes)
    steps, values = run_record.series(run.steps["loss"])
    assert values[steps.index(41)] is None and values[steps.index(42)] == 1.0


def test_steps_that_were_done_again_count_as_done_last(tmp_path):
    place = examples.write_run(tmp_path / "again")
    paths.append_line(place / "metrics.jsonl", {"step": 30, "event": "resume"})
    paths.append_line(place / "metrics.jsonl", {"step": 31, "loss": 9.5})
    run = run_record.read("again", place)
    assert run.steps["loss"][31] == 9.5 and list(run.steps["loss"])[-1] == 40
    assert any("1 logged steps were done again" in note for note in run.notes)


def test_damaged_results_are_named_and_left_out(tmp_path):
    place = examples.write_run(tmp_path / "damaged")
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
    place = examples.write_run(tmp_path / "run", logged=0, total=steps[-1])
    for step in steps:
        paths.append_line(place / "metrics.jsonl", {"step": step, "loss": 1.0})
    notes = " ".join(run_record.read("run", place).notes)
    assert gap in notes if gap else "nothing is logged" not in notes


def test_a_picture_that_was_cut_is_named_and_left_out(tmp_path):
    directory = examples.write_run(tmp_path / "cut")
    whole = run_record.read("cut", directory).pictures
    bad = directory / "pictures" / "reconstruction_000099.png"
    bad.parent.mkdir(exist_ok=True)
    bad.write_bytes(b"no picture")
    run = run_record.read("cut", directory)
    assert run.pictures == whole
    assert "pictures/reconstruction_000099.png is damaged and left out." in run.notes
