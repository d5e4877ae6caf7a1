"""Finding prepared data sets; reading them is tested in prepare_test."""

import json

import pytest

from litevit_jax.data.sources import tfds


@pytest.fixture
def version(tmp_path):
    def version(path, file_format="array_record", **info):
        folder = tmp_path / path
        folder.mkdir(parents=True)
        name, *config, number = path.removeprefix("array_record/").split("/")
        info = {
            "name": name,
            "version": number,
            "fileFormat": file_format,
            "configName": "".join(config),
            "splits": [{"name": "train", "shardLengths": ["4", "4"]}],
            **info,
        }
        (folder / "dataset_info.json").write_text(json.dumps(info))
        features = {"image": {"image": {}}, "label": {}}
        features = {"featuresDict": {"features": features}}
        (folder / "features.json").write_text(json.dumps(features))
        return folder

    return version


def _located(name, dir):
    found = tfds.locate(name, str(dir))
    return None if found is None else str(found)


def test_the_newest_version_is_found_from_any_folder_above(version, tmp_path):
    version("pets/1.9.0")
    newest = version("pets/1.10.0")
    for dir in (tmp_path, tmp_path / "pets", newest):
        assert _located("pets", dir) == str(newest)
    assert _located("pets:1.9.0", tmp_path) == str(tmp_path / "pets/1.9.0")
    assert _located("pets:2.0.0", tmp_path) is None
    assert _located("dogs", tmp_path) is None
    assert _located("dogs", tmp_path / "absent") is None


def test_array_record_is_preferred_to_a_newer_tfrecord(version, tmp_path):
    version("pets/2.0.0", "tfrecord")
    converted = version("array_record/pets/1.0.0")
    assert _located("pets", tmp_path) == str(converted)


def test_configs_are_told_apart(version, tmp_path):
    small, large = version("pets/small/1.0.0"), version("pets/large/1.0.0")
    assert _located("pets/small", tmp_path) == str(small)
    assert _located("pets/large:1.0.0", tmp_path) == str(large)


def test_of_several_configs_none_is_taken_without_a_word(version, tmp_path):
    version("pets/small/1.0.0")
    assert _located("pets", tmp_path) == f"{tmp_path}/pets/small/1.0.0"
    version("pets/large/2.0.0")
    with pytest.raises(ValueError, match=r"2 configs.*: pets/large, pets/small; name"):
        tfds.locate("pets", str(tmp_path))
    with pytest.raises(ValueError, match=r"--config\.data\.name=pets/large"):
        tfds.make(name="pets", split="train", dir=str(tmp_path / "pets"))


def test_a_wrong_name_or_version_lists_what_is_there(version, tmp_path):
    version("pets/1.9.0")
    version("pets/1.10.0", "tfrecord")
    version("cifar10/3.0.2")
    version("array_record/birds/large/2.0.0")
    for name in ("pets:2.0.0", "pest"):
        with pytest.raises(FileNotFoundError) as caught:
            tfds.make(name=name, split="train", dir=str(tmp_path))
        there = "There are: pets:1.10.0 (as tfrecord), pets:1.9.0. Ways on"
        assert there in str(caught.value)
    with pytest.raises(FileNotFoundError) as caught:
        tfds.make(name="imagenet2012", split="train", dir=str(tmp_path))
    there = "There are: birds/large:2.0.0, cifar10:3.0.2, pets:1.10.0 (as tfrecord), p"
    assert there in str(caught.value)
    with pytest.raises(FileNotFoundError, match="There is no such folder"):
        tfds.make(name="pets", split="train", dir=str(tmp_path / "absent"))


def test_unfinished_copies_do_not_count(version, tmp_path):
    version("pets/incomplete.1.0.0", version="1.0.0")
    assert _located("pets", tmp_path) is None


def test_the_environment_says_where_to_look(version, tmp_path, monkeypatch):
    there = version("pets/1.0.0")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert str(tfds.locate("pets")) == str(there)
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert tfds.locate("pets") is None


def test_absent_data_names_the_ways_on(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        tfds.make(name="imagenet2012", split="train", dir=str(tmp_path))
    for way in (
        "python -m litevit_jax.data.prepare --name=imagenet2012",
        "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar",
        "--manual_dir=",
        "--config=configs/mae_tiny.py:data=folder,path=DIR",
        "--config=configs/mae_tiny.py:digits",
    ):
        assert way in str(caught.value)


def test_tfrecord_names_the_command_that_converts_it(version, tmp_path):
    version("pets/1.0.0", "tfrecord")
    command = (
        f"python -m litevit_jax.data.prepare --name=pets --data_dir={tmp_path} "
        "--convert"
    )
    with pytest.raises(ValueError, match=command):
        tfds.make(name="pets", split="train", dir=str(tmp_path))


@pytest.mark.parametrize("content", ['{"featuresDict": {', "[]", ""])
def test_descriptions_that_were_cut_short_are_named(version, tmp_path, content):
    folder = version("pets/1.0.0")
    for name in ("features.json", "dataset_info.json"):
        (folder / name).write_text(content)
        with pytest.raises(ValueError, match=rf"{name} is damaged .*: remove {folder}"):
            tfds.make(name="pets", split="train", dir=str(tmp_path))


def test_missing_files_are_named(version, tmp_path):
    folder = version("pets/1.0.0")
    (folder / "pets-train.array_record-00000-of-00002").touch()
    message = "lacks 1 of the 2 files of split 'train'.*train.array_record-00001-of"
    with pytest.raises(FileNotFoundError, match=message):
        tfds.make(name="pets", split="train[:50%]", dir=str(tmp_path))


def test_unknown_split_lists_the_splits(version, tmp_path):
    version("pets/1.0.0")
    with pytest.raises(ValueError, match=r"'tests' unknown; choose from train"):
        tfds.make(name="pets", split="train+tests[:5]", dir=str(tmp_path))


def test_data_without_images_lists_its_features(version, tmp_path):
    folder = version("pets/1.0.0")
    features = {"featuresDict": {"features": {"audio": {}}}}
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(ValueError, match=r"no feature 'image'.* audio"):
        tfds.make(name="pets", split="train", dir=str(tmp_path))


def test_the_name_is_needed():
    with pytest.raises(ValueError, match=r"needs data\.name"):
        tfds.make(split="train")
