"""Images of five channels, in files, from training to predictions and exports."""

import importlib

import numpy as np
import onnx
import pytest
import tifffile

import litevit_jax
from litevit_jax.data import decode
from litevit_jax.evaluators import predict
from litevit_jax.jobs import evaluate, train
from tests import jobs
from tests.jobs import convert_test

pytestmark = pytest.mark.usefixtures("shared_designs", "one_device")

CHANNELS, RANGE = 5, "0,4000"
NORMALIZE = {
    "augment__normalize__mean": (0.1, 0.2, 0.3, 0.4, 0.5),
    "augment__normalize__std": (0.5, 0.4, 0.3, 0.2, 0.1),
}


def values(seed, channels=CHANNELS):
    shape = (12, 10, channels)
    return np.random.default_rng(seed).integers(0, 4001, shape).astype(np.uint16)


def fill(root, names):
    """Writes an image a name, which says the kind; returns their pixels."""
    images = {name: values(seed) for seed, name in enumerate(names)}
    for name, image in images.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npy":
            np.save(path, image)
        else:
            tifffile.imwrite(path, np.moveaxis(image, -1, 0), photometric="minisblack")
    return images


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A classifier that learned for two steps, one of its files being another kind."""
    root = tmp_path_factory.mktemp("five")
    names = [f"{x}/{n}.npy" for x in ("train/cat", "train/dog") for n in range(9)]
    fill(root / "data", [*names, "test/cat/1.npy", "test/dog/2.npy"])
    np.save(root / "data/train/cat/7.npy", values(1, 4))
    arg = f"smoke,data=folder,path={root / 'data'}"
    fields = {"data__channels": CHANNELS, "data__range": RANGE, "batch_size": 8}
    fields |= {"data__image_size": 8, "steps": 2, "data__max_bad_fraction": 0.1}
    fields |= {"data__randaugment__layers": 0, "evals": {}, **NORMALIZE}
    made = jobs.tiny("deit_tiny", arg, **fields)
    with pytest.MonkeyPatch.context() as patch:
        warned = []
        patch.setattr("absl.logging.warning", lambda text, *a: warned.append(text % a))
        ending = train.run(made, root / "run")
    return root / "run", ending, warned


def main(name, workdir, arg=None, **fields):
    made = importlib.import_module(f"litevit_jax.configs.{name}").get_config(arg)
    made.update(fields)
    return evaluate.main(made, str(workdir), "litevit")


def test_a_file_of_other_channels_is_told_and_left_out_of_training(trained):
    _, ending, warned = trained
    assert ending.step == 2
    told = [line for line in warned if "have other channels" in line]
    assert len(told) == 1 and "cat/7.npy: NumPy [12, 10, 4]" in told[0]


def test_files_are_predicted_and_embedded_as_their_arrays_are(trained, tmp_path):
    run = trained[0]
    images = fill(tmp_path / "new", ["a.npy", "b.tif"])
    fields = {"init": str(run), "images": str(tmp_path / "new/*")}
    np.save(tmp_path / "new/d.npy", values(9, 3))
    table = tmp_path / "a.jsonl"
    main("predict", tmp_path / "w", target=str(table), **fields)
    rows = {row.path.rpartition("/")[2]: row for row in predict.read(table, 9)}
    assert set(rows) == {"a.npy", "b.tif", "d.npy"}
    assert "with 3 channels; expected data.channels=5" in rows["d.npy"].error
    sheet = table.with_suffix(".html").read_text()
    assert sheet.count("shown: channel 1 of 5") == 2  # of two pictures and an error
    encoder = litevit_jax.load(run)
    assert encoder.channels == CHANNELS
    wanted = litevit_jax.predict(encoder, [images["a.npy"], images["b.tif"]])
    for row, want in zip((rows["a.npy"], rows["b.tif"]), wanted, strict=True):
        assert dict(row.top) == pytest.approx(dict(want), rel=1e-4)
    images = fill(tmp_path / "tif", ["b.tif", "c.tif"])
    target, arg = tmp_path / "a.npz", f"data=folder,path={tmp_path / 'tif'}"
    main("embed", tmp_path / "v", arg, target=str(target), init=str(run))
    want = litevit_jax.features(encoder, list(images.values()))
    np.testing.assert_allclose(np.load(target)["features"], want, rtol=1e-4, atol=1e-5)


def test_exports_tell_their_channels(trained, tmp_path):
    for ending in ("safetensors", "onnx"):
        target = tmp_path / f"a.{ending}"
        convert_test.converted(trained[0], target)
        if ending == "onnx":
            props = onnx.load(str(target)).metadata_props
            about = {entry.key: entry.value for entry in props}
            assert (about["channels"], about["range"]) == ("5", RANGE)
    loaded = litevit_jax.load(tmp_path / "a.safetensors")
    assert (loaded.channels, loaded.range) == (CHANNELS, RANGE)
    pixels = decode.Decode(CHANNELS, range=RANGE)(values(0))
    assert pixels.shape == (12, 10, CHANNELS)
    folder = tmp_path / "folder"
    convert_test.converted(trained[0], f"{folder}/")
    assert '"in_chans": 5' in (folder / "config.json").read_text()
