"""The job 'convert': from runs and files to files, and back."""

import dataclasses
import json
import pathlib
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import onnx
import pytest
import yaml

import litevit_jax
from litevit_jax import checkpoint, cli, commandline, trees, weights
from litevit_jax.jobs import convert, convert_source, evaluate
from litevit_jax.models import layers
from litevit_jax.train import job
from litevit_jax.warm_start import read
from litevit_jax.weights import safetensors, timm_folder
from tests import jobs
from tests.records import same
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


def saved_classifier(workdir, *, head, **fields):
    model = export_test.model_of("avg")
    params = trees.nest(model.params)
    empty = {"model_state": {}, "teacher": {}, "opt_state": {}}
    saved = job.TrainState(step=jnp.int32(5), params=params, **empty)
    config = {
        "name": "finetune",
        "objective": {"encoder": dict(export_test.SIZES), "head": head, **fields},
        "data": {
            "image_size": 16,
            "image_width": None,
            "range": "0,4095",
            "eval_crop_fraction": 0.9,
        },
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


def test_a_file_says_whether_each_class_has_a_probability_alone(classifier, tmp_path):
    several = saved_classifier(tmp_path / "run", head="linear", loss="bce")
    for run, kind, loss, name in (
        (several, "sigmoid", "bce", "multi_label"),
        (classifier, "softmax", "softmax", "classification"),
    ):
        one, folder = tmp_path / f"{kind}.safetensors", tmp_path / kind
        converted(run, one)
        _, config, card = folder_of(one, folder)  # what a file says is kept
        assert config["probabilities"] == kind and f"| {kind} |" in card
        for path in (one, folder / "model.safetensors"):
            model = evaluate._of_file(read.read(str(path)))
            assert model.objective["loss"] == loss
            assert model.evals["test"]["name"] == name
            encoder = litevit_jax.load(path)
            assert encoder.objective.multi_label == (loss == "bce")
            assert encoder.classes == tuple(CLASSES) and encoder.crop == 0.9
        litevit_jax.save(encoder, tmp_path / f"{kind}2.safetensors")
        again = weights.read(tmp_path / f"{kind}2.safetensors")
        assert (again.loss, again.classes) == (loss, CLASSES)
        converted(run, folder.with_suffix(".onnx"))
        props = onnx.load(str(folder.with_suffix(".onnx"))).metadata_props
        assert {e.key: e.value for e in props}["probabilities"] == kind
    image = np.zeros((1, 16, 16, 3), np.float32)
    several = litevit_jax.load(tmp_path / "sigmoid.safetensors")
    [pairs] = litevit_jax.predict(several, image, top=10)
    odds = np.sort(1 / (1 + np.exp(-several.logits(image)[0].astype(float))))[::-1]
    np.testing.assert_allclose([p for _, p in pairs], odds, rtol=1e-6)
    converted(several.path, tmp_path / "e.safetensors", part="encoder")
    about = safetensors.load((tmp_path / "e.safetensors").read_bytes())[1]
    assert "probabilities" not in about


def test_what_a_file_says_wrongly_is_refused(classifier, tmp_path):
    converted(classifier, tmp_path / "a.safetensors")
    arrays, about = safetensors.load((tmp_path / "a.safetensors").read_bytes())
    for key, value in (("probabilities", "max"), ("crop", "0"), ("crop", "center")):
        data = safetensors.write(arrays, {**about, key: value})
        (tmp_path / "b.safetensors").write_bytes(data)
        with pytest.raises(weights.WeightsError, match=f"metadata say {key}='?{value}"):
            weights.read(tmp_path / "b.safetensors")
    other = safetensors.write(arrays, {**about, "interpolation": "bilinear"})
    (tmp_path / "c.safetensors").write_bytes(other)
    assert "resized by 'bilinear'" in weights.read(tmp_path / "c.safetensors").notes[0]


# Fields of timm's PretrainedCfg that we fill; it takes no others.
PRETRAINED = {
    "custom_load": bool,
    "input_size": list,
    "fixed_input_size": bool,
    "interpolation": str,
    "crop_pct": float,
    "crop_mode": str,
    "mean": list,
    "std": list,
    "num_classes": int,
    "label_names": list,
    "pool_size": type(None),
    "first_conv": str,
    "classifier": str,
    "license": str,
    "description": str,
}
# Keywords of timm's VisionTransformer.
ARGUMENTS = {
    "img_size": [16, 16],
    "patch_size": 4,
    "in_chans": 3,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 4,
    "mlp_ratio": 4,
}


def folder_of(source, folder, **overrides):
    """(text, config, card) of a conversion to a folder."""
    text = converted(source, f"{folder}/", **overrides)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["README.md", "config.json", "model.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    return text, config, (folder / "README.md").read_text()


def test_a_folder_for_timm_has_its_schema_and_a_card(classifier, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(classifier, run)
    result = {"metric": "top1", "last": {"step": 5, "top1": 81.25}}
    other = {"metric": "top1", "last": {"step": 9, "top1": 12.5}}
    for title, content in (("test", result), ("later", other)):
        path = run / "evals" / title / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))
    folder = tmp_path / "new" / "model"
    text, config, card = folder_of(run, folder, licence="apache-2.0")
    assert "beside it: config.json, README.md" in text
    about = config.pop("pretrained_cfg")
    assert {key: type(value) for key, value in about.items()} == PRETRAINED
    assert about["input_size"] == [3, 16, 16] and about["label_names"] == CLASSES
    assert about["mean"] == [0.5] * 3 and about["std"] == [0.25] * 3
    assert about["license"] == "apache-2.0" and about["num_classes"] == 10
    assert about["crop_pct"] == 0.9 and about["interpolation"] == "bicubic"
    assert about["description"] == "litevit_jax: finetune, step 5"
    assert config == {
        "architecture": "vit_tiny_patch16_224",
        "probabilities": "softmax",
        "num_classes": 10,
        "num_features": 24,
        "global_pool": "avg",
        "model_args": {**ARGUMENTS, "global_pool": "avg", "fc_norm": True},
    }
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "apache-2.0" and "image-classification" in front["tags"]
    assert "| test | top1 | 81.25 |" in card and "later" not in card
    assert 'timm.create_model("local-dir:model", pretrained=True)' in card
    # Read again, with timm's config beside it, it is the same.
    again = weights.read(str(folder / "model.safetensors"))
    same(again.params, params_of(run))
    assert again.classes == CLASSES and again.pool == "avg"
    converted(folder / "model.safetensors", tmp_path / "back.safetensors")
    notes = safetensors.load((tmp_path / "back.safetensors").read_bytes())[1]
    assert notes["licence"] == "apache-2.0"
    assert (notes["resize"], notes["interpolation"]) == ("17x17", "bicubic")
    assert (notes["crop"], notes["pool"]) == ("0.9", "avg")


@pytest.mark.parametrize(
    ("kind", "pool", "arguments"),
    [
        ("tokens", "token", {"fc_norm": False}),
        ("cls", "token", {"fc_norm": False}),
        ("avg", "avg", {"fc_norm": True}),
    ],
)
def test_a_folder_says_how_tokens_are_pooled(kind, pool, arguments):
    config = timm_folder.config(export_test.model_of(kind))
    assert config["global_pool"] == pool
    assert config["model_args"] == {**ARGUMENTS, "global_pool": pool, **arguments}
    assert config["num_classes"] == (0 if kind == "tokens" else 10)
    # What nobody knows is left to timm, and no name is made up.
    unknown = {"mean", "std", "crop_pct", "label_names", "license", "description"}
    assert not unknown & config["pretrained_cfg"].keys()
    card = timm_folder.card("x", export_test.model_of(kind), [])
    assert "None were recorded" in card and "| licence | not stated |" in card


def test_other_channels_and_encoders_without_a_norm_are_as_timm_needs_them(mae):
    model, _ = convert_source.read_model(
        str(mae), convert_source.Reading(), part="all", image_size=None
    )
    config = timm_folder.config(model)
    assert config["pretrained_cfg"]["first_conv"] is None  # timm would change it
    assert config["pretrained_cfg"]["input_size"] == [1, 8, 8]
    params = {k: x for k, x in model.params.items() if "encoder/norm/" not in k}
    bare = dataclasses.replace(model, params=params)
    assert timm_folder.config(bare)["model_args"]["final_norm"] is False


def test_a_folder_is_never_overwritten_and_has_one_format(classifier, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(
        FileExistsError, match=r"full/ is there already, and not an emp"
    ):
        converted(classifier, f"{tmp_path}/full/")
    with pytest.raises(
        ValueError, match=r"is a folder for timm, --config.format=mmseg"
    ):
        converted(classifier, f"{tmp_path}/new/", format="mmseg")
    with pytest.raises(ValueError, match=r"has no place for tables of relative pos"):
        timm_folder.config(export_test.dense_model())
    assert not (tmp_path / "new").exists()


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
    "ending": ({"target": "x.pt"}, "ends in '.pt', expected one of .safetensors"),
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
