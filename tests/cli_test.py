"""The command line: what it starts, what it says when it cannot."""

import ast
import errno
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import types

import pytest
from absl import flags
from PIL import Image

from litevit_jax import cli, commandline, distributed, recipes
from litevit_jax.configs import common, mae_tiny
from litevit_jax.data.sources import tfds
from litevit_jax.distributed import detect
from litevit_jax.jobs import analyse, convert, evaluate, next_steps, train, transfer
from litevit_jax.train import loop

ROOT = pathlib.Path(__file__).parents[1]
TINY = str(ROOT / "configs" / "mae_tiny.py")
PROBE = str(ROOT / "configs" / "linear_probe.py")

# Variables that announce several hosts, if nothing else is said.
ANNOUNCE = {
    "SLURM_NTASKS": "2",
    "OMPI_COMM_WORLD_SIZE": "16",
    "JAX_NUM_PROCESSES": "2",
    "TPU_WORKER_HOSTNAMES": "host-0,host-1",
}

# ml_collections loads recipes in a way that Python will drop.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture(autouse=True)
def somewhere_without_data(tmp_path, monkeypatch):
    """An empty working directory and home; nothing is said by the environment."""
    for name in ("TFDS_DATA_DIR", *detect.VARIABLES.values(), *ANNOUNCE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    # A recipe is loaded under one name, into the module that is there already.
    monkeypatch.delitem(sys.modules, "config_config", raising=False)


@pytest.fixture
def started(monkeypatch):
    """(config, workdir) of the runs that were started; none of them trains."""
    runs = []

    def run(config, workdir, **_):
        runs.append((config, workdir))
        return loop.RunOutcome(6, {})

    monkeypatch.setattr(train, "run", run)
    return runs


def parsed(*arguments):
    argv = ["main.py", *arguments]
    cli.define(values := flags.FlagValues(), argv)
    cli.parse(argv, values)
    return argv, values


def run(*arguments):
    return cli.run(*parsed(*arguments))


def refused(capsys, *arguments):
    """The message of a command line that is refused."""
    with pytest.raises(SystemExit) as caught:
        parsed(*arguments)
    assert caught.value.code == cli.EXIT_USAGE
    return capsys.readouterr().err


def test_the_recipe_runs_where_imagenet_lies_at_the_default_place(
    started, capsys, monkeypatch
):
    monkeypatch.setattr(tfds, "locate", lambda name, dir=None: "found")
    assert run(f"--config={TINY}") == 0
    [(config, workdir)] = started
    assert (config.data.source, config.data.name) == ("tfds", "imagenet2012")
    assert workdir == os.path.join("runs", "mae_tiny")
    assert "not found" not in capsys.readouterr().out


def test_without_imagenet_a_banner_announces_the_digits_in_a_workdir_of_their_own(
    started, capsys
):
    assert run(f"--config={TINY}") == 0
    [(config, workdir)] = started
    assert config.data.source == "digits"
    assert config.objective.encoder.variant is None  # a small one
    assert config.name == "mae_tiny-digits"
    assert workdir == os.path.join("runs", "mae_tiny-digits")
    out = capsys.readouterr().out
    banner = out[: out.index("done:")].rstrip().splitlines()
    assert len(banner) <= 8
    text = "\n".join(banner)
    for said in (
        "imagenet2012 was not found",
        "digits, small encoder",
        "runs/mae_tiny-digits",
        f"--config={TINY}:imagenet2012",
        "--config.data.dir=DIR",
        "litevit_jax.data.prepare --name=imagenet2012",
        ":data=folder,path=DIR",
    ):
        assert said in text


@pytest.mark.parametrize("form", [[f"--config={TINY}"], ["--config", TINY]])
def test_the_quick_start_keeps_the_overrides_and_the_workdir(form, started):
    assert run(*form, "--config.seed=3", "--config.lr.base=0.25", "--workdir=w") == 0
    [(config, workdir)] = started
    assert (config.seed, config.lr.base, workdir) == (3, 0.25, "w-digits")
    assert config.data.source == "digits"


@pytest.mark.parametrize("variant", ["digits", "smoke", "data=folder,path=DIR"])
def test_a_variant_that_names_its_data_needs_no_banner(variant, started, capsys):
    assert run(f"--config={TINY}:{variant}") == 0
    assert "not found" not in capsys.readouterr().out
    assert started[0][0].data.source in ("digits", "folder")


@pytest.mark.parametrize(
    ("variant", "override", "variable"),
    [
        (":imagenet2012", [], None),
        ("", ["--config.data.dir=DIR"], None),
        ("", ["--config.data.required"], None),
        ("", [], "DIR"),
    ],
)
def test_a_named_place_without_data_is_an_error_that_lists_the_ways_on(
    variant, override, variable, tmp_path, capsys, monkeypatch
):
    if variable:
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / variable))
    assert run(f"--config={TINY}{variant}", *override) != 0
    out, err = capsys.readouterr()
    # What runs where, and the data unless this process has named them before.
    first, *rest = out.splitlines()
    assert first.startswith("mae_tiny: train on 8 CPU devices")
    assert not [line for line in rest if not line.startswith("split 'train': ")]
    assert re.search(r"error: data set 'imagenet2012' is not in ", err)
    assert "python -m litevit_jax.data.prepare --name=imagenet2012 --data_dir=" in err
    assert ":data=folder,path=DIR" in err
    assert ":digits" in err
    if variable or override == ["--config.data.dir=DIR"]:
        assert "DIR. There is no such folder. Ways on" in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("name", "value"), ANNOUNCE.items())
def test_what_announces_several_hosts_and_does_not_tell_them_apart_is_refused(
    name, value, started, capsys, monkeypatch
):
    monkeypatch.setenv(name, value)
    assert run(f"--config={TINY}") == 2
    assert started == []
    err = capsys.readouterr().err
    assert "missing" in err and "--num_processes=1" in err
    assert name in err or "num_processes=2 given" in err


def test_several_hosts_never_fall_back_to_the_digits(started, capsys, monkeypatch):
    monkeypatch.setattr(distributed, "process_count", lambda: 2)
    assert run(f"--config={TINY}") != 0
    assert started == []
    err = capsys.readouterr().err
    assert "imagenet2012 was not found" in err and "for a single host" in err
    assert "litevit_jax.data.prepare" in err


def test_limits_of_the_watch_are_checked_before_anything_starts(started, capsys):
    assert run(f"--config={TINY}:digits", "--config.watchdog.peer_s=0") == 2
    assert started == []
    assert "watchdog.peer_s=0.0; expected more than 0" in capsys.readouterr().err


def test_one_task_of_a_scheduler_is_a_single_host(started, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    assert run(f"--config={TINY}") == 0
    assert started[0][0].data.source == "digits"


MISTAKES = {
    "file": (["--config=configs/mae_tny.py"],
        r"--config=configs/mae_tny.py: no such config file; did you mean "
        r"configs/mae_tiny.py .*choose from .*configs/linear_probe.py"),
    "file, space form": (["--config", "configs/mae_tny.py"],
        r"no such config file; did you mean configs/mae_tiny.py"),
    "folder": ([f"--config={ROOT}/configs"], r"no such config file; choose from"),
    "name": (["--config=mae_tny"],
        r"--config=mae_tny: no such config file; did you mean mae_tiny .*choose from "
        r"analysis, .*, transfer"),
    "name with a variant": (
        ["--config=mae_tiny:digit"],
        r"did you mean digits or digit_scenes\?",
    ),
    "no name": (["--config="], r"--config= names no recipe; choose from analysis, "),
    "two": ([f"--config={TINY}", "--config", PROBE], r"--config is given 2 times"),
    "order": (["--config.seed=1", f"--config={TINY}"],
        r"--config.seed=1 stands before --config=.*; give --config first"),
    "empty": ([f"--config={TINY}:digits", "--config.init="],
        r"--config.init= has no value \(an unset variable\?\)"),
    "no workdir": ([f"--config={TINY}:digits", "--workdir="], r"--workdir= has no val"),
    "not a recipe": ([f"--config={ROOT}/configs/common.py"],
        r"common.py: has no get_config\(arg\); .*choose from"),
    "variant": ([f"--config={TINY}:digit"],
        r"mae_tiny.py:digit: variant 'digit' unknown; did you mean digits or "
        r"digit_scenes\? choose "
        r"from imagenet2012, digits, digit_scenes, folder, arrays, packed, tar, "
        r"segfolder, cocojson, csv_file, fgvc_aircraft, files, tfds, smoke"),
    "value of a variant": ([f"--config={TINY}:data=foldr,path=DIR"],
        r"variant data='foldr' unknown; did you mean folder or segfolder\?"),
    "folder without path": ([f"--config={TINY}:data=folder"],
        r"data=folder needs a place: data=folder,path=DIR"),
    "path of the digits": ([f"--config={TINY}:digits,path=DIR"],
        r"path=DIR goes with one of data=folder, data=arrays, data=p"),
    "two data sets": ([f"--config={TINY}:digits,imagenet2012"],
        r"variants digits and imagenet2012: give one data"),
    "two places": ([f"--config={TINY}:data=folder,path=A,path=B"],
        r"variants A and B: give one path"),
    "no place": ([f"--config={TINY}:smoke,knn="], r"variant knn= has no value; giv"),
    "protocol": ([f"--config={PROBE}:protocol=moko"],
        r"protocol='moko' unknown; did you mean moco\? choose from mae, moco"),
    "field": ([f"--config={TINY}:digits", "--config.lr.bsae=1"],
        r"--config.lr.bsae: config.lr has no field 'bsae'; did you mean base\? it has "
        r"base, decay, end, start, warmup_epochs"),
    "block": ([f"--config={TINY}", "--config.optimiser.b1=1"],
        r"config has no field 'optimiser'; did you mean optimizer\?"),
    "missing block": ([f"--config={TINY}", "--config.evals.knn.k=1"],
        r"config.evals has no field 'knn'; it has reconstruction"),
    "evaluator of a variant": (
        ["--config=evaluate:knn", "--config.evals.classification.unmatched=leave_out"],
        r"no field 'classification'; it has knn; the variant classification adds it: "
        r"--config=evaluate:knn,classification"),
    "evaluator without a variant": (
        ["--config=evaluate", "--config.evals.test.unmatched=leave_out"],
        r"no field 'test'; it is empty; variants add evaluators: evaluators; real=FI"),
    "field of a value": ([f"--config={TINY}", "--config.seed.x=1"],
        r"config.seed has no field 'x'; it is a value"),
    "negated field": ([f"--config={TINY}", "--noconfig.data.requird"],
        r"config.data has no field 'requird'; did you mean required\?"),
    "field that is gone": ([f"--config={TINY}", "--config.scan=True"],
        r"--config.scan is gone: .* slower .*use --config.remat=True"),
    "int": ([f"--config={TINY}", "--config.seed=one"],
        r"seed=one: expected a whole number, as in --config.seed=0, got 'one'"),
    "int behind a space": ([f"--config={TINY}", "--config.seed", "3.5x"],
        r"--config.seed=3.5x: expected a whole number, as in --config.seed=0, got '3"),
    "float": ([f"--config={TINY}", "--config.lr.base=1,5"],
        r"base=1,5: expected a number, as in --config.lr.base=0.00015, got '1,5'"),
    "bool": ([f"--config={TINY}", "--config.data.required=maybe"],
        r"expected True or False, as in --config.data.required=False, got 'maybe'"),
    "open field": ([f"--config={TINY}", "--config.steps=many"],
        r"expected a whole number, got 'many'"),
    "value of a block": ([f"--config={TINY}", "--config.mesh=4"],
        r"expected one of its fields: --config.mesh.data=, --config.mesh.fsdp="),
    "dict for a block": ([f"--config={TINY}", "--config.objective.encoder={}"],
        r"encoder=\{\}: expected one of its fields: --config.objective.encoder.depth="),
    "field of a field": ([f"--config={TINY}", "--config.seed=1", "--config.seed.x=2"],
        r"config.seed has no field 'x'; it is a value"),
    "no value": ([f"--config={TINY}", "--config.lr.base"], r"Missing value for flag"),
    "no config": (["--config.lr.base=1"], r"--config is missing, for example"),
    "flag of the config": ([f"--confg={TINY}"],
        r"flag 'confg'. Did you mean: config .*the flags are --config="),
    "flag": ([f"--config={TINY}", "--work_dir=x"],
        r"flag 'work_dir'.*the flags are --config=, --config.FIELD=, --workdir="),
    "positional": ([f"--config={TINY}", "x"], r"unexpected argument 'x'"),
    "recipe": (["mae_tiny:digits", "--plan=cpu"], r"write --config=mae_tiny:digits"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistyped_command_line_says_what_was_meant(name, capsys):
    arguments, message = MISTAKES[name]
    err = refused(capsys, *arguments)
    assert err.startswith("error: ")
    assert re.search(message, err)
    assert "Traceback" not in err


BROKEN = {
    "installed, the recipes are in the package": (
        "raise ModuleNotFoundError(\"No module named 'configs'\", name='configs')",
        r"No module named 'configs', line 1; take recipes from litevit_jax.configs\n"),
    "syntax": ("def get_config(:\n", r"mine.py: SyntaxError: .*\(line 1: def get_con"),
    "name": ("def get_config(arg=None):\n    return nothing\n",
        r"mine.py: NameError: name 'nothing' is not defined, line 2"),
    "import": ("import no_such_package\n", r"No module named 'no_such_pac.*line 1"),
    "type": ("def get_config(arg=None):\n    return {}\n",
        r"get_config\(\) returned dict; expected a ml_collections.ConfigDict"),
    "nothing": ("def get_config(arg=None):\n    pass\n", r"returned NoneType; expect"),
    "arguments": ("def get_config():\n    pass\n", r"get_config\(\) takes 0 posi"),
    "empty": ("", r"has no get_config\(arg\)"),
    "the end of the program": ("import sys\nsys.exit(0)\n",
        r"mine.py: SystemExit: 0, line 2"),
    "an end inside": ("def get_config(arg=None):\n    raise SystemExit\n",
        r"mine.py: SystemExit: SystemExit, line 2"),
    "bytes": ("\0", r"mine.py: SyntaxError: source code .* null bytes\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.filterwarnings("ignore:.*did you forget a return:UserWarning")
def test_a_recipe_that_is_broken_is_told_in_one_message(name, capsys, tmp_path):
    source, message = BROKEN[name]
    (tmp_path / "mine.py").write_text(source)
    err = refused(
        capsys, "--config=mine.py:x" if name == "arguments" else "--config=mine.py"
    )
    assert re.search(message, err)
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "name", ["mae_tiny", "mae_tiny.py", "configs/mae_tiny", "configs/mae_tiny.py"]
)
def test_a_recipe_is_known_by_name_in_any_directory(name, started):
    assert run(f"--config={name}:digits", "--config.seed=3") == 0
    [(config, workdir)] = started
    assert (config.name, config.seed) == ("mae_tiny-digits", 3)
    assert workdir == os.path.join("runs", "mae_tiny-digits")


def test_a_file_of_yours_comes_before_a_recipe_of_its_name(started, tmp_path):
    text = (ROOT / "configs" / "mae_tiny.py").read_text()
    (tmp_path / "mae_tiny.py").write_text(text.replace('"mae_tiny"', '"mine"'))
    assert run("--config=mae_tiny.py:digits") == 0
    assert run("--config=mae_tiny:digits") == 0
    assert [config.name for config, _ in started] == ["mine-digits", "mae_tiny-digits"]


def test_a_named_encoder_has_the_sizes_of_its_name_where_a_recipe_has_others(started):
    encoder = "--config.objective.encoder"
    assert (
        run(
            "--config=mae_tiny:digits", f"{encoder}.variant=small", f"{encoder}.depth=2"
        )
        == 0
    )
    assert run("--config=mae_tiny:digits", f"{encoder}.depth=2") == 0
    blocks = [config.objective.encoder for config, _ in started]
    sizes = ("variant", "width", "depth", "num_heads", "patch_size")
    assert [blocks[0][name] for name in sizes] == ["small", None, 2, None, 2]
    assert [blocks[1][name] for name in sizes] == [None, 64, 2, 4, 2]


def helped(capsys, *arguments):
    """What --help prints."""
    with pytest.raises(SystemExit) as caught:
        parsed(*arguments)
    assert caught.value.code == cli.EXIT_OK
    return capsys.readouterr().out


def test_help_lists_our_flags_and_every_recipe_with_its_first_line(capsys):
    said = helped(capsys, "--help")
    flags_there = re.findall(r"(?m)^  --(\w+)  ", said)
    ours = {"config", *commandline.FLAGS}
    assert set(flags_there) == ours
    assert set(flags.FlagValues.__iter__(commandline.flags_for(["main.py"]))) == ours
    for path in (ROOT / "configs").glob("[!_]*.py"):
        first = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0]
        shown = re.search(rf"(?m)^  {path.stem} +{re.escape(first)}$", said)
        assert bool(shown) == (path.stem != "common")
    assert "--config=NAME --help lists the fields" in said


def test_help_of_a_recipe_lists_its_fields_with_values_and_comments(capsys):
    said = helped(capsys, "--config=mae_tiny:digits", "--help", "--config.seed=7")
    assert "MAE pre-training of ViT-Tiny/16" in said and "knn=LABELLED" in said
    assert "\n  imagenet2012, digits, smoke" in said and "likewise" not in said
    for line in (
        "batch_size = 128 +# images per update, over all devices and slices",
        "data.image_width = None +# pixels; None: as the height",
        "data.channels = 1( |$)",
        "seed = 7( |$)",
        r"lr.base = 0.003( |$)",
        "init_rename = \\(\\) +# of its entries, as 'encoder/norm/=head/fc_norm/'",
    ):
        assert re.search(rf"(?m)^  {line}", said), line
    names = re.findall(r"(?m)^  ([\w.]+) = ", said)
    config = parsed("--config=mae_tiny:digits")[1].config
    for name in common.base("x"):  # what every recipe has
        assert re.search(rf"(?m)^  {name}(\.[\w.]+)? = .*# \w", said), name
    assert names == [name for name, _ in recipes.fields(config)]


@pytest.mark.parametrize(
    ("flag", "answer"),
    [
        ("view_default.std=1", "view_default.std is called config.fallback.std now"),
        ("data.holdout=0.1", "data.holdout is called config.data.holdout.test now"),
        ("data.validation_share=0.1", "share is called config.data.holdout.eval now"),
        ("accum_steps=2", "accum_steps is gone: give --config.microbatch=N, how many"),
    ],
)
def test_an_old_name_of_a_field_is_refused_with_the_new_one(flag, answer, capsys):
    assert answer in refused(capsys, "--config=finetune:digits", f"--config.{flag}")


def test_help_of_a_wrong_recipe_is_a_mistake(capsys):
    assert "did you mean mae_tiny" in refused(capsys, "--config=mae_tny", "--help")


def test_no_config_at_all_says_how_to_give_one(capsys):
    assert run() == cli.EXIT_USAGE
    assert "--config=configs/mae_tiny.py" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "code"),
    [(None, 0), (signal.SIGTERM, 42), (signal.SIGINT, 130)],
)
def test_the_exit_code_tells_how_the_run_ended(number, code, monkeypatch):
    monkeypatch.setattr(train, "run", lambda *_, **__: loop.RunOutcome(4, {}, number))
    assert run(f"--config={TINY}:smoke") == code


def test_results_are_printed_as_a_table_of_last_and_best_with_their_steps(
    capsys, monkeypatch
):
    rows = [
        {"step": 30, "top1": 75.0, "top5": 99.0, "loss": 0.5, "n": 359, "seconds": 1},
        {"step": 60, "top1": 70.25, "top5": 98.0, "loss": 0.6, "n": 359, "seconds": 1},
    ]
    results = {
        "test": {"metric": "top1", "last": rows[1], "best": rows[0]},
        "reconstruction": {
            "metric": "mae_loss",
            "last": {"step": 60, "mae_loss": 0.5, "n": 1024},
        },
    }
    monkeypatch.setattr(train, "run", lambda *_, **__: loop.RunOutcome(60, results))
    assert run(f"--config={TINY}:smoke") == 0
    assert capsys.readouterr().out.splitlines()[1:4] == [
        "evaluation      metric    last   step  best  step  n     also (last)",
        "test            top1      70.25  60    75    30    359   top5 98  loss 0.6",
        "reconstruction  mae_loss  0.5    60    -     -     1024",
    ]


def test_an_evaluation_trains_nothing_and_prints_its_table(
    started, capsys, monkeypatch
):
    result = {"metric": "top1", "last": {"step": 6, "top1": 70.0, "n": 359}}
    asked = []

    def evaluated(config, workdir):
        asked.append((config.init, workdir))
        return {"test": result}

    monkeypatch.setattr(evaluate, "run", evaluated)
    recipe = str(ROOT / "configs" / "evaluate.py")
    assert run(f"--config={recipe}", "--config.init=RUN") == 0
    assert asked == [("RUN", os.path.join("runs", "evaluate"))] and started == []
    assert "test        top1    70    6     -" in capsys.readouterr().out


@pytest.mark.parametrize(("number", "code"), [(None, 0), (signal.SIGTERM, 42)])
def test_a_transfer_is_a_sweep_unless_that_is_off(
    number, code, started, capsys, monkeypatch
):
    swept = []

    def sweep(config, workdir):
        swept.append(str(workdir))
        outcome = transfer.Outcome("the table", number)
        return types.SimpleNamespace(run=lambda: outcome)

    monkeypatch.setattr(transfer, "Sweep", sweep)
    recipe = str(ROOT / "configs" / "transfer.py")
    assert run(f"--config={recipe}:pets", "--config.init=RUN") == code
    assert swept == [os.path.join("runs", "transfer-pets")] and started == []
    assert "the table" in capsys.readouterr().out
    arguments = ("--config.init=RUN", "--config.sweep.on=False")
    assert run(f"--config={recipe}:pets", *arguments) == 0
    [(config, workdir)] = started
    assert len(swept) == 1 and workdir == os.path.join("runs", "transfer-pets")
    assert (config.job, config.data.name) == ("train", "oxford_iiit_pet")


NEXT = {  # command -> what its last lines name, but for a --workdir
    "mae_tiny:smoke": ["linear_probe --config.init=w", "finetune --config.init=w"],
    "mocov3_tiny:smoke": ["linear_probe --config.init=w", "finetune --config.init=w"],
    "finetune:smoke --config.init=RUN":
        ["analysis:compare --config.models=a=w,b=RUN", "evaluate --config.init=w"],
    "linear_probe:smoke --config.init=RUN": ["finetune --config.init=RUN"],
    "linear_probe:smoke,grid --config.init=random": ["finetune --config.init=RUN"],
    "evaluate --config.init=RUN": ["finetune --config.init=RUN"],
    "layer_probe --config.init=random --config.like=L": ["finetune --config.init=L"],
    "transfer:pets --config.init=RUN":
        ["analysis:compare --config.models=a=w/final/p,b=RUN",
         "evaluate --config.init=w/final/p"],
    "analysis --config.models=a=RUN": ["layer_probe --config.init=RUN"],
    "analysis:report --config.models=RUN": ["analysis --config.models=RUN"],
    "analysis:advice --config.models=a=PROBE": ["finetune --config.init=RUN"],
    "layer_study:digits --config.init=RUN": ["finetune --config.init=RUN"],
    "convert --config.target=x.safetensors":
        ["finetune:data=folder,path=DIR --config.init=x.safetensors"],
}  # fmt: skip


@pytest.mark.parametrize("command", NEXT)
def test_the_last_lines_of_a_job_are_the_commands_that_come_next(
    command, started, capsys, monkeypatch
):
    monkeypatch.setattr(evaluate, "run", lambda *_: {})
    final = pathlib.Path("w/final/p")
    swept = types.SimpleNamespace(run=lambda: transfer.Outcome("", final=final))
    monkeypatch.setattr(transfer, "Sweep", lambda *_: swept)
    monkeypatch.setattr(analyse, "run", lambda *_: analyse.Outcome("the report"))
    monkeypatch.setattr(convert, "run", lambda *_: "the table")
    recipe, *rest = command.split()
    workdir = () if recipe == "convert" else ("--workdir=w",)
    assert run(f"--config={recipe}", *rest, *workdir, *no_report(recipe)) == 0
    lines = capsys.readouterr().out.splitlines()
    said = [line for line in lines if line.startswith("next, to ")]
    assert said == lines[-len(said) :]
    want = [f"python main.py --config={text}{beside(text)}" for text in NEXT[command]]
    assert [line.partition(": ")[2] for line in said] == want


@pytest.mark.parametrize(
    ("script", "command"),
    [
        ("main.py", "python main.py"),
        ("/a b/main.py", "python '/a b/main.py'"),
        ("/venv/bin/litevit", "litevit"),
        ("/site-packages/litevit_jax/__main__.py", "python -m litevit_jax"),
        ("/home/me/train.py", "litevit"),
    ],
)
def test_messages_name_the_command_that_was_started(
    script, command, started, capsys, monkeypatch
):
    monkeypatch.setattr(sys, "argv", [script])
    assert run("--config=mae_tiny:smoke", "--workdir=w", *no_report("mae_tiny")) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert f": {command} --config=finetune --config.init=w " in last
    assert refused(capsys, "--config=mae_tny").endswith(
        f"\n({command} --help shows the flags)\n"
    )
    assert f"\n{command} --config=NAME --help lists" in helped(capsys, "--help")
    shown = helped(capsys, "--config=mae_tiny", "--help")
    example = "configs/mae_tiny.py" if script == "main.py" else "mae_tiny"
    assert f"\n    {command} --config={example}:digits\n" in shown


def beside(text):
    """The --workdir of a job that starts from an encoder that is known."""
    name, _, init = text.partition(" --config.init=")
    stem = init.removesuffix(".safetensors")
    known = init and init != "RUN"
    return f" --workdir={stem}-{name.partition(':')[0]}" if known else ""


def no_report(recipe):
    """What leaves the report out, where a recipe draws one."""
    bare = ("analysis", "convert", "layer_study", "transfer")
    return () if recipe.startswith(bare) else ("--config.log.report=False",)


def test_a_command_that_comes_next_can_be_copied_whatever_its_names(started, capsys):
    assert (
        run(
            "--config=mae_tiny:smoke",
            "--config.log.report=False",
            "--workdir=my runs/a",
        )
        == 0
    )
    last = capsys.readouterr().out.splitlines()[-1]
    command = shlex.split(last.partition(": ")[2])
    assert command[1:] == [
        "main.py",
        "--config=finetune",
        "--config.init=my runs/a",
        "--workdir=my runs/a-finetune",
    ]


@pytest.mark.parametrize(
    ("folders", "variant", "more"),
    [
        (["train/a", "train/b", "test/a", "test/b"], "", []),
        (["a", "b"], "", ["--config.data.holdout.test=0.1"]),
        (["."], ":data=folder,path=LABELLED", []),
    ],
)
def test_the_next_command_suits_the_images_of_the_run(
    folders, variant, more, tmp_path, started, capsys
):
    for folder in folders:
        path = tmp_path / "images" / folder / "x.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    workdir = tmp_path / "run"
    workdir.mkdir()
    made = mae_tiny.get_config(f"smoke,data=folder,path={tmp_path / 'images'}")
    classes = 1 if folders == ["."] else 2
    saved = made.to_dict() | {"derived": {"num_classes": classes}}
    (workdir / "config.json").write_text(json.dumps(saved))
    config = f"--config={TINY}:smoke,data=folder,path={tmp_path / 'images'}"
    assert run(config, "--config.log.report=False", f"--workdir={workdir}") == 0
    last = shlex.split(capsys.readouterr().out.splitlines()[-1].partition(": ")[2])
    init = [f"--config.init={workdir}", *more, f"--workdir={workdir}-finetune"]
    assert last[2:] == [f"--config=finetune{variant}", *init]


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("segment", "--config=evaluate:label_maps,data=folder,path=DIR"),
        ("mae_tiny", "--config=segment:digit_scenes"),
    ],
)
def test_runs_on_label_maps_are_followed_by_what_reads_them(recipe, expected):
    config = recipes.get(recipe, "digit_scenes")
    [line] = next_steps.lines(config, "runs/a", "litevit")
    assert shlex.split(line)[-3:-1] == [expected, "--config.init=runs/a"]


def test_what_starts_from_a_step_is_not_put_among_the_checkpoints():
    flags = next_steps._beside(
        "--config=finetune", "--config.init=runs/a/checkpoints/12"
    )
    assert flags == ["--workdir=runs/a-finetune"]


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


def test_an_error_of_the_user_is_a_message_and_no_trace(capsys):
    assert run(f"--config={TINY}:smoke", "--config.batch_size=3") == cli.EXIT_USAGE
    out, err = capsys.readouterr()
    assert err.startswith("error: batch_size=3 is not a multiple of 8 devices")
    assert "Traceback" not in err
    # What runs where, and the data unless this process has named them before.
    first, *rest = out.splitlines()
    assert first.startswith("mae_tiny-digits-smoke: train on 8 CPU devices")
    assert not [line for line in rest if not line.startswith("split 'train': ")]


def test_a_full_disk_is_a_message_wherever_it_shows(capsys, monkeypatch):
    error = OSError(errno.ENOSPC, "No space left on device", "w/x.png")
    monkeypatch.setattr(train, "run", lambda *_, **__: exec("raise e", {"e": error}))
    assert run(f"--config={TINY}:smoke") == cli.EXIT_FAILED
    err = capsys.readouterr().err
    assert "No space left on device: 'w/x.png'" in err
    assert "Traceback" not in err


def test_a_bug_keeps_its_trace(capsys, monkeypatch):
    monkeypatch.setattr(train, "run", failing(ZeroDivisionError("division")))
    assert run(f"--config={TINY}:smoke") == cli.EXIT_FAILED
    assert "Traceback" in capsys.readouterr().err


def test_help_answers_without_loading_jax_tensorflow_or_torch():
    command = [sys.executable, "-X", "importtime", "main.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "--workdir" in done.stdout and "configs/mae_tiny.py:digits" in done.stdout
    assert "absl.flags" in loaded
    assert loaded.isdisjoint({"tensorflow", "torch", "jax", "grain", "flax"})


def test_help_may_be_cut_off_by_its_reader():
    """As `python main.py --help | head` does."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "main.py", "--help"],
        cwd=ROOT,
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_names_are_shown_beside_numbers_but_tables_are_not(monkeypatch, capsys):
    last: dict = {
        "step": 0,
        "top1": 81.25,
        "block": 3,
        "lr": 0.02,
        "n": 9,
        "feature": "avg",
    }
    last["table"] = [{"l2": 1}]
    results = {"layers": {"metric": "top1", "last": last, "best": last}}
    monkeypatch.setattr(evaluate, "run", lambda config, workdir: results)
    recipe = ROOT / "configs" / "layer_probe.py"
    assert run(f"--config={recipe}:digits", "--config.init=RUN") == 0
    said = capsys.readouterr().out
    assert re.search(r"layers +top1 +81.25 +0 .* block 3  lr 0.02  feature avg\n", said)
    assert "table" not in said and "l2" not in said


@pytest.mark.parametrize(
    ("job", "where", "text"),
    [
        ("train", "runs/x", "mae: train on 2 CPU devices, in runs/x"),
        ("train", None, "mae: train on 2 CPU devices"),
    ],
)
def test_the_first_line_says_what_runs_on_which_devices_where(job, where, text):
    device = types.SimpleNamespace(platform="cpu", device_kind="cpu")
    assert cli.headline("mae", job, where, [device] * 2) == text


def test_a_job_without_devices_and_one_of_several_processes(monkeypatch):
    assert cli.headline("x", "report", "here", []) == "x: report, in here"
    monkeypatch.setattr(distributed, "process_count", lambda: 4)
    device = types.SimpleNamespace(platform="gpu", device_kind="NVIDIA H100")
    assert cli.headline("x", "train", "gs://b/x", [device]) == (
        "x: train on 1 GPU device (NVIDIA H100) of 4 processes, in gs://b/x"
    )
