"""What a run takes from its data and settings before anything is compiled."""

import json

import pytest

from litevit_jax import sharding
from litevit_jax.plan import examples
from litevit_jax.train import loop, setup
from tests import jobs


def length(images, recipe="mae_tiny", **fields):
    """(updates an epoch, of the run, of its warm-up) by `fields` of a recipe."""
    made = jobs.config(recipe, "", **fields)
    found = setup._length(made, images, made.get("steps_at_least", 0))
    return found["steps_per_epoch"], found["total_steps"], found["warmup_steps"]


def passes(batch_size, epochs, warmup, **fields):
    return {
        "batch_size": batch_size,
        "epochs": epochs,
        "lr__warmup_epochs": warmup,
        **fields,
    }


@pytest.mark.parametrize(
    ("images", "fields", "want"),
    [
        (48, passes(256, 400, 40.0), (0.1875, 75, 8)),  # fewer than a batch
        (255, passes(256, 400, 40.0), (255 / 256, 398, 40)),
        (256, passes(256, 400, 40.0), (1, 400, 40)),
        (511, passes(256, 100, 8.0), (511 / 256, 200, 16)),  # nearly two batches
        (50_000, passes(256, 10, 1.0), (195.3125, 1953, 195)),
        (48, passes(256, 1, 0.0), (0.1875, 1, 0)),  # no run is shorter than an update
        # A run of given length keeps its proportions.
        (48, passes(256, 400, 40.0, steps=1000), (0.1875, 1000, 100)),
        # All but one of ImageNet's: no recipe's.
        (1_281_166, passes(4096, 400, 40.0), (1_281_166 / 4096, 125_114, 12_511)),
    ],
)
def test_epochs_and_warm_up_count_passes_over_the_images(images, fields, want):
    assert length(images, **fields) == want


@pytest.mark.parametrize(
    ("recipe", "fields", "want"),
    [
        ("mae_tiny", {}, (312, 124_800, 12_480)),
        ("mocov3_tiny", {}, (1251, 500_400, 50_040)),
        ("deit_tiny", {}, (1251, 375_300, 6255)),
        ("linear_probe", {"batch_size": 16_384}, (78, 7020, 780)),
        ("mae_tiny", {"batch_size": 2**21}, (1_281_167 / 2**21, 244, 24)),
    ],
)
def test_imagenet_takes_as_many_updates_as_its_recipe(recipe, fields, want):
    assert length(1_281_167, recipe, **fields) == want


def test_few_images_are_passed_as_often_as_the_epochs_say(tmp_path):
    made = jobs.tiny(steps=None, epochs=40, batch_size=256, lr__warmup_epochs=4.0)
    mesh = sharding.make_mesh(data=-1, fsdp=1)
    with made.unlocked():
        setup.design(made, mesh, lambda split: examples.Counted(48, 10))
    assert (made.derived.total_steps, made.derived.warmup_steps) == (8, 1)


def test_the_log_counts_passes(tmp_path):
    loop.run(jobs.tiny(steps=1, batch_size=2048), tmp_path)
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    (logged,) = [row for row in map(json.loads, rows) if "loss" in row]
    assert logged["epoch"] == pytest.approx(2048 / 1438)
