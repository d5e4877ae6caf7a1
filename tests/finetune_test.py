"""Fine-tuning and training from scratch: the recipes' values, and where they start."""

import importlib

import jax
import numpy as np
import pytest

from litevit_jax import checkpoint
from litevit_jax.jobs import train
from litevit_jax.models import layers
from litevit_jax.train import resolve
from litevit_jax.warm_start import read
from tests import jobs
from tests.evaluators import common

pytestmark = pytest.mark.usefixtures("no_steps", "one_device")


def config(arg=None, name="finetune"):
    return importlib.import_module(f"litevit_jax.configs.{name}").get_config(arg)


IMPROVED = {
    "epochs": 300,
    "batch_size": 1024,
    "lr.base": 1e-3,
    "lr.warmup_epochs": 5.0,
    "lr.start": 0.0,
    "lr.end": 1e-6,
    "optimizer.name": "adamw",
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.999,
    "optimizer.eps": 1e-8,
    "optimizer.weight_decay": 0.05,
    "optimizer.layer_decay": 0.85,
    "optimizer.clip_norm": None,
    "objective.drop_path": 0.0,
    "objective.label_smoothing": 0.0,
    "objective.pool": "avg",
    "data.randaugment.layers": 2,
    "data.randaugment.magnitude": 10.0,
    "data.randaugment.std": 0.5,
    "data.interpolation": "bicubic",
    "data.crop_scale": (0.08, 1.0),
    "data.flip": 0.5,
    "data.eval_crop_fraction": 0.875,
    "augment.mix.mixup": 0.2,
    "augment.mix.cutmix": 0.0,
    "augment.erase.probability": 0.0,
}
PLAIN = IMPROVED | {
    "epochs": 100,
    "objective.drop_path": 0.1,
    "objective.label_smoothing": 0.1,
    "data.randaugment.magnitude": 9.0,
    "augment.mix.mixup": 0.8,
    "augment.mix.cutmix": 1.0,
    "augment.erase.probability": 0.25,
}
DISTILL = PLAIN | {
    "epochs": 300,
    "objective.distill.alpha": 0.5,
    "objective.distill.tau": 1.0,
    "objective.distill.hard": True,
}
RPE = IMPROVED | {
    "epochs": 1000,
    "objective.head": "linear_small",
    "objective.encoder.init_style": "rpe",
    "objective.encoder.rpe_style": "fused",
    "objective.encoder.pos_embed": "learned_sincos",
}
RECIPES = [
    ("finetune", "imagenet2012",
        IMPROVED | {"optimizer.ema_decay": None, "init_rename": ()}),
    ("finetune", "scratch", IMPROVED),
    ("deit_tiny", None, IMPROVED),
    ("finetune", "small,imagenet2012", IMPROVED | {"optimizer.layer_decay": 0.75}),
    ("finetune", "plain,imagenet2012", PLAIN),
    ("finetune", "distill,imagenet2012", DISTILL),
    ("finetune_rpe", "imagenet2012", RPE),
    ("finetune_rpe", "style=v2023,imagenet2012",
        RPE | {"objective.encoder.rpe_style": "v2023"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arg", "values"), RECIPES)
def test_recipes_have_the_published_values(name, arg, values):
    made = config(arg, name)
    for path, value in values.items():
        block = made
        for key in path.split("."):
            block = block[key]
        assert block == value, path
    assert "color_jitter" not in made.augment  # RandAugment takes its place


@pytest.mark.parametrize(
    ("name", "arg", "variant"),
    [
        ("deit_tiny", None, "tiny"),
        ("finetune", "scratch", "tiny"),
        ("finetune", "scratch,small", "small"),
    ],
)
def test_from_scratch_there_are_learned_positions_and_nothing_to_load(
    name, arg, variant
):
    made = config(arg, name)
    assert made.objective.encoder.variant == variant
    assert made.objective.encoder.pos_embed == "learned"
    assert made.init in (None, "random")


def test_variants_name_their_runs():
    names = {config(arg).name for arg in (None, "plain", "small", "scratch", "distill")}
    assert len(names) == 5
    assert config("plain,digits,shots=10").name == "finetune-plain-digits-10shots"
    assert config("digits,shots=10").data.shots == 10
    assert config("style=v2023,digits", "finetune_rpe").name == (
        "finetune_rpe-v2023-digits"
    )


def test_variants_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"style='v2022' unknown; did you mean v2023"):
        config("style=v2022", "finetune_rpe")
    with pytest.raises(
        ValueError, match=r"copy_norm needs a checkpoint; leave scratch"
    ):
        config("copy_norm,scratch")


@pytest.mark.parametrize("value", ["0", "few", "-1"])
def test_a_number_of_shots_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match=rf"shots={value}: expected a number of im"):
        config(f"digits,shots={value}")


@pytest.fixture(scope="module")
def mae(tmp_path_factory):
    """A tiny MAE run."""
    workdir = tmp_path_factory.mktemp("mae") / "run"
    return jobs.saved_run(workdir, jobs.tiny(), noise=True)


def prepared(workdir, arg, name="finetune", **fields):
    job = train.prepare(jobs.config(name, arg, **fields), workdir)
    return job, checkpoint.flatten(jax.device_get(job.create()).params)


def test_an_mae_gives_its_encoder_and_nothing_else(mae, tmp_path):
    job, got = prepared(tmp_path / "run", "digits", init=str(mae))
    theirs = read.read_params(str(mae)).params
    for name in got:
        if name.startswith("encoder/") and name != "encoder/pos_embed":
            np.testing.assert_array_equal(got[name], theirs[name], err_msg=name)
    table = layers.sincos_table((4, 4), 24, "sincos")
    np.testing.assert_array_equal(got["encoder/pos_embed"][0], table)
    assert "encoder/norm/scale" not in got
    assert (got["head/fc_norm/scale"] == 1).all() and (got["head/fc/bias"] == 0).all()
    encoder = job.config["objective"]["encoder"]
    assert (encoder["num_heads"], encoder["pos_embed"]) == (2, "learned_sincos")


THREE = {
    "data__channels": 3,
    "augment__normalize__mean": (0.1, 0.2, 0.3),
    "augment__normalize__std": (0.4, 0.5, 0.6),
}


def test_images_of_other_channels_need_a_rule_and_have_it_told(mae, tmp_path):
    with pytest.raises(ValueError, match=r"normalize.mean .* 3 channels .*stats DIR"):
        prepared(tmp_path / "run", "digits", init=str(mae), data__channels=3)
    message = r"init=.*reads 1 channels, the images have 3 .*--config\.init_channels="
    with pytest.raises(ValueError, match=message):
        prepared(tmp_path / "run", "digits", init=str(mae), **THREE)
    fields = {"init": str(mae), "init_channels": "mean", **THREE}
    job, got = prepared(tmp_path / "run", "digits", **fields)
    kernel = read.read_params(str(mae)).params["encoder/patch_embed/kernel"]
    third = np.repeat(kernel[:, None] / 3, 3, axis=1).reshape(-1, kernel.shape[-1])
    np.testing.assert_allclose(got["encoder/patch_embed/kernel"], third, rtol=1e-6)
    told = [line for line in job.notes if "becomes one of 3" in line]
    assert len(told) == 1 and "init_channels=mean" in told[0]


def test_a_decoder_is_not_adapted_to_other_channels(mae, tmp_path):
    fields = {"init": str(mae), "init_channels": "mean", **THREE}
    message = r"decoder/pred/.*predicts the pixels of each channel, is not adapted"
    with pytest.raises(ValueError, match=f"(?s){message}"):
        train.prepare(jobs.tiny(**fields), tmp_path / "run")


FRESH = {  # and what of the checkpoint's blocks stays unused
    "fused": {"attn/relative_position_bias_table"},
    "qv_bias": {"attn/relative_position_bias_table", "attn/q_bias", "attn/v_bias"},
}
FRESH["v2023"] = FRESH["qv_bias"] | {"gamma_1", "gamma_2"}


@pytest.mark.parametrize("style", FRESH)
def test_with_position_bias_all_starts_as_pre_trained_but_what_the_config_lists(
    style, mae, tmp_path
):
    job, got = prepared(
        tmp_path / "run", f"digits,style={style}", "finetune_rpe", init=str(mae)
    )
    theirs = read.read_params(str(mae)).params
    own = {k.removeprefix("encoder/") for k in got if k.startswith("encoder/")}
    fresh = {f"blocks_0/{name}" for name in FRESH[style]}
    assert fresh < own and "norm/scale" not in own
    for name in own - fresh - {"pos_embed"}:
        path = f"encoder/{name}"
        np.testing.assert_array_equal(got[path], theirs[path])
    assert ("blocks_0/attn/qkv/bias" in own) == (style == "fused")
    for name in fresh:
        want = np.float32(0.1 if "gamma" in name else 0)
        np.testing.assert_array_equal(got[f"encoder/{name}"], want)
    assert got["encoder/blocks_0/attn/relative_position_bias_table"].shape == (52, 2)
    assert 0 < np.abs(got["head/fc/kernel"]).max() < 1e-4
    encoder = job.config["objective"]["encoder"]
    assert (encoder["rpe_style"], encoder["num_heads"]) == (style, 2)


def test_biases_that_v2023_has_no_place_for_are_lost_only_by_permission(mae, tmp_path):
    made = jobs.config("finetune_rpe", "digits,style=v2023", init=str(mae))
    assert r"encoder/blocks_\d+/attn/qkv/bias" in made.init_skip
    made.init_skip = made.init_skip[:2]
    message = r"encoder/blocks_0/attn/qkv/bias \[72\]: in the checkpoint only"
    with pytest.raises(ValueError, match=message):
        train.prepare(made, tmp_path / "run")


def test_the_final_norm_goes_where_the_config_says(mae, tmp_path):
    theirs = read.read_params(str(mae)).params
    norm = theirs["encoder/norm/bias"]
    assert norm.all()  # as if it had learned something
    _, fresh = prepared(tmp_path / "fresh", "digits", init=str(mae))
    assert not fresh["head/fc_norm/bias"].any()
    _, copied = prepared(tmp_path / "copied", "digits,copy_norm", init=str(mae))
    np.testing.assert_array_equal(copied["head/fc_norm/bias"], norm)
    np.testing.assert_array_equal(
        copied["head/fc_norm/scale"], theirs["encoder/norm/scale"]
    )
    cls = {"init": str(mae), "objective__pool": "cls"}
    _, pooled = prepared(tmp_path / "cls", "digits", **cls)
    np.testing.assert_array_equal(pooled["encoder/norm/bias"], norm)
    assert "head/fc_norm/bias" not in pooled


def test_a_rule_of_names_that_fits_nothing_or_something_else_is_explained(
    mae, tmp_path
):
    for rule, message in (
        ("encoder/nrom/=head/fc_norm/", r"nothing has that name; expected 'OLD/=NEW/'"),
        ("encoder/norm/", r"init_rename='encoder/norm/': nothing has that name"),
        ("encoder/norm/=decoder/norm/", r"decoder/norm/bias is there already"),
    ):
        with pytest.raises(ValueError, match=message):
            prepared(tmp_path / "run", "digits", init=str(mae), init_rename=(rule,))


def test_shots_leave_that_many_images_and_another_seed_draws_others(mae, tmp_path):
    prints = []
    for seed in (0, 1):
        fields = {"init": str(mae), "data__subset_seed": seed}
        job, _ = prepared(tmp_path / str(seed), "digits,shots=10", **fields)
        assert job.config["derived"]["train_examples"] == 100
        assert job.config["derived"]["num_classes"] == 10
        prints.append(job.config["derived"]["train_fingerprint"])
    assert prints[0] != prints[1]


def test_the_teacher_of_distillation_is_a_classifier_run(mae, tmp_path):
    sizes = {"objective__encoder__width": 16}
    teacher = jobs.saved_run(tmp_path / "teacher", jobs.tiny("deit_tiny", **sizes))
    fields = {"init": str(mae), "teacher": str(teacher)}
    job, got = prepared(tmp_path / "run", "digits,distill", **fields)
    theirs = read.read_params(str(teacher)).params
    taught = checkpoint.flatten(job.fixed["teacher"])
    assert taught.keys() == theirs.keys()
    for name, value in taught.items():
        np.testing.assert_array_equal(value, theirs[name])
    assert job.config["objective"]["teacher"]["pool"] == "avg"
    assert {"head/fc/kernel", "head_dist/fc/kernel"} < got.keys()


def test_distillation_without_a_teacher_says_how_to_name_one(mae, tmp_path):
    with pytest.raises(ValueError, match=r"--config.teacher=RUN_DIR"):
        prepared(tmp_path / "run", "digits,distill", init=str(mae))


def test_without_a_checkpoint_there_is_nothing_to_fine_tune(tmp_path):
    with pytest.raises(ValueError, match=r"--config.init=RUN_DIR"):
        prepared(tmp_path / "run", "digits")


def test_an_odd_batch_is_refused_before_anything_is_compiled(tmp_path):
    made = jobs.config("deit_tiny", "smoke", batch_size=33)
    with pytest.raises(
        ValueError, match=r"batch_size=33 is odd.*--config.batch_size=34"
    ):
        train.prepare(made, tmp_path / "run")


def several(tmp_path, **arrays):
    """A file of arrays whose images have several labels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    labels = (rng.random((16, 3)) < 0.5).astype(np.uint8)
    parts = {"train_image": images, "train_label": labels}
    parts |= {"test_image": images[:5], "test_label": labels[:5]}
    np.savez(tmp_path / "a.npz", **{**parts, **arrays})
    return f"data=arrays,path={tmp_path / 'a.npz'}"


@pytest.mark.parametrize("name", ["finetune", "linear_probe"])
def test_the_variant_multi_label_learns_each_class_by_itself(name, tmp_path):
    arg = f"multi_label,smoke,{several(tmp_path)}"
    made = config(arg, name)
    assert (made.objective.loss, set(made.evals)) == ("bce", {"test"})
    job, _ = prepared(tmp_path / "run", arg, name, init="random")
    assert job.objective.multi_label and job.config["data"]["multi_hot"] == 3
    evaluator, _ = job.evaluators["test"]
    assert type(evaluator).__name__ == "MultiLabel"


def test_kinds_of_labels_and_loss_have_to_agree(tmp_path):
    arg = f"smoke,{several(tmp_path)}"
    with pytest.raises(ValueError, match=r"needs one label an image.*\.loss=bce"):
        prepared(tmp_path / "run", arg)
    train_label, test_label = (np.eye(3)[np.arange(n) % 3] for n in (16, 5))
    one = several(tmp_path, train_label=train_label, test_label=test_label)
    with pytest.raises(ValueError, match=r"needs several labels an image"):
        prepared(tmp_path / "run", f"multi_label,smoke,{one}")
    with pytest.raises(ValueError, match=r"grid and multi_label: give one"):
        config("grid,multi_label,digits", "linear_probe")


def test_balanced_weights_are_of_the_training_images(tmp_path):
    arg, how = f"multi_label,smoke,{several(tmp_path)}", {"init": "random"}
    how["objective__class_weights"] = "balanced"
    job, _ = prepared(tmp_path / "run", arg, **how)
    labels = np.load(tmp_path / "a.npz")["train_label"].sum(0)
    assert job.config["derived"]["class_counts"] == labels.tolist()
    np.testing.assert_allclose(job.objective.weights, labels.mean() / labels)


def test_classes_of_more_than_255_images_are_counted():
    images = common.Images([0] * 300 + [1], 2)
    assert resolve._class_counts(images, "balanced") == (300, 1)


def test_several_labels_stay_on_the_host_and_what_is_ignored_is_named(tmp_path):
    arg, how = f"multi_label,smoke,{several(tmp_path)}", {"init": "random"}
    how |= {"data__cache": "auto", "steps_per_call": "4"}
    job, _ = prepared(tmp_path / "run", arg, "linear_probe", **how)
    (line,) = [note for note in job.notes if "cropped" in note]
    assert "several labels each; steps_per_call=4 has no effect" in line
