"""Where images are flipped, and from where they are read, follow from the config."""

import jax
import numpy as np
import pytest

from litevit_jax import augment
from litevit_jax.data import cache
from litevit_jax.data import ops as data_ops
from litevit_jax.train import batches, inputs
from tests import jobs


def flips(made):
    """Probabilities: of the host's flip, and of the device's (None: has none)."""
    made = made.copy_and_resolve_references()
    transform = data_ops.train_ops(**inputs.image_block(made.data))
    [host] = [op for op in transform.ops if isinstance(op, data_ops.RandomFlip)]
    device = batches.augmentation(made).get("flip", {}).get("probability")
    return host.probability, device


def test_the_device_flips_unless_randaugment_follows():
    assert flips(jobs.tiny(data__flip=0.3)) == (0.0, 0.3)
    assert flips(jobs.tiny(data__flip=0.0)) == (0.0, None)
    made = jobs.tiny("finetune", data__flip=0.3, data__randaugment__layers=2)
    assert flips(made) == (0.3, None)


@pytest.mark.parametrize("channels", [1, 12])
def test_moco_starts_on_images_without_colours(channels, tmp_path, caplog):
    images = np.random.default_rng(0).integers(0, 256, (16, 12, 12, channels))
    np.save(tmp_path / "images.npy", images.astype(np.uint8))
    arg = f"smoke,data=arrays,path={tmp_path}/images.npy"
    made = jobs.tiny("mocov3_tiny", arg, data__channels=channels, batch_size=16)
    half = (0.5,) * channels
    with made.unlocked():
        made.augment.normalize = {"mean": half, "std": half}
        made.evals = {}
    job = jobs.prepare(tmp_path / "run", made)  # traces the whole step
    [line] = [r.getMessage() for r in caplog.records if "leaves out" in r.getMessage()]
    assert f"data.channels={channels} are not red, green and blue" in line
    assert "grayscale, saturation and hue of color_jitter" in line
    ran = job.config["augment"]
    assert "grayscale" not in ran and ran["solarize"]["threshold"] == 128
    jitter = ran["color_jitter"]
    assert (jitter["brightness"], jitter["contrast"]) == (0.4, 0.4)
    assert (jitter["saturation"], jitter["hue"]) == (0.0, 0.0)


def test_two_flips_are_one_too_many():
    made = jobs.tiny("mocov3_tiny", data__flip=0.5).unlock()
    made.augment.flip = {"probability": 0.5}
    with pytest.raises(ValueError, match=r"data\.flip=0\.5 and augment\.flip both"):
        batches.augmentation(made)


def test_the_device_flips_its_share_of_the_images():
    made = jobs.tiny(data__flip=0.3)
    ops = augment.make({"flip": batches.augmentation(made)["flip"]})
    image = np.zeros((4096, 1, 2, 1), np.uint8)
    image[:, :, 0] = 255
    batch = {"image": image, "slot": np.arange(4096, dtype=np.int32)}
    flipped = (
        np.asarray(augment.apply(ops, jax.random.key(0), batch)["image"])[:, 0, 1, 0]
        > 0
    )
    assert abs(flipped.mean() - 0.3) < 0.03
    runs = np.diff(np.flatnonzero(np.diff(flipped.astype(int))))  # no pattern
    assert abs(runs.mean() - 1 / (2 * 0.3 * 0.7)) < 0.25


def test_a_cache_keeps_every_split_and_part():
    made = jobs.tiny("finetune", data__cache=True, data__select_fraction=0.2)
    source = inputs.sources(made.data)
    plain = inputs.sources({**made.data.to_dict(), "cache": False})
    for split in ("train", "select", "eval"):
        kept = source(split)
        assert isinstance(kept, cache.Cached) and kept is source(split)
        assert len(kept) == len(plain(split))
        for row in (0, len(kept) - 1):
            one, two = kept[row], plain(split)[row]
            assert one["label"] == two["label"]
            assert np.array_equal(one["image"][..., 0], two["image"])
