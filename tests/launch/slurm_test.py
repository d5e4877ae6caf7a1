"""launch/slurm/train.sbatch, with an srun that runs the tasks here."""

import os
import pathlib
import re
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "launch" / "slurm" / "train.sbatch"

# Two tasks, one after the other; as srun, it ends with the worst of their codes.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
worst=0
for task in 0 1; do
  SLURM_NTASKS=2 SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_STEP_NUM_NODES=1 \
    SLURM_STEP_NODELIST=localhost "$@"
  code=$?
  ((code > worst)) && worst=$code
done
exit $worst
"""
TASK = """#!/usr/bin/env bash
echo "$SLURM_PROCID of $SLURM_NTASKS:" "$@" >>"$LOG"
exit "$CODE"
"""
SCONTROL = '#!/bin/sh\necho "scontrol $*" >>"$LOG"\n'


@pytest.fixture
def submit(tmp_path):
    """(exit code of the tasks, arguments) -> (exit code of the job, its log)."""
    files = {"srun": SRUN, "scontrol": SCONTROL, "code/.venv/bin/python": TASK}
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def run(code, *arguments):
        env = os.environ | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "LOG": str(tmp_path / "log"),
            "CODE": str(code),
            "SLURM_JOB_ID": "4242",
            "SLURM_SUBMIT_DIR": str(tmp_path / "code"),
        }
        done = subprocess.run([SCRIPT, *arguments], env=env, timeout=30)
        return done.returncode, (tmp_path / "log").read_text().splitlines()

    return run


def test_every_task_gets_the_whole_command(submit):
    code, log = submit(0, "--config=c.py:smoke", "--workdir=a b")
    command = "main.py --config=c.py:smoke --workdir=a b"
    assert code == 0
    assert log == [f"{task} of 2: {command}" for task in (0, 1)]


def test_a_run_that_saved_on_sigterm_is_queued_again(submit):
    code, log = submit(42, "--config=c.py")
    assert code == 42
    assert log[2:] == ["scontrol requeue 4242"]


@pytest.mark.parametrize("failure", [1, 2, 134])
def test_a_run_that_failed_is_not(failure, submit):
    code, log = submit(failure, "--config=c.py")
    assert code == failure and len(log) == 2


def test_tasks_are_told_before_the_time_is_over():
    options = re.findall(r"^#SBATCH (\S+)", SCRIPT.read_text(), re.M)
    assert "--requeue" in options and "--open-mode=append" in options
    [signal] = [o for o in options if o.startswith("--signal=")]
    seconds = re.fullmatch(r"--signal=TERM@(\d+)", signal)  # no B: the tasks get it
    assert int(seconds[1]) >= 60
