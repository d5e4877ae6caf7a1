"""The sweep: what its points see, what is chosen, and going on where it was."""

import json
import signal

import pytest

from litevit_jax.data import splits
from litevit_jax.jobs import ledger, train, transfer
from litevit_jax.train import loop
from tests import jobs, processes

pytestmark = pytest.mark.usefixtures("shared_designs", "one_device")

GRID = {"sweep__lr_base": (0.05, 0.1, 0.2), "sweep__layer_decay": (0.75, 1.0)}


def config(arg="smoke", **overrides):
    return jobs.tiny("transfer", arg, **(GRID | overrides))


def row(top1, by_class=50.0, step=6):
    return {"step": step, "top1": top1, "mean_per_class": by_class, "top5": 9.0, "n": 7}


def evaluated(made):
    """The title of the only evaluation that a run has."""
    (title,) = made.evals
    return title


@pytest.fixture
def runs(monkeypatch):
    """Runs in place of real ones: best at lr 0.1, decay 0.75; and how they were asked.

    `stop`: numbers of runs that a signal ends. `diverging`: their learning rates.
    """

    class Runs(list):
        stop = ()
        diverging = ()

    asked = Runs()

    def run(made, workdir):
        asked.append((made, workdir))
        if len(asked) in asked.stop:
            return loop.RunOutcome(3, {}, signal.SIGTERM)
        if made.lr.base in asked.diverging:
            raise FloatingPointError("50 updates in a row were skipped")
        lr, decay = made.lr.base, made.optimizer.layer_decay
        top1 = 90 - 100 * abs(lr - 0.1) - 10 * (decay - 0.75)
        result = {"last": row(top1, by_class=100 * lr)}
        return loop.RunOutcome(6, {evaluated(made): result})

    monkeypatch.setattr(train, "run", run)
    return asked


def found(workdir):
    return json.loads((workdir / "sweep.json").read_text())


def values(made):
    return made.lr.base, made.optimizer.layer_decay, made.epochs, made.lr.warmup_epochs


def test_every_point_runs_once_and_the_best_again_on_all_data(runs, tmp_path):
    made = config(sweep__epochs=(20, 40), sweep__warmup_epochs=(2.0, 4.0))
    outcome = transfer.Sweep(made, tmp_path / "run").run()
    asked = [values(c) for c, _ in runs]
    wanted = {
        (lr, decay, epochs, warmup)
        for lr in (0.05, 0.1, 0.2)
        for decay in (0.75, 1.0)
        for epochs, warmup in ((20, 2.0), (40, 4.0))
    }
    assert len(asked) == 13 and set(asked[:12]) == wanted
    assert asked[12] == (0.1, 0.75, 20, 2.0)
    shares = [c.data.holdout.eval for c, _ in runs]
    assert shares == [0.2] * 12 + [0.0]
    assert {c.job for c, _ in runs} == {"train"}
    places = [workdir for _, workdir in runs]
    assert len(set(places)) == 13
    assert places[12] == tmp_path / "run/final/lr0.1-decay0.75-epochs20-warmup2"
    saved = found(tmp_path / "run")
    assert len(saved["points"]) == 12 and saved["metric"] == "top1"
    assert saved["winner"] == "lr0.1-decay0.75-epochs20-warmup2"
    assert saved["test"]["test"]["top1"] == pytest.approx(90)
    lines = outcome.table.splitlines()
    assert lines[0] == (
        "chosen by top1 on validation images; lr is per 256 images, as in the names of "
        "points: its peak is 0.125 times that"
    )
    assert len(lines) == 2 + 12 + 1
    cells = lines[-1].split()
    assert cells[:5] == ["test", "0.1", "0.75", "20", "2"]
    assert cells[5:] == ["7", "90.00", "10.00", "9.00"]
    assert len({line.index(" 7 ") for line in lines[2:]}) == 1  # columns


def test_points_are_chosen_on_images_that_neither_they_nor_the_test_see(runs, tmp_path):
    transfer.Sweep(config(sweep__lr_base=(0.1,)), tmp_path / "run").run()
    point, final = (runs[0][0].data, runs[-1][0].data)
    parts = {
        "train": splits.open_split(point, "train"),
        "validation": splits.open_split(point, "eval"),
        "test": splits.open_split(final, "eval"),
        "all": splits.open_split(final, "train"),
    }
    images = {
        name: [source[i]["image"].tobytes() for i in range(len(source))]
        for name, source in parts.items()
    }
    assert len(images["validation"]) == round(0.2 * len(images["all"]))
    together = images["train"] + images["validation"]
    assert sorted(together) == sorted(images["all"])
    held_out = {parts["validation"].name_of(i) for i in range(len(parts["validation"]))}
    learned = {parts["train"].name_of(i) for i in range(len(parts["train"]))}
    assert not held_out & learned
    assert all(name.startswith("digits/train") for name in held_out)
    assert parts["test"].name_of(0).startswith("digits/test")


def test_only_the_final_run_calls_its_numbers_test(runs, tmp_path):
    made = config(sweep__lr_base=(0.1,))
    with made.unlocked():
        made.evals.knn_test = made.evals.latest = made.evals.test
    made = made.copy_and_resolve_references()
    titles = []
    for final in (False, True):
        sweep = transfer.Sweep(made, tmp_path / "run")
        titles.append(set(sweep.config_of(sweep.points[0], final=final).evals))
    assert titles[0] == {"validation", "knn_validation", "latest"}
    assert titles[1] == {"test", "knn_test", "latest"}
    with made.unlocked():
        made.evals.validation = made.evals.test
    with pytest.raises(ValueError, match=r"evals .*test, validation: .*another name"):
        transfer.Sweep(made, tmp_path / "run").run()


def test_a_number_that_no_point_has_is_no_column(runs, tmp_path, monkeypatch):
    two = {"step": 6, "top1": 50.0, "mean_per_class": 50.0, "n": 7}
    run = train.run

    def without_top5(made, workdir):
        run(made, workdir)
        return loop.RunOutcome(6, {evaluated(made): {"last": two}})

    monkeypatch.setattr(train, "run", without_top5)
    head = transfer.Sweep(config(), tmp_path / "run").run().table.splitlines()[1]
    assert head.split()[-3:] == ["n", "top1", "mean_per_class"]


def test_a_stopped_sweep_goes_on_where_it_was(runs, tmp_path):
    runs.stop = (3,)
    outcome = transfer.Sweep(config(), tmp_path / "run").run()
    assert outcome.signal == signal.SIGTERM and len(runs) == 3
    assert len(found(tmp_path / "run")["points"]) == 2
    transfer.Sweep(config(), tmp_path / "run").run()
    assert runs[3][1] == runs[2][1]  # the point that was stopped, in its directory
    assert len(runs) == 3 + 4 + 1 and len(found(tmp_path / "run")["points"]) == 6


def test_a_point_that_diverges_is_not_the_best_and_ends_no_other(runs, tmp_path):
    runs.diverging = (0.1,)
    outcome = transfer.Sweep(config(), tmp_path / "run").run()
    assert len(runs) == 7 and runs[-1][0].lr.base != 0.1
    failed = [
        row["name"] for row in found(tmp_path / "run")["points"] if "failed" in row
    ]
    assert failed == [
        "lr0.1-decay0.75-epochs20-warmup2",
        "lr0.1-decay1-epochs20-warmup2",
    ]
    for name in failed:
        assert f"point {name} failed: 50 updates in a row" in outcome.table
    runs.diverging = (0.05, 0.1, 0.2)
    with pytest.raises(FloatingPointError, match="all 6 points failed, the first one"):
        transfer.Sweep(config(), tmp_path / "none").run()


def test_two_processes_share_the_points_and_the_final_run(
    runs, tmp_path, capsys, monkeypatch
):
    name = "lr0.1-decay0.75-epochs20-warmup2"
    sweep = transfer.Sweep(config(), tmp_path / "run")
    directory = tmp_path / "run/final" / name

    def record(_):  # as the other process does in the meantime
        parts = ledger.Parts(tmp_path / "run/sweep.json", metric="top1")
        parts.close(winner=name, test={"test": row(71.0)})

    monkeypatch.setattr(ledger.time, "sleep", record)
    with processes.working_in(directory):
        outcome = sweep.run()
    assert len(runs) == 6 and outcome.table.splitlines()[-1].split()[6] == "71.00"
    assert outcome.final == directory
    assert "waiting for 1 final run(s)" in capsys.readouterr().out


def test_a_finished_sweep_runs_nothing_and_tells_the_same(runs, tmp_path):
    first = transfer.Sweep(config(), tmp_path / "run").run()
    again = transfer.Sweep(config(), tmp_path / "run").run()
    assert len(runs) == 7 and again.table == first.table


def test_a_larger_grid_runs_only_what_is_new(runs, tmp_path):
    transfer.Sweep(config(sweep__lr_base=(0.05, 0.2)), tmp_path / "run").run()
    assert len(runs) == 5
    transfer.Sweep(config(), tmp_path / "run").run()
    assert [values(c)[0] for c, _ in runs[5:]] == [0.1, 0.1, 0.1]  # two, and the best


def test_mean_per_class_chooses_if_asked_to(runs, tmp_path):
    made = config(evals__test__metric="mean_per_class")
    transfer.Sweep(made, tmp_path / "run").run()
    assert found(tmp_path / "run")["winner"].startswith("lr0.2-")


def test_another_validation_part_is_another_sweep(runs, tmp_path):
    transfer.Sweep(config(), tmp_path / "run").run()
    message = r"(?s)another config.*sweep.holdout: 0.2 -> 0.3"
    with pytest.raises(ValueError, match=message):
        transfer.Sweep(config(sweep__holdout=0.3), tmp_path / "run").run()


MISTAKES = {
    "pairs": ({"sweep__epochs": (20, 40)}, r"are pairs; expected as many of both"),
    "nothing": ({"sweep__lr_base": ()}, r"sweep.lr_base=\(\); expected positive"),
    "negative": ({"sweep__lr_base": (0.1, -1.0)}, r"sweep.lr_base=.*expected positive"),
    "fraction": ({"sweep__epochs": (2.5,)}, r"sweep.epochs=.*whole numbers"),
    "share": ({"sweep__holdout": 1.0}, r"sweep.holdout=1.0; exp"),
    "one split": ({"sweep__train_split": "train"}, r"give both, or neither"),
    "test": ({"sweep__train_split": "train", "sweep__eval_split": "test"},
        r"sweep.eval_split='test' is the test split 'test', or a part of it"),
    "evaluator": ({"sweep__evaluator": "tset"}, r"'tset' unknown; did you mean test"),
    "no start": ({"init": None}, r"starts from a pre-trained encoder: which\?"),
    "warm-up": ({"sweep__warmup_epochs": (30.0,)}, r"warm-up of \d+ steps does not"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_refused_before_anything_runs(name, runs, tmp_path):
    overrides, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        transfer.Sweep(config(**overrides), tmp_path / "run").run()
    assert runs == [] and not (tmp_path / "run").exists()


def test_a_fallback_to_the_test_folder_is_not_taken_for_validation(
    runs, image_folder, tmp_path
):
    root = image_folder(train=16, test=4)  # 'val' would read the folder test
    made = config(f"smoke,data=folder,path={root}", batch_size=8)
    with made.unlocked():
        made.sweep.update(train_split="train", eval_split="val")
    with pytest.raises(ValueError, match=r"sweep.eval_split='val' is the test split"):
        transfer.Sweep(made, tmp_path / "run").run()


@pytest.fixture(scope="module")
def pretrained():
    return jobs.teacher()


def test_weights_that_changed_meanwhile_are_another_sweep(pretrained, runs, tmp_path):
    made = config(init=pretrained, objective__encoder__width=32,
                  objective__encoder__num_heads=4)  # fmt: skip
    transfer.Sweep(made, tmp_path / "run").run()
    path = tmp_path / "run" / "config.json"
    saved = json.loads(path.read_text())
    assert len(saved["derived"]["init_fingerprint"]) == 16
    saved["derived"]["init_fingerprint"] = "0" * 16
    path.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=r"derived.init_fingerprint"):
        transfer.Sweep(made, tmp_path / "run").run()


def test_a_real_sweep_ends_with_results_of_its_runs(tmp_path):
    made = config(sweep__lr_base=(0.1,), sweep__layer_decay=(0.75,), steps=2)
    outcome = transfer.Sweep(made, tmp_path).run()
    saved = found(tmp_path)
    (point,) = saved["points"]
    place = tmp_path / "points" / point["name"]
    result = json.loads((place / "evals/validation/result.json").read_text())
    assert result["last"] == point["validation"] and point["validation"]["n"] == 288
    assert not (place / "evals/test").exists()
    logged = (place / "metrics.jsonl").read_text()
    assert '"validation/top1"' in logged and "test/" not in logged
    place = tmp_path / "final" / saved["winner"]
    result = json.loads((place / "evals/test/result.json").read_text())
    assert result["last"] == saved["test"]["test"] and result["last"]["n"] == 359
    assert outcome.signal is None


def test_without_its_sweep_it_is_one_ordinary_run():
    made = transfer.single(config())
    assert made.job == "train" and "sweep" not in made
