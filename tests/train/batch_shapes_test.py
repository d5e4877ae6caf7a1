"""Where images are flipped, and from where they are read, follow from the config."""

import dataclasses

import jax
import numpy as np
import PIL.Image
import pytest

from litevit_jax import augment
from litevit_jax.data import cache, levels, settings, splits, transforms
from litevit_jax.train import batch_shapes, eval_setup
from litevit_jax.train import state as states
from litevit_jax.warm_start import images, start
from tests import jobs

pytestmark = pytest.mark.usefixtures("shared_designs", "one_device")


def flips(made):
    """Probabilities: of the host's flip, and of the device's (None: has none)."""
    made = made.copy_and_resolve_references()
    transform = transforms.train_ops(**settings.image_settings(made.data))
    [host] = [op for op in transform.ops if isinstance(op, transforms.RandomFlip)]
    device = (
        batch_shapes.augmentation(made.augment, made.data)
        .get("flip", {})
        .get("probability")
    )
    return host.probability, device


def test_the_device_flips_unless_randaugment_follows():
    assert flips(jobs.tiny(data__flip=0.3)) == (0.0, 0.3)
    assert flips(jobs.tiny(data__flip=0.0)) == (0.0, None)
    made = jobs.tiny("finetune", data__flip=0.3, data__randaugment__layers=2)
    assert flips(made) == (0.3, None)


@pytest.mark.parametrize("channels", [1, 12])
def test_moco_starts_on_images_without_colours(channels, tmp_path, caplog):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 12, 12, channels))
    np.save(tmp_path / "images.npy", pixels.astype(np.uint8))
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


@pytest.fixture
def deep_folder(tmp_path):
    """A folder of grey images of 16 bits that use 12, and their pixels by index."""
    rng, pixels = np.random.default_rng(0), []
    for split in ("test", "train"):
        for number in range(32 if split == "train" else 2):
            image = rng.integers(100, 4000, (16, 16)).astype(np.uint16)
            path = tmp_path / "deep" / split / "a" / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(image).save(path)
            pixels += [image] * (split == "train")
    return tmp_path / "deep", pixels


def prepared(made, workdir):
    """A job that never trains."""
    with jobs.without_steps():
        return jobs.prepare(workdir, made)


def deep_run(folder, **fields):
    crop = {"data__crop_scale": (1.0, 1.0), "data__crop_ratio": (1.0, 1.0)}
    crop |= {"data__flip": 0.0, "data__decoder": "pillow", "data__channels": 1}
    arg = f"smoke,data=folder,path={folder}"
    made = jobs.tiny("mae_tiny", arg, **(crop | fields))
    with made.unlocked():
        made.augment.normalize = {"mean": (0.5,), "std": (0.25,)}
    return made


def test_a_run_records_what_auto_means_and_reads_its_images_so(
    deep_folder, tmp_path, caplog
):
    folder, pixels = deep_folder
    job = prepared(deep_run(folder, data__range="auto"), tmp_path / "run")
    low, high = levels.parse(job.config["data"]["range"])
    np.testing.assert_allclose((low, high), np.percentile(pixels, [0.5, 99.5]))
    [line] = [r.getMessage() for r in caplog.records if "range=auto is" in r.message]
    assert f"is {low:.0f},{high:.0f} (split 'train'): 0.5 % of the pixels" in line
    stream = job.stream(0)
    batch = next(stream)
    stream.close()
    for image, index in zip(batch["image"], batch["index"], strict=True):
        want = np.clip((pixels[index] - low) / (high - low), 0, 1) * 255
        np.testing.assert_allclose(image[..., 0], want, atol=0.51)
    # The same command resumes the run.
    assert prepared(deep_run(folder, data__range="auto"), tmp_path / "run").resumes


def test_a_run_warns_of_images_that_use_little_of_their_range(
    deep_folder, tmp_path, caplog
):
    job = prepared(deep_run(deep_folder[0]), tmp_path / "run")
    assert job.config["data"]["range"] is None  # full
    [line] = [r.getMessage() for r in caplog.records if "sixteenth" in r.message]
    assert line.startswith("split 'train': 32 of 32 images looked at use less than a")


def test_channels_that_encoded_images_do_not_have_are_refused_first(
    deep_folder, tmp_path
):
    made = deep_run(deep_folder[0], data__channels=5)
    with made.unlocked():
        made.augment.normalize = {"mean": (0.5,) * 5, "std": (0.5,) * 5}
    with pytest.raises(ValueError, match=r"data\.channels=5, but .* is an encoded"):
        prepared(made, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", ["finetune", "linear_probe", "evaluate"])
def test_evaluation_and_fine_tuning_read_the_runs_range(recipe, deep_folder):
    folder, _ = deep_folder
    run = deep_run(folder, data__range="7,4095").to_dict()
    made = jobs.config(recipe, f"data=folder,path={folder}").unlock()
    assert made.data.range is None
    images.take(images.spec_of_run("init", run), made.data, made.augment.normalize)
    assert settings.image_settings(made.data)["range"] == "7,4095"
    made.data.range = "0,9"  # what is said stays
    images.take(images.spec_of_run("init", run), made.data, made.augment.normalize)
    assert made.data.range == "0,9"


def test_data_of_a_run_have_its_range(deep_folder):
    run = deep_run(deep_folder[0], data__range="7,4095").to_dict()
    made = jobs.config("evaluate", None).unlock()
    start.take_data(made.data, run, init="RUN", name="")
    assert made.data.range == "7,4095"


def test_two_flips_are_one_too_many():
    made = jobs.tiny("mocov3_tiny", data__flip=0.5).unlock()
    made.augment.flip = {"probability": 0.5}
    with pytest.raises(ValueError, match=r"data\.flip=0\.5 and augment\.flip both"):
        batch_shapes.augmentation(made.augment, made.data)


def test_the_device_flips_its_share_of_the_images():
    made = jobs.tiny(data__flip=0.3)
    ops = augment.make(
        {"flip": batch_shapes.augmentation(made.augment, made.data)["flip"]}
    )
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
    made = jobs.tiny("finetune", data__cache="host", data__holdout__select=0.2)
    source = splits.open_splits(made.data)
    plain = splits.open_splits({**made.data.to_dict(), "cache": "off"})
    for split in ("train", "select", "eval"):
        kept = source(split)
        assert isinstance(kept, cache.Cached) and kept is source(split)
        assert len(kept) == len(plain(split))
        for row in (0, len(kept) - 1):
            one, two = kept[row], plain(split)[row]
            assert one["label"] == two["label"]
            assert np.array_equal(one["image"][..., 0], two["image"])


@dataclasses.dataclass
class Adds:
    """What an extension may be: it cannot be hashed."""

    numbers: list

    def init(self, x):
        return x + sum(self.numbers)


def test_equal_objectives_share_what_is_traced_and_others_need_no_hash():
    pair = [eval_setup.Predict(None, (0.5,), (0.25,)) for _ in range(2)]
    one, other = (states.jitted(predict, "__call__") for predict in pair)
    assert one is other
    assert states.jitted(Adds([1, 2]), "init")(3) == 6
    assert states.jitted(Adds([5]), "init")(3) == 8
