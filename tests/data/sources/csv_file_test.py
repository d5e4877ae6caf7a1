"""CSV files of paths and labels: what is read, and what is refused with its line."""

import os
import pickle

import pytest

from litevit_jax import registry
from litevit_jax.data.sources import csv_file

ROWS = [("b/2.png", "dog"), ("a 1.png", "cat"), ("b/3.png", "dog"), ("4.png", "")]


@pytest.fixture
def listed(tmp_path):
    """(text, name) -> a CSV file beside images that hold their own path."""
    (tmp_path / "b").mkdir()
    for path in [path for path, _ in ROWS] + ["x,y.png"]:
        (tmp_path / path).write_bytes(path.encode())

    def write(text, name="all.csv"):
        file = tmp_path / name
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(file)

    return write


def text_of(rows):
    return "".join(f"{path},{label}\n" for path, label in rows)


def rows_of(source):
    """What `text_of` was given."""
    examples = [source[i] for i in range(len(source))]
    names = [*source.classes, ""]
    assert [e["image"].decode() for e in examples] == [
        source.name_of(i) for i in range(len(source))
    ]
    assert [e["label"] for e in examples] == [
        source.label_of(i) for i in range(len(source))
    ]
    return [(e["image"].decode(), names[e["label"]]) for e in examples]


def make(dir, split="train", **kwargs):
    return csv_file.make(split=split, dir=str(dir), **kwargs)


def test_images_and_labels_are_those_of_the_lines_in_their_order(listed):
    source = make(listed(text_of(ROWS)))
    assert rows_of(source) == ROWS
    assert source.classes == ["cat", "dog"] and source.labelled
    assert rows_of(pickle.loads(pickle.dumps(source))) == ROWS
    assert "4 images, labelled, 2 classes (cat, dog); from" in source.summary()


def test_header_empty_lines_quotes_spaces_and_other_endings_are_read(listed):
    text = '\ufeffPath, Label\r\n"x,y.png", cat\r\n\r\n./b/2.png,dog\r\n'
    assert rows_of(make(listed(text))) == [("x,y.png", "cat"), ("b/2.png", "dog")]


def test_classes_that_are_numbers_are_in_the_order_of_numbers(listed):
    source = make(listed("4.png,10\na 1.png,9\n"))
    assert source.classes == ["9", "10"] and source.label_of(0) == 1


def test_without_labels_there_are_no_classes(listed):
    source = make(listed("4.png,\na 1.png,\n"))
    assert source.classes == [] and not source.labelled
    assert "comma" in source.label_advice


def test_a_share_is_held_out_by_path_and_both_parts_make_the_whole(listed):
    file = listed(text_of(ROWS))
    parts = [make(file, split, holdout=0.5) for split in ("train", "test")]
    assert sorted(rows_of(parts[0]) + rows_of(parts[1])) == sorted(ROWS)
    assert [part.classes for part in parts] == [["cat", "dog"]] * 2
    again = make(listed(text_of(ROWS[::-1])), "test", holdout=0.5)
    assert sorted(rows_of(again)) == sorted(rows_of(parts[1]))
    with pytest.raises(ValueError, match=r"all\.csv has no 'test' split.*holdout"):
        make(file, "test")


def test_a_folder_has_a_file_for_each_split_with_the_classes_of_training(listed):
    folder = listed(text_of(ROWS), "train.csv").removesuffix("/train.csv")
    file = listed("x,y.png,dog\n".replace("x,y.png", '"x,y.png"'), "val.csv")
    assert rows_of(make(folder)) == ROWS
    for split in ("val", "test"):
        source = make(folder, split)
        assert rows_of(source) == [("x,y.png", "dog")] and source.label_of(0) == 1
        assert source.other_splits == ["train"]
    listed("\n4.png,cow\n", "val.csv")
    with pytest.raises(
        ValueError, match=rf"{file}, line 2: got class 'cow', expected .*: cat, dog"
    ):
        make(folder, "val")


def test_the_fingerprint_is_of_the_content(listed):
    first = make(listed(text_of(ROWS))).fingerprint()
    assert make(listed(text_of(ROWS), "other.csv")).fingerprint() == first
    swapped = [("b/2.png", "cat"), *ROWS[1:]]
    assert make(listed(text_of(swapped))).fingerprint() != first


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("4.png,cat\na 1.png\n", 2, "got 1 fields, 'a 1.png'; expected path,label"),
        ("x,y.png,cat\n", 1, "got 3 fields, 'x,y.png,cat'; .*quote"),
        ("\n4.png,a\n./4.png,b\n", 3, r"'./4.png', the image of line 2 once more"),
        ("4.png,a\n5.png,a\n", 2, "'5.png', which does not exist; expected .*5.png"),
        ("4.png,a\n../4.png,a\n", 2, "outside .*; expected a path relative"),
        ("/4.png,a\n", 1, "outside .*; expected a path relative"),
        ("b,a\n", 1, r"'b', not an image; expected one of .*\.png"),
        ('4.png,a\n"b/2.png"x,a\n', 2, "got .*expected.*; expected path,label"),
        (b"4.png,a\nb/2.png,\xe9\n", 2, r"got b'\\xe9'; expected UTF-8"),
    ],
)
def test_a_wrong_line_is_told_with_file_line_got_and_expected(
    text, line, message, listed
):
    file = listed(text)
    with pytest.raises(ValueError, match=rf"{file}, line {line}: .*{message}"):
        make(file)


def test_what_is_not_there_is_said(listed, tmp_path):
    with pytest.raises(ValueError, match=r"got no image; expected path,label"):
        make(listed("path,label\n"))
    with pytest.raises(FileNotFoundError, match=r"no\.csv' does not exist; expected a"):
        make(tmp_path / "no.csv")
    with pytest.raises(FileNotFoundError, match=r"holds no CSV file; expected train"):
        make(tmp_path / "b")
    with pytest.raises(ValueError, match=r"needs the list of images: .*path=FILE.csv"):
        csv_file.make(split="train")


def test_of_several_lists_none_is_dropped_without_a_word(listed, tmp_path):
    for name in ("cats.csv", "dogs.csv"):
        listed("4.png,a\n", name)
    with pytest.raises(ValueError, match=r"several CSV files.*: cats\.csv, dogs\.csv"):
        make(tmp_path)
    assert rows_of(make(tmp_path, "dogs")) == [("4.png", "a")]
    listed(text_of(ROWS), "train.csv")
    assert "; not used: cats.csv, dogs.csv" in make(tmp_path).summary()


def test_pipes_and_folders_are_never_opened(listed, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "d.png").mkdir()
    for name, kind in (("pipe.png", "FIFO"), ("d.png", "folder")):
        file = listed(f"{name},a\n")
        with pytest.raises(
            ValueError, match=rf"line 1: got '{name}', .* a {kind}; exp"
        ):
            make(file)
    with pytest.raises(ValueError, match=r"pipe\.csv' is neither a regular file nor"):
        make(tmp_path / "pipe.csv")


def test_it_is_found_by_name():
    assert "csv_file" in registry.choices("data/sources")
