"""Several processes give what one gives, stop together, and never wait for the dead."""

import json
import signal

import jax
import numpy as np
import pytest

from litevit_jax import sharding
from litevit_jax.distributed import watchdog
from litevit_jax.jobs import train
from litevit_jax.warm_start import read
from tests import jobs, processes

STEPS = 3
LOGGED = {"log__every_steps": 1}
METHODS = {  # the first has the program of the run that is stopped
    "mae": ("mae_tiny", {"mesh__fsdp": 4, "steps": 12}),
    "moco": ("mocov3_tiny", {"steps": STEPS}),
    "distill": ("mae_tiny_distill", {"mesh__fsdp": 4, "evals": {}, "steps": STEPS}),
}
STOPPED = {"steps": 12, "checkpoint__every_steps": 100, "evals": {}, **LOGGED}
LIMITS = {"stuck_s": 3600.0, "grace_s": 3600.0, "peer_s": 1800.0}  # of nobody here


def launch(folder, pieces, *, limits=LIMITS, **plan):
    plan |= {"folder": str(folder), "pieces": pieces, "limits": limits}
    path = folder / "plan.json"
    path.write_text(json.dumps(plan))
    arguments = ["tests/job_program.py", str(path)]
    return processes.Job(arguments, folder / "log")


def losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines if line.endswith("}")]
    return {row["step"]: row["loss"] for row in found if "loss" in row}


def params(workdir):
    return read.read_params(str(workdir)).params


def assert_same_run(workdir, like, *, steps, rel=1e-6, undetermined=()):
    got, want = losses(workdir), losses(like)
    assert sorted(got) == sorted(want) == list(range(1, steps + 1))
    for step, loss in want.items():
        assert got[step] == pytest.approx(loss, rel=rel, abs=rel), step
    found, wanted = params(workdir), params(like)
    assert found.keys() == wanted.keys()
    for name in wanted.keys() - undetermined:
        np.testing.assert_allclose(
            _determined(name, found[name]),
            _determined(name, wanted[name]),
            rtol=100 * rel,
            atol=20 * rel,
            err_msg=name,
        )


def _determined(name, value):
    """`value` without the bias of keys: softmax cancels it, its gradient is nothing but
    rounding, and Adam makes steps of full size of it."""
    if not name.endswith("attn/qkv/bias"):
        return value
    query, _, values = np.split(value, 3)
    return np.concatenate([query, values])


@pytest.fixture(autouse=True, scope="module")
def four_devices():
    """One process here has as many devices as several have together."""
    make = sharding.make_mesh
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "_MIN_SHARDED_SIZE", 64)  # as in job_program.py
        patch.setattr(
            sharding,
            "make_mesh",
            lambda data=-1, fsdp=1, devices=None: make(
                data, fsdp, (devices or jax.devices())[:4]
            ),
        )
        yield


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of the same runs in one process."""
    folder = tmp_path_factory.mktemp("alone")
    for name, (recipe, overrides) in METHODS.items():
        made = jobs.tiny(recipe, **LOGGED, **overrides)
        train.run(made, folder / name)
    train.run(jobs.tiny(**STOPPED), folder / "stopped")
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What two processes of two devices each did; the last piece ended them."""
    folder = tmp_path_factory.mktemp("pair")
    pieces = {
        name: ("train", {"name": recipe, "workdir": str(folder / name), **LOGGED,
            **overrides}
            | ({"teacher": jobs.teacher()} if name == "distill" else {}))
        for name, (recipe, overrides) in METHODS.items()
    }  # fmt: skip
    stopped = str(folder / "stopped")
    pieces["rows"] = ("rows", {"workdir": str(folder / "rows")})
    stop = {"process": 1, "at_step": 5, "mesh__fsdp": 4, **STOPPED}
    pieces["stopped"] = ("stopped", {"workdir": stopped, **stop})
    pieces["unshared"] = ("unshared", {"folder": str(folder)})
    pieces["bad"] = ("bad_data", {"workdir": str(folder / "bad"), **stop})
    job = launch(folder, pieces, late_clock=1)
    job.codes, job.folder = job.end(), folder
    return job


def found(job, piece):
    """What each process wrote of a piece of work."""
    assert (job.folder / f"{piece}-0.json").exists(), job.everything()
    return [
        json.loads((job.folder / f"{piece}-{i}.json").read_text()) for i in job.logs
    ]


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_give_the_losses_and_parameters_of_one(name, pair, alone):
    steps = METHODS[name][1]["steps"]
    assert found(pair, name) == [{"step": steps, "signal": None}] * 2
    # BatchNorm behind the encoder's end cancels its bias, as softmax those of keys.
    undetermined = {"encoder/norm/bias"} if name == "moco" else set()
    assert_same_run(
        pair.folder / name, alone / name, steps=steps, undetermined=undetermined
    )


@pytest.mark.parametrize("name", ["mae", "moco"])
def test_two_processes_record_the_evaluations_of_one_once(name, pair, alone):
    found(pair, name)
    (title,) = [p.name for p in (alone / name / "evals").iterdir()][:1]
    got, want = (
        json.loads((place / name / "evals" / title / "result.json").read_text())
        for place in (pair.folder, alone)
    )
    assert len(got["history"]) == len(want["history"])
    same = got["metric"]
    assert got["last"]["n"] == want["last"]["n"]
    assert got["last"][same] == pytest.approx(want["last"][same], rel=1e-4)
    starts = (pair.folder / name / "environment.jsonl").read_text().splitlines()
    assert len(starts) == 1


def test_each_process_reads_its_own_contiguous_rows(pair, tmp_path):
    stream = train.prepare(jobs.tiny(), tmp_path).stream(0)
    whole = [next(stream)["index"].tolist() for _ in range(2)]
    stream.close()
    both = found(pair, "rows")
    for number, batch in enumerate(whole):
        half = len(batch) // 2
        for process, its in enumerate(both):
            assert its["read"][number] == batch[process * half :][:half]
            for start, index in its["placed"][number].items():
                assert index == batch[int(start) :][: len(index)]


def test_sigterm_of_one_stops_all_at_a_step_that_one_process_goes_on_from(pair, alone):
    first, second = found(pair, "stopped")
    assert first == second and first["signal"] == signal.SIGTERM
    assert 0 < first["step"] < STOPPED["steps"]
    workdir = pair.folder / "stopped"
    assert read.read_params(str(workdir)).step == first["step"]
    outcome = train.run(jobs.tiny(**STOPPED), workdir)
    assert outcome.signal is None
    assert_same_run(workdir, alone / "stopped", steps=STOPPED["steps"])


def test_a_workdir_that_is_not_shared_is_refused_by_all(pair):
    first, second = found(pair, "unshared")
    assert first == second.replace("own-1", "own-0")
    assert "not seen by process 1: it is a directory of each host's own" in first


def test_a_late_clock_is_named_and_changes_nothing_else(pair):
    said = pair.said(0)
    assert "the clock of process 1 (" in said and "-3600 s off" in said
    assert "the clock of" not in pair.said(1)


def test_bad_data_of_one_process_end_all_with_its_code(pair):
    assert pair.codes == [2, 2], pair.everything()
    assert "7 of 9 examples cannot be read" in pair.said(1)
    assert "process 1 (" in pair.said(0) and ") ended: 7 of 9 exam" in pair.said(0)


def test_a_stuck_process_ends_all_with_the_stacks(tmp_path):
    limits = LIMITS | {"stuck_s": 20.0}
    # The same program as that of the pair's run: it is compiled already.
    piece = {"workdir": str(tmp_path / "run"), "process": 1, "at_step": 6,
        "mesh__fsdp": 4, **STOPPED}  # fmt: skip
    job = launch(tmp_path, {"stuck": ("stuck", piece)}, limits=limits)
    assert job.end() == [watchdog.EXIT_STUCK] * 2, job.everything()
    for index in (0, 1):
        assert "did not get on for" in job.said(index)
        assert "most recent call first" in job.said(index)
    assert "process 1" in job.said(0) and "data of step" in job.said(0)


COMMAND = [
    *("main.py", "--config=configs/mae_tiny.py:smoke", "--config.steps=30"),
    "--config.checkpoint.every_steps=2",
    "--config.log.every_steps=1",
    "--config.log.health=false",
    "--config.log.tensorboard=false",
    "--config.evals.reconstruction.every_steps=0",
    "--config.watchdog.peer_s=20",
    "--config.objective.encoder.width=24",
    "--config.objective.encoder.depth=1",
    "--config.objective.encoder.num_heads=2",
    "--config.objective.decoder.width=16",
    "--config.objective.decoder.num_heads=2",
]


def test_four_tasks_of_the_slurm_script_give_the_losses_of_one(tmp_path, alone):
    workdir = tmp_path / "mae"
    steps = f"--config.steps={METHODS['mae'][1]['steps']}"
    arguments = [*COMMAND[1:], steps, f"--workdir={workdir}"]
    code, said = processes.sbatch(tmp_path, arguments, count=4, JAX_NUM_CPU_DEVICES="1")
    assert code == 0, said
    assert "4 CPU devices" in said["0"]
    assert_same_run(workdir, alone / "mae", steps=METHODS["mae"][1]["steps"])


def test_a_suspended_first_process_ends_the_other(tmp_path):
    """Though what all say is kept by the first, and does not answer any more."""
    workdir = tmp_path / "run"
    job = processes.Job([*COMMAND, f"--workdir={workdir}"], tmp_path / "said")
    job.until((workdir / "checkpoints" / "4").exists)
    job.signal(0, signal.SIGSTOP)
    try:
        code = job.processes[1].wait(timeout=processes.PATIENCE_S)
    finally:
        job.kill()
    assert code == watchdog.EXIT_STUCK, job.everything()
    assert "process 0 (" in job.said(1) and "was not heard of for" in job.said(1)


def test_a_killed_process_ends_the_other_and_the_job_goes_on(tmp_path):
    workdir, like = tmp_path / "run", tmp_path / "like"
    command = [*COMMAND, f"--workdir={workdir}"]

    def reached(step):
        there = (workdir / "metrics.jsonl").exists()
        return there and max(losses(workdir), default=0) >= step

    job = processes.Job(command, tmp_path / "killed")
    job.until((workdir / "checkpoints" / "2").exists)
    job.until(lambda: reached(4))
    job.signal(1, signal.SIGKILL)
    codes = job.end()
    assert codes == [watchdog.EXIT_STUCK, -signal.SIGKILL], job.everything()
    assert "process 1 (" in job.said(0) and "was not heard of for" in job.said(0)
    assert "most recent call first" in job.said(0)

    before = max(losses(workdir))
    job = processes.Job(command, tmp_path / "stopped")
    job.until(lambda: reached(before + 1))
    job.signal(0, signal.SIGTERM)
    assert job.end() == [42, 42], job.everything()
    assert "stopped by SIGTERM; saved step" in job.said(0)
    assert job.said(1).count("saved step") == 0

    made = {"steps": 30, "evals__reconstruction__every_steps": 0, **LOGGED}
    train.run(jobs.tiny(**made), workdir)
    train.run(jobs.tiny(**made), like)
    assert_same_run(workdir, like, steps=30, rel=1e-5)
