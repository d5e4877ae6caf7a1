"""Exit codes: what is the user's to mend ends with 2, what a machine does with 1."""

import ast
import builtins
import errno
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import jax
import pytest
from absl import flags

from litevit_jax import checkpoint, cli, distributed, exits, paths, preemption
from litevit_jax.data import decode, filetree, pipeline
from litevit_jax.data.sources import base
from litevit_jax.distributed import detect, meeting, watchdog
from litevit_jax.jobs import train
from litevit_jax.train import lock
from litevit_jax.weights import base as weights

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "litevit_jax"

# ml_collections loads recipes in a way that Python will drop.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    """An empty directory, and an environment that says nothing."""
    for name in ("TFDS_DATA_DIR", *detect.VARIABLES.values()):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
    (tmp_path / "file").write_text("no run, no image, no weights")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("kept")


def run(*arguments):
    """The exit code of a command."""
    argv = ["main.py", *arguments]
    cli.define(values := flags.FlagValues(), argv)
    try:
        cli.parse(argv, values)
        return cli.run(argv, values)
    except SystemExit as error:
        return error.code


LONG = "x" * 300
SMOKE, TUNE = "--config=mae_tiny:smoke", "--config=finetune:smoke"
# Every kind of mistake, where it is found: command and what the message must name.
REFUSED = {
    # The command.
    "no recipe": ([], "--config is missing"),
    "misspelt recipe": (["--config=mae_tny"], "did you mean mae_tiny"),
    "misspelt field": ([SMOKE, "--config.sed=1"], "did you mean seed"),
    "no number": ([SMOKE, "--config.seed=one"], "expected a whole number"),
    "plan": ([SMOKE, "--plan=v99-8"], "v99-8"),
    "plan of no training": (["--config=convert", "--plan=cpu"], "--plan=cpu"),
    "plan's file": ([SMOKE, "--plan=cpu", "--plan_out=no/x.json"],
        "--plan_out=no/x.json"),
    "processes": ([SMOKE, "--process_id=3"], "process"),
    "time to join": ([SMOKE, "--join_timeout_s=nan"], "--join_timeout_s=nan"),
    # The config.
    "bound": ([SMOKE, "--config.lr.base=nan"], "--config.lr.base=nan"),
    "job": ([SMOKE, "--config.job=trian"], "did you mean train"),
    "model": ([SMOKE, "--config.objective.encoder.variant=tinny"],
        "did you mean tiny"),
    "warm-up": (["--config=mae_tiny:digits", "--config.epochs=2"], "warmup_epochs=0.2"),
    # Data that are not there, or are something else.
    "no folder": (["--config=mae_tiny:smoke,data=folder,path=nope"], "nope"),
    "file for a folder": (["--config=mae_tiny:smoke,data=folder,path=file"], "file"),
    "empty folder": (["--config=mae_tiny:smoke,data=folder,path=other"], "no image"),
    "long path": ([f"--config=mae_tiny:smoke,data=folder,path={LONG}"], "xxxx"),
    "no arrays": (["--config=mae_tiny:smoke,data=arrays,path=nope.npz"], "nope.npz"),
    "no packed set": (["--config=mae_tiny:smoke,data=packed,path=nope"], "nope"),
    "no tars": (["--config=mae_tiny:smoke,data=tar,path=nope"], "nope"),
    "no ImageNet": (["--config=mae_tiny:imagenet2012"], "imagenet2012"),
    # Runs and weights that are not there, or are something else.
    "no init": ([TUNE, "--config.init=nope"], "nope"),
    "init of text": ([TUNE, "--config.init=file"], "file"),
    "init that is no run": ([TUNE, "--config.init=other"], "other"),
    "long init": ([TUNE, f"--config.init={LONG}"], "xxxx"),
    "no teacher": (["--config=mae_tiny_distill:smoke", "--config.teacher=nope"],
        "--config.teacher=nope"),
    "no like": (["--config=linear_probe", "--config.init=random", "--config.like=nope"],
        "--config.like=nope"),
    "nothing to evaluate": (["--config=evaluate", "--config.init=nope"], "nope"),
    "nothing to transfer": (["--config=transfer:smoke", "--config.init=nope"], "nope"),
    "no models": (["--config=analysis", "--config.models=a=nope"], "nope"),
    "no run": (["--config=analysis:report", "--config.models=nope"], "nope"),
    "no probe": (["--config=analysis:advice", "--config.models=other"], "other"),
    "nothing to study": (["--config=layer_study:smoke", "--config.init=nope"], "nope"),
    "no source": (["--config=convert", "--config.source=nope",
        "--config.target=x.safetensors"], "--config.source=nope"),
    "target's format": (["--config=convert", "--config.source=other",
        "--config.target=x.bin"], "--config.target=x.bin"),
    # Places that cannot be written.
    "workdir is a file": ([SMOKE, "--workdir=file"], "--workdir=file"),
    "workdir in a file": ([SMOKE, "--workdir=file/x"], "--workdir=fi"),
    "workdir of others": ([SMOKE, "--workdir=other"], "thesis.tex"),
    "long workdir": ([SMOKE, f"--workdir={LONG}"], "--workdir=xxxx"),
    "unknown store": ([SMOKE, "--workdir=s4://b/x"], "s4"),
}  # fmt: skip


@pytest.mark.usefixtures("no_steps")
@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_of_the_user_is_one_message_and_exit_code_2(
    name, capsys, monkeypatch
):
    arguments, names = REFUSED[name]
    monkeypatch.setattr(cli, "prepare_cpu", lambda config: None)
    assert run(*arguments) == exits.USAGE
    err = capsys.readouterr().err
    assert err.startswith("error: ") and names in err
    assert "Traceback" not in err
    assert not pathlib.Path("runs").exists()


def raised(error, cause=None) -> Any:
    """`error`, as if a module of ours had raised it."""
    code = compile("raise error from cause", str(PACKAGE / "data" / "x.py"), "exec")
    try:
        exec(code, {"error": error, "cause": cause})
    except Exception as caught:
        return caught


def failed(call, *arguments) -> Any:
    """What `call` raises."""
    try:
        call(*arguments)
    except Exception as caught:
        return caught


DISK = OSError(errno.EIO, "Input/output error", "w/x")
FULL = OSError(errno.ENOSPC, "No space left on device", "w/x")


@pytest.mark.parametrize(
    ("error", "begun", "code", "is_message"),
    [
        (raised(ValueError("of ours")), False, exits.USAGE, True),
        (raised(pipeline.BadDataError("too many")), True, exits.USAGE, True),
        (raised(FileNotFoundError("no run there")), False, exits.USAGE, True),
        (raised(FileNotFoundError("gone")), True, exits.FAILED, True),
        (raised(OSError("cannot be written"), PermissionError()), False, 2, True),
        (raised(OSError("cannot be written"), FULL), False, exits.FAILED, True),
        (raised(OSError("cannot be read"), TimeoutError()), False, exits.FAILED, True),
        (raised(RuntimeError("a worker was killed")), True, exits.FAILED, True),
        (raised(FloatingPointError("loss is nan")), True, exits.FAILED, True),
        (raised(meeting.Absent("process 1")), False, exits.FAILED, True),
        (raised(ModuleNotFoundError("pip install")), False, exits.USAGE, True),
        (raised(TypeError("an objective of yours")), False, exits.USAGE, True),
        (failed(open, "nope"), False, exits.USAGE, True),
        (failed(open, "nope"), True, exits.FAILED, True),
        (DISK, False, exits.FAILED, True),
        (FULL, True, exits.FAILED, True),
        (failed(int, "x"), False, exits.FAILED, False),  # not in a file of ours
        (failed(exits.classify, 1), True, exits.FAILED, False),  # a bug
    ],
)
def test_what_a_machine_does_ends_with_1_and_what_a_user_can_mend_with_2(
    error, begun, code, is_message
):
    assert exits.classify(error, begun=begun) == (code, is_message)


def test_an_error_in_our_code_that_nobody_raised_is_a_bug_once_work_has_begun():
    code = compile("int('x')", str(PACKAGE / "data" / "x.py"), "exec")
    error = failed(exec, code)
    assert exits.classify(error, begun=True) == (exits.FAILED, False)


def test_a_device_without_room_is_told_with_the_settings_that_help(capsys):
    text = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 GiB.\n+ stacks"
    error = jax.errors.JaxRuntimeError(text)
    assert exits.report(error, begun=True) == exits.USAGE
    said = capsys.readouterr().err
    assert said.startswith("error: a device ran out of memory (RESOURCE_EXHAUSTED: Out")
    assert "--config.microbatch=N" in said and "--config.remat=True" in said
    assert "stacks" not in said and said.count("\n") == 1


def test_a_recipe_of_yours_without_a_field_is_told_which(capsys):
    recipe = "from ml_collections import ConfigDict\n"
    recipe += "def get_config(arg=None):\n    return ConfigDict({'name': 'mine'})\n"
    pathlib.Path("mine.py").write_text(recipe)
    assert run("--config=mine.py") == exits.USAGE
    assert capsys.readouterr().err == (
        "error: the config has no field 'job'; see what configs/common.py sets\n"
    )


# Exceptions that the package raises -> exit code of what is raised before work begins.
CODES: dict[int, tuple[str, ...]] = {
    exits.USAGE: (
        *("ValueError", "KeyError", "ModuleNotFoundError", "OSError"),
        "TypeError",
        *("FileNotFoundError", "FileExistsError", "NotADirectoryError"),
        *("PermissionError", "IsADirectoryError"),
        *("BadDataError", "CorruptCheckpoint", "DecodeError", "WeightsError"),
        *("AnnotationError", "NoRegularFile", "TakenError"),
    ),
    exits.FAILED: ("RuntimeError", "FloatingPointError", "MemoryError", "IndexError"),
}
CODES[exits.FAILED] += ("Absent", "WorkerError")
# What ends otherwise: a signal (preemption_test), and a ValueError with more to say.
HANDLED = ("AttributeError", "NoTestSplit", "Stopped", "SystemExit", "TooLargeError")
OURS = (base, pipeline, checkpoint, decode, filetree, weights, meeting, lock)


def test_every_exception_that_the_package_raises_has_an_exit_code():
    known = {name: code for code, names in CODES.items() for name in names}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                name = ast.unparse(node.exc.func).rpartition(".")[2]
                if name[:1].isupper() and name not in HANDLED:
                    assert name in known, f"{path}: {name} has no exit code"
    for name, code in known.items():
        home = next((module for module in OURS if hasattr(module, name)), builtins)
        error = raised(getattr(home, name)("why"))
        assert exits.classify(error, begun=False)[0] == code, name


def test_the_readme_has_a_row_for_every_exit_code():
    text = (ROOT / "README.md").read_text()
    rows = {int(row) for row in re.findall(r"(?m)^\| (\d+) \|", text)}
    codes = {
        exits.OK,
        exits.FAILED,
        exits.USAGE,
        preemption.PREEMPTED,
        preemption.INTERRUPTED,
    }
    assert rows == codes | {watchdog.EXIT_STUCK}


def test_a_run_that_had_begun_ends_with_1_where_its_disk_is_gone(monkeypatch, capsys):
    def trained(config, workdir, **_):
        distributed.heartbeat("step 1")
        paths.append(pathlib.Path("gone") / "metrics.jsonl", b"{}")

    monkeypatch.setattr(train, "run", trained)
    assert run("--config=mae_tiny:smoke") == exits.FAILED
    assert "gone/metrics.jsonl" in capsys.readouterr().err
    missing = pathlib.Path("gone/x")
    monkeypatch.setattr(train, "run", lambda *_, **__: missing.stat())
    assert run("--config=mae_tiny:smoke") == exits.USAGE
    assert "gone/x" in capsys.readouterr().err


def test_the_program_itself_ends_with_the_code_from_any_directory(tmp_path):
    command = [sys.executable, str(ROOT / "main.py"), "--config=finetune:smoke"]
    command += ["--config.init=nope"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == exits.USAGE
    assert "nope: no run directory there" in done.stderr
    assert "Traceback" not in done.stderr
