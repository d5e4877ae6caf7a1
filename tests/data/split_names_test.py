"""Names of splits are recognised in any case; names of classes are left alone."""

import pytest

from litevit_jax.data import split_names

KINDS = {
    "train": "train Train TRAIN training trainval train_val Training-Set train2017 "
    "trainset trainImages train_data seg_train imagenet-train-000001",
    "test": "test Test TESTING test_set test2017 testImages seg_test",
    "val": "val valid Valid validation VALIDATION dev eval val2017 valid_images",
    "extra": "extra unlabeled unlabelled2017",
    None: "cat contest latest trainee evaluate attestation restrained portrait 2017 "
    "images train_test data",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_is_read_word_by_word(kind):
    assert {split_names.read(name).kind for name in KINDS[kind].split()} == {kind}


@pytest.mark.parametrize(
    "names, splits",
    [
        (["bullet_train", "bus", "test_tube"], []),
        (["seg_train", "seg_test", "seg_pred"], ["seg_train", "seg_test"]),
        (["train.X1", "train.X2", "val.X"], ["train.X1", "train.X2", "val.X"]),
        (["Train", "Valid", "plane"], ["Train", "Valid"]),
    ],
)
def test_further_words_make_a_split_only_beside_their_counterpart(names, splits):
    assert list(split_names.recognise(names)) == splits


def test_a_nested_folder_with_further_words_is_a_split_to_train_on():
    kinds = split_names.recognise(["my_train", "my_folder"], lambda name: True)
    assert kinds == {"my_train": "train"}


@pytest.mark.parametrize(
    "asked, there, chosen",
    [
        ("train", ["Training", "Testing"], "Training"),
        ("test", ["train", "valid"], "valid"),
        ("val", ["train", "test", "valid"], "valid"),
        ("val", ["train", "test"], "test"),
        ("VALID", ["train", "test", "valid"], "valid"),
        ("train", ["train2017", "trainval", "train"], "train"),
        ("test", ["train", "test2017", "val"], "test2017"),
    ],
)
def test_the_split_that_is_meant_is_chosen(asked, there, chosen):
    kinds = split_names.recognise(there)
    assert split_names.choose(asked, kinds, (), "here") == chosen


@pytest.mark.parametrize(
    "asked, there, message",
    [
        ("train", ["train1", "train2", "test"], "train1, train2 all name a train"),
        ("train", ["val", "test"], "no 'train' split: its splits are test, val; name"),
        ("trian", ["train", "test"], "did you mean train"),
    ],
)
def test_what_cannot_be_chosen_is_explained(asked, there, message):
    kinds = split_names.recognise(there)
    with pytest.raises(ValueError, match=message):
        split_names.choose(asked, kinds, (), "here")
