"""Tar files of images: what is in them, whose it is, and what is refused."""

import io
import json
import os
import pickle
import re
import tarfile

import numpy as np
import PIL.Image
import pytest

from litevit_jax.data import tar_index
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
    scan = tar_index.scan
    monkeypatch.setattr(
        tar_index, "scan", lambda *args: scanned.append(args) or scan(*args)
    )
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


def members(label_of, extension, count=6):
    """Images of the values 0 to `count`, and a member `extension` beside each."""
    return {
        f"{value}.{kind}": content
        for value in range(count)
        for kind, content in (("png", png(value)), (extension, label_of(value)))
    }


NAMES = ["cat", "dog", "snowy owl"]
LABELS = {
    "json label": ("json", lambda v: b'{"label": %d, "cls": 7}' % (v % 3), None),
    "json cls": ("json", lambda v: b'{"cls": "%d"}' % (v % 3), None),
    "json float": ("json", lambda v: b'{"label": %d.0}' % (v % 3), ""),
    "json key": ("json", lambda v: b'{"label": 9, "k": %d}' % (v % 3), "k"),
    "json nested": ("json", lambda v: b'{"a": {"b": %d}}' % (v % 3), "a.b"),
    "json dotted": ("json", lambda v: b'{"a.b": %d}' % (v % 3), "a.b"),
    "target": ("target.cls", lambda v: b"%d\n" % (v % 3), None),
    "text": ("txt", lambda v: b"%d" % (v % 3), None),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_are_read_from_the_members_that_hold_them(tmp_path, name):
    extension, label_of, key = LABELS[name]
    write(tmp_path / "a.tar", members(label_of, extension))
    source = tar.make(split="train", dir=str(tmp_path), name=key)
    assert source.classes == ["0", "1", "2"]
    assert [source.label_of(i) for i in range(6)] == [0, 1, 2, 0, 1, 2]
    kind = f"6 .png read as images and 6 .{extension} as labels"
    assert kind in source.summary()


@pytest.mark.parametrize("extension", ["txt", "json"])
def test_names_of_classes_are_read_too(tmp_path, extension):
    def label_of(value):
        name = NAMES[value % 3]
        return (json.dumps({"label": name}) if extension == "json" else name).encode()

    write(tmp_path / "a.tar", members(label_of, extension))
    source = tar.make(split="train", dir=str(tmp_path))
    assert source.classes == NAMES and source.label_of(5) == 2


def test_another_key_is_another_index(tmp_path):
    both = members(lambda v: b'{"label": 0, "kind": %d}' % (v % 2), "json")
    write(tmp_path / "a.tar", both)
    for key, classes in ((None, ["0"]), ("kind", ["0", "1"]), ("", ["0"])):
        source = tar.make(split="train", dir=str(tmp_path), name=key)
        assert source.classes == classes


UNREAD = {
    "captions": ("txt", lambda v: b"a photo of %d owls" % v,
        r"no labels.*not read: 6 \.txt; \.txt are captions"),
    "long text": ("txt", lambda v: b"x" * 200, r"no labels.*\.txt are captions"),
    "other keys": ("json", lambda v: b'{"url": "u", "width": 3}',
        r"no labels.*\.json has no label or cls .* its keys are url, width .*name=KEY"),
    "several": ("json", lambda v: b'{"label": [0]}', r"no labels.*\.json has no lab"),
    "no json": ("json", lambda v: b"{", r"no labels.*not read: 6 \.json"),
    "arrays": ("npy", lambda v: b"", r"no labels.*read as images; members not read: 6"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNREAD)
def test_members_that_are_no_labels_are_named(tmp_path, name):
    extension, label_of, message = UNREAD[name]
    write(tmp_path / "a.tar", members(label_of, extension))
    source = tar.make(split="train", dir=str(tmp_path))
    assert source.classes == [] and source.label_of(0) == -1
    assert re.search(message, source.summary())


def test_arrays_are_images_where_no_pictures_are(tmp_path):
    content = {f"{n}.npy": b"\x93NUMPY%d" % n for n in range(3)}
    content |= {f"{n}.cls": b"%d" % n for n in range(3)}
    content |= {f"{n}.features.npy": b"" for n in range(3)}
    source = tar.make(split="train", dir=write_one(tmp_path, content))
    assert [source[n]["image"] for n in range(3)] == [
        b"\x93NUMPY%d" % n for n in range(3)
    ]
    assert "3 .npy read as images and 3 .cls as labels" in source.summary()
    assert "members not read: 3 .features.npy" in source.summary()


def test_the_first_kind_of_label_that_all_images_have_is_read(tmp_path):
    content = members(lambda v: b"%d" % v, "cls")
    content |= members(lambda v: b'{"label": %d}' % (v % 2), "json")
    assert len(tar.make(split="train", dir=write_one(tmp_path, content)).classes) == 6
    del content["3.cls"]
    assert len(tar.make(split="train", dir=write_one(tmp_path, content)).classes) == 2


def write_one(tmp_path, content):
    return str(write(tmp_path / "a.tar", content))


def test_a_dot_in_the_name_of_an_image_does_not_mix_up_labels(tmp_path):
    content = {"a.1.png": png(1), "a.cls": b"0", "b.png": png(2), "b.cls": b"1"}
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for name, value in [*content.items(), ("a.cls", b"1")]:
            info = tarfile.TarInfo(name)
            info.size = len(value)
            file.addfile(info, io.BytesIO(value))
    with pytest.raises(ValueError, match=r"a\.cls is the second \.cls of 'a'.*rename"):
        tar.make(split="train", dir=str(tmp_path))


def test_other_images_of_an_example_are_not_read_and_said(tmp_path):
    content = labelled(range(2))
    content |= {f"{n:04d}.mask.png": png(99) for n in range(2)}
    write(
        tmp_path / "a.tar",
        content | {"dots.1.png": png(2), "dots.cls": b"\xef\xbb\xbf1"},
    )
    source = tar.make(split="train", dir=str(tmp_path))
    assert [value_of(source[i]) for i in range(len(source))] == [0, 1, 2]
    assert "3 .png read as images" in source.summary()
    assert "not read: 2 .json, 2 .mask.png" in source.summary()


@pytest.mark.parametrize("top", ["", "./", "set/"])
def test_a_packed_folder_of_splits_is_refused(tmp_path, top):
    names = [f"{top}{split}/cat/0.png" for split in ("train", "Test")]
    write(tmp_path / "a.tar", {name: png(1) for name in names})
    with pytest.raises(ValueError, match=r"a\.tar holds splits .*\(Test, train\)"):
        tar.make(split="train", dir=str(tmp_path))
    write(tmp_path / "a.tar", {name: png(1) for name in names[:1]})
    assert len(tar.make(split="train", dir=str(tmp_path))) == 1


@pytest.mark.parametrize(
    "key, label, message",
    [
        ("kind", b'{"label": 1}', r"data\.name='kind': .* keys are label"),
        ("label", b'{"label": [1]}', r"data\.name='label': no .* a number or a name"),
    ],
)
def test_a_key_that_labels_nothing_is_refused(tmp_path, key, label, message):
    write(tmp_path / "a.tar", members(lambda v: label, "json"))
    with pytest.raises(ValueError, match=message):
        tar.make(split="train", dir=str(tmp_path), name=key)


def test_numbers_in_one_split_and_names_in_another_are_refused(tmp_path):
    write(tmp_path / "train-0.tar", members(lambda v: b"%d" % (v % 2), "cls"))
    write(tmp_path / "test-0.tar", members(lambda v: b"cat", "cls"))
    with pytest.raises(
        ValueError, match=r"numbers, those of another names \(0, 1, cat"
    ):
        tar.make(split="train", dir=str(tmp_path))


@pytest.mark.parametrize("train, test", [("train", "valid"), ("Training", "TEST")])
def test_split_names_are_the_usual_ones_in_any_case(tmp_path, train, test):
    write(tmp_path / f"set-{train}-0.tar", labelled(range(4)))
    write(tmp_path / f"set-{test}-0.tar", labelled([50]))
    write(tmp_path / "other-0.tar", labelled([60]))
    source = tar.make(split="train", dir=str(tmp_path))
    assert len(source) == 4 and "not used: other-0.tar" in source.summary()
    for split in ("test", "val", test):
        assert value_of(tar.make(split=split, dir=str(tmp_path))[0]) == 50


def test_a_split_may_be_any_subfolder_of_tars(tmp_path):
    write(tmp_path / "left" / "0.tar", labelled(range(4)))
    write(tmp_path / "right" / "a" / "0.tar", labelled([50]))
    assert len(tar.make(split="left", dir=str(tmp_path))) == 4
    for split in ("right", "right/a", "./right"):
        assert value_of(tar.make(split=split, dir=str(tmp_path))[0]) == 50
    assert len(tar.make(split="train", dir=str(tmp_path))) == 5
    with pytest.raises(ValueError, match="'middle' unknown"):
        tar.make(split="middle", dir=str(tmp_path))


def test_what_is_no_regular_file_is_no_tar(tmp_path):
    write(tmp_path / "a" / "0.tar", labelled(range(4)))
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "gone.tar").symlink_to("nowhere")
    for name in "ab":
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "up").symlink_to("../a" if name == "b" else "../b")
    source = tar.make(split="train", dir=str(tmp_path))
    assert len(source) == 4 and "1 FIFO" in source.summary()


def test_a_pattern_may_span_folders_and_lists_each_once(tmp_path):
    write(tmp_path / "a" / "x-0.tar", labelled(range(4)))
    write(tmp_path / "b" / "c" / "x-1.tar", labelled(range(3)))
    write(tmp_path / "b" / "y-1.tar", labelled(range(9)))
    for name, other in ("ab", "ba"):
        (tmp_path / name / "link").symlink_to(f"../{other}")
    for pattern, count in (("**/x-*.tar", 7), ("b/**/*.tar", 16), ("**/c/*", 3)):
        assert len(tar.make(split="train", dir=str(tmp_path / pattern))) == count
    with pytest.raises(FileNotFoundError, match=r"no \.tar file there"):
        tar.make(split="train", dir=str(tmp_path / "**" / "z.tar"))


@pytest.mark.parametrize(
    "written, expected",
    [
        (["09", "10", "11", "9"], [9, 10, 11, 9]),
        (["00", "1", "0000001"], [0, 1, 1]),
        (["0", "1", "-1"], [0, 1, -1]),
        (["0.0", "1.", "2.00", "-1.0"], [0, 1, 2, -1]),
        (["cat", "-1", "dog"], [0, -1, 1]),
        (["\u0661", "\u0662"], [0, 1]),  # digits of another script are names
        (["1.0", "2.5"], [0, 1]),  # names, as not all are whole numbers
        (["-1", "-1"], [-1, -1]),
    ],
)
def test_numbers_may_be_padded_or_whole_floats_and_minus_one_is_no_label(
    tmp_path, written, expected
):
    content = members(lambda v: written[v].encode(), "cls", len(written))
    source = tar.make(split="train", dir=write_one(tmp_path, content))
    assert [source.label_of(i) for i in range(len(written))] == expected
    assert len(source.classes) == max(expected) + 1
    assert source.labelled == (max(expected) >= 0)


def test_other_negative_labels_are_refused(tmp_path):
    content = members(lambda v: b"%d" % (v - 2), "cls")
    with pytest.raises(ValueError, match=r"numbers from -2 to 3; .* -1 for an image"):
        tar.make(split="train", dir=write_one(tmp_path, content))


def test_the_extension_of_a_tar_may_be_in_capitals(tmp_path):
    write(tmp_path / "a-train.TAR", members(lambda v: b"%d" % v, "cls", 2))
    write(tmp_path / "b-train.tar", members(lambda v: b"%d" % v, "cls", 3))
    write(tmp_path / "TEST.TAR", members(lambda v: b"%d" % v, "cls", 1))
    assert len(tar.make(split="train", dir=str(tmp_path))) == 5
    assert len(tar.make(split="test", dir=str(tmp_path))) == 1


def test_json_that_is_nested_too_deep_is_no_label(tmp_path):
    deep = b'{"a":' * 200_000 + b"1" + b"}" * 200_000
    content = members(lambda v: b"%d" % v, "cls") | {"0.json": deep[:1_000_000]}
    content |= {"1.json": b'{"a":' * 50_000 + b"1" + b"}" * 50_000}
    source = tar.make(split="train", dir=write_one(tmp_path, content))
    assert len(source.classes) == 6
