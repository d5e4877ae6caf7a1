"""Several processes give what one gives, stop together, and never wait for the dead."""

import json
import signal

import jax
import numpy as np
import pytest

from litevit_jax import plugins, sharding
from litevit_jax.distributed import watchdog
from litevit_jax.jobs import train
from litevit_jax.warm_start import read
from tests import jobs, processes

LOGGED = {"log__every_steps": 1}
SMALLEST = "tests.smallest.recipe"  # of all runs whose objective does not matter
STEPS = jobs.config(SMALLEST).steps
SHARDED = {"mesh__fsdp": 4}  # two processes cannot save it without each other
METHODS = {
    "mae": ("mae_tiny", {"steps": 3, **SHARDED}),
    "moco": ("mocov3_tiny", {"steps": 3}),
    "distill": ("mae_tiny_distill", {"evals": {}, "steps": 3, **SHARDED}),
    # Images on the devices, divided over them; the length of calls is agreed on.
    "device": (
        "mae_tiny",
        {"data__cache": "device", "data__cache_gib": 2.8e-5, "evals": {}, "steps": 8},
    ),
}
LIMITS = {"stuck_s": 3600.0, "grace_s": 3600.0, "peer_s": 1800.0}  # of nobody here


def launch(folder, /, **plan):
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
def four_devices(tmp_path_factory):
    """One process here has as many devices as several have together.

    Those keep their programs for the others of this file.
    """
    make = sharding.make_mesh
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(plugins.VARIABLE, str(processes.ROOT / "tests" / "smallest"))
        programs = tmp_path_factory.mktemp("programs")
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(programs))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
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
def begun(tmp_path_factory):
    """Two processes of two devices each, at work."""
    folder = tmp_path_factory.mktemp("pair")
    pieces = {
        name: ("train", {"name": recipe, "workdir": str(folder / name), **LOGGED,
            **overrides}
            | ({"teacher": jobs.teacher()} if name == "distill" else {}))
        for name, (recipe, overrides) in METHODS.items()
    }  # fmt: skip
    pieces["rows"] = ("rows", {"workdir": str(folder / "rows")})
    stop = {"name": SMALLEST, "process": 1, "at_batch": 5, **SHARDED}
    pieces["stopped"] = ("stopped", {"workdir": str(folder / "stopped"), **stop})
    early = {"name": SMALLEST, "workdir": str(folder / "early")}
    pieces["early"] = ("early", early | SHARDED)
    pieces["unshared"] = ("unshared", {"folder": str(folder)})
    pieces["bad"] = ("bad_data", {"workdir": str(folder / "bad"), **stop})
    job = launch(folder, folder=str(folder), pieces=pieces, limits=LIMITS, late_clock=1)
    job.folder = folder
    yield job
    job.kill()


@pytest.fixture(scope="module")
def alone(tmp_path_factory, shared_designs, begun):
    """The folder of the same runs in one process, while the others are at work."""
    folder = tmp_path_factory.mktemp("alone")
    for name, (recipe, overrides) in METHODS.items():
        train.run(jobs.tiny(recipe, **LOGGED, **overrides), folder / name)
    return folder


@pytest.fixture(scope="module")
def smallest(tmp_path_factory, shared_designs):
    """The smallest run in one process, which nothing interrupts."""
    folder = tmp_path_factory.mktemp("smallest")
    train.run(jobs.config(SMALLEST), folder)
    return folder


@pytest.fixture(scope="module")
def pair(begun, alone):
    """What the two processes did; the last piece of work ended them."""
    begun.codes = begun.end()
    return begun


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
    stream = train.prepare(jobs.config(SMALLEST), tmp_path).stream(0)
    whole = [next(stream)["index"].tolist() for _ in range(2)]
    stream.close()
    both = found(pair, "rows")
    for number, batch in enumerate(whole):
        half = len(batch) // 2
        for process, its in enumerate(both):
            assert its["read"][number] == batch[process * half :][:half]
            for start, index in its["placed"][number].items():
                assert index == batch[int(start) :][: len(index)]


def test_sigterm_of_one_stops_all_at_a_step_that_one_process_goes_on_from(
    pair, smallest
):
    first, second = found(pair, "stopped")
    assert first == second and first["signal"] == signal.SIGTERM
    assert 0 < first["step"] < STEPS
    workdir = pair.folder / "stopped"
    assert read.read_params(str(workdir)).step == first["step"]
    outcome = train.run(jobs.config(SMALLEST), workdir)
    assert outcome.signal is None
    assert_same_run(workdir, smallest, steps=STEPS)


def test_the_first_process_decides_for_all_when_a_run_ends_early(pair):
    assert found(pair, "early") == [{"step": 8, "best": 4}] * 2
    names = sorted(p.name for p in (pair.folder / "early" / "checkpoints").iterdir())
    assert names == ["4", "8"]


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


def command(folder, name, happens, **watchdog_limits):
    """main.py in two processes; `happens` is (batch, process, signal), or None in place
    of a signal: the process waits for ever."""
    (place := folder / name).mkdir()
    limits = (f"--config.watchdog.{k}={v}" for k, v in watchdog_limits.items())
    arguments = ["--config=tests/smallest/recipe.py", "--config.mesh.fsdp=4"]
    arguments += [f"--workdir={folder / 'run'}", *limits]
    return launch(place, command=arguments, happens=happens)


def test_a_stuck_process_ends_all_with_the_stacks(tmp_path):
    job = command(tmp_path, "stuck", (6, 1, None), stuck_s=20, peer_s=1800)
    assert job.end() == [watchdog.EXIT_STUCK] * 2, job.everything()
    for index in (0, 1):
        assert "did not get on for" in job.said(index)
        assert "most recent call first" in job.said(index)
    assert "process 1" in job.said(0) and "data of step" in job.said(0)


def test_a_suspended_first_process_ends_the_other(tmp_path):
    """Though what all say is kept by the first, and does not answer any more."""
    job = command(tmp_path, "suspended", (6, 0, signal.SIGSTOP), peer_s=20)
    try:
        code = job.processes[1].wait(timeout=processes.PATIENCE_S)
    finally:
        job.kill()
    assert code == watchdog.EXIT_STUCK, job.everything()
    assert "process 0 (" in job.said(1) and "was not heard of for" in job.said(1)


def test_a_killed_process_ends_the_other_and_the_job_goes_on(tmp_path, smallest):
    workdir = tmp_path / "run"
    job = command(tmp_path, "killed", (10, 1, signal.SIGKILL), peer_s=20)
    codes = job.end()
    assert codes == [watchdog.EXIT_STUCK, -signal.SIGKILL], job.everything()
    assert "process 1 (" in job.said(0) and "was not heard of for" in job.said(0)
    assert "most recent call first" in job.said(0)

    # Batches are read ahead: the first few while the step is compiled, during which
    # a signal would end the run unless the machine is quick.
    job = command(tmp_path, "stopped", (8, 0, signal.SIGTERM), peer_s=1800)
    assert job.end() == [42, 42], job.everything()
    assert "resuming at step " in job.said(0)
    assert "stopped by SIGTERM; saved step" in job.said(0)
    assert job.said(1).count("saved step") == 0

    assert max(losses(workdir)) < STEPS
    train.run(jobs.config(SMALLEST), workdir)
    assert_same_run(workdir, smallest, steps=STEPS, rel=1e-5)


def test_four_tasks_of_the_slurm_script_give_the_losses_of_one(tmp_path, smallest):
    workdir = tmp_path / "run"
    arguments = ["--config=tests/smallest/recipe.py", f"--workdir={workdir}"]
    code, said = processes.sbatch(tmp_path, arguments, count=4, JAX_NUM_CPU_DEVICES="1")
    assert code == 0, said
    assert "4 CPU devices" in said["0"]
    assert_same_run(workdir, smallest, steps=STEPS)
