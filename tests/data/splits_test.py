"""What a config's data block reads is said, and checked before anything compiles."""

import numpy as np
import pytest

from litevit_jax.data import splits
from tests import jobs


@pytest.fixture
def block(tmp_path):
    def make(source, **fields):
        arg = f"smoke,data={source},path={tmp_path}"
        return jobs.config(
            "mae_tiny", arg, **{f"data__{k}": v for k, v in fields.items()}
        ).data

    return make


def fill(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_what_is_found_is_said_once_for_each_split(block, tmp_path, capsys):
    fill(
        tmp_path, "Train/cat/1.jpg", "Train/dog/2.jpg", "valid/dog/3.jpg", "more/4.jpg"
    )
    for _ in range(2):
        source = splits.open_splits(block("folder"))
        source("train"), source("eval")
    train, test = capsys.readouterr().out.splitlines()
    assert train == (
        f"split 'train': 2 images, labelled, 2 classes (cat, dog); from {tmp_path}/"
        "Train; not used: more/; other splits: valid"
    )
    assert test.startswith("split 'test': 1 image, labelled, 2 classes (cat, dog);")


def test_splits_of_other_classes_are_refused(block, tmp_path):
    fill(
        tmp_path,
        "left/cat/1.jpg",
        "left/dog/2.jpg",
        "right/dog/3.jpg",
        "right/emu/4.jpg",
    )
    source = splits.open_splits(block("folder", train_split="left", eval_split="right"))
    source("eval")
    message = (
        r"train_split='left' .*eval_split='right' have other classes \(only the first: "
        r"cat; only the second: emu\)"
    )
    with pytest.raises(ValueError, match=message):
        source("train")


def test_channels_that_arrays_do_not_have_are_refused(block, tmp_path):
    np.save(tmp_path / "train.npy", np.ones((4, 8, 8, 12), np.uint8))
    with pytest.raises(ValueError, match=r"12 channels, .*--config.data.channels=12"):
        splits.open_split(block("arrays"), "train")
    assert len(splits.open_split(block("arrays", channels=12), "train")) == 4
    np.save(tmp_path / "train.npy", np.ones((4, 8, 8), np.uint8))
    assert len(splits.open_split(block("arrays"), "train")) == 4


def test_files_whose_channels_are_not_the_runs_are_refused(block, tmp_path):
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", np.ones((8, 8, 12), np.uint16))
    message = (
        r"0\.npy: NumPy \[8, 8, 12\], .*of 12 channels, but data\.channels=3; set "
        r"--config\.data\.channels=12 .*litevit stats DIR .*4 of 4 images"
    )
    with pytest.raises(ValueError, match=message):
        splits.open_split(block("folder"), "train")
    np.save(tmp_path / "0.npy", np.ones((12, 20, 20), np.uint16))
    with pytest.raises(ValueError, match=r"looks like \[C, H, W\], of 12 channels"):
        splits.open_split(block("folder"), "train")
    twelve = block("folder", channels=12)
    assert len(splits.open_split(twelve, "train")) == 4
    np.save(tmp_path / "0.npy", np.full((8, 8, 12), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"0\.npy: 768 of 768 pixels .* no numbers"):
        splits.open_split(twelve, "train")
