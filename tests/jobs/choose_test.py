"""Which pre-training: the plan, what is compared, what is said, and going on."""

import json
import pathlib
import re
import shlex
import signal
import statistics

import numpy as np
import pytest
from PIL import Image

from litevit_jax import commandline, exits
from litevit_jax.data.sources import digits
from litevit_jax.jobs import (
    choose,
    choose_input,
    choose_plan,
    choose_runs,
    evaluate,
    train,
)
from litevit_jax.jobs.choose_plan import Part, Times
from litevit_jax.report import choice
from litevit_jax.train import loop
from tests import jobs

pytestmark = [
    pytest.mark.usefixtures("shared_designs", "one_device"),
    pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning"),
]

TIMES = {
    "finetune": Times(5.0, 0.02),
    "again": Times(2.0, 0.02),
    "evaluate": Times(3.0),
    "mae": Times(4.0, 0.01),
    "moco": Times(6.0, 0.04),
    "teacher": Times(4.0, 0.02),
    "distill": Times(4.0, 0.02),
    "supervised": Times(4.0, 0.02),
}


def settings(arg="smoke", **overrides):
    return jobs.config("choose", arg, **overrides).to_dict()


def folder_settings(folder, **overrides):
    fields = {"minutes": 60.0, "labels": (1.0,), "data__image_size": 8}
    fields |= {"encoder__patch_size": 4}
    made = jobs.config("choose", f"smoke,data=folder,path={folder}", **fields)
    with made.unlocked():
        for name, value in overrides.items():
            made[name] = value
    return made.to_dict()


@pytest.fixture
def runs(monkeypatch):
    """Directories of the runs that were started, in place of real ones.

    MAE is at 90 %, random parameters at 70 %, with 10 % of the labels 20 less; what is
    in `stop` ends the run of that number by a signal.
    """

    class Runs(list):
        stop = ()
        step_s = 0.01

    asked = Runs()
    level = {"mae": 90.0, "moco": 89.0, "supervised": 80.0, "random": 70.0}

    def top1(name, share):
        base = next((v for k, v in level.items() if f"-{k}-" in name), 50.0)
        base -= 30.0 * ("kept2" in name)  # the last blocks are needed
        return base - 20.0 * (share < 1)

    def stand_in(config, workdir, **_):
        asked.append(workdir.name)
        if len(asked) in asked.stop:
            return loop.RunOutcome(3, {}, signal.SIGTERM)
        workdir.mkdir(parents=True)
        row = json.dumps({"step_s": asked.step_s})
        (workdir / "metrics.jsonl").write_text(row + "\n")
        last = {"top1": top1(workdir.name, config.data.fraction), "n": 1000}
        asked.last = config
        return loop.RunOutcome(6, {"test": {"last": last}} if config.evals else {})

    def probe(config, workdir):
        asked.append(workdir.name)
        results = {}
        for title in config.evals:
            share = choose_runs.share_of(title.partition("_")[2])
            value = top1(f"{workdir.name}", share)
            rows = [{"block": b, "linear": value, "knn": value - 5} for b in (1, 2)]
            last = {"top1": value, "select_top1": value + title.startswith("avg")}
            last |= {"block": 2, "n": 1000, "pool": title[:3], "table": rows}
            results[title] = {"last": last}
        return results

    monkeypatch.setattr(train, "run", stand_in)
    monkeypatch.setattr(evaluate, "run", probe)
    return asked


def run(made, workdir):
    """Runs a choice; returns its outcome and what choose.json holds."""
    outcome = choose.Choice(made, workdir).run()
    return outcome, json.loads((workdir / "choose.json").read_text())


def test_all_pretrainings_take_equal_time_and_so_do_all_fine_tunings():
    parts = choose_plan.compared(
        ["mae", "moco", "distill", "random"], [], [1.0, 0.1], (0, 1), teacher=True
    )
    planned = choose_plan.updates(parts, TIMES, minutes=20, spent_s=60, teacher=True)
    seconds = {name: count * TIMES[name].step_s for name, count in planned.items()}
    assert seconds["mae"] == pytest.approx(seconds["moco"], rel=0.01)
    both = seconds["teacher"] + seconds["distill"]
    assert both == pytest.approx(seconds["mae"], rel=0.01)
    assert seconds["teacher"] == pytest.approx(seconds["distill"], rel=0.01)
    # What is planned takes nine tenths of the time.
    total = 60 + choose_plan.seconds(parts, TIMES, planned)
    assert total == pytest.approx(0.9 * 20 * 60, rel=0.01)


def test_minutes_that_do_not_suffice_are_refused_with_those_that_do():
    parts = choose_plan.compared(["mae", "random"], [], [1.0], (0, 1), teacher=False)
    fields = {"spent_s": 10.0, "teacher": False}
    with pytest.raises(ValueError, match=r"Give --config\.minutes=\d+ or more") as e:
        choose_plan.updates(parts, TIMES, minutes=0.5, **fields)
    least = int(str(e.value).partition("Give --config.minutes=")[2].split()[0])
    planned = choose_plan.updates(parts, TIMES, minutes=least, **fields)
    assert min(planned.values()) >= choose_plan.LEAST_UPDATES


def test_labels_of_a_supervised_encoder_are_those_it_is_compared_with():
    parts = choose_plan.compared(["supervised"], [], [1.0, 0.1], (0,), teacher=False)
    assert [(p.kind, p.labels) for p in parts] == [
        *(("pretrain", 1.0), ("evaluate", 1.0), ("pretrain", 0.1), ("evaluate", 0.1)),
    ]
    assert len({p.name for p in parts}) == 4
    assert Part("pretrain", "mae", 1, images=0.25).name == "pretrain-mae-seed1-images25"


def test_parts_run_once_and_a_killed_choice_goes_on_as_planned(runs, tmp_path, capsys):
    made = settings(seeds=2, labels=(1.0, 0.1), fractions=(0.5,), minutes=30.0)
    made["encoder"]["depth"] = 2
    runs.stop = (7,)
    outcome, saved = run(made, tmp_path / "c")
    assert outcome.signal == signal.SIGTERM and len(saved["points"]) == 2
    timed = ["finetune", "again", "evaluate", "mae"]
    assert runs[:4] == timed
    plan, stopped = saved["plan"], runs[6]
    outcome, saved = run({**made, "minutes": 90.0}, tmp_path / "c")
    assert saved["plan"] == plan and outcome.signal is None
    assert "the plan stays as it was made, for 30 minutes" in capsys.readouterr().out
    assert runs[7] == stopped  # and what was finished before is not made again
    assert len(set(runs[4:])) == len(runs[4:]) - 1
    assert runs[-8:] == [
        *(f"finetune-mae-seed{s}-kept{k}" for s in (0, 1) for k in (1, 2)),
        *("pretrain-mae-seed0-images50", "evaluate-mae-seed0-images50"),
        *("pretrain-mae-seed1-images50", "evaluate-mae-seed1-images50"),
    ]
    count = len(runs)
    again, _ = run(made, tmp_path / "c")  # all is finished
    assert len(runs) == count and again.text == outcome.text
    other = {**made, "seeds": 3}
    with pytest.raises(ValueError, match=r"seeds: 2 -> 3"):
        run(other, tmp_path / "c")


def test_it_recommends_with_numbers_errors_and_commands(runs, tmp_path):
    made = settings(seeds=2, labels=(1.0, 0.1), fractions=(0.5,), minutes=30.0)
    made["methods"], made["encoder"]["depth"] = ("mae", "moco", "random"), 2
    outcome, saved = run(made, tmp_path / "c")
    text, notes = outcome.text, saved["result"]["notes"]
    assert notes[0].startswith("Recommended: mae, which has the highest mean after")
    assert notes[0].endswith("These numbers cannot tell it from moco.")
    assert "mae is highest: 90.0 ± 1.9 %, above random (70.0 ± 2.9)" in text
    assert f"{choice.SAME} from moco (89.0 ± 2.0)" in text
    assert "gains 20.0 points over random parameters with 10 % of the labels" in text
    # Two blocks kept lose; one does not.
    assert "Tuning the head and the last block of mae is enough" in text
    assert (
        f"575: 90.0 ± 1.9 %, 1,150: 90.0 ± 1.9 %. {choice.SAME.capitalize()}," in text
    )
    assert "From 116 to 1,150 labels mae goes from 70.0" in text
    assert outcome.page.is_file() and (tmp_path / "c/report/report.json").is_file()
    row = saved["result"]["scores"]["finetune"]["mae"][0]
    assert row["values"] == [90.0, 90.0] and row["labels"] == 1.0
    full = next(n for n in notes if n.startswith("Full run of mae"))
    words = shlex.split(
        full.partition("python main.py ")[2] or full[full.index("--c") :]
    )
    words = [w for w in words if w.startswith("--config")]
    fields = dict(w.removeprefix("--config.").split("=", 1) for w in words[1:])
    again = commandline.config_of(words[0].removeprefix("--config="), fields)
    assert again.objective.encoder.depth == 2 and again.data.holdout.eval == 0
    assert f"({again.epochs} passes over 1,438 images" in full
    assert full.endswith(" --workdir=runs/full-mae")
    tuning = next(n for n in notes if n.startswith("Fine-tuning mae ("))
    assert "--config.init=runs/full-mae " in tuning and "at the 12,800 images/s" in full
    assert re.search(r"passes over 1,438 images, about [\d.]+ minutes at the", tuning)
    assert tuning.endswith(" --workdir=runs/full-mae-finetuned")


def test_the_test_split_is_never_read(runs, tmp_path, monkeypatch):
    opened, make = [], digits.make

    def watched(**fields):
        opened.append(fields["split"])
        return make(**fields)

    monkeypatch.setattr(digits, "make", watched)
    run(settings(minutes=30.0), tmp_path / "c")
    assert set(opened) == {"train"}


def test_fine_tuning_that_was_too_short_is_named():
    tuned = {1.0: choice.Score((50.0, 52.0), 300)}
    probed = {"mae": {1.0: choice.Score((89.0, 90.0), 300)}}
    text = choice.of_probe("mae", tuned, probed)
    assert "(51.0 ± 5.8 against 89.5 ± 3.5 % with 100 % of the labels)" in text
    assert choice.of_probe("mae", probed["mae"], probed) == ""


def test_the_error_is_of_the_seeds_or_of_the_images_whichever_is_larger():
    same, far = choice.Score((80.0, 80.0), 100), choice.Score((70.0, 90.0), 100)
    assert same.error == pytest.approx(4.0) and far.error == pytest.approx(10.0)
    assert choice.Score((80.0,), 100).error == same.error
    assert choice.apart(choice.Score((92.0,), 100), same)
    assert not choice.apart(choice.Score((89.0,), 100), same)


def test_the_error_of_few_seeds_is_that_of_a_t_test():
    # Published quantiles of Student's t at 97.5 %: 4.303 of 2 degrees, 2.776 of 4.
    for values, times in (((70.0, 90.0), 4.303), ((70.0, 80.0, 90.0), 2.776)):
        one, other = (choice.Score(values, 100_000) for _ in range(2))
        error = statistics.stdev(values) * (2 / len(values)) ** 0.5
        assert choice.margin(one, other) == pytest.approx(times * error, rel=1e-3)
    single = choice.Score((80.0,), 100)
    assert choice.margin(single, single) == pytest.approx(2 * 4.0 * 2**0.5)


def test_more_images_and_more_blocks_are_judged_by_their_errors():
    def scores(*means):
        return [choice.Score((mean, mean), 1000) for mean in means]

    low, middle, high = scores(70.0, 80.0, 90.0)
    text = choice.of_images("mae", {0.25: low, 0.5: middle, 1.0: high}, 400)
    assert "100: 70.0 ± 2.9 %, 200: 80.0" in text and "brought 10.0 points. Exp" in text
    (near,) = scores(89.0)
    text = choice.of_images("mae", {0.25: low, 0.5: near, 1.0: high}, 400)
    assert "within the error of 2.7: expect little of still more" in text
    sentence, kept = choice.of_blocks("mae", {0: {1.0: low}, 2: {1.0: high}}, 4)
    assert kept == 2 and "the last 2 blocks of mae, which is better" in sentence
    wide = choice.Score((60.0, 80.0), 1000)
    sentence, kept = choice.of_blocks("mae", {0: {1.0: low}, 2: {1.0: wide}}, 4)
    assert kept == 0 and f"Tune all blocks of mae: {choice.SAME} between" in sentence
    sentence, kept = choice.of_blocks("mae", {0: {1.0: high}, 4: {1.0: low}}, 4)
    assert kept == 0 and "Tune all blocks of mae: with fewer it loses" in sentence
    assert "all blocks 90.0 ± 1.9 %; the head alone 70.0 ± 2.9 %" in sentence


def test_a_share_with_fewer_images_than_classes_is_left_out(capsys):
    source = digits.make(split="train")
    kept = choose_input.counts((0.005, 1.0, 0.1), source, print)
    assert list(kept) == [1.0, 0.1] and kept[1.0] == 1438
    out = capsys.readouterr().out
    assert (
        "0.5 % of the labels are left out: 7 of 1,438 images, fewer than the 10" in out
    )
    with pytest.raises(ValueError, match="fewer than one image for each of 10 classes"):
        choose_input.counts((0.001,), source, print)


def test_without_a_teacher_that_saw_enough_distillation_is_left_out(
    runs, tmp_path, capsys
):
    made = settings(minutes=8.0, labels=(1.0,))
    made["methods"], runs.step_s = ("mae", "distill", "random"), 1.0
    _, saved = run(made, tmp_path / "c")
    assert saved["plan"]["methods"] == ["mae", "random"]
    assert "distill is left out: in its time a teacher would" in capsys.readouterr().out
    assert not [name for name in runs[6:] if "distill" in name or "teacher" in name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("mea", "random")}, r"'mea' unknown; did you mean mae"),
        ({"methods": ("mae", "mae")}, r"one stands there twice"),
        ({"methods": ("mae",)}, r"expected two or more to compare"),
        ({"methods": ("random",)}, r"expected two or more to compare"),
        ({"init": "a/x.npz,b/x.npz"}, r"b/x\.npz would be called 'x', as another"),
        ({"init": "runs/mae"}, r"runs/mae would be called 'mae'"),
        ({"init": "a,,b"}, r"expected runs or files of weights, divided by commas"),
        ({"teacher": "runs/t"}, r"is of the method 'distill', which .* lacks"),
        ({"minutes": 0.1}, r"minutes=0\.1: these 7 runs take more than 0\.\d minutes"),
        ({"init": "nowhere.npz"}, r"nowhere\.npz"),
        ({"labels": (0.001,)}, r"fewer than one image for each of 10 classes"),
    ],
)
def test_mistakes_are_refused_before_anything_runs(changes, message, tmp_path):
    with pytest.raises((ValueError, OSError), match=message) as caught:
        choose.Choice({**settings(), **changes}, tmp_path / "c")
    assert exits.classify(caught.value, begun=False)[0] == exits.USAGE
    assert not (tmp_path / "c").exists()


def images(folder, classes, each):
    rng = np.random.default_rng(0)
    for name in classes:
        for number in range(each):
            path = folder / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
    return folder


@pytest.mark.parametrize(
    ("classes", "each", "message"),
    [
        (
            (".",),
            12,
            r"split needs labels.*\. Encoders are compared by labels; .*mae_tiny",
        ),
        (("a",), 12, r"all images are of one class, 'a'"),
        (("a",), 1, r"data\.holdout\.eval=0\.2 of 1 training examples"),
    ],
)
def test_images_that_cannot_be_compared_by_are_refused(
    classes, each, message, tmp_path
):
    folder = images(tmp_path / "images", classes, each)
    with pytest.raises(ValueError, match=message):
        choose.Choice(folder_settings(folder), tmp_path / "c")
    with pytest.raises(ValueError, match="which images\\? Name them"):
        choose.Choice(settings(None), tmp_path / "c")


def test_sizes_follow_the_images(tmp_path):
    source = digits.make(split="train")
    block = {"data": {"image_size": None, "image_width": None}, "normalize": {}}
    block["encoder"] = {"width": 64, "depth": 4, "num_heads": 4, "patch_size": None}
    made = choose_runs.setting(**block, batch_size=None, source=source)
    assert (made.data.image_size, made.encoder["patch_size"]) == (32, 4)
    large = [{"image": np.zeros((90, 60, 3))}] * 20
    made = choose_runs.setting(**block, batch_size=None, source=large)
    assert (made.data.image_size, made.encoder["patch_size"]) == (64, 8)
    assert made.batch_size == 16
    block["encoder"]["patch_size"] = 7
    with pytest.raises(ValueError, match=r"patch_size=7: images are 64x64 pixels"):
        choose_runs.setting(**block, batch_size=None, source=large)


def test_a_folder_of_a_dozen_images_is_compared_from_end_to_end(
    tmp_path, monkeypatch, capsys
):
    folder = images(tmp_path / "images", ("a", "b"), 6)
    made = folder_settings(folder)
    # As many as were timed, so that the same programs serve.
    same = {"mae": 24, "finetune": 24}
    monkeypatch.setattr(choose_plan, "updates", lambda *_, **__: same)
    with jobs.given_starts():
        outcome, saved = run(made, tmp_path / "c")
    assert {row["name"] for row in saved["points"]} == {
        *("pretrain-mae-seed0", "evaluate-mae-seed0", "finetune-mae-seed0"),
        *("evaluate-random-seed0", "finetune-random-seed0"),
        "finetune-mae-seed0-kept1",
    }
    config = json.loads(
        (tmp_path / "c/parts/finetune-mae-seed0/config.json").read_text()
    )
    assert (
        config["derived"]["train_examples"] == 10 and config["data"]["holdout"]["eval"]
    )
    assert pathlib.Path(config["init"]).name == "pretrain-mae-seed0"
    for row in saved["points"]:
        if row["kind"] == "finetune":
            assert row["result"]["n"] == 2
    assert "of 2 images held out of training, mean of 1 seed" in outcome.text
    assert outcome.page.is_file() and "± " in capsys.readouterr().out + outcome.text


def test_given_encoders_are_compared_with_their_own_images(tmp_path, monkeypatch):
    sizes = {"objective__encoder__width": 32, "objective__encoder__num_heads": 2}
    run_of = jobs.saved_run(tmp_path / "outside", jobs.tiny(steps=1, **sizes))
    made = settings(minutes=60.0, init=str(run_of), methods=("random",))
    same = {"finetune": 24, "finetune outside": 24}
    monkeypatch.setattr(choose_plan, "updates", lambda *_, **__: same)
    with jobs.given_starts():
        outcome, saved = run(made, tmp_path / "c")
    assert set(saved["times"]) == {"finetune", "again", "evaluate", "finetune outside"}
    kept = json.loads(
        (tmp_path / "c/parts/finetune-outside-seed0-kept1/config.json").read_text()
    )
    assert kept["init"] == str(run_of) and kept["optimizer"]["freeze"]
    assert kept["lr"]["base"] == 4e-3 and kept["data"]["image_size"] == 8
    assert set(saved["result"]["scores"]["probe"]) == {"outside", "random"}
    assert (
        f"--config.init={run_of}" in outcome.text
        or "--config.init=random" in outcome.text
    )
    assert "Full run" not in outcome.text  # there is nothing to pre-train
    assert re.search(r"Fine-tuning (outside|random) \([\d.]+ passes", outcome.text)


def test_a_table_gives_the_labels(tmp_path):
    folder = images(tmp_path / "images", (".",), 12)
    rows = [f"{n}.png,{'ab'[n % 2]}" for n in range(12)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    variant = f"data=folder,path={folder},labels={tmp_path / 'labels.csv'}"
    made = settings(variant, minutes=600.0, data__image_size=8, labels=(1.0, 0.4))
    chosen = choose.Choice(made, tmp_path / "c")
    assert chosen.counts == {1.0: 10, 0.4: 4}
    config = chosen._probing("random", chosen.counts, 0)
    assert config.evals.cls_40.data.labels == str(tmp_path / "labels.csv")
