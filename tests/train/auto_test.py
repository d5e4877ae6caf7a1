"""Batch, epochs, warm-up and decoder that follow from the images and the encoder."""

import numpy as np
import pytest
from PIL import Image

from litevit_jax import recipes
from litevit_jax.jobs import train
from litevit_jax.models import mae_decoder
from litevit_jax.train import auto, resolve
from tests import jobs


@pytest.mark.parametrize(
    ("images", "epochs"),
    [(1, 1600), (1_000, 1600), (10_000, 800), (20_000, 400), (1_281_167, 400)],
)
def test_few_images_are_seen_more_often(images, epochs):
    assert auto.choose_epochs(images) == epochs


def choose(config, images):
    return auto.settings(
        images,
        batch_size=config.batch_size,
        batch=config.auto_batch,
        lr_base=config.lr.base,
        epochs=config.epochs,
        warmup_epochs=config.lr.warmup_epochs,
        objective=config.objective,
    )


@pytest.mark.parametrize(
    ("fields", "images", "expected"),
    [
        ({}, 1_000, (32, 1600, 160, 1.7e-3)),
        ({}, 100_000, (256, 400, 40, 6e-4)),
        ({"epochs": 30, "lr.base": 1e-3}, 1_000, (32, 30, 3, 1e-3)),
        ({"batch_size": 4096, "lr.warmup_epochs": 2.0}, 10_000, (4096, 800, 2, 1.5e-4)),
    ],
)
def test_what_is_given_is_kept_and_the_rest_chosen(fields, images, expected):
    recipe = recipes.get("mae_tiny", "data=folder,path=.")
    config = resolve.changed(recipe, fields)
    chosen = choose(config, images)
    given = {
        "batch_size": config.batch_size,
        "epochs": config.epochs,
        "lr.warmup_epochs": config.lr.warmup_epochs,
        "lr.base": config.lr.base,
    }
    assert tuple({**given, **chosen}[name] for name in given) == expected


@pytest.mark.parametrize(
    ("encoder", "given", "sizes"),
    [
        ({"variant": "tiny"}, {}, (96, 1, 3)),
        ({"variant": "small_std"}, {}, (192, 1, 6)),
        ({"variant": "base"}, {}, (512, 8, 16)),
        ({"variant": "tiny"}, {"width": 48}, (48, 1, 3)),
        ({"variant": "tiny", "width": 256, "num_heads": 8}, {}, (128, 1, 4)),
        ({"variant": "tiny", "width": 24, "num_heads": 2}, {}, (64, 1, 2)),
        ({"variant": "tiny", "width": 64, "num_heads": 4}, {"depth": 3}, (64, 3, 2)),
    ],
)
def test_a_decoder_suits_its_encoder(encoder, given, sizes):
    config = recipes.get("mae_tiny")
    with config.unlocked():
        config.objective.encoder.update(encoder)
        config.objective.decoder.update(given)
    block = config.objective.decoder.to_dict()
    for name, value in choose(config, 1_000).items():
        if name.startswith("objective.decoder."):
            block[name.rpartition(".")[2]] = value
    block = {name: value for name, value in block.items() if value is not None}
    made = mae_decoder.make_decoder(**block)
    assert (made.width, made.depth, made.num_heads) == sizes


def test_the_decoders_of_published_recipes_are_those_of_their_encoders():
    for name in ("tiny", "small", "base"):
        config = recipes.get(f"mae_{name}")
        block = config.objective.decoder
        assert block.variant == "auto"
        assert auto.decoder_sizes(config.objective.encoder)["variant"] == name


def test_a_run_says_and_records_what_was_chosen(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(40):
        pixels = rng.integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    config = jobs.tiny(
        "mae_tiny",
        f"data=folder,path={folder}",
        data__image_size=16,
        objective__encoder__patch_size=4,
        evals={},
    )
    with jobs.without_steps():
        job = train.prepare(config, tmp_path / "run")
    (line,) = [note for note in job.notes if note.startswith("chosen")]
    assert line == (
        "chosen for 40 images: batch_size=2, lr.base=0.00679, epochs=1600, "
        "lr.warmup_epochs=160, objective.decoder.depth=1"
    )
    assert job.total_steps == 40 // 2 * 1600
    peak = 1.5e-4 * 4096 / 256 * (2 / 4096) ** 0.5  # the recipe's, by the root
    assert job.config["derived"]["peak_lr"] == pytest.approx(peak, rel=1e-2)
    assert (job.config["epochs"], job.config["batch_size"]) == (1600, 2)
    assert job.config["objective"]["decoder"]["variant"] is None


def test_the_line_leaves_out_epochs_that_steps_replace():
    chosen = {"batch_size": 16, "epochs": 100.0, "lr.warmup_epochs": 10.0}
    assert auto.note(30, chosen, steps=20) == ["chosen for 30 images: batch_size=16"]
    assert "lr.warmup_epochs=10" in auto.note(30, chosen)[0]
