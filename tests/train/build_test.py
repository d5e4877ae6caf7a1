"""What a run takes from its data and settings before anything is compiled."""

import json

import pytest

from litevit_jax import sharding
from litevit_jax.jobs import train
from litevit_jax.models import attention
from litevit_jax.plan import examples
from litevit_jax.train import auto, build
from tests import jobs


def length(images, recipe="mae_tiny", **fields):
    """(updates an epoch, of the run, of its warm-up) by `fields` of a recipe."""
    made = jobs.config(recipe, "", **fields)
    found = auto.length(
        images,
        steps=made.steps,
        epochs=made.epochs,
        warmup_epochs=made.lr.warmup_epochs,
        batch_size=made.batch_size,
        at_least=made.auto_batch.steps_at_least,
    )
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
        build.build_step(made, mesh, lambda split: examples.Counted(48, 10))
    assert (made.derived.total_steps, made.derived.warmup_steps) == (8, 1)


def designed(recipe="mae_tiny", **fields):
    """The design of a tiny run on CPUs."""
    made = jobs.tiny(recipe, **fields)
    mesh = sharding.make_mesh(data=-1, fsdp=1)
    with made.unlocked():
        return build.build_step(made, mesh, lambda split: examples.Counted(64, 10))


@pytest.mark.parametrize("kernel", ["auto", "plain", "deferred"])
def test_the_attention_that_is_asked_for_reaches_every_network(kernel):
    sizes = {"width": 32, "depth": 1, "num_heads": 4, "patch_size": 2}
    fields = {f"objective__teacher__{name}": size for name, size in sizes.items()}
    fields["teacher"] = "a run, which is not read"
    with jobs.without_steps():
        built = designed("mae_tiny_distill", attention=kernel, **fields)
    objective = built.objective
    student = objective.student
    networks = (student.encoder, student.decoder, objective.teacher)
    assert {network.attention for network in networks} == {kernel}


def test_attention_is_computed_as_asked_for(monkeypatch):
    asked = []
    real = attention._ways

    def ways(which, kernel, *args):
        asked.append(kernel)
        return real(which, kernel, *args)

    monkeypatch.setattr(attention, "_ways", ways)
    designed(attention="plain")
    # Features of the health metrics come from the encoder that trains.
    assert set(asked) == {"plain"}


def test_a_kernel_that_cannot_compute_a_model_is_refused_before_it_is_compiled(
    monkeypatch,
):
    """On a GPU, of which the check of the platform is told here."""
    monkeypatch.setattr(attention, "check", lambda kernel, platform: None)
    with pytest.raises(ValueError, match=r"attention=cudnn .* expected bfloat16"):
        designed(attention="cudnn", objective__dtype="float32")


def test_the_log_counts_passes(tmp_path):
    made = jobs.tiny(steps=1, evals={}, data__fraction=29 / 1438)
    train.run(made, tmp_path)
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    (logged,) = [row for row in map(json.loads, rows) if "loss" in row]
    assert logged["epoch"] == pytest.approx(32 / 29)
