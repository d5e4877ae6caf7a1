"""Every recipe builds, takes overrides, and its smoke form runs from end to end."""

import ast
import dataclasses
import importlib
import json
import pathlib
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from litevit_jax import checkpoint, cli, registry
from litevit_jax.configs import common
from litevit_jax.data import splits
from litevit_jax.jobs import train
from litevit_jax.models import detector
from tests import jobs
from tests.records import params, same

# On one device; the laws hold every objective to eight.
pytestmark = pytest.mark.usefixtures("shared_designs", "one_device", "given_starts")

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "configs").glob("[!_]*.py"))
BARE = ("common", "convert", "sweep")  # without images of their own
RECIPES = [path.stem for path in FILES if path.stem not in BARE]
VARIANTS = [None, "digits", "smoke", "data=folder,path=DIR", "imagenet2012"]
VARIANTS += ["data=packed,path=DIR", "data=tar,path=DIR/*.tar"]


def module(name):
    return importlib.import_module(f"litevit_jax.configs.{name}")


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("arg", VARIANTS)
def test_every_variant_builds_is_locked_and_names_its_run(name, arg):
    config = module(name).get_config(arg)
    assert config.is_locked
    assert config.name.startswith(name)
    with pytest.raises((AttributeError, KeyError)):
        config.no_such_field = 1
    again = module(name).get_config(arg)
    again.seed = 5
    assert config.seed == 0  # no state is shared


def reads(path):
    """(line, name) of every field that a file reads of a run's config."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            typed = {a.arg: a.annotation and ast.unparse(a.annotation)
                for a in (*node.args.args, *node.args.kwonlyargs)}  # fmt: skip
            if str(typed.get("config")).startswith("dict"):  # one that was saved
                continue
            for part in ast.walk(node):
                if isinstance(part, ast.Attribute) and ast.unparse(part.value) in (
                    "config",
                    "self._config",
                ):
                    yield part.lineno, part.attr


PACKAGE = ROOT / "litevit_jax"
READING = [*PACKAGE.glob("*.py"), *PACKAGE.glob("[aept]*/*.py")]  # no files of weights


@pytest.mark.parametrize("path", READING, ids=lambda path: path.name)
def test_the_package_reads_only_fields_that_recipes_declare(path):
    declared = set(common.base("x")) | {"derived", "lr", "objective", "optimizer"}
    for job in (
        "analysis",
        "choose",
        "convert",
        "embed",
        "evaluate",
        "layer_study",
        "neighbours",
        "predict",
        "sweep",
        "transfer",
    ):
        declared |= set(module(job).get_config())
    methods = set(dir(ConfigDict())) - {"get"}
    wrong = [field for field in reads(path) if field[1] not in declared | methods]
    assert not wrong


@pytest.mark.parametrize("name", RECIPES)
def test_the_docstring_starts_with_the_command(name):
    text = module(name).__doc__
    assert f"\n    python main.py --config=configs/{name}.py" in text
    assert "not timed" in text or "minute" in text or "hour" in text  # what it takes


@pytest.mark.parametrize("name", RECIPES)
def test_a_misspelt_variant_is_refused_with_near_matches(name):
    with pytest.raises(ValueError, match=r"'smok' unknown; did you mean smoke\?"):
        module(name).get_config("smok")
    with pytest.raises(ValueError, match=r"'dat=folder' unknown; did you mean data"):
        module(name).get_config("dat=folder")


@pytest.mark.parametrize("quote", ['"', "'"])
def test_quotes_keep_a_comma_in_a_place(quote):
    arg = f"data=folder,path={quote}/a, b/it{quote},smoke"
    made = module("mae_tiny").get_config(arg)
    assert made.data.dir == "/a, b/it" and made.name.endswith("smoke")
    made = module("mae_tiny").get_config("path=/Bob's,smoke")
    assert made.data.dir == "/Bob's"


def test_a_comma_in_a_place_is_explained():
    message = (
        r"'b' unknown; .*quote it: path=\"/a,b\", or use path=\. and "
        r"--config\.data\.dir='/a,b'"
    )
    with pytest.raises(ValueError, match=message):
        module("mae_tiny").get_config("data=folder,path=/a,b")
    with pytest.raises(ValueError, match="its quote ' is not closed"):
        module("mae_tiny").get_config("path='/a,b")


@pytest.mark.parametrize("name", [x for x in RECIPES if x != "choose"])  # draws itself
def test_parts_of_the_training_images_can_be_drawn_in_every_recipe(name):
    data = jobs.config(name, "digits").data
    whole, counts = len(splits.open_split(data, "train")), []
    for fields in (
        {"fraction": 0.1, "fraction_of": "classes"},
        {"fraction": 0.1, "fraction_of": "balanced"},
        {"long_tail": 10.0},
    ):
        part = data.copy_and_resolve_references().unlock()
        part.update(fields)
        counts.append(len(splits.open_split(part, "train")))
    np.testing.assert_allclose(counts[:2], whole / 10, atol=20)  # classes differ
    assert counts[0] != counts[1] < counts[2] < whole / 2


def test_the_protocols_of_the_probe_differ_as_published():
    mae, moco = (
        module("linear_probe").get_config(arg) for arg in (None, "protocol=moco")
    )
    assert (mae.optimizer.name, mae.objective.head) == ("lars", "probe_bn")
    assert (moco.optimizer.name, moco.objective.head) == ("sgd", "probe")
    assert mae.evals.knn.name == moco.evals.knn.name == "knn"


TRANSFER = {
    "batch_size": 512,
    "epochs": 50,
    "lr.base": 0.05,  # 0.1 at batch 512
    "lr.warmup_epochs": 10.0,
    "lr.start": 0.0,
    "lr.end": 1e-6,
    "optimizer.name": "sgd",
    "optimizer.momentum": 0.9,
    "optimizer.nesterov": True,
    "optimizer.weight_decay": 0.0,
    "optimizer.clip_norm": 1.0,
    "optimizer.layer_decay": 0.75,
    "objective.pool": "avg",
    "objective.label_smoothing": 0.0,
    "objective.drop_path": 0.0,
    "objective.num_classes": None,  # the data's
    "fallback.image_size": 224,  # of an encoder that knows no images
    "data.crop_scale": (0.08, 1.0),
    "data.interpolation": "bicubic",
    "data.flip": 0.5,
    "data.randaugment.layers": 0,
    "data.eval_crop_fraction": 0.875,
    "data.train_split": "train",
    "data.eval_split": "test",
    "data.name": "cifar100",
}


def test_transfer_to_cifar100_is_as_published():
    made = module("transfer").get_config("cifar100")
    for path, value in TRANSFER.items():
        block = made
        for key in path.split("."):
            block = block[key]
        assert block == value, path
    assert set(made.augment) == {"normalize"}  # no mixing, no erasing, no jitter


ADE20K = {
    "batch_size": 16,
    "steps": 160_000,
    "lr.base": 1e-4 * 256 / 16,  # 1e-4 at batch 16
    "lr.start": 1e-10,
    "lr.end": 0.0,
    "lr.decay": "linear",
    "optimizer.name": "adamw",
    "optimizer.b2": 0.999,
    "optimizer.weight_decay": 0.05,
    "optimizer.layer_decay": 0.8,
    "objective.head": "sem_fpn",
    "objective.drop_path": 0.1,
    "objective.dropout": 0.1,
    "objective.mean_over": "all",
    "data.source": "segfolder",
    "data.train_split": "training",
    "data.eval_split": "validation",
    "data.options.reduce_zero_label": True,
    "data.image_size": 512,
    "data.flip": 0.5,
    "data.joint.annotations": ("label_map",),
    "data.joint.short_side": 512,
    "data.joint.long_side": 2048,
    "data.joint.ratio": (0.5, 2.0),
    "data.joint.most_of_one_class": 0.75,
    "augment.photometric.brightness": 32.0,
    "augment.photometric.contrast": (0.5, 1.5),
    "augment.photometric.saturation": (0.5, 1.5),
    "augment.photometric.hue": 18,
    "augment.photometric.each": 0.5,
}
LINEAR = {
    "steps": 40_000,
    "lr.base": 1e-3 * 256 / 16,
    "lr.decay": "cosine",
    "optimizer.weight_decay": 1e-3,
    "optimizer.freeze": ("encoder/.*",),
    "objective.frozen_encoder": True,
}


COCO = {
    "batch_size": 64,
    "epochs": 100,
    "steps": 184_375,
    "lr.base": 1e-4 * 256 / 64,  # 1e-4 at batch 64
    "lr.start": 1e-7,
    "lr.decay": "steps",
    "optimizer.name": "adamw",
    "optimizer.b2": 0.999,
    "optimizer.weight_decay": 0.05,
    "optimizer.layer_decay": 1.0,
    "optimizer.decay_1d": True,
    "objective.masks": True,
    "objective.encoder.window": 14,
    "objective.channels": 256,
    "objective.drop_path": 0.0,
    "data.source": "cocojson",
    "data.image_size": 640,
    "data.flip": 0.5,
    "data.joint.annotations": ("objects",),
    "data.joint.ratio": (0.1, 2.0),
    "data.joint.crop_draws": 1,
    "data.joint.max_objects": 100,
}


def test_detection_of_coco_is_as_published():
    made = module("detect").get_config("coco,path=DIR")
    for path, value in COCO.items():
        block = made
        for key in path.split("."):
            block = block[key]
        assert block == value, path
    rules = dataclasses.asdict(detector.Rules())
    assert made.objective.rules.to_dict() == rules
    # The reference warms up for 250 updates.
    assert round(made.steps * made.lr.warmup_epochs / made.epochs) == 250


@pytest.mark.parametrize(("arg", "values"), [("ade20k", ADE20K), ("linear", LINEAR)])
def test_segmentation_of_ade20k_is_as_published(arg, values):
    made = module("segment").get_config(arg)
    for path, value in values.items():
        block = made
        for key in path.split("."):
            block = block[key]
        assert block == pytest.approx(value) if value == 0.016 else block == value, path
    warmup = made.lr.warmup_epochs / made.epochs * made.steps
    assert round(warmup) == 1500
    assert ("photometric" in made.augment) == (arg == "ade20k")


def test_a_linear_head_on_four_blocks_is_tested_at_several_sizes():
    views = {
        arg: (made.scales, made.flip)
        for arg in ("linear_ms", "linear_ms,digit_scenes", "linear", "ade20k")
        for made in [module("segment").get_config(arg).evals.test]
    }
    assert views.pop("linear_ms") == ((1.0, 1.32, 1.73, 2.28, 3.0), True)
    assert set(views.values()) == {((1.0,), False)}


def test_flags_change_how_label_maps_are_predicted():
    made = module("evaluate").get_config("label_maps,segmentation")
    for block in made.evals.values():
        kwargs = {k: v for k, v in block.items() if k not in ("name", "every_steps")}
        context = SimpleNamespace(size=(8, 8))
        made = registry.make("evaluators", block.name, context=context, **kwargs)
        assert made.how.stride == (5, 5) and made.how.views == 1


@pytest.mark.parametrize(
    ("arg", "name", "source"),
    [
        (None, "segment-ade20k", "segfolder"),
        ("ade20k,path=DIR", "segment-ade20k", "segfolder"),
        ("folder,path=DIR", "segment-folder", "segfolder"),
        ("linear_ms,path=DIR", "segment-linear_ms-folder", "segfolder"),
        (
            "linear_each,digit_scenes",
            "segment-linear_each-digit_scenes",
            "digit_scenes",
        ),
        ("data=packed,path=DIR", "segment-packed", "packed"),
        ("digit_scenes", "segment-digit_scenes", "digit_scenes"),
    ],
)
def test_variants_of_segmentation_name_their_data(arg, name, source):
    made = module("segment").get_config(arg)
    assert (made.name, made.data.source) == (name, source)
    if source == "segfolder" and "ade20k" not in name:  # nobody knows what 0 means
        assert made.data.options.reduce_zero_label is None and made.steps is None
    assert made.data.joint.annotations == ("label_map",)


SPLITS = {  # name: source, TFDS name, all training data, test; to train, to choose
    "flowers102": ("tfds", "oxford_flowers102", "train+validation", "test",
        "train", "validation"),
    "pets": ("tfds", "oxford_iiit_pet", "train", "test", None, None),
    "cars": ("tfds", "cars196", "train", "test", None, None),
    "aircraft": ("fgvc_aircraft", "variant", "trainval", "test", "train", "val"),
    "cifar10": ("tfds", "cifar10", "train", "test", None, None),
    "cifar100": ("tfds", "cifar100", "train", "test", None, None),
    "inat2018": ("tfds", "i_naturalist2018", "train", "validation", None, None),
    "imagenet2012": ("tfds", "imagenet2012", "train", "validation", None, None),
}  # fmt: skip


@pytest.mark.parametrize("name", SPLITS)
def test_transfer_names_data_and_splits_as_tfds_does(name):
    made = module("transfer").get_config(name)
    data, sweep = made.data, made.sweep
    got = (data.source, data.name, data.train_split, data.eval_split)
    assert (*got, sweep.train_split, sweep.eval_split) == SPLITS[name]
    assert made.name == f"transfer-{name}" and data.required
    assert len(sweep.epochs) == len(sweep.warmup_epochs) == 2
    assert sweep.layer_decay == (0.75, 1.0) and len(sweep.lr_base) == 3


def test_transfer_goes_to_one_data_set():
    with pytest.raises(ValueError, match=r"variants pets, cars: expected one data set"):
        module("transfer").get_config("pets,cars")


@pytest.mark.parametrize("protocol", ["mae", "moco"])
def test_the_grid_of_a_probe_follows_its_protocol(protocol):
    one, grid = (
        module("linear_probe").get_config(f"protocol={protocol}{more}")
        for more in ("", ",grid")
    )
    assert grid.optimizer.name == one.optimizer.name
    assert grid.objective.head == one.objective.head
    lrs = grid.objective.lrs
    assert len(lrs) == 12 and min(lrs) < one.lr.base < max(lrs)
    assert one.lr.base in lrs
    with grid.unlocked():
        grid.objective.lrs = (0.5, 0.25)
        grid.objective.features = ("avg",)
    assert grid.optimizer.lr_factors == grid.evals.test.lrs == (0.5, 0.25)
    assert grid.evals.test.features == ("avg",)


def leaves(block, prefix=""):
    """('a.b', value, type) of every field."""
    for key in block:
        if isinstance(block[key], ConfigDict):
            yield from leaves(block[key], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", block[key], block.get_type(key)


OTHER = {
    int: lambda v: (v or 0) + 3,
    float: lambda v: (v or 0.0) / 2 + 0.125,
    str: lambda v: (v or "") + "new",
    bool: lambda v: not v,
    tuple: lambda v: (0.5, 0.25) if v and not isinstance(v[0], str) else ("a", "b/.*"),
}


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize("name", RECIPES)
def test_every_field_can_be_overridden_from_the_command_line(name):
    config = module(name).get_config(None)
    wanted = {path: OTHER[kind](value) for path, value, kind in leaves(config)}
    path = ROOT / "configs" / f"{name}.py"
    argv = ["main.py", f"--config={path}"]
    argv += [f"--config.{path}={value}" for path, value in wanted.items()]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=argv)
    cli.parse(argv, values)
    got = {path: value for path, value, _ in leaves(values.config)}
    assert got == wanted
    kinds = {type(value) for value in got.values()}
    assert kinds == set(OTHER)


def resumes_to_the_same_bits(workdir, config, *, total):
    """Runs a copy without its last checkpoint once more; its parameters."""
    want = params(workdir, total)
    copy = pathlib.Path(shutil.copytree(workdir, f"{workdir}-copy"))
    shutil.rmtree(copy / "checkpoints" / str(total))
    outcome = train.run(config, copy)
    assert outcome.step == total
    same(params(copy, total), want)
    return outcome


@pytest.fixture(scope="module")
def mae_run(tmp_path_factory):
    """(directory, outcome) of a tiny MAE run, saved at steps 3 and 6."""
    workdir = tmp_path_factory.mktemp("mae") / "run"
    return workdir, train.run(jobs.tiny(), workdir)


@pytest.fixture(scope="module")
def mae(mae_run):
    """The directory of that run."""
    return mae_run[0]


# Only their sizes, which `jobs.tiny` replaces, tell these smoke forms apart.
LIKE = {
    "mae_base": "mae_tiny",
    "mae_small": "mae_tiny",
    "mae_tiny_distill": "mae_small_distill",
}
# An evaluation does not train: tests/jobs/evaluate_test.py and
# pictures_test.py, tests/analysis. The parts of choose do: tests/jobs/choose_test.py.
# Trained, resumed and evaluated elsewhere: tests/detect_test.py, tests/segment_test.py.
# The smoke form of mae_tiny is the run above.
NOT_HERE = ("analysis", "choose", "detect", "embed", "evaluate", "layer_probe")
NOT_HERE = (*NOT_HERE, "mae_tiny", "neighbours", "predict", "segment", *LIKE)
SMOKE = [(name, "smoke") for name in RECIPES if name not in NOT_HERE]


@pytest.mark.parametrize(
    ("name", "arg"),
    [*SMOKE, ("linear_probe", "smoke,protocol=moco"), ("linear_probe", "smoke,grid")],
)
def test_the_smoke_form_trains_saves_resumes_and_evaluates(name, arg, tmp_path):
    sizes = {"steps": 2, "checkpoint__every_steps": 1}
    if name == "linear_probe":
        sizes |= {"fallback__encoder__width": 24, "fallback__encoder__depth": 1}
        if "grid" in arg:
            sizes["objective__features"] = ("cls", "avg_last1")
        config = jobs.config(name, arg, log__health=False, **sizes)
    else:
        config = jobs.tiny(name, arg, **sizes)
    outcome = train.run(config, tmp_path / "run")
    assert outcome.step == 2
    ended_and_resumes(tmp_path / "run", config, outcome, total=2)


def test_the_smoke_form_of_mae_trains_saves_resumes_and_evaluates(mae_run):
    workdir, outcome = mae_run
    assert outcome.step == 6
    ended_and_resumes(workdir, jobs.tiny(), outcome, total=6)


def ended_and_resumes(workdir, config, outcome, *, total):
    assert set(outcome.results) == set(config.evals)
    images = len(splits.open_split(config.data, "eval"))
    for result in outcome.results.values():
        assert result["last"]["step"] == total and result["last"]["n"] == images
    resumes_to_the_same_bits(workdir, config, total=total)


@pytest.mark.parametrize("name", LIKE)
def test_the_smoke_form_of_another_size_is_a_run_that_was_made(name):
    one, other = (jobs.tiny(recipe).to_dict() for recipe in (name, LIKE[name]))
    assert one.pop("name") != other.pop("name")
    assert one == other


def probe(init, **overrides):
    fields = {"steps": 4, "checkpoint__every_steps": 2, "log__every_steps": 1}
    fields |= {"evals__test__every_steps": 2, "evals__knn__every_steps": 2}
    fields |= {"log__health": False}
    return jobs.config("linear_probe", None, init=str(init), **(fields | overrides))


def test_a_probe_of_a_run_trains_the_head_alone_and_records_last_and_best(
    mae, tmp_path
):
    config = probe(mae)
    outcome = train.run(config, tmp_path / "run")
    for title in ("test", "knn"):
        file = tmp_path / "run" / "evals" / title / "result.json"
        result = json.loads(file.read_text())
        assert result == outcome.results[title]
        assert [row["step"] for row in result["history"]] == [2, 4]
        assert result["last"] == result["history"][-1]
        best = max(row["top1"] for row in result["history"])
        assert result["best"]["top1"] == best and result["best"]["step"] in (2, 4)
        assert 0 <= result["last"]["top1"] <= result["last"]["top5"] <= 100
        assert result["last"]["n"] == 359
    before, after = params(mae, 6), params(tmp_path / "run", 4)
    encoder = [name for name in after if name.startswith("encoder/")]
    assert encoder
    for name in encoder:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    start = params(tmp_path / "run", 2)
    heads = [name for name in after if name.startswith("head/")]
    assert any((after[name] != start[name]).any() for name in heads)
    again = resumes_to_the_same_bits(tmp_path / "run", config, total=4)
    for title, result in again.results.items():
        for one, other in zip(
            result["history"], outcome.results[title]["history"], strict=True
        ):
            assert untimed(one) == untimed(other)


def untimed(row):
    return {
        k: v for k, v in row.items() if k not in ("seconds", "percent_of_run", "time")
    }


def created(config, workdir):
    """Job and initial parameters of a probe, by path."""
    job = train.prepare(config, workdir)
    return job, checkpoint.flatten(jax.device_get(job.create()).params)


def test_a_probe_of_a_step_starts_from_that_step(mae, tmp_path):
    _, got = created(probe(mae / "checkpoints" / "3"), tmp_path)
    want, last = params(mae, 3), params(mae, 6)
    encoder = [name for name in got if name.startswith("encoder/")]
    for name in encoder:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)
    assert any((got[name] != last[name]).any() for name in encoder)


def test_a_probe_of_random_parameters_has_the_encoder_and_data_of_the_run_it_is_like(
    mae, tmp_path
):
    job, got = created(probe("random", like=str(mae)), tmp_path)
    trained = params(mae, 6)
    kernels = [n for n in got if n.startswith("encoder/") and n.endswith("kernel")]
    assert kernels
    for name in kernels:
        assert got[name].shape == trained[name].shape
        assert (got[name] != trained[name]).any()
    assert job.config["data"]["source"] == "digits"
    assert job.config["augment"]["normalize"]["mean"] == [0.305]


def flat_folder(image_folder):
    root = image_folder(train=40, test=0)
    for path in list(root.rglob("*.png")):
        path.rename(root / path.name)
    shutil.rmtree(root / "train")
    return root


def test_a_flat_folder_without_labels_trains(image_folder, tmp_path):
    root = flat_folder(image_folder)
    config = jobs.tiny("mae_tiny", f"smoke,data=folder,path={root}", steps=1)
    outcome = train.run(config, tmp_path / "run")
    assert outcome.step == 1
    assert outcome.results["reconstruction"]["last"]["n"] == 40


def test_class_folders_give_labels_and_a_test_split(image_folder, tmp_path):
    root = image_folder(train=16, test=6)
    made = jobs.config("linear_probe", f"smoke,data=folder,path={root}", batch_size=8)
    job = train.prepare(made, tmp_path / "run")
    assert job.config["derived"]["num_classes"] == 2
    assert job.config["derived"]["train_examples"] == 16
    evaluator, _ = job.evaluators["test"]
    assert len(evaluator.context.source("eval")) == 6
