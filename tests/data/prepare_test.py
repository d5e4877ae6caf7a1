"""ImageNet's real TFDS builder on small archives, read back without TensorFlow."""

import importlib.util
import io
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import PIL.Image
import pytest

from litevit_jax.data import decode, pack, pipeline, prepare, splits, transforms
from litevit_jax.data.sources import packed, tfds

ROOT = pathlib.Path(__file__).parents[2]
WORDNET_IDS = ("n01440764", "n01443537")


def _jpeg(rng):
    file = io.BytesIO()
    pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def _add(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _write_archives(folder):
    """Archives named and nested as ImageNet's; returns the images by file name."""
    rng, images = np.random.default_rng(0), {}
    folder.mkdir()
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as train:
        for wordnet_id in WORDNET_IDS:
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for i in range(3):
                    name = f"{wordnet_id}_{i}.JPEG"
                    images[name] = _jpeg(rng)
                    _add(tar, name, images[name])
            _add(train, f"{wordnet_id}.tar", inner.getvalue())
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as tar:
        for i in range(1, 4):
            name = f"ILSVRC2012_val_{i:08d}.JPEG"
            images[name] = _jpeg(rng)
            _add(tar, name, images[name])
    return images


def _python(*arguments):
    """Runs Python in a process of its own; TFDS warns of many things."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=3600,
    )


TRAIN = "imagenet2012-train.array_record-00000-of-00001"
VALIDATION = "imagenet2012-validation.tfrecord-00000-of-00001"

# One process, because importing TensorFlow takes longer than all the rest.
PREPARE_AND_CONVERT = """
import contextlib, io, json, os, pathlib, shutil, sys
from litevit_jax.data import prepare

name, folder = "--name=imagenet2012", sys.argv[1]
manual = f"--manual_dir={folder}/archives"
assert prepare.main([name, f"--data_dir={folder}/prepared", manual]) == 0

import tensorflow_datasets as tfds

builder = tfds.builder(
    "imagenet2012", data_dir=f"{folder}/old", file_format="tfrecord"
)
config = tfds.download.DownloadConfig(manual_dir=f"{folder}/archives")
builder.download_and_prepare(download_config=config)
assert prepare.main([name, f"--data_dir={folder}/old"]) == 2
assert prepare.main([name, f"--data_dir={folder}/old", "--convert"]) == 0

import numpy as np


class Spots(tfds.core.GeneratorBasedBuilder):  # no names of labels, no validation
    VERSION = tfds.core.Version("1.2.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("few", "many")]

    def _info(self):
        image = tfds.features.Image(shape=(None, None, 1))
        features = {"image": image, "label": tfds.features.Scalar(np.int64)}
        made = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, features=made)

    def _split_generators(self, manager):
        count = {"few": 4, "many": 8}[self.builder_config.name]
        counts = {"train": count, "test": 2}
        return {split: self._generate_examples(n) for split, n in counts.items()}

    def _generate_examples(self, count):
        for number in range(count):
            image = np.full((9, 7, 1), number, np.uint8)
            yield number, {"image": image, "label": number - 1}


spots = f"--data_dir={folder}/spots"
for config in ("few", "many"):
    assert prepare.main([f"--name=spots/{config}", spots]) == 0
assert prepare.main(["--name=spots", spots]) == 2
assert prepare.main(["--name=spots/none", spots]) == 2
assert prepare.main(["--name=spots/few:9.0.0", spots]) == 2
assert prepare.main(["--name=spotz", spots]) == 2

from litevit_jax.data.sources import tfds as source

# The copy in array_record/ would be found first, and nothing done.
source.CONVERTED = "elsewhere"


def again(data_dir, out_dir):
    out, errors = io.StringIO(), io.StringIO()
    command = [name, f"--data_dir={data_dir}", "--convert", f"--out_dir={out_dir}"]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        status = prepare.main(command)
        assert prepare.main(command) == status
    return status, out.getvalue(), errors.getvalue()


folder = pathlib.Path(folder)
partial = folder / "interrupted/imagenet2012/incomplete.5.1.0"
partial.mkdir(parents=True)
shutil.copy(folder / "old/array_record/imagenet2012/5.1.0" / sys.argv[2], partial)
os.utime(partial / sys.argv[2], (1e9, 1e9))
copy = folder / "damaged/old/imagenet2012/5.1.0"
shutil.copytree(folder / "old/imagenet2012/5.1.0", copy)
file = copy / sys.argv[3]
file.write_bytes(file.read_bytes()[:-1000])
said = {
    "interrupted": again(folder / "old", folder / "interrupted"),
    "damaged": again(folder / "damaged/old", folder / "damaged/new"),
}
(folder / "again.json").write_text(json.dumps(said))
"""


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """Folder with `archives`, `prepared`, `old` (converted); images; what was said."""
    if importlib.util.find_spec("tensorflow") is None:  # importing it takes seconds
        pytest.skip("TensorFlow is not installed")
    folder = tmp_path_factory.mktemp("imagenet")
    images = _write_archives(folder / "archives")
    result = _python("-c", PREPARE_AND_CONVERT, str(folder), TRAIN, VALIDATION)
    assert result.returncode == 0, result.stderr
    return folder, images, result


def _read(dir, split):
    return tfds.make(name="imagenet2012", split=split, dir=str(dir))


def test_prepared_images_are_the_archives_bytes_with_their_labels(imagenet):
    folder, images, _ = imagenet
    source = _read(folder / "prepared", "train")
    assert len(source) == 6 and len(source.classes) == 1000
    for i in range(6):
        place, name = source.name_of(i).split()
        assert place == f"imagenet2012/train[{i}]"
        assert source[i]["image"] == images[name]
        assert source.classes[source[i]["label"]] == name.partition("_")[0]
    assert len(_read(folder / "prepared", "validation")) == 3
    assert len(_read(folder / "prepared", "train[:50%]")) == 3


def test_splits_are_joined_in_the_order_that_is_said(imagenet):
    dir = str(imagenet[0] / "prepared")
    data = {"source": "tfds", "name": "imagenet2012", "dir": dir, "cache": False}
    data |= {"train_split": "train + validation[:2]"}
    data |= {"shots": None, "fraction": 1.0, "subset_seed": 0}
    data |= {"fraction_of": None, "long_tail": None}
    data |= {"holdout": {"test": 0.0, "eval": 0.0, "select": 0.0, "select_at_most": 9}}
    data |= {"channels": 3, "range": "full", "max_pixels": 10**6}
    both = splits.open_split(data, "train")
    parts = [_read(dir, split) for split in ("train", "validation[:2]")]
    images = [part[i]["image"] for part in parts for i in range(len(part))]
    assert [both[i]["image"] for i in range(8)] == images and len(both) == 8
    with pytest.raises(ValueError, match=r"'test' unknown; choose from train, valid"):
        splits.open_split({**data, "train_split": "train+test"}, "train")


def test_a_prepared_split_is_packed(imagenet, tmp_path):
    place = str(imagenet[0] / "prepared")
    options = ["--source=tfds", "--name=imagenet2012", "--short-side=12"]
    flags = ["--split=train", "--split=validation"]
    assert pack.main([place, str(tmp_path), *options, *flags]) == 0
    for split in ("train", "validation"):
        ours = packed.make(split=split, dir=str(tmp_path))
        theirs = _read(place, split)
        assert ours.classes == theirs.classes and len(ours) == len(theirs)
        for i in range(len(ours)):
            assert ours[i]["label"] == theirs[i]["label"]
            image = PIL.Image.open(io.BytesIO(ours[i]["image"]))
            assert image.size == (16, 12)


def test_source_is_picklable_and_feeds_the_pipeline(imagenet):
    source = _read(imagenet[0] / "prepared", "validation")
    copy = pickle.loads(pickle.dumps(source))
    assert [copy[i] for i in range(3)] == [source[i] for i in range(3)]
    assert copy.fingerprint() == source.fingerprint()
    transform = transforms.eval_ops(image_size=(16, 16))
    for workers in (0, 1):
        stream = pipeline.eval_batches(copy, transform, batch_size=3, workers=workers)
        (batch,) = list(stream)
        assert batch["mask"].sum() == 3 and batch["image"].any()


def test_reading_never_imports_tensorflow(imagenet):
    program = (
        "import sys; from litevit_jax.data.sources import tfds; "
        "s = tfds.make(name='imagenet2012', split='train', dir=sys.argv[1]); "
        "s[0], s.name_of(0), s.classes; assert 'tensorflow' not in sys.modules"
    )
    result = _python("-W", "error", "-c", program, str(imagenet[0] / "prepared"))
    assert result.returncode == 0, result.stderr


def test_preparing_again_does_nothing(imagenet, capsys):
    folder = imagenet[0]
    argv = ["--name=imagenet2012", f"--data_dir={folder / 'prepared'}"]
    assert prepare.main(argv) == 0
    assert "already prepared" in capsys.readouterr().out
    assert prepare.main([*argv, "--convert"]) == 0
    assert "already array_record" in capsys.readouterr().out


def test_converted_copy_holds_the_same_beside_the_original(imagenet):
    folder = imagenet[0]
    for split in ("train", "validation"):
        one, two = _read(folder / "old", split), _read(folder / "prepared", split)
        assert [one[i] for i in range(len(one))] == [two[i] for i in range(len(two))]
        assert one.fingerprint() == two.fingerprint() and one.classes == two.classes
    kept = {file.name for file in (folder / "old/imagenet2012/5.1.0").iterdir()}
    assert "imagenet2012-train.tfrecord-00000-of-00001" in kept
    assert not any("array_record" in name for name in kept)


def test_the_training_command_is_printed(imagenet):
    folder, _, result = imagenet
    for place in ("prepared", "old"):
        command = f"--config.data.name=imagenet2012 --config.data.dir={folder}/{place}"
        assert f"{command}\n" in result.stdout
    assert "holds imagenet2012 as tfrecord; convert it instead" in (result.stderr)


def _copy(imagenet, tmp_path):
    """The prepared ImageNet's folder, copied, and the command that prepares it."""
    target = tmp_path / "imagenet2012/5.1.0"
    shutil.copytree(imagenet[0] / "prepared/imagenet2012/5.1.0", target)
    return target, ("--name=imagenet2012", f"--data_dir={tmp_path}")


@pytest.mark.parametrize("kept", [0, 100, -1])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_file_that_was_cut_short_is_named(imagenet, tmp_path, capsys, split, kept):
    folder, command = _copy(imagenet, tmp_path)
    file = folder / f"imagenet2012-{split}.array_record-00000-of-00001"
    file.write_bytes(file.read_bytes()[:kept])
    message = _error(capsys, *command)
    count = 6 if split == "train" else 3
    assert f"{file} is damaged or cut short: it holds 0 of the {count} ex" in message
    assert "is ready" not in message
    with pytest.raises(ValueError, match="damaged or cut short"):
        _read(tmp_path, split)
    other = "train" if split == "validation" else "validation"
    assert len(_read(tmp_path, other))  # whose files are whole


@pytest.mark.parametrize("lost", ["imagenet2012-valid", "features", "dataset_info"])
def test_a_half_prepared_folder_is_never_ready(imagenet, tmp_path, capsys, lost):
    folder, command = _copy(imagenet, tmp_path)
    [file] = [path for path in folder.iterdir() if path.name.startswith(lost)]
    file.unlink()
    message = _error(capsys, *command)
    assert str(folder) in message and file.name in message
    assert "is ready" not in capsys.readouterr().out


def test_a_damaged_description_is_named(imagenet, tmp_path, capsys):
    folder, command = _copy(imagenet, tmp_path)
    (folder / "dataset_info.json").write_text('{"name": "imag')
    assert f"{folder}/dataset_info.json is damaged" in _error(capsys, *command)


def test_the_command_names_splits_and_config_that_are_there(imagenet):
    folder, _, result = imagenet
    for config, count in (("few", 4), ("many", 8)):
        place = f"{folder}/spots/spots/{config}/1.2.0"
        ready = f"spots/{config}:1.2.0 is ready in {place} (train {count}, test 2)\n"
        assert ready in result.stdout
        [line] = [x for x in result.stdout.splitlines() if f"name=spots/{config} " in x]
        fields = dict(
            flag.removeprefix("--config.data.").split("=") for flag in line.split()[2:]
        )
        assert fields.pop("eval_split") == "test"
        for split in ("train", "test"):
            source = tfds.make(split=split, name=fields["name"], dir=fields["dir"])
            assert len(source) == (count if split == "train" else 2)


def test_what_cannot_be_prepared_lists_what_can(imagenet):
    said = imagenet[2].stderr
    assert "has 2 configs, which hold other data: spots/few, spots/many; name" in said
    for name in ("spots/none", "spots/few:9.0.0"):
        there = "spots has versions 1.2.0; configs few, many"
        assert f"--name={name}: no such version or config in TFDS; {there}" in said
    assert "--name=spotz: TFDS has no data set 'spotz'; did you mean spots" in said


def test_numbers_without_names_are_labels(imagenet):
    source = tfds.make(split="train", name="spots/many", dir=f"{imagenet[0]}/spots")
    # 8 images with labels -1 (none) to 6; the classes are those of all splits.
    assert source.classes == ["0", "1", "2", "3", "4", "5", "6"]
    test = tfds.make(split="test", name="spots/many", dir=f"{imagenet[0]}/spots")
    assert test.classes == source.classes
    labels = {}
    for row in range(8):
        example = source[row]
        pixel = np.asarray(decode.Decode(channels=1)(example["image"]))[0, 0]
        labels[int(pixel)] = example["label"]
        assert source.label_of(row) == example["label"]
    assert labels == {number: number - 1 for number in range(8)}
    copy = pickle.loads(pickle.dumps(source))
    assert copy.classes == source.classes and copy[3] == source[3]


def test_the_source_says_which_set_it_is(imagenet):
    source = tfds.make(split="train", name="spots/few", dir=f"{imagenet[0]}/spots")
    place = f"{imagenet[0]}/spots/spots/few/1.2.0"
    assert source.notes == (f"TFDS spots/few:1.2.0 in {place}",)
    assert source.other_splits == ("test",)
    said = source.summary()
    assert said.startswith("4 images, labelled, 3 classes (0, 1, 2); TFDS spots/few")
    assert said.endswith("other splits: test")


def _said_again(imagenet, case):
    """(status, output, errors) of a conversion that was tried twice."""
    return json.loads((imagenet[0] / "again.json").read_text())[case]


def test_interrupted_conversion_goes_on_where_it_stopped(imagenet):
    before = imagenet[0] / "old/array_record/imagenet2012/5.1.0" / TRAIN
    folder = imagenet[0] / "interrupted"
    status, out, errors = _said_again(imagenet, "interrupted")
    assert status == 0, errors
    assert out.count("->") == 1 and "already converted" in out
    assert f"--config.data.dir={folder}\n" in out
    assert not (folder / "imagenet2012/incomplete.5.1.0").exists()
    converted = folder / "imagenet2012/5.1.0" / TRAIN
    assert converted.read_bytes() == before.read_bytes()
    assert converted.stat().st_mtime == 1e9  # not written again


def test_a_damaged_original_is_named_and_not_converted(imagenet):
    folder = imagenet[0] / "damaged"
    status, _, errors = _said_again(imagenet, "damaged")
    assert status == 2
    file = folder / "old/imagenet2012/5.1.0" / VALIDATION
    assert f"error: {file} is damaged: " in errors
    assert not (folder / "new/imagenet2012/5.1.0").exists()


def test_help_does_not_import_tensorflow():
    program = (
        "import sys; from litevit_jax.data import prepare; "
        "assert not {'tensorflow', 'tensorflow_datasets'} & set(sys.modules)"
    )
    assert _python("-c", program).returncode == 0


def _error(capsys, *argv):
    assert prepare.main(list(argv)) == 2
    return capsys.readouterr().err


def test_missing_archives_are_listed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(prepare, "_require_tensorflow", lambda: None)
    (tmp_path / "ILSVRC2012_img_val.tar").touch()
    argv = ("--name=imagenet2012", f"--data_dir={tmp_path / 'd'}")
    message = _error(capsys, *argv, f"--manual_dir={tmp_path}")
    assert f"missing in {tmp_path}: ILSVRC2012_img_train.tar" in message
    assert "there: ILSVRC2012_img_val.tar" in message
    message = _error(capsys, *argv)
    assert f"missing in {tmp_path}/d/downloads/manual: ILSVRC2012_img_tr" in message


def test_tensorflow_is_asked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)
    message = _error(capsys, "--name=imagenet2012", f"--data_dir={tmp_path}")
    assert 'pip install -e ".[tf]"' in message


def test_lack_of_room_is_said(tmp_path):
    with pytest.raises(OSError, match=r"GiB free; about 1048576.0 GiB are needed"):
        prepare._check_target(tmp_path, needed=2**50)


def test_nothing_to_convert_is_said(tmp_path, capsys):
    message = _error(capsys, "--name=pets", f"--data_dir={tmp_path}", "--convert")
    assert f"no prepared copy of 'pets' in {tmp_path}" in message
