"""Images are read as the encoder was trained on, unless a field says otherwise."""

import types

import numpy as np
import pytest

from litevit_jax.warm_start import images, read, start
from tests import jobs

RECIPES = ("finetune", "finetune_rpe", "linear_probe", "transfer", "layer_study")
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
DEFAULT = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SIZES = {
    "data__image_size": 12,
    "data__image_width": 8,
    "data__channels": 3,
    "data__eval_crop_fraction": 0.75,
    "data__holdout__test": 0.25,
    "augment__normalize__mean": MEAN,
    "augment__normalize__std": STD,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 12 x 8 images, with the patch kernel as its only parameter."""
    job = jobs.prepare(tmp_path_factory.mktemp("run"), jobs.tiny(**SIZES))
    kernel = np.zeros((12, 24), np.float32)
    return read.Checkpoint(
        {"encoder/patch_embed/kernel": kernel}, job.config, 6, job.workdir
    )


@pytest.fixture
def lent(run, monkeypatch):
    """The run, as which every run directory then reads."""
    monkeypatch.setattr(read, "read_params", lambda _: run)
    monkeypatch.setattr(read, "run_config", lambda _: run.config)
    return run


def settled(recipe, arg="data=folder,path=DIR", **fields):
    """(config with its images settled, lines for the start)."""
    config = jobs.config(recipe, arg, **fields).copy_and_resolve_references().unlock()
    loaded = start.init_checkpoint(config)
    teacher = start.teacher_checkpoint(config.teacher, config.objective)
    return config, images.settle(config, loaded, teacher)


def image_fields(config):
    data, normalize = config.data, config.augment.normalize
    size = data.image_size, data.image_width, data.channels
    return (*size, tuple(normalize.mean), tuple(normalize.std))


@pytest.mark.parametrize("arg", ["data=folder,path=DIR", "digits", "imagenet2012"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_images_of_other_data_are_those_that_the_run_knows(recipe, arg, lent):
    config, lines = settled(recipe, arg, init="RUN")
    assert image_fields(config) == (12, 8, 3, MEAN, STD)
    assert lines == [
        "encoder: RUN, step 6 (mae)",
        "images of 12x8 pixels, 3 channels: 24 patches of 2x2 an image",
    ]
    assert config.data.source != "digits" or arg == "digits"


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_field_says_otherwise_and_the_start_says_how_they_differ(recipe, lent):
    fields = {"data__image_size": 16, "augment__normalize__std": (0.5,) * 3}
    config, lines = settled(recipe, init="RUN", **fields)
    assert image_fields(config) == (16, None, 3, MEAN, (0.5,) * 3)
    assert lines[1].startswith("images of 16x16 pixels, 3 channels: 64 patches of 2x2")
    assert lines[2:] == [
        "the images differ from those that --config.init=RUN was trained on: size "
        "16x16, there 12x8; std (0.5, 0.5, 0.5), there (0.4, 0.5, 0.6)"
    ]


@pytest.mark.parametrize("recipe", ["finetune", "finetune_rpe", "linear_probe"])
def test_without_a_variant_the_data_are_the_runs(recipe, lent):
    config, _ = settled(recipe, None, init="RUN")
    assert image_fields(config) == (12, 8, 3, MEAN, STD)
    theirs = lent.config["data"]
    for name in ("source", "train_split", "eval_split"):
        assert config.data[name] == theirs[name], name
    assert config.data.holdout.test == theirs["holdout"]["test"] > 0
    assert (config.data.flip, config.data.eval_crop_fraction) == (0.0, 0.75)


def test_what_a_run_drew_from_its_images_is_not_taken(lent):
    lent.config["data"]["shots"] = 5
    config, _ = settled("finetune", None, init="RUN")
    lent.config["data"]["shots"] = None
    assert config.data.shots is None


def test_a_run_that_is_named_by_like_lends_its_images(lent):
    fields = {"init": "random", "like": "RUN"}
    config, lines = settled("linear_probe", "data=folder,path=DIR", **fields)
    assert image_fields(config) == (12, 8, 3, MEAN, STD) and len(lines) == 2
    assert lines[0] == "encoder: random, like RUN"


@pytest.mark.parametrize(
    ("arg", "want"),
    [
        ("data=folder,path=DIR", (224, None, 3, *DEFAULT)),
        ("digits", (8, None, 1, (0.305,), (0.376,))),
    ],
)
def test_an_encoder_at_random_knows_no_images_and_the_recipe_says(arg, want):
    fields = {"init": "random", "objective__encoder__variant": "tiny"}
    fields["objective__encoder__patch_size"] = 2
    config, _ = settled("finetune", arg, **fields)
    assert image_fields(config) == want


@pytest.fixture
def file_of(monkeypatch, tmp_path):
    """(channels, metadata) -> a path that reads as weights for 4 x 6 patches of 2."""
    from litevit_jax import weights

    def make(channels, **normalize):
        kernel = np.zeros((4 * channels, 24), np.float32)
        params = {"encoder/patch_embed/kernel": kernel}
        encoder = {"width": 24, "depth": 1, "num_heads": 2, "patch_size": 2}
        found = {"params": params, "encoder": encoder, "grid": (4, 6)}
        found |= {
            "classes": [],
            "normalize": normalize,
            "metadata": {},
            "notes": (),
            "pool": None,
            "windows": None,
            "detector": {},
            "loss": "softmax",
        }
        fake_read = lambda *_, **__: types.SimpleNamespace(**found)  # noqa: E731
        monkeypatch.setattr(weights, "read", fake_read)
        (tmp_path / "weights.safetensors").write_bytes(b"")
        return str(tmp_path / "weights.safetensors")

    return make


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_file_says_what_it_records(recipe, file_of):
    path = file_of(3, mean=MEAN, std=STD)
    config, lines = settled(recipe, init=path)
    assert image_fields(config) == (8, 12, 3, MEAN, STD) and len(lines) == 2
    assert lines[0] == f"encoder: {path} (weights)"


def test_of_a_file_without_normalisation_the_recipes_is_assumed_and_said(file_of):
    config, lines = settled("finetune", init=file_of(3))
    assert image_fields(config) == (8, 12, 3, *DEFAULT)
    assert "does not say how its images were normalised: mean (0.485" in lines[2]
    assert image_fields(settled("finetune", "digits", init=file_of(1))[0])[2:] == (
        1,
        (0.305,),
        (0.376,),
    )
    with pytest.raises(ValueError, match=r"mean of images of 5 channels is not known"):
        settled("finetune", init=file_of(5))


def test_a_student_reads_images_as_its_teacher_does(lent):
    fields = {"teacher": "RUN", "objective__teacher__num_heads": 2}
    config, lines = settled("mae_tiny_distill", **fields)
    assert image_fields(config) == (12, 8, 3, MEAN, STD) and len(lines) == 1
    fields["augment__normalize__mean"] = (0.5,) * 3
    _, lines = settled("feature_tiny", **fields)
    assert lines[1] == (
        "the images differ from those that --config.teacher=RUN was trained on: mean "
        "(0.5, 0.5, 0.5), there (0.1, 0.2, 0.3)"
    )


def test_which_parameters_of_a_run_with_an_average_are_taken_is_said(lent):
    lent.config["optimizer"]["ema_decay"] = 0.99
    try:
        _, lines = settled("finetune", init="RUN")
    finally:
        del lent.config["optimizer"]["ema_decay"]
    assert lines[2:] == [
        "--config.init=RUN, step 6: its last parameters, not the average (decay 0.99) "
        "of which its own evaluations are; --config.init_ema=True takes that"
    ]
