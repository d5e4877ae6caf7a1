"""Folders of images are read as laid out, or the layout is questioned."""

import pathlib
import pickle
import re

import pytest

from litevit_jax.data.sources import base, folder


def _names(source):
    return [source.name_of(i) for i in range(len(source))]


def _labels(source):
    return [source[i]["label"] for i in range(len(source))]


def test_flat_folder_is_unlabelled_and_sorted(fill):
    dir = fill("b.JPG", "a.png", "c.webp", ".hidden.png", "notes.txt", ".git/x.png")
    source = folder.make(split="train", dir=dir)
    assert _names(source) == ["a.png", "b.JPG", "c.webp"]
    assert _labels(source) == [-1] * 3 and source.classes == []
    assert source[1]["image"] == b"b.JPG"


def test_subfolders_are_classes_and_deeper_files_belong_to_them(fill):
    source = folder.make(
        split="train", dir=fill("dog/1.jpg", "cat/x/y/2.jpg", "a/3.gif")
    )
    assert source.classes == ["a", "cat", "dog"]
    assert _names(source) == ["a/3.gif", "cat/x/y/2.jpg", "dog/1.jpg"]
    assert _labels(source) == [0, 1, 2]


def test_class_folder_without_images_is_named_and_ignored(fill, caplog):
    source = folder.make(split="train", dir=fill("cat/1.jpg", "dog/readme.md"))
    assert source.classes == ["cat"]
    assert "without images, ignored: dog" in caplog.text


@pytest.mark.parametrize("there", ["test", "val", "validation"])
@pytest.mark.parametrize("asked", ["test", "val", "validation"])
def test_the_split_there_is_read_by_any_of_its_names(fill, there, asked):
    dir = fill("train/dog/1.jpg", "train/cat/2.jpg", f"{there}/dog/3.jpg")
    train = folder.make(split="train", dir=dir)
    assert _names(train) == ["train/cat/2.jpg", "train/dog/1.jpg"]
    assert _labels(train) == [0, 1]
    other = folder.make(split=asked, dir=dir, holdout=0.5)
    assert _names(other) == [f"{there}/dog/3.jpg"]
    assert _labels(other) == [1] and other.classes == ["cat", "dog"]


def test_flat_splits_are_unlabelled(fill):
    dir = fill("train/1.jpg", "val/2.jpg")
    for split in ("train", "val"):
        source = folder.make(split=split, dir=dir)
        assert _labels(source) == [-1] and source.classes == []


def test_unlabelled_test_split_of_labelled_data_keeps_the_classes(fill):
    source = folder.make(split="test", dir=fill("train/cat/1.jpg", "test/2.jpg"))
    assert _labels(source) == [-1] and source.classes == ["cat"]


def test_the_summary_names_images_classes_splits_and_what_is_not_read(fill, tmp_path):
    dir = fill("Train/cat/1.jpg", "Train/dog/2.jpg", "Train/cat/a.txt", "valid/3.jpg")
    (tmp_path / "Train" / "cat" / "gone.jpg").symlink_to("nowhere")
    assert folder.make(split="train", dir=dir).summary() == (
        f"2 images, labelled, 2 classes (cat, dog); from {dir}/Train; not read: 1 "
        ".txt; skipped, as no regular files: 1 broken link (cat/gone.jpg); other "
        "splits: valid"
    )
    assert folder.make(split="test", dir=dir, holdout=0.2).summary() == (
        f"1 image, no labels (other splits have 2 classes (cat, dog)); from {dir}/"
        "valid; data.holdout.test=0.2 is not used: there is a split to test on; other "
        "splits: Train"
    )


def test_names_with_line_ends_and_escapes_are_spelled_out(fill):
    dir = fill("train/c\na\u2028t/1.jpg", "train/d\x1b[31mog/2.jpg", "train/é 犬/3.jpg")
    source = folder.make(split="train", dir=dir)
    assert source.classes[0] == "c\na\u2028t"
    shown = r"3 classes (c\na\u2028t, d\x1b[31mog, é 犬)"
    assert shown in source.summary() and source.summary().isprintable()
    other = fill("test/c\nat/1.jpg", "train/owl/1.jpg")
    with pytest.raises(ValueError, match=r"that .* has not: c\\nat"):
        folder.make(split="test", dir=other)


def test_tables_that_are_not_read_are_named(fill, tmp_path):
    dir = fill("train/1.jpg", "train/list.csv")
    table = tmp_path / "train" / "metadata.jsonl"
    table.write_text('{"file_name": "1.jpg", "text": "a cat"}\n')
    summary = folder.make(split="train", dir=dir).summary()
    assert summary.startswith("1 image, no labels;")
    assert "1 .csv (labels of a table are read with data.labels=FILE)" in summary
    assert "metadata.jsonl is not read: it has no columns file_name and lab" in summary


def test_images_in_other_kinds_of_files_are_pointed_to(fill):
    with pytest.raises(ValueError, match=r"found 1 \.arrow.*export their images"):
        folder.make(split="train", dir=fill("data/train-0.arrow"))


def _metadata(tmp_path, text, *split, name="metadata.jsonl"):
    path = tmp_path.joinpath(*split, name)
    path.write_text(text)
    return path


def _lines(**labels):
    return "".join(
        f'{{"file_name": "{name}.jpg", "label": "{label}"}}\n'
        for name, label in labels.items()
    )


def test_metadata_beside_the_images_of_a_split_labels_them(fill, tmp_path):
    dir = fill("train/a.jpg", "train/b.jpg", "train/x/c.jpg", "val/d.jpg")
    more = _lines(**{"x/c": "dog"})
    _metadata(tmp_path, _lines(a="owl", b="dog") + more, "train")
    _metadata(tmp_path, _lines(d="owl"), "val")
    train, test = (folder.make(split=s, dir=dir) for s in ("train", "test"))
    assert _names(train) == ["train/a.jpg", "train/b.jpg", "train/x/c.jpg"]
    assert (_labels(train), _labels(test)) == ([1, 0, 0], [1])
    assert train.classes == test.classes == ["dog", "owl"]
    assert "metadata.jsonl (" not in train.summary()
    _metadata(tmp_path, _lines(d="cow"), "val")
    with pytest.raises(ValueError, match=r"metadata\.jsonl, row 1: got class 'cow'"):
        folder.make(split="test", dir=dir)
    _metadata(tmp_path, _lines(a="owl"), "train")
    with pytest.raises(ValueError, match=r"has no row for 2 of 3 images of folder"):
        folder.make(split="train", dir=dir)


def test_metadata_at_the_top_labels_all_splits_or_divides_the_images(fill, tmp_path):
    dir = fill("train/a.jpg", "test/b.jpg")
    table = "file_name,label,extra\ntrain/a.jpg,2,x\ntest/b.jpg,2,y\n"
    path = _metadata(tmp_path, table, name="metadata.csv")
    for split, name in (("train", "train/a.jpg"), ("test", "test/b.jpg")):
        source = folder.make(split=split, dir=dir)
        assert (_names(source), source.classes) == ([name], ["2"])
    path.write_text("file_name,label,split\ntrain/a.jpg,2,val\ntest/b.jpg,2,train\n")
    assert _names(folder.make(split="test", dir=dir)) == ["train/a.jpg"]
    _metadata(tmp_path, _lines(a="owl"))
    with pytest.raises(ValueError, match=r"metadata\.csv and metadata\.jsonl; which o"):
        folder.make(split="train", dir=dir)


def test_a_lone_folder_around_the_class_folders_is_no_class(fill):
    names = ["set/x/cat/1.jpg", "set/x/dog/2.jpg"]
    source = folder.make(split="train", dir=fill(*names, "set/readme.txt"))
    assert (_names(source), source.classes) == (names, ["cat", "dog"])
    assert "class folders are those of" in source.summary()
    assert folder.make(split="./set", dir=fill()).classes == ["cat", "dog"]
    dir = fill("S/train/in/cat/1.jpg", "S/train/in/dog/2.jpg", "S/test/cat/a/3.jpg",
        "S/test/cat/b/4.jpg")  # fmt: skip
    test = folder.make(split="test", dir=f"{dir}/S")
    assert (_labels(test), test.classes) == ([0, 0], ["cat", "dog"])


def test_class_unknown_in_train_is_named(fill):
    dir = fill("train/cat/1.jpg", "val/cat/2.jpg", "val/dgo/3.jpg")
    with pytest.raises(ValueError, match=r"has not: dgo \(1 of 2\)"):
        folder.make(split="val", dir=dir)


def test_a_lone_train_folder_is_a_split(fill):
    source = folder.make(split="train", dir=fill("train/cat/1.jpg", "train/dog/2.jpg"))
    assert source.classes == ["cat", "dog"]


def test_holdout_divides_and_adding_files_moves_none(fill):
    names = [f"{c}/{i}.jpg" for c in ("cat", "dog") for i in range(100)]
    dir = fill(*names)
    split = {s: folder.make(split=s, dir=dir, holdout=0.2) for s in ("train", "test")}
    train, test = (set(_names(split[s])) for s in ("train", "test"))
    assert train | test == set(names) and not train & test
    assert 20 <= len(test) <= 60
    assert split["test"].classes == ["cat", "dog"]
    fill(*[f"cat/new{i}.jpg" for i in range(50)])
    again = set(_names(folder.make(split="test", dir=dir, holdout=0.2)))
    assert again & set(names) == test
    assert set(_names(folder.make(split="val", dir=dir, holdout=0.2))) == again


def test_without_holdout_everything_is_train(fill):
    dir = fill("cat/1.jpg", "dog/2.jpg")
    assert len(folder.make(split="train", dir=dir)) == 2
    with pytest.raises(
        ValueError, match=r"no 'test' split.*--config.data.holdout.test=0.1"
    ):
        folder.make(split="test", dir=dir)


def test_links_are_followed_without_going_round(fill, tmp_path):
    dir = fill("cat/1.jpg")
    (tmp_path / "cat" / "loop").symlink_to(tmp_path)
    elsewhere = pathlib.Path(fill("../pool/2.jpg")).parent / "pool"
    (tmp_path / "dog").symlink_to(elsewhere)
    source = folder.make(split="train", dir=dir)
    assert _names(source) == ["cat/1.jpg", "dog/2.jpg"]


def test_pickled_source_is_the_same(fill):
    source = folder.make(split="train", dir=fill("cat/1.jpg", "dog/é ü.jpg"))
    copy = pickle.loads(pickle.dumps(source))
    assert [copy[i] for i in range(2)] == [source[i] for i in range(2)]
    assert copy.fingerprint() == source.fingerprint()


def test_fingerprint_follows_names_labels_and_sizes(fill, tmp_path):
    def fingerprint():
        return folder.make(split="train", dir=dir).fingerprint()

    dir = fill("cat/1.jpg", "dog/2.jpg")
    prints = [fingerprint()]
    (tmp_path / "dog/2.jpg").write_bytes(b"longer than before")
    prints.append(fingerprint())
    fill("dog/3.jpg")
    prints.append(fingerprint())
    (tmp_path / "dog").rename(tmp_path / "bird")
    prints.append(fingerprint())
    assert len(set(prints)) == 4 and fingerprint() == prints[-1]


def test_mixed_layout_is_questioned(fill):
    with pytest.raises(ValueError, match=r"directly \('1.jpg', 1 .*\('cat/2.jpg'\)"):
        folder.make(split="train", dir=fill("1.jpg", "cat/2.jpg"))


def test_folder_without_images_says_what_is_there(fill):
    with pytest.raises(ValueError, match=r"found 2 .txt, 1 .npz, expected one of .bmp"):
        folder.make(split="train", dir=fill("a.txt", "b/c.txt", "d.npz"))


@pytest.mark.parametrize("kind", ["npy", "dcm"])
def test_arrays_and_dicom_files_are_images_where_no_pictures_are(fill, kind):
    alone = folder.make(split="train", dir=fill(f"cat/1.{kind}", f"dog/2.{kind}"))
    assert alone.classes == ["cat", "dog"] and len(alone) == 2
    mixed = fill("cat/3.jpg", f"fish/4.{kind}")
    source = folder.make(split="train", dir=mixed)
    assert source.classes == ["cat"] and [source.name_of(0)] == ["cat/3.jpg"]
    note = rf"not read: 3 .{kind}; .{kind} files are images where no pictures .*3.jpg"
    assert re.search(note, source.summary())
    with pytest.raises(ValueError, match=rf"1 .{kind}, expected one of .bmp.*3.jpg"):
        folder.make(split="./fish", dir=mixed)


def test_empty_folder_is_explained(tmp_path):
    with pytest.raises(ValueError, match=r"no image below .*no file at all"):
        folder.make(split="train", dir=str(tmp_path))


def test_wrong_places_are_explained(fill, tmp_path):
    fill("x.zip")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        folder.make(split="train", dir=str(tmp_path / "absent"))
    with pytest.raises(NotADirectoryError, match="is a file"):
        folder.make(split="train", dir=str(tmp_path / "x.zip"))
    with pytest.raises(FileNotFoundError, match=r"cannot be reached \(File name too"):
        folder.make(split="train", dir="x" * 300)
    with pytest.raises(ValueError, match="data=folder,path=DIR"):
        folder.make(split="train")


def test_unknown_split_lists_the_splits(fill):
    dir = fill("train/1.jpg", "val/2.jpg")
    with pytest.raises(ValueError, match="did you mean train"):
        folder.make(split="trian", dir=dir)


@pytest.mark.parametrize("holdout", [-0.1, 1.0])
def test_holdout_is_a_share(fill, holdout):
    with pytest.raises(ValueError, match=r"data\.holdout\.test="):
        folder.make(split="train", dir=fill("1.jpg"), holdout=holdout)


def test_holdout_that_leaves_nothing_is_an_error(fill):
    with pytest.raises(ValueError, match="leaves no image in split"):
        folder.make(split="test", dir=fill("1.jpg"), holdout=1e-9)


def test_digest_tells_parts_apart():
    assert base.digest([b"ab", b"c"]) != base.digest([b"a", b"bc"])


def test_classes_that_are_numbers_are_in_their_order(fill):
    numbers = [str(n) for n in range(12)]
    source = folder.make(split="train", dir=fill(*(f"{n}/a.jpg" for n in numbers)))
    assert source.classes == numbers
    by_name = {source.name_of(i): source.label_of(i) for i in range(12)}
    assert by_name == {f"{n}/a.jpg": int(n) for n in numbers}


def test_one_name_among_the_numbers_makes_all_of_them_names(fill):
    source = folder.make(split="train", dir=fill("2/a.jpg", "10/a.jpg", "x/a.jpg"))
    assert source.classes == ["10", "2", "x"]


def test_splits_agree_on_the_order_of_classes_that_are_numbers(fill):
    dir = fill("train/2/a.jpg", "train/10/a.jpg", "test/10/a.jpg")
    source = folder.make(split="test", dir=dir)
    assert source.classes == ["2", "10"] and _labels(source) == [1]
