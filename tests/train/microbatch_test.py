"""Into how many slices a batch is cut, and what is refused."""

import types

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from litevit_jax import sharding
from litevit_jax.jobs import train
from litevit_jax.objectives import distill, mae
from litevit_jax.train import microbatch, step
from tests import jobs


@pytest.fixture
def without_steps():
    with jobs.without_steps():
        yield


FREE = types.SimpleNamespace(needs_whole_batch="", encoded_share=0.25)
UNMASKED = types.SimpleNamespace(needs_whole_batch="", encoded_share=1.0)
BOUND = types.SimpleNamespace(needs_whole_batch="it has negatives", encoded_share=1.0)


def mesh_of(count=8, platform="tpu"):
    """As many devices of a platform as nothing here has."""
    device = types.SimpleNamespace(platform=platform)
    return types.SimpleNamespace(
        size=count,
        shape={"data": count, "fsdp": 1},
        devices=np.full((count, 1), device, object),
    )


def count(config, mesh, objective, fitting=None):
    """Slices of a device's batch, by the fields of a config."""
    fields = (config.microbatch, config.batch_size, config.data)
    name = config.objective.name
    return microbatch.count_microbatches(*fields, mesh, objective, fitting, name=name)


def settings(batch_size, value="auto", image_size=224):
    return ConfigDict(
        {
            "batch_size": batch_size,
            "microbatch": value,
            "objective": {"name": "mae"},
            "data": {"image_size": image_size, "image_width": None, "channels": 3},
        }
    )


@pytest.mark.parametrize(
    ("per_device", "want"),
    [
        (1, 1),
        (128, 1),
        (256, 2),
        (512, 4),
        (192, 2),  # 96 images
        (130, 2),  # 65 images
        (134, 2),  # 67 images
        (131, 1),  # a prime: slices of one image would be worse than none
        (202, 2),  # 101 images
        (146, 2),
        (2 * 127, 2),
        (4 * 131, 1),  # 4 images at most
    ],
)
def test_auto_takes_up_to_128_images_of_a_chip_where_the_batch_allows(per_device, want):
    found = count(settings(per_device * 8), mesh_of(), FREE)
    assert found == want and (per_device // found <= 128 or want == 1)


@pytest.mark.parametrize(
    ("image_size", "per_device", "want"),
    [(224, 32, 1), (224, 64, 2), (224, 1024, 32), (32, 1024, 1), (8, 4096, 1)],
)
def test_auto_counts_values_on_cpus(image_size, per_device, want):
    config = settings(per_device * 2, image_size=image_size)
    assert count(config, mesh_of(2, "cpu"), FREE) == want


@pytest.mark.parametrize(
    ("platform", "per_device", "want"),
    [("tpu", 128, 4), ("tpu", 32, 1), ("cpu", 32, 4), ("cpu", 8, 1)],
)
def test_auto_takes_fewer_images_where_all_patches_are_encoded(
    platform, per_device, want
):
    config = settings(per_device * 2)
    assert count(config, mesh_of(2, platform), UNMASKED) == want


@pytest.mark.parametrize(
    ("ratio", "want"), [(0.75, 128), (0.9, 320), (0.6, 80), (0.95, 640), (0.5, 64)]
)
def test_what_is_encoded_says_how_many_images_are_computed_at_once(ratio, want):
    tiny = {"variant": "tiny"}
    for make, more in ((mae.make, {}), (distill.make, {"teacher": tiny})):
        objective = make(encoder=tiny, decoder=tiny, mask_ratio=ratio, **more)
        config = settings(8 * want * 2)
        assert count(config, mesh_of(), objective) == 2


@pytest.mark.parametrize("said", [64, "64"])
def test_a_number_is_that_of_images_of_a_device(said):
    config = settings(4096)
    with config.ignore_type():
        config.microbatch = said
    assert count(config, mesh_of(), FREE) == 8


def test_off_leaves_the_batch_whole():
    assert count(settings(4096, "off"), mesh_of(), FREE) == 1


def test_auto_leaves_a_batch_whole_that_must_stay_whole():
    assert count(settings(4096), mesh_of(), BOUND) == 1
    assert count(settings(4096, "off"), mesh_of(), BOUND) == 1


@pytest.mark.parametrize(
    ("said", "near"),
    [(100, 128), (5, 4), (3, 2), (511, 512), (1000, 512), (90, 64), (97, 128)],
)
def test_one_that_does_not_divide_names_the_nearest_that_does(said, near):
    text = (
        rf"microbatch={said} does not divide the 512 images of a device "
        rf"\(batch_size=4096 over 8\); .* is {near}: set --config.microbatch={near}$"
    )
    with pytest.raises(ValueError, match=text):
        count(settings(4096, str(said)), mesh_of(), FREE)
    count(settings(4096, str(near)), mesh_of(), FREE)


@pytest.mark.parametrize("said", ["0", "-4", "1.5", "", "None", "²"])
def test_what_is_no_number_of_images_is_refused(said):
    with pytest.raises(ValueError, match=r"microbatch=.*expected auto, off, or the"):
        microbatch.check(said, 4096, sharding.make_mesh())


def test_a_typo_is_understood():
    with pytest.raises(ValueError, match="microbatch=atuo: did you mean auto"):
        microbatch.check("atuo", 4096, sharding.make_mesh())


@pytest.mark.parametrize(
    ("recipe", "arg", "reason"),
    [
        ("mocov3_tiny", "smoke", "its negatives and its BatchNorm are those of all"),
        ("linear_probe", "smoke,grid", "its head has BatchNorm"),
    ],
)
def test_an_objective_that_forbids_slices_tells_why(recipe, arg, reason, tmp_path):
    made = jobs.tiny(recipe, arg, microbatch="2")
    message = rf"microbatch=2: objective .*{reason}.*; set --con"
    with pytest.raises(ValueError, match=message):
        jobs.prepare(tmp_path / "run", made)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("without_steps")
def test_a_run_may_go_on_with_other_slices_and_attention(tmp_path):
    jobs.prepare(tmp_path, jobs.tiny())
    assert jobs.prepare(tmp_path, jobs.tiny(microbatch="2")).resumes
    assert jobs.prepare(tmp_path, jobs.tiny(attention="plain")).resumes


@pytest.mark.parametrize("size", ["off", "2"])
def test_a_run_traces_its_step_once(size, tmp_path, monkeypatch):
    traced = []
    arrange = step._arrange
    monkeypatch.setattr(
        step, "_arrange", lambda *args: traced.append(1) or arrange(*args)
    )
    train.run(jobs.tiny(steps=2, evals={}, microbatch=size), tmp_path)
    assert len(traced) == 1


@pytest.mark.usefixtures("without_steps")
@pytest.mark.parametrize(("images", "batch"), [(71, 4), (15, 1), (1438, 64)])
def test_a_batch_that_is_chosen_follows_from_the_data_alone(
    images, batch, monkeypatch, tmp_path
):
    def prepared():
        made = jobs.config("linear_probe", "smoke", batch_size=None, steps=None)
        made.data.fraction = images / 1438
        return train.prepare(made, tmp_path / "run")

    job, every = prepared(), jax.devices()
    assert len(every) == 8 and job.config["derived"]["train_examples"] == images
    assert (job.config["batch_size"], job.mesh.size) == (batch, min(batch, 8))
    monkeypatch.setattr(jax, "devices", lambda: every[:1])
    assert prepared().resumes  # by a machine with one device: it is the same run


def test_a_mesh_that_is_given_is_not_made_smaller(tmp_path):
    made = jobs.config("linear_probe", "smoke", batch_size=None, steps=None)
    made.data.fraction, made.mesh.data = 71 / 1438, 8
    with pytest.raises(ValueError, match=r"batch_size=4 is not a multiple of 8 dev"):
        train.prepare(made, tmp_path / "run")


@pytest.mark.parametrize(
    ("fit", "want"),
    [(5000, 1), (1024, 1), (1023, 2), (300, 4), (1, 1024), (129, 8)],
)
def test_a_gpu_cuts_its_batch_into_the_largest_slices_that_fit(fit, want):
    found = count(settings(1024), mesh_of(1, "gpu"), FREE, lambda: fit)
    assert found == want


def test_elsewhere_nobody_asks_what_fits():
    def fail():
        raise AssertionError("asked")

    assert count(settings(1024), mesh_of(), FREE, fail) == 1
