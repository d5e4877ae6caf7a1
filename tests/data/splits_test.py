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
        f"data 'train': 2 images, labelled, 2 classes (cat, dog); from {tmp_path}/"
        "Train; not used: more/; other splits: valid"
    )
    assert test.startswith("data 'test': 1 images, labelled, 2 classes (cat, dog);")


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
