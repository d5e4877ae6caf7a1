"""A table of labels takes the place of class folders, and its mistakes are rows."""

import contextlib
import json
import pickle
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from ml_collections import ConfigDict
from PIL import Image
from scipy.io import savemat

from litevit_jax import recipes
from litevit_jax.data import (
    pack,
    pipeline,
    settings,
    splits,
    subsets,
    tables,
    transforms,
)
from litevit_jax.data.sources import folder, packed, tar

NAMES = ["a/1.jpg", "a/2.jpg", "b/1.png", "b/2.png"]
LABELS = ["cat", "dog", "", "cat"]


@pytest.fixture
def fill(tmp_path):
    def fill(*names, top="images"):
        for name in names:
            path = tmp_path / top / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(name.encode())
        return str(tmp_path / top)

    return fill


@pytest.fixture
def write(tmp_path):
    def write(text, name="labels.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def csv_of(names, labels, **more):
    """A CSV file with columns path, label and more."""
    columns = {"path": names, "label": labels, **more}
    rows = [columns, *zip(*columns.values(), strict=True)]
    return "".join(",".join(row) + "\n" for row in rows)


def rows_of(source):
    """(name, class) of every example."""
    names = [*source.classes, ""]
    labels = [source.label_of(i) for i in range(len(source))]
    assert labels == [source[i]["label"] for i in range(len(source))]
    return [(source.name_of(i), names[label]) for i, label in enumerate(labels)]


def make(dir, labels, split="train", **kwargs):
    return folder.make(split=split, dir=dir, labels=labels, **kwargs)


def written(kind, path):
    """The same table in each format."""
    rows = [
        {"path": name, "label": label, "width": 3}
        for name, label in zip(NAMES, LABELS, strict=True)
    ]
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    else:
        mark = {"csv": ",", "tsv": "\t"}[kind]
        lines = [rows[0], *(map(str, row.values()) for row in rows)]
        path.write_text("".join(mark.join(line) + "\n" for line in lines))
    return str(path)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_format_gives_the_same_labels_and_says_what_it_does_not_read(
    kind, fill, tmp_path
):
    source = make(fill(*NAMES), written(kind, tmp_path / f"t.{kind}"))
    assert rows_of(source) == list(zip(NAMES, LABELS, strict=True))
    assert source.classes == ["cat", "dog"] and source.labelled
    assert source[0]["image"] == b"a/1.jpg"
    assert rows_of(pickle.loads(pickle.dumps(source))) == rows_of(source)
    summary = source.summary()
    assert summary.startswith("4 images, labelled, 2 classes (cat, dog); labels from ")
    assert "columns not read: width" in summary


def test_the_order_is_that_of_the_source_and_numbers_are_in_the_order_of_numbers(
    fill, write
):
    table = write(csv_of(NAMES[::-1], ["10", "9", "10", "9"]))
    source = make(fill(*NAMES), table)
    assert source.classes == ["9", "10"]
    assert rows_of(source) == list(zip(NAMES, ["9", "10", "9", "10"], strict=True))


def test_a_missing_number_is_no_label(fill, tmp_path):
    table = pyarrow.table({"path": NAMES[:2], "label": [float("nan"), 7.0]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    source = make(fill(*NAMES[:2]), str(tmp_path / "t.parquet"))
    assert rows_of(source) == [(NAMES[0], ""), (NAMES[1], "7")]


def test_quotes_byte_order_marks_and_endings_of_spreadsheets_are_read(fill, write):
    dir = fill("x,y.jpg", "é.jpg")
    table = write('\ufeffPath,Label\r\n"x,y.jpg", big cat\r\n\r\n./é.jpg,dog\r\n')
    assert rows_of(make(dir, table)) == [("x,y.jpg", "big cat"), ("é.jpg", "dog")]


def test_a_column_of_splits_divides_the_images_in_any_case(fill, write):
    table = write(
        csv_of(NAMES, ["b", "a", "b", "a"], split=["Train", "train", "VAL", "val"])
    )
    dir = fill(*NAMES)
    train, test = (make(dir, table, split) for split in ("train", "test"))
    assert rows_of(train) == [("a/1.jpg", "b"), ("a/2.jpg", "a")]
    assert rows_of(test) == [("b/1.png", "b"), ("b/2.png", "a")]
    assert train.classes == test.classes == ["a", "b"]
    assert train.other_splits == ["VAL"]
    with pytest.raises(ValueError, match=r"labels\.csv has no 'test' split"):
        make(dir, write(csv_of(NAMES, LABELS, split=["train"] * 4)), "test")
    typo = write(csv_of(NAMES, LABELS, split=["train"] * 3 + ["tset"]))
    with pytest.raises(ValueError, match=r"its splits are train, tset\. Name one of"):
        make(dir, typo, "test")


def test_splits_of_the_folder_stay_and_class_folders_do_not_count(fill, write):
    names = ["train/x/1.jpg", "train/x/2.jpg", "test/y/3.jpg"]
    dir = fill(*names)
    table = write(csv_of(names, ["cat", "dog", "dog"]))
    assert rows_of(make(dir, table)) == [(names[0], "cat"), (names[1], "dog")]
    test = make(dir, table, "test")
    assert rows_of(test) == [(names[2], "dog")] and test.classes == ["cat", "dog"]


def test_a_split_without_rows_keeps_its_class_folders(fill, write):
    names = ["train/n1/1.jpg", "train/n2/2.jpg", "val/x.jpg", "val/y.jpg"]
    dir, table = fill(*names), write(csv_of(names[2:], ["n2", "n1"]))
    train, test = make(dir, table), make(dir, table, "test")
    assert rows_of(train) == [(names[0], "n1"), (names[1], "n2")]
    assert "labels from class folders" in train.summary()
    assert rows_of(test) == [(names[2], "n2"), (names[3], "n1")]
    wrong = write(csv_of(names[2:], ["n2", "n3"]), "wrong.csv")
    with pytest.raises(ValueError, match=r"row 3: got class 'n3', .*one of n1, n2"):
        make(dir, wrong, "test")


def test_a_holdout_divides_by_path_whatever_the_order_of_the_rows(fill, write):
    names = [f"{i}.jpg" for i in range(40)]
    labels = ["cat", "dog"] * 20
    dir, table = fill(*names), write(csv_of(names, labels))
    parts = [make(dir, table, s, holdout=0.3) for s in ("train", "test")]
    whole = rows_of(parts[0]) + rows_of(parts[1])
    assert sorted(whole) == sorted(zip(names, labels, strict=True))
    turned = write(csv_of(names[::-1], labels[::-1]), "turned.csv")
    assert rows_of(make(dir, turned, "test", holdout=0.3)) == rows_of(parts[1])
    plain = folder.make(split="test", dir=dir, holdout=0.3)
    assert [name for name, _ in rows_of(parts[1])] == [n for n, _ in rows_of(plain)]


def test_images_without_a_row_are_refused_or_left_out_by_name(fill, write):
    dir, table = fill(*NAMES), write(csv_of(NAMES[:3], LABELS[:3]))
    with pytest.raises(
        ValueError, match=r"no row for 1 of 4 images of .*: b/2\.png; .*=leave_out"
    ):
        make(dir, table)
    source = make(dir, table, unlisted="leave_out")
    assert rows_of(source) == list(zip(NAMES[:3], LABELS[:3], strict=True))
    assert "left out, without a row: 1 images (b/2.png)" in source.summary()
    with pytest.raises(ValueError, match=r"data\.unlisted 'drop' unknown; choose from"):
        make(dir, table, unlisted="drop")


ROW = "path,label\na/1.jpg,cat\n"
WRONG = [
    ("a/3.jpg,cat", r"row 3: got 'a/3.jpg', which does not exist; expected an image"),
    ("1.png,cat", r"row 3: got '1.png', .* \(did you mean a/1\.jpg or b/1\.png\?\)"),
    ("a/2,cat", r"row 3: got 'a/2', not an image; .*\(did you mean a/2\.jpg"),
    ("a/1.jpg,cat", r"row 3: got 'a/1.jpg', the image of row 2; expected it once"),
    ("./a/1.jpg,cat", r"row 3: got './a/1.jpg', the image of row 2"),
    (
        "../x.jpg,cat",
        r"row 3: got '\.\./x\.jpg', outside of folder .*; expected a path",
    ),
    ("/a/2.jpg,cat", r"row 3: got '/a/2\.jpg', outside of folder"),
    (",cat", r"row 3: got no path; expected one in every row"),
    ("a/2.jpg", r"row 3: got 1 fields, 'a/2\.jpg'; expected 2, as in the header"),
    ("a/2.jpg,cat,x", r"row 3: got 3 fields"),
    ('"a/2.jpg"x,cat', r"line 3: got .*; expected columns path and label"),
    ("\na/9.jpg,x\n\na/8.jpg,x", r"row 4: got 'a/9.*; row 6: got 'a/8"),
]


@pytest.mark.parametrize("line, message", WRONG)
def test_a_wrong_row_is_told_by_file_number_got_and_expected(
    line, message, fill, write
):
    table = write(ROW + line + "\n")
    with pytest.raises(ValueError, match=rf"{table}, {message}"):
        make(fill(*NAMES), table)


def test_of_many_wrong_rows_the_first_are_shown_and_all_counted(fill, write):
    table = write(csv_of([f"{n}.jpg" for n in range(9)], ["x"] * 9))
    with pytest.raises(ValueError, match=r"row 2: .*; row 6: .*; and 4 rows more"):
        make(fill(*NAMES), table)


def test_the_same_image_in_both_splits_is_refused_with_both_rows(fill, write):
    table = write(csv_of([*NAMES, "a/1.jpg"], ["c"] * 5, split=["train"] * 4 + ["val"]))
    message = r"row 6: got 'a/1\.jpg' in split 'val', and in 'train' by row 2: the same"
    for split in ("train", "test"):
        with pytest.raises(ValueError, match=message):
            make(fill(*NAMES), table, split)


def test_a_class_that_training_lacks_and_a_row_without_a_split_are_refused(fill, write):
    dir, split = fill(*NAMES), ["train", "train", "test", "test"]
    table = write(csv_of(NAMES, ["cat", "dog", "dgo", "owl"], split=split))
    with pytest.raises(
        ValueError,
        match=r"row 4: got class 'dgo', which the images to train on have not; did you "
        r"mean dog\? expected one of cat, dog; row 5: got class 'owl'",
    ):
        make(dir, table, "test")
    table = write(csv_of(NAMES, LABELS, split=["train", "", "test", "test"]))
    with pytest.raises(ValueError, match=r"row 3: got no split"):
        make(dir, table)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", r"got no row; expected columns path and label"),
        ("path,label\n", r"got no row"),
        ("image_path,lable\nx,y\n", r"got the columns image_path, lable; expected .*di"
         r"d you mean image_path\? did you mean lable\?"),
        ("path\na/1.jpg\n", r"got the columns path; expected columns path and label"),
        ("path;label\na/1.jpg;x\n", r"got the columns path;label; .*fields by commas"),
        ("path,label,labels\na/1.jpg,x,y\n", r"got columns label and labels; expe"),
        ("path,label,Label\na/1.jpg,x,y\n", r"got several columns label; expected one"),
        ("path,labels\na/1.jpg,x|x\n", r"row 2: got the labels x, x; expected each"),
    ],
)  # fmt: skip
def test_a_table_without_rows_or_columns_names_what_it_has(text, message, fill, write):
    table = write(text)
    with pytest.raises(ValueError, match=message):
        make(fill("a/1.jpg"), table)


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", r"row 2: got '\{' \(.*; expected an object"),
        ("[1]", r"row 2: got '\[1\]' \(no object\)"),
        ('{"path": "a/2.jpg"}', r"row 2: got no label; null is none"),
        (
            '{"path": "a/2.jpg", "label": ["x"]}',
            r"row 2: got \['x'\] as label, expected ",
        ),
        (
            '{"path": "a/2.jpg", "label": 1.5}',
            r"row 2: got 1\.5 as label; expected text",
        ),
        ('{"path": "a/2.jpg", "label": true}', r"row 2: got True as label"),
    ],
)
def test_a_wrong_line_of_json_is_told(line, message, fill, write):
    table = write('{"path": "a/1.jpg", "label": 1}\n' + line + "\n", "t.jsonl")
    with pytest.raises(ValueError, match=message):
        make(fill(*NAMES), table)


def test_files_that_are_no_tables_are_refused(fill, write, tmp_path, monkeypatch):
    dir = fill(*NAMES)
    with pytest.raises(FileNotFoundError, match=r"data\.labels=.*no\.csv' does not ex"):
        make(dir, str(tmp_path / "no.csv"))
    with pytest.raises(
        ValueError, match=r"is no table of labels; expected one of \.cs"
    ):
        make(dir, write("x", "labels.xlsx"))
    with pytest.raises(ValueError, match=r"t\.parquet is damaged"):
        make(dir, write("x", "t.parquet"))
    with pytest.raises(
        ValueError, match=r"labels\.csv, line 2: got b'\\xe9'; expected"
    ):
        make(dir, write(b"path,label\n\xe9.jpg,x\n"))
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"pip install .*litevit_jax\[parquet"
    ):
        make(dir, write("x", "t.parquet"))


def test_the_fingerprint_is_of_images_labels_and_names_of_classes(fill, write):
    dir = fill(*NAMES)
    first = make(dir, write(csv_of(NAMES, LABELS))).fingerprint()
    turned = csv_of(NAMES[::-1], LABELS[::-1])
    assert make(dir, write(turned, "other.csv")).fingerprint() == first
    for labels in (["dog", "cat", "", "dog"], ["cat", "fox", "", "cat"]):
        assert make(dir, write(csv_of(NAMES, labels))).fingerprint() != first


def test_hints_of_tables_name_rows_of_other_systems(fill, write):
    table = write(csv_of(["a\\1.jpg"], ["x"]))
    with pytest.raises(ValueError, match=r"did you mean a/1\.jpg\?"):
        make(fill("a/1.jpg"), table)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_row_with_several_labels_makes_all_of_them_multi_hot(kind, fill, tmp_path):
    path = tmp_path / f"t.{kind}"
    labels = [["cat", "dog"], ["dog"], [], ["owl", "cat"]]
    rows = [{"path": x, "labels": y} for x, y in zip(NAMES, labels, strict=True)]
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        lines = [f"{row['path']},{'|'.join(row['labels'])}\n" for row in rows]
        path.write_text("path,labels\n" + "".join(lines))
    source = make(fill(*NAMES), str(path))
    assert source.multi_label and source.labelled and source.label_of(0) == -1
    assert source.classes == ["cat", "dog", "owl"]
    hot = [source[i]["labels"].tolist() for i in range(4)]
    assert hot == [[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 1]]
    assert "several labels an image, 1.2 on average" in source.summary()
    half = subsets.Subset(source, np.array([3, 0]))
    assert half.multi_label and half[0]["labels"].tolist() == [1, 0, 1]


def test_batches_bring_the_labels_of_each_image(fill, tmp_path):
    for number, name in enumerate(NAMES):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 60 * number, np.uint8)).save(path)
    (tmp_path / "t.csv").write_text(
        "path,labels\n" + "".join(f"{n},{x}\n" for n, x in zip(
            NAMES, ["a|b", "b", "", "c"], strict=True))
    )  # fmt: skip
    source = make(str(tmp_path / "images"), str(tmp_path / "t.csv"))
    hot = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1]])
    data = recipes.get("finetune", f"data=folder,path={tmp_path},scratch").data
    data.update(image_size=8, channels=3)
    how = settings.image_settings(data)
    with contextlib.closing(
        pipeline.eval_batches(
            source, transforms.eval_ops(**how), batch_size=3, workers=0
        )
    ) as stream:
        batches = list(stream)
    labels = np.concatenate([batch["labels"] for batch in batches])
    assert labels.dtype == np.uint8 and labels[:4].tolist() == hot.tolist()
    assert not labels[4:].any()  # padding
    for workers in (0, 1):
        with contextlib.closing(
            pipeline.train_batches(
                source,
                transforms.train_ops(**how),
                batch_size=4,
                seed=0,
                workers=workers,
            )
        ) as stream:
            batch = next(stream)
        assert batch["labels"].tolist() == hot[batch["index"]].tolist()


def test_images_of_several_labels_are_not_packed(fill, write, tmp_path, capsys):
    table = write("path,labels\n1.jpg,a|b\n")
    arguments = [fill("1.jpg"), str(tmp_path / "packed"), f"--option=labels={table}"]
    assert pack.main(arguments) == 2
    assert "several labels keep none" in capsys.readouterr().err


@pytest.fixture
def tars(tmp_path):
    """Two tars, without labels, of the images `NAMES`."""
    for number, name in enumerate(("train", "val")):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as file:
            for member in NAMES[2 * number : 2 * number + 2]:
                path = tmp_path / "x"
                path.write_bytes(member.encode())
                file.add(path, member)
    return str(tmp_path)


def test_members_of_tars_are_labelled_by_name_or_by_file_and_name(tars, write):
    table = write(csv_of(["train.tar:a/1.jpg", *NAMES[1:]], ["x", "y", "y", "x"]))
    train, test = (tar.make(split=s, dir=tars, labels=table) for s in ("train", "test"))
    assert rows_of(train) == [("train.tar:a/1.jpg", "x"), ("train.tar:a/2.jpg", "y")]
    assert rows_of(test) == [("val.tar:b/1.png", "y"), ("val.tar:b/2.png", "x")]
    assert train[0]["image"] == b"a/1.jpg" and test[1]["image"] == b"b/2.png"
    split = ["test", "train", "train", "test"]
    divided = write(csv_of(NAMES, LABELS, split=split), "divided.csv")
    train = tar.make(split="train", dir=tars, labels=divided)
    assert rows_of(train) == [("train.tar:a/2.jpg", "dog"), ("val.tar:b/1.png", "")]
    with pytest.raises(ValueError, match=r"row 2: got 'c\.jpg', which is no image the"):
        tar.make(split="train", dir=tars, labels=write(csv_of(["c.jpg"], ["x"])))


def test_packed_images_are_labelled_by_the_names_that_were_packed(tmp_path, write):
    for split in ("train", "test"):
        for number in range(3):
            path = tmp_path / "images" / split / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((4, 4), 60 * number, np.uint8)).save(path)
    dir = str(tmp_path / "packed")
    assert pack.main([str(tmp_path / "images"), dir]) == 0
    names = [f"{split}/{n}.png" for split in ("train", "test") for n in range(3)]
    table = write(csv_of(names, [*"xyxyxx"]))
    for _ in range(2):  # read, and from what is kept
        train, test = (
            packed.make(split=s, dir=dir, labels=table) for s in ("train", "test")
        )
        assert [label for _, label in rows_of(train)] == ["x", "y", "x"]
        assert [label for _, label in rows_of(test)] == ["y", "x", "x"]
    split = ["test", "train", "train", "train", "test", "train"]
    table = write(csv_of(names, [*"xyxyxx"], split=split))
    train = packed.make(split="train", dir=dir, labels=table)
    assert [label for _, label in rows_of(train)] == ["y", "x", "y", "x"]
    assert [name.split()[-1] for name, _ in rows_of(train)] == [
        "test/0.png", "test/2.png", "train/1.png", "train/2.png"]  # fmt: skip


def test_other_sources_take_no_table(write):
    data = recipes.get("mae_tiny", "digits").data
    data.labels = write(ROW)
    with pytest.raises(ValueError, match=r"source 'digits' takes no table of labels"):
        splits.open_split(data, "train")


def test_a_variant_names_the_table_and_a_run_reads_it(fill, write):
    dir, table = fill(*NAMES), write(csv_of(NAMES, LABELS))
    config = recipes.get("finetune", f"data=folder,path={dir},labels={table}")
    assert config.data.labels == table and config.data.unlisted == "refuse"
    assert splits.open_split(config.data, "train").classes == ["cat", "dog"]
    with pytest.raises(
        ValueError, match=r"variant labels=x\.csv goes with one of data"
    ):
        recipes.get("finetune", "digits,labels=x.csv")
    assert "labels" not in ConfigDict({}) and tables.EXTENSIONS[0] == "csv"


def devkit(folder, numbers, names):
    """The development kit's files: a line for each image, and meta.mat."""
    folder.mkdir()
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O")]
    synsets = np.array(list(enumerate(names, start=1)), dtype=kinds)
    savemat(folder / "meta.mat", {"synsets": synsets})
    path = folder / "ILSVRC2012_validation_ground_truth.txt"
    path.write_text("".join(f"{number}\n" for number in numbers))
    return path


VAL = [f"val/ILSVRC2012_val_{n:08d}.JPEG" for n in (1, 2, 3)]
TRAIN = ["train/n01/n01_5.JPEG", "train/n02/n02_7.JPEG"]


def test_imagenets_validation_images_are_labelled_by_its_own_kit(fill, tmp_path):
    dir = fill(*VAL, *TRAIN)
    table = str(devkit(tmp_path / "data", [2, 1, 2], ["n02", "n01"]))
    train, test = make(dir, table), make(dir, table, "test")
    assert rows_of(train) == list(zip(TRAIN, ["n01", "n02"], strict=True))
    assert rows_of(test) == list(zip(VAL, ["n01", "n02", "n01"], strict=True))
    assert train.classes == test.classes == ["n01", "n02"]
    alone = make(f"{dir}/val", table)
    assert [label for _, label in rows_of(alone)] == ["n01", "n02", "n01"]


def test_imagenets_validation_images_are_labelled_by_kaggles_table(fill, write):
    dir = fill(*VAL, *TRAIN, "test/ILSVRC2012_test_00000001.JPEG")
    table = write(
        "ImageId,PredictionString\n"
        "ILSVRC2012_val_00000003,n02 85 1 499 272 \n"
        "ILSVRC2012_val_00000001,n01 1 2 3 4 n01 5 6 7 8 \n"
        "ILSVRC2012_val_00000002,n02 1 2 3 4\n",
        "LOC_val_solution.csv",
    )
    test = make(dir, table, "val")
    assert rows_of(test) == list(zip(VAL, ["n01", "n02", "n02"], strict=True))
    assert make(dir, table).classes == test.classes == ["n01", "n02"]
    with pytest.raises(ValueError, match=r"no row for 1 of 1 images .*_test_00000001"):
        make(dir, table, "test")


def test_a_damaged_development_kit_is_refused(fill, tmp_path):
    dir = fill(*VAL)
    path = devkit(tmp_path / "data", [2, 9, 2], ["n02", "n01"])
    with pytest.raises(ValueError, match=r"row 2: got class 9; expected 1 to 2, "):
        make(dir, str(path))
    path.write_text("1\nx\n")
    with pytest.raises(ValueError, match=r"row 2: got 'x'; expected the number"):
        make(dir, str(path))
    path.write_text("1\n" * 4)
    with pytest.raises(ValueError, match=r"row 4: got 'ILSVRC2012_val_00000004'"):
        make(f"{dir}/val", str(path))
    (tmp_path / "data" / "meta.mat").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"meta\.mat is damaged"):
        make(dir, str(path))
    (tmp_path / "data" / "meta.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected their names in .*meta\.mat"):
        make(dir, str(path))
