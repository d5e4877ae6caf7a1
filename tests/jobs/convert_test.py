"""The job 'convert': from runs and files to files, and back."""

import json
import pathlib
import sys

import jax.numpy as jnp
import numpy as np
import onnx
import pytest

from litevit_jax import checkpoint, cli, commandline, trees, weights
from litevit_jax.jobs import convert
from litevit_jax.models import layers
from litevit_jax.train import job
from litevit_jax.warm_start import read
from litevit_jax.weights import safetensors
from tests import jobs
from tests.weights import export_test, reader_test

pytestmark = pytest.mark.usefixtures("shared_designs", "one_device")

ROOT = pathlib.Path(__file__).parents[2]
CONVERT = str(ROOT / "configs" / "convert.py")
CLASSES = [f"class {k}, \u00fc" for k in range(10)]


@pytest.fixture(scope="module")
def mae(tmp_path_factory):
    """A tiny MAE run."""
    workdir = tmp_path_factory.mktemp("mae") / "run"
    return jobs.saved_run(workdir, jobs.tiny(evals={}), noise=True)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A run directory of a classifier, as training leaves it."""
    return saved_classifier(tmp_path_factory.mktemp("classifier"), head="linear")


def saved_classifier(workdir, *, head):
    model = export_test.model_of("avg")
    params = trees.nest(model.params)
    empty = {"model_state": {}, "teacher": {}, "opt_state": {}}
    saved = job.TrainState(step=jnp.int32(5), params=params, **empty)
    config = {
        "name": "finetune",
        "objective": {"encoder": dict(export_test.SIZES), "head": head},
        "data": {"image_size": 16, "image_width": None, "range": "0,4095"},
        "derived": {"classes": CLASSES},
        "augment": {"normalize": {"mean": [0.5] * 3, "std": [0.25] * 3}},
    }
    workdir.mkdir(exist_ok=True)
    manager = checkpoint.Checkpoints(workdir, keep=1)
    manager.save(saved, config=config, skipped_steps=0)
    manager.close()
    return workdir


def converted(source, target, **overrides):
    config = jobs.importlib.import_module("litevit_jax.configs.convert").get_config()
    with config.unlocked():
        config.update(source=str(source or ""), target=str(target or ""), **overrides)
        config.latency.heads = ()
    return convert.run(config)


def params_of(run):
    return read.read_params(str(run)).params


def same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


@pytest.mark.parametrize("kind", ["timm", "mae"])
def test_a_run_goes_to_a_file_and_comes_back_bit_for_bit(kind, mae, tmp_path):
    target = tmp_path / "new" / "out.safetensors"
    text = converted(mae, target, format=kind)
    assert f"{target}: {kind}, {target.stat().st_size:,} bytes" in text
    assert "largest difference" in text
    found = weights.read(str(target))
    want = params_of(mae)
    if kind == "timm":
        assert "left out, as 'timm' has no place: " in text
        want = {k: v for k, v in want.items() if k.startswith("encoder/")}
    same(found.params, want)
    assert kind == "timm" or found.decoder["num_heads"] == 2
    assert found.encoder["num_heads"] == 2 and found.encoder["pos_embed"] == "sincos"


def test_a_file_goes_to_a_file_and_is_the_same(mae, tmp_path):
    first, second = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    converted(mae, first)
    converted(first, second)
    one, two = (safetensors.load(p.read_bytes())[0] for p in (first, second))
    assert one and one.keys() == two.keys()
    same(one, two)


def test_a_classifier_comes_back_with_its_head(classifier, tmp_path):
    target = tmp_path / "out.safetensors"
    text = converted(classifier, target)
    assert "output 'logits'" in text
    same(weights.read(str(target)).params, params_of(classifier))
    about = safetensors.load(target.read_bytes())[1]
    assert about["source"] == "finetune, step 5"
    assert json.loads(about["mean"]) == [0.5] * 3
    assert about["range"] == "0,4095"


def test_the_encoder_of_a_classifier_is_a_part(classifier, tmp_path):
    target = tmp_path / "out.safetensors"
    text = converted(classifier, target, part="encoder")
    assert "output 'features'" in text
    names = safetensors.load(target.read_bytes())[0]
    assert "fc_norm.weight" in names and "head.weight" not in names


@pytest.mark.parametrize("ending", ["onnx", "stablehlo"])
def test_the_ending_of_the_target_picks_the_format(ending, classifier, tmp_path):
    target = tmp_path / f"out.{ending}"
    text = converted(classifier, target)
    assert f"out.{ending}: {ending}, " in text
    if ending == "onnx":
        props = onnx.load(str(target)).metadata_props
        about = {entry.key: entry.value for entry in props}
    else:  # the format has no place for them
        about = json.loads((tmp_path / "out.stablehlo.json").read_text())
    assert json.loads(about["classes"]) == CLASSES
    assert json.loads(about["mean"]) == [0.5] * 3
    if ending == "stablehlo":
        target.unlink()
        with pytest.raises(FileExistsError, match=r"out.stablehlo.json, where its met"):
            converted(classifier, target)


def test_a_file_keeps_what_it_says_of_classes_and_images(classifier, tmp_path):
    first, second, part = (tmp_path / f"{k}.safetensors" for k in (1, 2, 3))
    converted(classifier, first)
    converted(first, second)
    for path in (first, second):
        found = weights.read(str(path))
        assert found.classes == CLASSES
        assert found.normalize == {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    converted(classifier, part, part="encoder")
    assert weights.read(str(part)).classes == []
    assert weights.read(str(part)).normalize["std"] == (0.25,) * 3
    converted(classifier, tmp_path / "d.safetensors", format="vitdet")
    about = safetensors.load((tmp_path / "d.safetensors").read_bytes())[1]
    assert "classes" not in about  # nor has it a head


def test_positions_are_resized_for_another_image_size(mae, classifier, tmp_path):
    for source, count in ((mae, 1 + 8 * 8), (classifier, 1 + 4 * 4)):
        target = tmp_path / f"{count}.safetensors"
        converted(source, target, image_size=16)
        arrays = safetensors.load(target.read_bytes())[0]
        assert arrays["pos_embed"].shape == (1, count, 24)
    want = layers.sincos_table((8, 8), 24, "sincos")[None]
    arrays = safetensors.load((tmp_path / "65.safetensors").read_bytes())[0]
    np.testing.assert_array_equal(arrays["pos_embed"], want)


def test_a_file_that_computes_something_else_never_appears(classifier, tmp_path):
    target = tmp_path / "out" / "x.safetensors"
    with pytest.raises(RuntimeError, match=r"was not written.*largest difference"):
        converted(classifier, target, tolerance=-1.0)
    assert list(target.parent.iterdir()) == []


def test_a_probe_with_running_statistics_is_exported_as_its_encoder_only(tmp_path):
    run = saved_classifier(tmp_path / "run", head="probe_bn")
    with pytest.raises(ValueError, match=r"running statistics.*part=encoder"):
        converted(run, tmp_path / "out.safetensors")
    converted(run, tmp_path / "out.safetensors", part="encoder")


MISTAKES = {
    "no source": ({"source": None}, "config.source is missing"),
    "no target": ({"target": None}, "config.target is missing"),
    "part": ({"part": "encodr"}, "part 'encodr' unknown; did you mean encoder"),
    "format": ({"format": "tim"}, "format 'tim' unknown; did you mean timm"),
    "ending": ({"target": "x.pth"}, "ends in '.pth', expected one of .safetensors"),
    "another ending": (
        {"target": "x.onnx", "format": "timm"},
        "ends in '.onnx', expected .safetensors for format 'timm'",
    ),
    "heads": ({"num_heads": 3}, "config.num_heads=3, but the run recorded 4"),
    "decoder": ({"format": "mae"}, "'mae' holds a decoder, and the source has none"),
    "size": ({"image_size": 18}, "height 18 and width 18 does not divide"),
    "no run": ({"source": "nowhere"}, "--config.source=nowhere: no run directory"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_before_anything_is_written(name, classifier, tmp_path):
    overrides, message = MISTAKES[name]
    fields = {"source": str(classifier), "target": str(tmp_path / "out.safetensors")}
    fields |= overrides
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        converted(**fields)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_target_is_never_overwritten_and_must_be_writable(classifier, tmp_path):
    target = tmp_path / "out.safetensors"
    target.write_text("precious")
    with pytest.raises(FileExistsError, match="is there already"):
        converted(classifier, target)
    assert target.read_text() == "precious"
    with pytest.raises(OSError, match=r"cannot be written: File exists; name"):
        converted(classifier, target / "below.safetensors")


def started(*arguments):
    argv = ["main.py", *arguments]
    values = commandline.flags_for(argv)
    cli.parse(argv, values)
    return cli.run(argv, values)


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_the_command_line_converts_and_prints_difference_and_times(
    classifier, tmp_path, capsys, monkeypatch
):
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
    monkeypatch.chdir(tmp_path)
    fields = [f"--config={CONVERT}", f"--config.source={classifier}"]
    fields += ["--config.target=out.onnx", "--config.latency.repeats=2"]
    assert started(*fields) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"convert: convert {classifier} to out.onnx\n")
    assert "out.onnx: onnx," in out and "onnxruntime on the file" in out
    for title in ("JAX, 4 heads ", "JAX, 12 heads instead", "onnxruntime, 4 heads"):
        assert title in out
    assert "n 2" in out and "GMACs" in out
    assert started(*fields, "--workdir=x") == cli.EXIT_USAGE
    assert "--workdir=x: a conversion has no run directory" in capsys.readouterr().err
    assert started(*fields, "--config.job=covert") == cli.EXIT_USAGE
    assert "job 'covert' unknown; did you mean convert" in capsys.readouterr().err


def test_the_config_is_locked_has_no_variants_and_starts_with_its_command():
    module = jobs.importlib.import_module("litevit_jax.configs.convert")
    assert module.get_config().is_locked
    assert "\n    python main.py --config=configs/convert.py" in module.__doc__
    with pytest.raises(ValueError, match="'smoke' unknown"):
        module.get_config("smoke")


TIMM = ROOT / "tests" / "weights" / "fixtures" / "timm.pth"


def test_the_pooling_of_a_file_is_said_and_recorded(tmp_path):
    target = tmp_path / "a.safetensors"
    text = converted(TIMM, target, num_heads=4, pool="avg", act="gelu")
    assert "norm=layernorm" in text and "pool=" not in text.split(";")[0]
    about = safetensors.load(target.read_bytes())[1]
    assert (about["pool"], about["output"]) == ("avg", "logits")
    found = weights.read(str(target))
    assert (found.pool, found.notes) == ("avg", ())
    again = converted(target, tmp_path / "b.safetensors")
    assert "assumed" not in again and "pool='cls', but its metadata says" in refusal(
        target, tmp_path / "c.safetensors", pool="cls"
    )


def refusal(source, target, **overrides):
    with pytest.raises(ValueError, match="--config") as caught:
        converted(source, target, **overrides)
    assert not target.exists()
    return str(caught.value)


def test_what_a_file_does_not_tell_has_a_flag(mae, tmp_path):
    target = tmp_path / "a.safetensors"
    text = refusal(TIMM, target)
    assert "give num_heads" in text and "here: --config.num_heads=A" in text
    arrays = reader_test.timm_arrays(weights.read(TIMM, num_heads=4))
    arrays["pos_embed"] = np.ones((1, 19, 16))
    source = reader_test.to_file(tmp_path / "rect.safetensors", arrays)
    text = refusal(source, target, num_heads=4)
    assert "18 patches, no square; " in text and "--config.grid=ROWSxCOLUMNS" in text
    assert "--config.grid=3,6: expected rows" in refusal(
        source, target, num_heads=4, grid="3,6"
    )
    converted(source, target, num_heads=4, grid="3x6")
    assert weights.read(str(target)).grid == (3, 6)
    assert "--config.pool=avg says how a file of weights is read" in refusal(
        mae, tmp_path / "b.safetensors", pool="avg"
    )
