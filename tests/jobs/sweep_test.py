"""Sweeps: their points, what a stopped one goes on with, several processes."""

import json
import shutil
import signal

import pytest

from litevit_jax.evaluators import frozen
from litevit_jax.jobs import evaluate, ledger, sweep, train
from litevit_jax.train import lock, loop
from tests import jobs, processes

pytestmark = [
    pytest.mark.usefixtures("shared_designs", "one_device"),
    pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning"),
]

GRID = "lr.base=0.1,0.2; seed=0,1; steps=1"
STARTS = [f"base{lr}-seed{seed}-" for lr in (0.1, 0.2) for seed in (0, 1)]


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
    """

    class Runs(list):
        stop = ()
        diverging = ()
        level = 0.0

    asked = Runs()

    def stand_in(made, workdir, **_):
        asked.append(workdir.name)
        if len(asked) in asked.stop:
            return loop.RunOutcome(3, {}, signal.SIGTERM)
        if made.lr.base in asked.diverging:
            raise FloatingPointError("50 updates in a row were skipped")
        loss = made.lr.base + made.seed + asked.level
        last = {"step": 6, "n": 5, "mae_loss": loss, "table": [1]}
        result = {"metric": "mae_loss", "last": last}
        return loop.RunOutcome(6, {"reconstruction": result})

    monkeypatch.setattr(train, "run", stand_in)
    return asked


def names(**overrides):
    """The names of the points of `config`."""
    return [point.name for point in points(config(**overrides))]


def test_every_combination_is_a_run_of_the_recipe_with_these_values():
    listed = points(config())
    names = [p.name for p in listed]
    assert [name[:-8] for name in names] == STARTS and len(set(names)) == 4
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
    assert runs[3:] == names()[2:]
    run(config(grid=GRID.replace("seed=0,1", "seed=0,1,2")), tmp_path / "s")
    assert [name[:-9] for name in runs[5:]] == ["base0.1-seed2", "base0.2-seed2"]
    with pytest.raises(ValueError, match=r"recipe: .*mae_tiny:smoke.*mae_tiny:digits"):
        run(config(recipe="mae_tiny:digits"), tmp_path / "s")


def test_shards_share_the_points(runs, tmp_path, capsys):
    run(config(shard="1/2"), tmp_path / "s")
    assert runs == names()[::2]
    saved, _ = run(config(shard="2/2"), tmp_path / "s")
    assert len(runs) == 4 and len(saved["points"]) == 4
    run(config(), tmp_path / "s")  # all are finished
    assert len(runs) == 4 and names()[0] not in capsys.readouterr().out[-400:]


@pytest.mark.parametrize(
    "grid",
    [
        GRID.replace("steps=1", "steps=2"),  # a field of one value
        GRID.replace("; steps=1", ""),
        GRID.replace("lr.base", "optimizer.weight_decay"),
        GRID.replace("seed=0,1", "seed=2,3"),
    ],
)
def test_another_grid_in_the_same_directory_runs_its_own_points(grid, runs, tmp_path):
    run(config(), tmp_path / "s")
    saved, _ = run(config(grid=grid), tmp_path / "s")
    assert len(set(runs)) == 8 and len(saved["points"]) == 8


def test_fields_that_end_alike_are_different_points(runs, tmp_path):
    sizes = [f"objective.{part}.width=16; seed=0" for part in ("encoder", "decoder")]
    (one,), (other,) = (names(grid=size) for size in sizes)
    assert one != other
    run(config(grid=sizes[0]), tmp_path / "s")
    run(config(grid=sizes[1]), tmp_path / "s")
    assert runs == [one, other]


def test_a_field_that_gets_more_values_keeps_what_is_finished(runs, tmp_path):
    run(config(grid="seed=0; steps=1; lr.base=0.1"), tmp_path / "s")
    saved, _ = run(config(grid=GRID), tmp_path / "s")
    assert runs[0].startswith("run-") and runs[1:] == names()[1:]
    assert len(saved["points"]) == 4


def test_a_point_that_was_stopped_keeps_its_directory_in_a_larger_grid(runs, tmp_path):
    run(config(shard="1/4", grid="seed=0,1,2,3; steps=1"), tmp_path / "s")
    stopped = names(grid="seed=1; steps=1")[0]
    (tmp_path / "s/points" / stopped).mkdir()
    run(config(grid="seed=0,1; steps=1"), tmp_path / "s")
    assert runs[1:] == [stopped] and stopped.startswith("run-")


def test_a_point_that_diverges_has_no_results_and_ends_no_other(runs, tmp_path, capsys):
    runs.diverging = (0.2,)
    saved, ending = run(config(), tmp_path / "s")
    assert runs == names() and ending.signal is None
    assert ["results" in row for row in saved["points"]] == [True, True, False, False]
    shown = capsys.readouterr().out
    why = "failed: 50 updates in a row were skipped"
    assert all(f"point {name} {why}" in shown for name in names()[2:])
    assert "lr.base  runs  reconstruction mae_loss\n0.1      2 " in shown
    assert "0.2      " not in shown and "done: the finished points are in" in shown
    runs.diverging = ()  # the same command tries again
    saved, _ = run(config(), tmp_path / "s")
    assert runs[4:] == names()[2:]
    assert all("results" in row and "failed" not in row for row in saved["points"])
    runs.diverging = (0.3,)
    with pytest.raises(FloatingPointError, match=r"all 1 points failed, .* 50 updates"):
        run(config(grid="lr.base=0.3; steps=1"), tmp_path / "s")


def test_a_result_that_is_not_finite_is_none(runs, tmp_path, capsys):
    runs.level = float("inf")
    with pytest.raises(FloatingPointError, match="the last reconstruction is inf"):
        run(config(), tmp_path / "s")
    runs.level = 0.0
    saved, _ = run(config(), tmp_path / "s")
    assert len(runs) == 8 and all("results" in row for row in saved["points"])


@pytest.mark.parametrize("split", ["train", "test"])
def test_points_of_other_images_are_not_mixed(split, runs, tmp_path, image_folder):
    root = image_folder(train=8, test=4)
    about = f"data=folder,path={root},knn={root}"
    small = {"data.image_size": 8, "objective.encoder.patch_size": 2, "batch_size": 8}
    grid = "; ".join([GRID, *(f"{name}={value}" for name, value in small.items())])
    made = {"recipe": f"mae_tiny:{about}", "grid": grid}
    run(config(**made, shard="1/2"), tmp_path / "s")
    shutil.copy(root / split / "a/000.png", root / split / "a/999.png")
    with pytest.raises(ValueError, match=f"point {runs[0]} was run with other images"):
        run(config(**made), tmp_path / "s")
    run(config(**made), tmp_path / "new")
    assert len(runs) == 6


def test_every_point_is_checked_before_the_first_begins(runs, tmp_path):
    grid = "objective.encoder.patch_size=2,3; seed=0,1; steps=1"
    message = r"point 3 of 4 \(objective.encoder.patch_size=3; seed=0; steps=1\): .*3"
    with pytest.raises(ValueError, match=message):
        run(config(grid=grid), tmp_path / "s")
    assert not runs and not (tmp_path / "s").exists()
    for wrong in ("seed=0,-1", "data.cache=auto,foo", "steps_per_call=1,0"):
        with pytest.raises(ValueError, match=r"point 2 of 2 \(.*\): "):
            run(config(grid=f"steps=1; {wrong}"), tmp_path / "s")
    grid = "data.randaugment.layers=0,2; data.cache=device; steps=1"
    with pytest.raises(ValueError, match=r"point 2 of 2 \(.*RandAugment"):
        run(config(grid=grid), tmp_path / "s")
    assert not runs and not (tmp_path / "s").exists()
    made = config(recipe="evaluate:knn", grid="seed=0,1; init=/nowhere")
    with pytest.raises((ValueError, OSError), match="/nowhere"):
        run(made, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_point_that_another_process_works_on_is_left_to_it(
    runs, tmp_path, capsys, monkeypatch
):
    run(config(shard="1/4"), tmp_path / "s")
    directory = tmp_path / "s/points" / names()[1]
    with processes.working_in(directory) as end:
        run(config(shard="1/1"), tmp_path / "s")
        first = list(runs)
        monkeypatch.setattr(ledger.time, "sleep", lambda _: end.set())
        saved, _ = run(config(), tmp_path / "s")  # waits, and takes it over
    assert first == [names()[0], *names()[2:]]
    assert runs[3:] == names()[1:2] and len(saved["points"]) == 4
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
    ran = [row["name"].partition("-")[0] for row in saved["points"]]
    assert ran == ["seed0", "seed1"]
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
