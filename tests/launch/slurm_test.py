"""launch/slurm/train.sbatch, with an srun that runs the tasks here."""

import pathlib
import re

import pytest

from tests import processes

SCRIPT = pathlib.Path(__file__).parents[2] / "launch" / "slurm" / "train.sbatch"

TASK = """#!/usr/bin/env bash
echo "$SLURM_PROCID of $SLURM_NTASKS:" "$@"
exit "$FAILURE"
"""


@pytest.fixture
def submit(tmp_path):
    """(exit code of the tasks, arguments) -> (exit code of the job, what was said)."""

    def run(code, *arguments):
        return processes.sbatch(
            tmp_path, arguments, count=2, python=TASK, FAILURE=str(code)
        )

    return run


def test_every_task_gets_the_whole_command(submit):
    code, said = submit(0, "--config=c.py:smoke", "--workdir=a b")
    command = "main.py --config=c.py:smoke --workdir=a b"
    assert code == 0
    assert said == {str(task): f"{task} of 2: {command}\n" for task in (0, 1)}


def test_a_run_that_saved_on_sigterm_is_queued_again(submit):
    code, said = submit(42, "--config=c.py")
    assert code == 42
    assert re.fullmatch(r"requeue \d+\n", said["scontrol"])


@pytest.mark.parametrize("failure", [1, 2, 134])
def test_a_run_that_failed_is_not(failure, submit):
    code, said = submit(failure, "--config=c.py")
    assert code == failure and "scontrol" not in said


def test_tasks_are_told_before_the_time_is_over():
    options = re.findall(r"^#SBATCH (\S+)", SCRIPT.read_text(), re.M)
    assert "--requeue" in options and "--open-mode=append" in options
    [signal] = [o for o in options if o.startswith("--signal=")]
    seconds = re.fullmatch(r"--signal=TERM@(\d+)", signal)  # no B: the tasks get it
    assert int(seconds[1]) >= 60
