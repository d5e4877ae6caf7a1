"""The report as JSON and text, from the command line."""

import json
import pathlib

import pytest
from absl import flags
from ml_collections import config_flags

from litevit_jax import cli
from litevit_jax.plan import examples, report
from tests import jobs

ROOT = pathlib.Path(__file__).parents[2]
MAE = f"--config={ROOT}/configs/mae_tiny.py"
SMALL = (
    "--config.objective.encoder.depth=1",
    "--config.objective.encoder.width=24",
    "--config.objective.encoder.num_heads=2",
)

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture(autouse=True)
def somewhere_without_data(tmp_path, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def run(*arguments):
    argv = ["main.py", *arguments]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=argv)
    for name in ("workdir", "plan", "plan_out"):
        flags.DEFINE_string(name, None, "", flag_values=values)
    cli.parse(argv, values)
    return cli.run(argv, values)


def test_a_plan_is_printed_and_written_and_no_run_is_begun(tmp_path, capsys):
    arguments = (f"{MAE}:smoke", *SMALL, "--plan=cpu-4", "--plan_out=plan.json")
    assert run(*arguments) == 0
    output = capsys.readouterr().out
    numbers = json.loads((tmp_path / "plan.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    assert "mae_tiny-digits-smoke on cpu-4: 4 x CPU, mesh data=4 x fsdp=1" in output
    assert numbers["mesh"] == {"data": 4, "fsdp": 1}
    assert (numbers["batch_size"], numbers["batch_per_chip"]) == (32, 8)
    assert numbers["lr_peak"] == pytest.approx(numbers["lr_base"] * 32 / 256)
    assert (numbers["total_steps"], numbers["estimate"]) == (6, None)
    assert "6 = 0.1335 epochs of 44.9, warm-up" in output and "no peak rates" in output
    state = numbers["state_bytes_per_chip"]
    assert numbers["checkpoint_bytes"] == state  # one mesh axis: all on each device
    assert numbers["flops"] > 0
    summed = numbers["collectives"]["all-reduce"]["bytes"]
    assert summed == pytest.approx(numbers["gradient_bytes"], rel=0.1)
    # Health has collectives of its own, in a branch that logged steps alone take.
    assert numbers["collectives_at_logged_steps"]["all-reduce"]["count"]


def test_epochs_of_whole_batches_are_named_beside_passes():
    imagenet = {"steps_per_epoch": 312.0, "epochs": 400.0, "batch_size": 4096}
    imagenet |= {"total_steps": 124_800, "train_examples": 1_281_167}
    assert report._epochs(imagenet) == (
        "400 epochs of 312 (whole batches, as the recipe counts: 399 passes)"
    )
    small = {"steps_per_epoch": 0.1875, "epochs": 400.0, "batch_size": 256}
    small |= {"total_steps": 75, "train_examples": 48}
    assert report._epochs(small) == "400 epochs of 0.2"


def test_imagenet_need_not_be_here_to_be_planned_for():
    data = jobs.config("mae_tiny", "").data
    source, origin = examples.source(data)
    assert origin == "known"
    assert (len(source("train")), len(source("train").classes)) == (1_281_167, 1000)


@pytest.mark.parametrize("field", ["select", "eval"])
def test_parts_of_data_that_are_not_here_are_not_guessed(field):
    data = jobs.config("mae_tiny", "", **{f"data__holdout__{field}": 0.1}).data
    with pytest.raises(ValueError, match=r"imagenet2012 is not here.*data\.dir=DIR"):
        examples.source(data)


MISTAKES = {
    "topology": (
        [f"{MAE}:smoke", "--plan=v5e-7"],
        "--plan=v5e-7: no such topology; choose from cpu",
    ),
    "batch": (
        [f"{MAE}:smoke", "--plan=cpu-4", "--config.batch_size=6"],
        "batch_size=6 is not a multiple of 4 devices (mesh data=4 x fsdp=1)",
    ),
    "mesh": (
        [f"{MAE}:smoke", "--plan=cpu-4", "--config.mesh.fsdp=3"],
        "mesh data=1 x fsdp=3 needs 3 devices, found 4",
    ),
    "job": (
        [f"--config={ROOT}/configs/convert.py", "--plan=cpu"],
        "a plan is of training, the job of convert is 'convert'",
    ),
    "place": (
        [f"{MAE}:smoke", "--plan=cpu", "--plan_out=no/where.json"],
        "--plan_out=no/where.json cannot be written",
    ),
    "no target": ([f"{MAE}:smoke", "--plan_out=a"], "goes with --plan=TOPOLOGY"),
    "teacher": (
        [f"--config={ROOT}/configs/mae_tiny_distill.py:smoke", "--plan=cpu"],
        "as in --config.objective.teacher.variant=large",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_before_the_first_compile(name, capsys):
    arguments, message = MISTAKES[name]
    assert run(*arguments) in (cli.EXIT_USAGE, cli.EXIT_FAILED)
    out, err = capsys.readouterr()
    assert "compiling" not in out and message in err and "Traceback" not in err
