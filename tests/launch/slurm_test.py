"""launch/slurm/train.sbatch, with an srun that runs the tasks here."""

import pathlib
import re

import pytest

from tests import processes

SCRIPT = pathlib.Path(__file__).parents[2] / "launch" / "slurm" / "train.sbatch"

TASK = """#!/usr/bin/env bash
echo "$SLURM_PROCID of $SLURM_NTASKS:" "$@"
echo "$JAX_PLATFORMS" >"$LOGS-platforms.txt"
codes=($FAILURE)
exit "${codes[SLURM_PROCID]:-${codes[0]}}"
"""


@pytest.fixture
def submit(tmp_path):
    """(exit codes of the tasks, arguments) -> (exit code of the job, what was said)."""

    def run(codes, *arguments, **environment):
        return processes.sbatch(
            tmp_path, arguments, count=2, python=TASK, FAILURE=str(codes), **environment
        )

    return run


def test_every_task_gets_the_whole_command(submit):
    code, said = submit(0, "--config=c.py:smoke", "--workdir=a b")
    command = "main.py --config=c.py:smoke --workdir=a b"
    assert code == 0 and "scontrol" not in said
    for task in ("0", "1"):
        assert said[task] == f"{task} of 2: {command}\n"


@pytest.mark.parametrize(("codes", "code"), [("42", 42), ("43", 43), ("42 43", 43)])
def test_a_run_that_can_go_on_is_queued_again(codes, code, submit):
    """Saved after SIGTERM, or a process was gone: srun gives the highest code."""
    ended, said = submit(codes, "--config=c.py", SLURM_RESTART_COUNT="99")
    assert ended == code
    assert re.fullmatch(r"requeue \d+\n", said["scontrol"])


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_RESTART_COUNT": "100"},
        {"SLURM_RESTART_COUNT": "2", "LITEVIT_RESTARTS": "2"},
        {"STATE": "CANCELLED"},
        {"STATE": "COMPLETING"},
    ],
    ids=str,
)
@pytest.mark.parametrize("code", [42, 43])
def test_but_not_for_ever_nor_against_the_will_of_its_user(code, environment, submit):
    ended, said = submit(code, "--config=c.py", **environment)
    assert ended == code and "scontrol" not in said


@pytest.mark.parametrize("failure", [1, 2, 134])
def test_a_run_that_failed_is_not(failure, submit):
    code, said = submit(failure, "--config=c.py")
    assert code == failure and "scontrol" not in said


def options():
    return re.findall(r"^#SBATCH (\S+)", SCRIPT.read_text(), re.M)


def test_every_task_sees_all_gpus_of_its_node(submit):
    """One for each; JAX takes the one with the task's own number."""
    given = dict(option.lstrip("-").partition("=")[::2] for option in options())
    assert given["gpus-per-node"] == given["ntasks-per-node"]
    assert "gpus-per-task" not in given
    _, said = submit(0, "--config=c.py")
    assert "--gpu-bind=none" in said["srun"].splitlines()


def test_the_cpus_of_a_task_reach_it(submit):
    """Since Slurm 22.05 srun does not take them from sbatch."""
    assert "--cpus-per-task=8" in options()
    _, said = submit(0, "--config=c.py", SLURM_CPUS_PER_TASK="8")
    assert "--cpus-per-task=8" in said["srun"].splitlines()


@pytest.mark.parametrize(
    ("given", "expected"), [("", "cuda,cpu"), ("rocm,cpu", "rocm,cpu")]
)
def test_tasks_ask_for_gpus(given, expected, submit):
    _, said = submit(0, "--config=c.py", JAX_PLATFORMS=given)
    assert said["platforms"] == f"{expected}\n"


def test_tasks_are_told_before_the_time_is_over():
    assert "--requeue" in options() and "--open-mode=append" in options()
    [signal] = [o for o in options() if o.startswith("--signal=")]
    seconds = re.fullmatch(r"--signal=TERM@(\d+)", signal)  # no B: the tasks get it
    assert int(seconds[1]) >= 60
