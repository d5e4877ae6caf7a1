"""Tar files of images: what is in them, whose it is, and what is refused."""

import io
import json
import os
import pickle
import tarfile

import numpy as np
import PIL.Image
import pytest

from litevit_jax.data.sources import tar


def png(value):
    file = io.BytesIO()
    PIL.Image.new("RGB", (4, 3), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write(path, members):
    """A tar file of {name: bytes}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def labelled(values):
    members = {}
    for value in values:
        members[f"{value:04d}.png"] = png(value)
        members[f"{value:04d}.cls"] = b"%d" % (value % 3)
        members[f"{value:04d}.json"] = b"{}"
    return members


def value_of(example):
    return PIL.Image.open(io.BytesIO(example["image"])).getpixel((0, 0))[0]


def test_images_and_labels_are_found_in_any_order(tmp_path):
    write(tmp_path / "set-train-000.tar", labelled(range(5)))
    write(tmp_path / "set-train-001.tar", labelled(range(5, 9)))
    write(tmp_path / "set-val-000.tar", labelled([100]))
    source = tar.make(split="train", dir=str(tmp_path))
    assert len(source) == 9 and source.classes == ["0", "1", "2"]
    for index in (8, 0, 5):
        example = source[index]
        assert (value_of(example), example["label"]) == (index, index % 3)
    assert source.name_of(6) == "set-train-001.tar:0006.png"
    assert value_of(tar.make(split="test", dir=str(tmp_path))[0]) == 100
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint() == source.fingerprint() and value_of(copy[7]) == 7


def test_a_pattern_and_a_holdout(tmp_path):
    write(tmp_path / "a-0.tar", labelled(range(40)))
    write(tmp_path / "b-0.tar", labelled(range(40, 50)))
    made = {
        split: tar.make(split=split, dir=str(tmp_path / "a-*.tar"), holdout=0.3)
        for split in ("train", "test")
    }
    values = {s: [value_of(m[i]) for i in range(len(m))] for s, m in made.items()}
    assert sorted(values["train"] + values["test"]) == list(range(40))
    assert 4 < len(values["test"]) < 20


def test_class_names_and_no_labels(tmp_path):
    members = {"x/1.png": png(1), "x/1.cls": b"dog", "y/1.png": png(2)}
    members["y/1.cls"] = b"cat\n"
    source = tar.make(split="train", dir=str(write(tmp_path / "a.tar", members)))
    assert source.classes == ["cat", "dog"]
    assert [source[i]["label"] for i in (0, 1)] == [1, 0]
    bare = write(tmp_path / "b" / "b.tar", {"1.png": png(1)})
    source = tar.make(split="train", dir=str(bare.parent))
    assert source.classes == [] and source[0]["label"] == -1
    del members["y/1.cls"]
    mixed = write(tmp_path / "c" / "c.tar", members)
    with pytest.raises(ValueError, match=r"y/1\.png has no label .* 1 of 2"):
        tar.make(split="train", dir=str(mixed))


def test_the_index_is_built_once_and_anew_when_the_file_changes(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tar", labelled(range(3)))
    scanned = []
    scan = tar._scan
    monkeypatch.setattr(tar, "_scan", lambda file: scanned.append(file) or scan(file))
    for _ in range(2):
        assert len(tar.make(split="train", dir=str(path))) == 3
    assert len(scanned) == 1
    [index] = (tmp_path / ".litevit-index").iterdir()
    index.write_text(index.read_text()[:40])  # a damaged index is no index
    assert len(tar.make(split="train", dir=str(path))) == 3
    write(path, labelled(range(4)))
    assert len(tar.make(split="train", dir=str(path))) == 4
    assert len(scanned) == 3 and json.loads(index.read_text())["images"]


def test_bad_tars_are_refused_by_name(tmp_path):
    path = write(tmp_path / "a.tar", {f"{i}.png": os.urandom(3000) for i in range(9)})
    whole = path.read_bytes()
    member = 512 + 3072
    for length in (3 * member + 700, 3 * member + 100, 3 * member, 10):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a\.tar is (damaged or )?cut short"):
            tar.make(split="train", dir=str(tmp_path))
    path.write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(ValueError, match=r"a\.tar is damaged"):
        tar.make(split="train", dir=str(tmp_path))
    write(path, {"readme.txt": b"hello"})
    with pytest.raises(ValueError, match="no image in"):
        tar.make(split="train", dir=str(tmp_path))
    (tmp_path / "b.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"b\.tar\.gz is compressed"):
        tar.make(split="train", dir=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no \.tar file"):
        tar.make(split="train", dir=str(tmp_path / "none"))


def test_labels_are_known_without_reading_an_image(tmp_path, monkeypatch):
    write(tmp_path / "one.tar", labelled(range(5)))
    source = tar.make(split="train", dir=str(tmp_path))
    monkeypatch.setattr(tar.Tar, "__getitem__", lambda *_: pytest.fail("read"))
    assert [source.label_of(i) for i in range(5)] == [0, 1, 2, 0, 1]


def test_a_tar_that_is_cut_after_its_index_names_the_image(tmp_path):
    path = write(tmp_path / "a.tar", {f"{i}.png": os.urandom(3000) for i in range(9)})
    source = tar.make(split="train", dir=str(path))
    path.write_bytes(path.read_bytes()[: 5 * (512 + 3072)])
    assert len(source[4]["image"]) == 3000
    with pytest.raises(OSError, match="cut short"):
        source[6]
    assert isinstance(source._places, np.ndarray)
