"""Packed images are the same images, smaller; packing goes on where it stopped."""

import io
import json
import os
import pickle
import shutil

import numpy as np
import PIL.Image
import pytest
import tifffile

from litevit_jax.data import (
    decode,
    levels,
    pack,
    pipeline,
    resample,
    splits,
    survey,
    transforms,
)
from litevit_jax.data.sources import digit_scenes, folder, packed, segfolder
from tests import jobs


@pytest.fixture
def photos(tmp_path):
    """train: 3 + 3 images of two classes, one small, one PNG; test: 1 + 1."""
    root = tmp_path / "photos"
    for split, count in (("train", 3), ("test", 1)):
        for kind in ("cat", "dog"):
            (root / split / kind).mkdir(parents=True)
            for i in range(count):
                width, height = (60, 50) if i == 0 else (90, 130 + i)
                y, x = np.mgrid[:height, :width]
                pixels = np.stack([x, y, x + y], -1) % 256
                image = PIL.Image.fromarray(pixels.astype(np.uint8))
                name = f"{i}.png" if i == 1 else f"{i}.jpg"
                image.save(root / split / kind / name)
    return root


def _pack(photos, target, *arguments):
    return pack.main([str(photos), str(target), "--short-side=64", *arguments])


@pytest.mark.parametrize("bands", [3, 5])
def test_bands_are_packed_as_arrays_of_bytes(bands, tmp_path):
    root, rng = tmp_path / "bands", np.random.default_rng(0)
    root.mkdir()
    for number, size in enumerate([(40, 30), (90, 80)]):
        values = rng.integers(0, 4000, (bands, *size)).astype(np.uint16)
        tifffile.imwrite(root / f"{number}.tif", values, photometric="minisblack")
    target = tmp_path / "packed"
    assert _pack(root, target, "--range=0,4000") == 0
    ours = packed.make(split="train", dir=str(target))
    assert ours.stored_range == "0,4000" and len(ours) == 2
    read = decode.Decode(bands, range="0,4000")
    small, large = (np.asarray(read(ours[n]["image"])) for n in range(2))
    theirs = folder.make(split="train", dir=str(root))
    whole = np.asarray(read(theirs[0]["image"]))
    assert np.array_equal(small, whole) and small.shape == (40, 30, bands)
    plane = PIL.Image.fromarray(np.asarray(read(theirs[1]["image"]))[..., 1])
    want = plane.resize((64, 72), PIL.Image.Resampling.BICUBIC)
    assert np.array_equal(large[..., 1], want)


def _files(target):
    return {p.name: p.read_bytes() for p in sorted(target.iterdir())}


def test_packed_images_are_the_folders_at_the_short_side(photos, tmp_path):
    target = tmp_path / "packed"
    assert _pack(photos, target, "--shards=2") == 0
    for split, count in (("train", 6), ("test", 2), ("val", 2)):
        ours = packed.make(split=split, dir=str(target))
        theirs = folder.make(split=split, dir=str(photos))
        assert len(ours) == len(theirs) == count
        assert ours.classes == theirs.classes == ["cat", "dog"]
        for i in range(count):
            assert ours[i]["label"] == theirs[i]["label"]
            assert theirs.name_of(i) in ours.name_of(i)
            image = PIL.Image.open(io.BytesIO(ours[i]["image"]))
            whole = decode.Decode()(theirs[i]["image"])
            assert image.format == "JPEG"
            if min(whole.size) <= 64:
                assert ours[i]["image"] == theirs[i]["image"]
                continue
            assert min(image.size) == 64
            expected = whole.resize(image.size, PIL.Image.Resampling.BICUBIC)
            difference = np.abs(np.asarray(image).astype(int) - np.asarray(expected))
            assert difference.mean() < 4
    copy = pickle.loads(pickle.dumps(ours))
    assert copy.fingerprint() == ours.fingerprint() and copy[0] == ours[0]


def test_jobs_of_an_array_and_interruptions_give_the_same_bytes(photos, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert _pack(photos, whole, "--shards=3") == 0
    assert _pack(photos, parts, "--shards=3", "--shard=1/2", "--threads=1") == 0
    with pytest.raises(FileNotFoundError, match="lacks 2 of the 3 shards of 'train'"):
        packed.make(split="train", dir=str(parts))
    assert _pack(photos, parts, "--shards=3", "--shard=0/2") == 0
    assert _files(whole) == _files(parts)
    name = "train-00001-of-00003"
    (parts / f"{name}.array_record").write_bytes(b"half of it")
    before = {n: os.stat(parts / n).st_ino for n in _files(parts)}
    assert _pack(photos, parts, "--shards=3") == 0
    assert _files(whole) == _files(parts)
    changed = {n for n in before if os.stat(parts / n).st_ino != before[n]}
    assert changed == {f"{name}.array_record", f"{name}.json"}


def test_all_splits_are_packed_whatever_their_usual_names(photos, tmp_path, capsys):
    target = tmp_path / "packed"
    (photos / "train").rename(photos / "Training")
    shutil.copytree(photos / "test", photos / "valid")
    assert _pack(photos, target) == 0
    assert {p.stem for p in target.glob("*[!0-9].json")} == {"train", "test", "valid"}
    assert "train: 6 images, labelled, 2 classes (cat, dog)" in capsys.readouterr().out
    for split, count in (("train", 6), ("test", 2), ("val", 2), ("Valid", 2)):
        source = packed.make(split=split, dir=str(target), holdout=0.5)
        assert len(source) == count and "0.5 is not used" in source.summary()
    assert source.other_splits == ["test", "train"]


def test_a_subfolder_is_packed_as_a_split(photos, tmp_path):
    target, parent = tmp_path / "packed", photos.parent
    assert _pack(parent, target, "--split=photos/train", "--split=./photos/test") == 0
    assert len(packed.make(split="train", dir=str(target))) == 6
    assert len(packed.make(split="photos-test", dir=str(target))) == 2


def test_a_folder_of_other_manifests_is_not_packed(photos, tmp_path):
    (tmp_path / "info.json").write_text('{"shards": 3}')
    (tmp_path / "list.json").write_text("[1")
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ValueError, match="holds no packed images"):
        packed.make(split="train", dir=str(tmp_path))
    target = tmp_path / "packed"
    assert _pack(photos, target) == 0
    (target / "train-00000-of-00001.json").write_text('{"count": ')
    with pytest.raises(ValueError, match=r"of-00001\.json is damaged"):
        packed.make(split="train", dir=str(target))


def test_other_settings_are_not_mixed_in(photos, tmp_path, capsys):
    target = tmp_path / "packed"
    assert _pack(photos, target) == 0
    assert _pack(photos, target, "--quality=70") == 2
    assert "begun with another quality (90, now 70)" in capsys.readouterr().err


def test_unreadable_images_are_named_counted_and_bounded(photos, tmp_path, capsys):
    bad = photos / "train" / "cat" / "bad.jpg"
    bad.write_bytes(b"<html>")
    assert _pack(photos, tmp_path / "one") == 0
    assert "cat/bad.jpg" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "one/train-00000-of-00001.json").read_text())
    assert manifest["count"] == 6 and len(manifest["bad"]) == 1
    assert len(packed.make(split="train", dir=str(tmp_path / "one"))) == 6
    assert _pack(photos, tmp_path / "none", "--max-bad-fraction=0") == 2
    assert "at most 0 may" in capsys.readouterr().err
    assert not (tmp_path / "none/train-00000-of-00001.json").exists()


def test_a_shard_cut_or_changed_is_noticed(photos, tmp_path, capsys):
    target = tmp_path / "packed"
    assert _pack(photos, target) == 0
    file = target / "train-00000-of-00001.array_record"
    content = file.read_bytes()
    assert pack.main([str(target), str(target), "--verify"]) == 0
    middle = content.index(packed.make(split="train", dir=str(target))[2]["image"])
    file.write_bytes(content[:middle] + bytes(64) + content[middle + 64 :])
    assert pack.main([str(target), str(target), "--verify"]) == 1
    assert "train-00000-of-00001.array_record: its checksum" in capsys.readouterr().out
    # Of the same size: the images concerned are named and counted in the run.
    source = packed.make(split="train", dir=str(target))
    made = transforms.eval_ops(image_size=(8, 8))
    stream = pipeline.eval_batches(source, made, batch_size=2, max_bad_fraction=1.0)
    mask = np.concatenate([batch["mask"] for batch in stream])
    assert 0 < len(stream.bad) == len(source) - mask.sum() < len(source)
    assert all(name.startswith("packed record") for name in stream.bad)
    file.write_bytes(content[:middle])
    with pytest.raises(ValueError, match=rf"has {middle} bytes, its manifest says"):
        packed.make(split="train", dir=str(target))


def test_a_manifest_that_was_cut_short_is_packed_again_or_named(
    photos, tmp_path, capsys
):
    target = tmp_path / "packed"
    assert _pack(photos, target) == 0
    shard, split = (target / f"train{x}.json" for x in ("-00000-of-00001", ""))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:20])
    assert pack.main([str(target), str(target), "--verify"]) == 1
    assert f"{shard} is damaged" in capsys.readouterr().out
    assert _pack(photos, target) == 0
    assert shard.read_bytes() == whole
    split.write_text("")
    assert _pack(photos, target) == 2
    assert f"{split} is damaged" in capsys.readouterr().err


def test_wrong_arguments_are_explained(photos, tmp_path, capsys):
    for wrong, message in (
        (["--shard=2/2"], "--shard=2/2; expected I/N"),
        (["--quality=0"], "--quality=0; expected"),
        (["--max-bad-fraction=nan"], "--max-bad-fraction=nan; expected a finite"),
        (["--threads=0"], "--threads=0; expected 1 or more"),
        (["--shards=0"], "--shards=0; expected 1 or more"),
        (["--source=foldr"], "did you mean folder"),
    ):
        assert _pack(photos, tmp_path / "x", *wrong) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        _pack(photos, tmp_path / "x", "--shard=half")
    with pytest.raises(ValueError, match="holds no packed images"):
        packed.make(split="train", dir=str(photos))
    with pytest.raises(FileNotFoundError, match=r"nowhere' does not exist; expected"):
        packed.make(split="train", dir=str(tmp_path / "nowhere"))
    with pytest.raises(NotADirectoryError, match="is no folder"):
        packed.make(split="train", dir=str(photos / "train" / "cat" / "0.jpg"))


def test_labels_are_known_without_reading_a_record(photos, tmp_path, monkeypatch):
    target = tmp_path / "packed"
    assert _pack(photos, target) == 0
    source = packed.make(split="train", dir=str(target))
    monkeypatch.setattr(packed, "decode", lambda _: pytest.fail("read"))
    assert [source.label_of(i) for i in range(6)] == [0, 0, 0, 1, 1, 1]


def test_a_holdout_of_packed_images_is_disjoint(photos, tmp_path):
    target = tmp_path / "packed"
    assert _pack(photos / "train", target) == 0
    made = [
        packed.make(split=s, dir=str(target), holdout=0.4) for s in ("train", "test")
    ]
    rows = [set(m._rows.tolist()) for m in made]
    assert rows[0] | rows[1] == set(range(6)) and not rows[0] & rows[1]
    with pytest.raises(ValueError, match="has no 'test' split"):
        packed.make(split="test", dir=str(target))


@pytest.fixture
def deep(tmp_path):
    """Grey images of 16 bits that use 12: train 6, test 2."""
    root, rng = tmp_path / "deep", np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 2)):
        (root / split / "a").mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(200, 4000, (20, 24)).astype(np.uint16)
            PIL.Image.fromarray(pixels).save(root / split / "a" / f"{number}.png")
    return root


@pytest.mark.parametrize("asked", ["200,4000", "auto"])
def test_a_range_is_packed_in_and_kept_for_all_splits(deep, tmp_path, asked, capsys):
    target = tmp_path / "packed"
    assert _pack(deep, target, f"--range={asked}", "--quality=100") == 0
    source = folder.make(split="train", dir=str(deep))
    text = asked if asked != "auto" else levels.spell(survey.percentiles(source))
    assert f"--range=auto is {text}\n" in capsys.readouterr().out or asked != "auto"
    op = decode.Decode(channels=1, range=text)
    for split, count in (("train", 6), ("test", 2)):
        ours = packed.make(split=split, dir=str(target))
        theirs = folder.make(split=split, dir=str(deep))
        assert ours.stored_range == text and len(ours) == count
        for row in range(count):
            got = np.asarray(op(ours[row]["image"])).astype(int)
            assert np.abs(got - np.asarray(op(theirs[row]["image"]))).max() <= 4
    # What is packed later gets the same; another range is another folder.
    again = [f"--range={asked}", "--quality=100", "--split=test"]
    assert _pack(deep, target, *again) == 0
    assert _pack(deep, target, "--quality=100") == 2
    assert "begun with another range" in capsys.readouterr().err


def test_images_that_would_lose_their_grey_levels_are_said(deep, tmp_path, capsys):
    assert _pack(deep, tmp_path / "packed") == 0
    said = capsys.readouterr().out
    assert "train: 6 of 6 images looked at use less than a sixteenth" in said
    assert "white: --range=LOW,HIGH" in said
    assert (
        packed.make(split="train", dir=str(tmp_path / "packed")).stored_range == "full"
    )


def test_a_run_on_packed_images_records_their_range(deep, tmp_path):
    target = str(tmp_path / "packed")
    assert _pack(deep, target, "--range=200,4000") == 0
    data = jobs.config(arg=f"data=packed,path={target}").data
    assert splits.pixel_range(data, "train") == "200,4000"
    with data.unlocked():
        data.range = "0,9"
    with pytest.raises(ValueError, match="were packed with range 200,4000"):
        splits.pixel_range(data, "train")


@pytest.fixture
def labelled(tmp_path):
    """images/ and labels/: a small JPEG, a large PNG, and a JPEG turned by its EXIF."""
    root, rng = tmp_path / "labelled", np.random.default_rng(0)
    for split, names in (("train", "abc"), ("val", "d")):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for i, name in enumerate(names):
            size = (50, 60) if i == 0 else (130, 170)
            labels = rng.integers(0, 4, size).astype(np.uint8)
            labels[0] = 255
            exif = PIL.Image.Exif()
            exif[0x0112] = 6 if i == 2 else 1
            picture = PIL.Image.fromarray(np.repeat(labels[..., None] * 20, 3, axis=2))
            kind = "png" if i == 1 else "jpg"
            picture.save(root / "images" / split / f"{name}.{kind}", exif=exif)
            PIL.Image.fromarray(labels).save(root / "labels" / split / f"{name}.png")
    return root


def test_label_maps_are_packed_with_their_images(labelled, tmp_path):
    target = tmp_path / "packed"
    options = ["--option=reduce_zero_label=False", "--option=classes=a,b,c,d"]
    assert _pack(labelled, target, "--source=segfolder", *options) == 0
    for split, count in (("train", 3), ("val", 1), ("test", 1)):
        ours = packed.make(split=split, dir=str(target))
        theirs = segfolder.make(
            split=split, dir=str(labelled), reduce_zero_label=False, classes="a,b,c,d"
        )
        assert len(ours) == len(theirs) == count
        assert ours.annotations == ["label_map"] and ours.classes == list("abcd")
        assert "label maps of 4 classes" in ours.summary()
        for i in range(count):
            one, whole = pickle.loads(pickle.dumps(ours))[i], theirs[i]
            size = decode.Decode()(one["image"]).size[::-1]
            assert one["label_map"].shape == size and one["label"] == -1
            if min(size) < 64:
                assert one["image"] == whole["image"]
            else:
                assert min(size) == 64 and max(size) == 84
            window = resample.Window.whole(size)
            expected = resample.nearest(whole["label_map"], window)
            np.testing.assert_array_equal(one["label_map"], expected)
            np.testing.assert_array_equal(ours.label_map(i), expected)


def test_scenes_are_packed_bit_for_bit(tmp_path):
    target = str(tmp_path / "packed")
    options = ["--option=size=40", "--option=scenes=6", "--option=test_scenes=3"]
    arguments = ["-", target, "--source=digit_scenes", *options, "--short-side=64"]
    assert pack.main(arguments) == 0
    for split, count in (("train", 6), ("test", 3)):
        ours = packed.make(split=split, dir=target)
        theirs = digit_scenes.make(split=split, size=40, scenes=6, test_scenes=3)
        assert len(ours) == count and ours.classes == theirs.classes
        for i in range(count):
            pixels = np.asarray(decode.Decode()(ours[i]["image"]))
            np.testing.assert_array_equal(pixels, theirs[i]["image"])
            np.testing.assert_array_equal(ours[i]["label_map"], theirs[i]["label_map"])


def test_batches_of_packed_scenes_are_those_of_the_scenes(tmp_path):
    target = str(tmp_path / "packed")
    arguments = ["-", target, "--source=digit_scenes", "--option=size=40"]
    arguments += ["--option=scenes=6", "--split=train"]
    assert pack.main(arguments) == 0
    how = {"annotations": ("label_map",), "short_side": 40}
    transform = transforms.for_training(image_size=(32, 32), joint=how)
    batches = []
    for source in (
        packed.make(split="train", dir=target),
        digit_scenes.make(split="train", size=40, scenes=6),
    ):
        stream = pipeline.train_batches(source, transform, batch_size=4, seed=1)
        batches.append([next(stream) for _ in range(3)])
        stream.close()
    for one, two in zip(*batches, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])


def test_wrong_label_maps_end_the_packing(labelled, tmp_path, capsys):
    PIL.Image.new("L", (60, 50), 9).save(labelled / "labels" / "train" / "a.png")
    options = ["--option=reduce_zero_label=False", "--option=classes=4"]
    assert _pack(labelled, tmp_path / "out", "--source=segfolder", *options) == 2
    assert "labels/train/a.png: label 9 in 3000 of 3000" in capsys.readouterr().err
    assert _pack(labelled, tmp_path / "out", "--option=classes") == 2
    assert "--option=classes; expected NAME=VALUE" in capsys.readouterr().err


def test_objects_are_packed_with_their_images(tmp_path):
    target, annotated = str(tmp_path / "packed"), tmp_path / "data" / "train"
    annotated.mkdir(parents=True)
    shape = [[10, 10, 90, 10.5, 90, 70]]
    box = {"bbox": [10, 10, 80, 60], "segmentation": shape, "area": 2400.0}
    image = {"width": 120, "height": 80}
    content = {
        "images": [
            {"id": 7, "file_name": "a.jpg", **image},
            {"id": 4, "file_name": "b.jpg", **image},
        ],
        "categories": [{"id": 30, "name": "car"}],
        "annotations": [
            {"id": 2, "image_id": 7, "category_id": 30, **box},
            {"id": 9, "image_id": 4, "category_id": 30, **box},
        ],
    }
    (annotated / "_annotations.coco.json").write_text(json.dumps(content))
    for name in "ab":
        PIL.Image.new("RGB", (120, 80)).save(annotated / f"{name}.jpg")
    flags = ["--source=cocojson", "--short-side=40", "--split=train"]
    assert pack.main([str(annotated.parent), target, *flags]) == 0
    ours = packed.make(split="train", dir=target)
    assert list(ours.annotations) == ["objects", "boxes"] and ours.class_ids == [30]
    assert "boxes and masks of objects of 1 class (car)" in ours.summary()
    small = pickle.loads(pickle.dumps(ours)).objects(1)
    assert small.image_id == 4 and small.ids == [9] and small.size == (40, 60)
    assert small.shapes == [[[5, 5, 45, 5.25, 45, 35]]] and small.areas[0] == 600
    np.testing.assert_array_equal(small.boxes, [(5, 5, 45, 35)])
    assert decode.Decode()(ours[1]["image"]).size == (60, 40)


def test_batches_of_packed_objects_are_those_of_the_scenes(tmp_path):
    target = str(tmp_path / "packed")
    options = ["--option=size=40", "--option=scenes=6", "--option=objects=True"]
    arguments = ["-", target, "--source=digit_scenes", *options, "--split=train"]
    assert pack.main(arguments) == 0
    how = {"annotations": ("objects",), "mask_size": 16, "max_objects": 5}
    transform = transforms.for_training(image_size=(32, 32), joint=how)
    batches = []
    for source in (
        packed.make(split="train", dir=target),
        digit_scenes.make(split="train", size=40, scenes=6, objects=True),
    ):
        stream = pipeline.train_batches(source, transform, batch_size=4, seed=1)
        batches.append([next(stream) for _ in range(3)])
        stream.close()
    for one, two in zip(*batches, strict=True):
        assert one["valid"].any() and one["masks"].shape == (4, 5, 32)
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])
