"""ImageNet's real TFDS builder on small archives, read back without TensorFlow."""

import io
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

from litevit_jax.data import ops, pack, pipeline, prepare
from litevit_jax.data.sources import packed, tfds
from litevit_jax.train import inputs

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


# One process, because importing TensorFlow takes longer than all the rest.
PREPARE_AND_CONVERT = """
import sys
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
assert prepare.main([name, f"--data_dir={folder}/old"]) == 1
assert prepare.main([name, f"--data_dir={folder}/old", "--convert"]) == 0
"""


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """Folder with `archives`, `prepared`, `old` (converted); images; what was said."""
    pytest.importorskip("tensorflow")
    folder = tmp_path_factory.mktemp("imagenet")
    images = _write_archives(folder / "archives")
    result = _python("-c", PREPARE_AND_CONVERT, str(folder))
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
    data = {"source": "tfds", "name": "imagenet2012", "dir": dir, "holdout": 0.0}
    data |= {"train_split": "train + validation[:2]", "validation_share": 0.0}
    data |= {"shots": None, "fraction": 1.0, "subset_seed": 0}
    data |= {"fraction_of": None, "long_tail": None}
    data |= {"select_fraction": 0.0, "cache": False}
    both = inputs.source(data, "train")
    parts = [_read(dir, split) for split in ("train", "validation[:2]")]
    images = [part[i]["image"] for part in parts for i in range(len(part))]
    assert [both[i]["image"] for i in range(8)] == images and len(both) == 8
    with pytest.raises(ValueError, match=r"'test' unknown; choose from train, valid"):
        inputs.source({**data, "train_split": "train+test"}, "train")


def test_a_prepared_split_is_packed(imagenet, tmp_path):
    place = str(imagenet[0] / "prepared")
    options = ["--source=tfds", "--name=imagenet2012", "--short-side=12"]
    splits = ["--split=train", "--split=validation"]
    assert pack.main([place, str(tmp_path), *options, *splits]) == 0
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
    transform = ops.eval_ops(image_size=(16, 16))
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


# The copy in array_record/ would be found first, and nothing done.
CONVERT_AGAIN = """
import sys
from litevit_jax.data import prepare
from litevit_jax.data.sources import tfds

tfds.CONVERTED = "elsewhere"
status = prepare.main(sys.argv[1:])
assert prepare.main(sys.argv[1:]) == status
sys.exit(status)
"""


def _convert_again(data_dir, out_dir):
    command = ("--name=imagenet2012", f"--data_dir={data_dir}", "--convert")
    return _python("-c", CONVERT_AGAIN, *command, f"--out_dir={out_dir}")


def test_interrupted_conversion_goes_on_where_it_stopped(imagenet, tmp_path):
    partial = tmp_path / "imagenet2012/incomplete.5.1.0"
    partial.mkdir(parents=True)
    done = "imagenet2012-train.array_record-00000-of-00001"
    (partial / done).write_bytes(b"done before")
    result = _convert_again(imagenet[0] / "old", tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("->") == 1 and "already converted" in result.stdout
    assert f"--config.data.dir={tmp_path}\n" in result.stdout
    assert not partial.exists()
    assert (tmp_path / "imagenet2012/5.1.0" / done).read_bytes() == b"done before"


def test_a_damaged_original_is_named_and_not_converted(imagenet, tmp_path):
    copy = tmp_path / "old/imagenet2012/5.1.0"
    shutil.copytree(imagenet[0] / "old/imagenet2012/5.1.0", copy)
    file = copy / "imagenet2012-validation.tfrecord-00000-of-00001"
    file.write_bytes(file.read_bytes()[:-1000])
    result = _convert_again(tmp_path / "old", tmp_path / "new")
    assert result.returncode == 1
    assert f"error: {file} is damaged: " in result.stderr
    assert not (tmp_path / "new/imagenet2012/5.1.0").exists()


def test_help_does_not_import_tensorflow():
    program = (
        "import sys; from litevit_jax.data import prepare; "
        "assert not {'tensorflow', 'tensorflow_datasets'} & set(sys.modules)"
    )
    assert _python("-c", program).returncode == 0


def _error(capsys, *argv):
    assert prepare.main(list(argv)) == 1
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
