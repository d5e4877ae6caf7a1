"""Sweeps: their points, what a stopped one goes on with, several processes."""

import json
import multiprocessing
import signal

import pytest

from litevit_jax.evaluators import frozen
from litevit_jax.jobs import evaluate, ledger, sweep, train
from litevit_jax.train import lock, loop
from tests import jobs

pytestmark = [
    pytest.mark.usefixtures("shared_designs", "one_device"),
    pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning"),
]

GRID = "lr.base=0.1,0.2; seed=0,1; steps=1"
NAMES = [f"base{lr}-seed{seed}-steps1" for lr in (0.1, 0.2) for seed in (0, 1)]


def config(**overrides):
    fields = {"recipe": "mae_tiny:smoke", "grid": GRID, "log__report": False}
    return jobs.config("sweep", None, **(fields | overrides))


def points(made):
    return sweep.points(made.recipe, made.grid, made.shard)


def run(made, workdir):
    """Runs a sweep as the command line does; returns its table and its end."""
    ending = sweep.main(made, str(workdir), "litevit")
    return json.loads((workdir / "sweep.json").read_text()), ending


@pytest.fixture
def runs(monkeypatch):
    """Directories of the runs that were started, in place of real ones.

    `stop`: numbers of runs that a signal ends. `diverging`: their learning rates.
    `images`: what their images are known by; they are listed but not read.
    """

    class Runs(list):
        stop = ()
        diverging = ()
        images = "these"

    asked = Runs()

    def stand_in(made, workdir, **_):
        asked.append(workdir.name)
        workdir.mkdir(parents=True, exist_ok=True)
        derived = {"train_fingerprint": asked.images}
        (workdir / "config.json").write_text(json.dumps({"derived": derived}))
        if len(asked) in asked.stop:
            return loop.RunOutcome(3, {}, signal.SIGTERM)
        if made.lr.base in asked.diverging:
            raise FloatingPointError("50 updates in a row were skipped")
        last = {"step": 6, "n": 5, "mae_loss": made.lr.base + made.seed, "table": [1]}
        result = {"metric": "mae_loss", "last": last}
        return loop.RunOutcome(6, {"reconstruction": result})

    prepare = train.prepare

    def prepared(*arguments, **about):
        job = prepare(*arguments, **about)
        job.config["derived"]["train_fingerprint"] = asked.images
        return job

    monkeypatch.setattr(train, "run", stand_in)
    monkeypatch.setattr(train, "prepare", prepared)
    return asked


def test_every_combination_is_a_run_of_the_recipe_with_these_values():
    listed = points(config())
    assert [p.name for p in listed] == NAMES
    values = [(p.config.lr.base, p.config.seed, p.config.steps) for p in listed]
    assert values == [(0.1, 0, 1), (0.1, 1, 1), (0.2, 0, 1), (0.2, 1, 1)]
    assert {p.config.name for p in listed} == {"mae_tiny-digits-smoke"}


def test_brackets_and_quotes_keep_commas_together():
    grid = "data.crop_scale=(0.2, 1.0),(0.5, 1.0); data.dir='a;b,c',d"
    listed = points(config(grid=grid))
    made = [(p.config.data.crop_scale, p.config.data.dir) for p in listed]
    assert made == [
        ((0.2, 1.0), "a;b,c"),
        ((0.2, 1.0), "d"),
        ((0.5, 1.0), "a;b,c"),
        ((0.5, 1.0), "d"),
    ]
    names = {p.name for p in listed}
    assert len(names) == 4 and all("/" not in name for name in names)


def test_names_of_points_differ_however_long_their_values():
    far = "x" * 300
    listed = points(config(grid=f"data.dir={far}a,{far}b,a/b,a_b"))
    names = [p.name for p in listed]
    assert len(set(names)) == 4 and max(map(len, names)) <= 40  # as reports take them


def test_the_table_has_means_and_ranges_over_seeds(runs, tmp_path, capsys):
    saved, ending = run(config(), tmp_path / "s")
    assert runs == [p.name for p in points(config())]
    assert [
        row["results"]["reconstruction"]["mae_loss"] for row in saved["points"]
    ] == [
        *(0.1, 1.1, 0.2, 1.2),
    ]
    assert saved["recipe"] == "mae_tiny:smoke" and ending.signal is None
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("lr.base  runs  reconstruction mae_loss")
    assert [line.split() for line in lines[start + 1 : start + 3]] == [
        ["0.1", "2", "0.6", "(0.1..1.1)"],
        ["0.2", "2", "0.7", "(0.2..1.2)"],
    ]


def test_a_stopped_sweep_goes_on_and_a_larger_grid_runs_what_is_new(runs, tmp_path):
    runs.stop = (3,)
    saved, ending = run(config(), tmp_path / "s")
    assert ending.signal == signal.SIGTERM and len(saved["points"]) == 2
    run(config(), tmp_path / "s")
    assert runs[3:] == NAMES[2:]
    run(config(grid=GRID.replace("seed=0,1", "seed=0,1,2")), tmp_path / "s")
    assert runs[5:] == ["base0.1-seed2-steps1", "base0.2-seed2-steps1"]
    with pytest.raises(ValueError, match=r"recipe: .*mae_tiny:smoke.*mae_tiny:digits"):
        run(config(recipe="mae_tiny:digits"), tmp_path / "s")


def test_shards_share_the_points(runs, tmp_path, capsys):
    run(config(shard="1/2"), tmp_path / "s")
    assert runs == NAMES[::2]
    saved, _ = run(config(shard="2/2"), tmp_path / "s")
    assert len(runs) == 4 and len(saved["points"]) == 4
    run(config(), tmp_path / "s")  # all are finished
    assert len(runs) == 4 and NAMES[0] not in capsys.readouterr().out[-400:]


@pytest.mark.parametrize(
    "grid",
    [
        GRID.replace("steps=1", "steps=2"),  # a field of one value
        GRID.replace("; steps=1", ""),
        GRID.replace("lr.base", "optimizer.weight_decay"),
    ],
)
def test_another_grid_in_the_same_directory_runs_its_own_points(grid, runs, tmp_path):
    run(config(), tmp_path / "s")
    saved, _ = run(config(grid=grid), tmp_path / "s")
    assert len(set(runs)) == 8 and len(saved["points"]) == 8


def test_a_field_that_gets_more_values_keeps_what_is_finished(runs, tmp_path):
    run(config(grid="seed=0; steps=1; lr.base=0.1"), tmp_path / "s")
    saved, _ = run(config(grid=GRID), tmp_path / "s")
    assert runs == ["seed0-steps1-base0.1", *NAMES[1:]] and len(saved["points"]) == 4


def test_names_that_an_older_sweep_gave_other_points_are_not_theirs(runs, tmp_path):
    run(config(shard="1/4"), tmp_path / "s")
    path = tmp_path / "s/sweep.json"
    saved = json.loads(path.read_text())
    saved["points"][0]["fields"]["steps"] = "500"
    path.write_text(json.dumps(saved))
    run(config(shard="1/4"), tmp_path / "s")
    assert runs[1].startswith(f"{NAMES[0]}-") and len(runs) == 2


def test_a_point_that_diverges_has_no_results_and_ends_no_other(runs, tmp_path, capsys):
    runs.diverging = (0.2,)
    saved, ending = run(config(), tmp_path / "s")
    assert runs == NAMES and ending.signal is None
    assert ["results" in row for row in saved["points"]] == [True, True, False, False]
    shown = capsys.readouterr().out
    why = "failed: 50 updates in a row were skipped"
    assert f"point {NAMES[2]} {why}" in shown and f"point {NAMES[3]} {why}" in shown
    assert "lr.base  runs  reconstruction mae_loss\n0.1      2 " in shown
    assert "0.2      " not in shown and "done: the others are in" in shown
    runs.diverging = ()  # the same command tries again
    saved, _ = run(config(), tmp_path / "s")
    assert runs[4:] == NAMES[2:]
    assert all("results" in row and "failed" not in row for row in saved["points"])
    runs.diverging = (0.3,)
    with pytest.raises(FloatingPointError, match=r"all 1 points failed, .* 50 updates"):
        run(config(grid="lr.base=0.3; steps=1"), tmp_path / "s")


def test_points_of_other_images_are_not_mixed(runs, tmp_path):
    run(config(shard="1/2"), tmp_path / "s")
    runs.images = "more"
    with pytest.raises(ValueError, match=f"point {NAMES[0]} has learned from other im"):
        run(config(), tmp_path / "s")
    run(config(), tmp_path / "new")
    assert runs[2:] == NAMES


def test_every_point_is_checked_before_the_first_begins(runs, tmp_path):
    grid = "objective.encoder.patch_size=2,3; seed=0,1; steps=1"
    message = r"point 3 of 4 \(objective.encoder.patch_size=3; seed=0; steps=1\): .*3"
    with pytest.raises(ValueError, match=message):
        run(config(grid=grid), tmp_path / "s")
    assert not runs and not (tmp_path / "s").exists()
    made = config(recipe="evaluate:knn", grid="seed=0,1; init=/nowhere")
    with pytest.raises((ValueError, OSError), match="/nowhere"):
        run(made, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def _hold(directory, held, end):
    lock.take(directory)
    held.set()
    end.wait()


def test_a_point_that_another_process_works_on_is_left_to_it(
    runs, tmp_path, capsys, monkeypatch
):
    run(config(shard="1/4"), tmp_path / "s")
    directory = tmp_path / "s/points" / NAMES[1]
    directory.mkdir(parents=True)
    context = multiprocessing.get_context("spawn")
    held, end = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(directory, held, end))
    other.start()
    assert held.wait(120)
    try:
        run(config(shard="1/1"), tmp_path / "s")
        first = list(runs)
        monkeypatch.setattr(ledger.time, "sleep", lambda _: end.set())
        saved, _ = run(config(), tmp_path / "s")  # waits, and takes it over
    finally:
        end.set()
        other.join()
    assert first == [NAMES[0], *NAMES[2:]]
    assert runs[3:] == NAMES[1:2] and len(saved["points"]) == 4
    shown = capsys.readouterr().out
    assert "1 of 4 points are not finished" in shown
    assert f"left to another process: --workdir={directory}: the run of proc" in shown
    assert shown.count("waiting for 1 point") == 1


def test_a_sweep_waits_while_another_process_looks_at_its_config(
    runs, tmp_path, monkeypatch
):
    taken, tries = tmp_path / "s", []

    def open_run(workdir, *_, **__):
        tries.append(workdir)
        if len(tries) < 3:
            raise lock.TakenError("another process works there")

    monkeypatch.setattr(ledger.workdirs, "open_run", open_run)
    monkeypatch.setattr(ledger.time, "sleep", lambda _: None)
    run(config(), taken)
    assert tries == [taken] * 3 and len(runs) == 4
    monkeypatch.setattr(ledger.workdirs, "open_run", lambda *_, **__: _raise())
    with pytest.raises(lock.TakenError):
        run(config(), taken)


def _raise():
    raise lock.TakenError("another process works there")


def test_two_processes_lose_nothing_that_the_other_wrote(tmp_path):
    path = tmp_path / "parts.json"
    one, two = (ledger.Parts(path, about=1) for _ in range(2))
    one.add("a", value=1)
    two.add("b", value=2)
    one.add("c", value=3)
    assert set(ledger.Parts(path, about=1).rows) == {"a", "b", "c"}
    assert "b" in one and "a" in two and "c" not in two
    two.close(winner="a")
    assert "c" in two
    one.add("d", value=4)
    assert one.rest == ledger.Parts(path, about=1).rest == {"winner": "a"}


def test_points_are_runs_as_the_command_line_makes_them(tmp_path, capsys, monkeypatch):
    # Steps are shared between tests here, and no program of theirs is kept.
    monkeypatch.setattr(train, "folder_of_programs", lambda: None)
    small = "objective.encoder.width=24; objective.encoder.depth=1; log.health=False; "
    small += "objective.encoder.num_heads=2; objective.decoder.width=16"
    made = config(grid=f"seed=0,1; steps=1; {small}", log__report=True)
    saved, _ = run(made, tmp_path / "s")
    names = [row["name"] for row in saved["points"]]
    assert [name.partition("-")[0] for name in names] == ["seed0", "seed1"]
    for row in saved["points"]:
        path = tmp_path / "s/points" / row["name"] / "evals/reconstruction/result.json"
        last = json.loads(path.read_text())["last"]
        assert row["results"]["reconstruction"]["mae_loss"] == last["mae_loss"]
    losses = {row["results"]["reconstruction"]["mae_loss"] for row in saved["points"]}
    assert len(losses) == 2
    assert "seed0" in (tmp_path / "s/report/index.html").read_text()
    assert "runs  reconstruction mae_loss\n2 " in capsys.readouterr().out


def test_points_that_need_the_same_features_encode_once(
    checkpoints, tmp_path, capsys, monkeypatch
):
    passes, encode = [], frozen._encode

    def counting(*arguments):
        passes.append(arguments[2])
        return encode(*arguments)

    monkeypatch.setattr(frozen, "_encode", counting)
    grid = f"seed=0,1; batch_size=32,64; init={checkpoints / '0'}"
    made = config(recipe="evaluate:knn", grid=grid)
    saved, _ = run(made, tmp_path / "s")
    assert sorted(passes) == ["eval", "train"] and len(saved["points"]) == 4
    assert len(list((tmp_path / "s/features").glob("*.npz"))) == 2
    assert capsys.readouterr().out.count("read from") == 6
    alone = evaluate.run(sweep.points(*_fields(made))[1].config, tmp_path / "alone")
    top1 = saved["points"][1]["results"]["knn"]["top1"]
    assert top1 == alone["knn"]["last"]["top1"]


def test_linear_probes_of_one_encoder_share_what_their_k_nn_reads(
    checkpoints, tmp_path, monkeypatch
):
    monkeypatch.setattr(train, "folder_of_programs", lambda: None)
    grid = f"lr.base=0.1,0.2; steps=1; init={checkpoints / '0'}"
    run(config(recipe="linear_probe:smoke", grid=grid), tmp_path / "s")
    paths = [*(tmp_path / "s/points").glob("*/evals/knn/result.json")]
    heads = [json.loads(path.read_text()) for path in paths]
    assert len(heads) == 2
    assert heads[0]["params"] != heads[1]["params"]  # the classifiers differ
    assert heads[0]["last"]["top1"] == heads[1]["last"]["top1"]
    assert len(list((tmp_path / "s/features").glob("*.npz"))) == 2


def _fields(made):
    return made.recipe, made.grid, made.shard


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"recipe": None}, r"config\.recipe is missing; .*mae_tiny:digits"),
        ({"recipe": "mae_tinny"}, r"--config=mae_tinny: no such .*mae_tiny"),
        ({"recipe": "transfer:digits"}, r"its job is 'transfer'; .*train or evaluate"),
        ({"recipe": "mae_tiny:digts"}, r"'digts' unknown; did you mean digits"),
        ({"grid": None}, r"config\.grid=None: it is empty; write one"),
        ({"grid": "lr.base"}, r"'lr\.base' is no field with its values; .*FIELD="),
        ({"grid": "lr.base=1,,2"}, r"'lr\.base=1,,2' is no field with its values"),
        ({"grid": "lr.bse=1,2"}, r"config\.lr has no field 'bse'; did you mean base"),
        ({"grid": "lr.base=1,x"}, r"--config\.lr\.base=x: expected a number.*'x'"),
        ({"grid": "seed=0; seed=1"}, r"field seed stands there twice"),
        ({"grid": "seed=0,1,0"}, r"a value of seed stands there twice"),
        ({"grid": "data.crop_scale=(1,2; seed=0"}, r"a bracket or quote left open"),
        ({"shard": "0/2"}, r"--config\.shard=0/2; expected i/n with 1 <= i <= n"),
        ({"shard": "one"}, r"--config\.shard=one; expected i/n"),
        ({"shard": "5/9"}, r"the grid has 4 points, so nothing is left"),
    ],
)
def test_a_sweep_that_cannot_be_run_is_refused_first(overrides, message):
    with pytest.raises(ValueError, match=message):
        points(config(**overrides))


def test_a_mistake_in_the_data_is_found_before_the_first_point(tmp_path):
    made = config(grid="data.source=folder; data.dir=/nowhere; seed=0,1")
    with pytest.raises((ValueError, OSError), match="/nowhere"):
        run(made, tmp_path / "s")
    assert not (tmp_path / "s").exists()
