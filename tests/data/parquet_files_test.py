"""Images in the rows of Parquet files, as Hugging Face keeps them."""

import json
import pickle

import pyarrow
import pyarrow.parquet
import pytest

from litevit_jax.data import index_cache
from litevit_jax.data.sources import folder

NAMES = ["cat", "dog", "owl"]


def image(number):
    """Bytes that no other number has, and that shrink."""
    return b"<%d>" % number * 200


def features(**more):
    """What the library `datasets` writes into the schema."""
    label = {"names": NAMES, "_type": "ClassLabel"}
    content = {
        "info": {"features": {"image": {"_type": "Image"}, "label": label, **more}}
    }
    return {"huggingface": json.dumps(content)}


@pytest.fixture
def write(tmp_path):
    """Writes rows of images with labels, and returns the folder."""

    def write(name, labels, start=0, *, named=True, metadata=None, **options):
        numbers = range(start, start + len(labels))
        columns = {
            "image": [{"bytes": image(n), "path": f"{n}.jpg"} for n in numbers],
            "label": labels,
            "url": ["u"] * len(labels),
        }
        table = pyarrow.table(columns)
        metadata = metadata or (features() if named else None)
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        table = table.replace_schema_metadata(metadata)
        pyarrow.parquet.write_table(table, path, **options)
        return str(tmp_path / "set")

    return write


def read(dir, split="train", **kwargs):
    source = folder.make(split=split, dir=dir, **kwargs)
    examples = [source[i] for i in range(len(source))]
    labels = [source.label_of(i) for i in range(len(source))]
    assert labels == [example["label"] for example in examples]
    return source, [example["image"] for example in examples], labels


HOW = [
    {"compression": "snappy"},
    {"compression": "none"},
    {"compression": "none", "use_dictionary": False, "row_group_size": 2},
    {"compression": "zstd", "row_group_size": 3},
]


@pytest.mark.parametrize("how", HOW)
def test_images_labels_and_names_are_those_of_the_rows(how, write, tmp_path):
    write("data/train-00000-of-00002.parquet", [2, 0, -1], **how)
    write("data/train-00001-of-00002.parquet", [1], 3, **how)
    dir = write("data/validation-00000-of-00001.parquet", [0], 4, **how)
    source, images, labels = read(dir)
    assert images == [image(n) for n in range(4)] and labels == [2, 0, -1, 1]
    assert source.classes == NAMES and source.other_splits == ["validation"]
    assert source.name_of(1) == "train-00000-of-00002.parquet:row 2 1.jpg"
    assert "4 images, labelled, 3 classes (cat, dog, owl); from 2 Parquet" in (
        source.summary()
    )
    assert "columns not read: url" in source.summary()
    again = pickle.loads(pickle.dumps(source))
    assert again[3]["image"] == image(3) and again.fingerprint() == source.fingerprint()
    assert read(dir, "test")[1:] == ([image(4)], [0])
    copies = list(tmp_path.rglob("*.images"))
    assert bool(copies) == (how["compression"] != "none")
    for copy in copies:  # and it is made again
        copy.unlink()
    assert read(dir)[1] == images


def test_a_file_is_decoded_once(write, monkeypatch):
    dir = write("train.parquet", [0, 1], compression="snappy")
    read(dir)
    monkeypatch.setattr(pyarrow.parquet, "ParquetFile", lambda *_: pytest.fail("read"))
    assert read(dir)[1] == [image(0), image(1)]


def test_copies_go_to_the_cache_where_one_cannot_write(write, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    dir = write("train.parquet", [0, 1, 2], compression="snappy")
    (tmp_path / "set" / index_cache.FOLDER).write_text("in the way")
    assert read(dir)[1] == [image(n) for n in range(3)]
    assert len(list((tmp_path / "cache").rglob("*.images"))) == 1


def test_labels_may_be_numbers_names_or_another_column(write, tmp_path):
    dir = write("train.parquet", [3, 0], named=False)
    source, _, labels = read(dir)
    assert (source.classes, labels) == (["0", "1", "2", "3"], [3, 0])
    write("train.parquet", ["b", "a"], named=False)
    source, _, labels = read(dir)
    assert (source.classes, labels) == (["a", "b"], [1, 0])
    source, _, labels = read(dir, name="url")
    assert (source.classes, labels) == (["u"], [0, 0])
    with pytest.raises(ValueError, match=r"column of .*parquet 'urk' unknown; did"):
        read(dir, name="urk")


def test_lists_of_labels_are_several_of_an_image_in_all_splits(tmp_path):
    record = {"labels": {"feature": {"names": NAMES, "_type": "ClassLabel"}}}
    record = {"huggingface": json.dumps({"info": {"features": record}})}
    for split, labels in (("train", [[2, 0], [], [1]]), ("test", [[1]])):
        columns = {"image": [image(n) for n in range(len(labels))], "labels": labels}
        table = pyarrow.table(columns).replace_schema_metadata(record)
        pyarrow.parquet.write_table(table, tmp_path / f"{split}.parquet")
    train, test = (folder.make(split=s, dir=str(tmp_path)) for s in ("train", "test"))
    assert train.multi_label and test.multi_label and train.classes == NAMES
    hot = [train[n]["labels"].tolist() for n in range(3)]
    assert hot == [[1, 0, 1], [0, 0, 0], [0, 1, 0]] and train[1]["image"] == image(1)
    assert test[0]["labels"].tolist() == [0, 1, 0] and test.label_of(0) == -1


def test_equal_images_of_several_rows_are_all_read(tmp_path):
    rows = [{"image": image(n % 2), "label": n} for n in range(4)]
    for kind in ("none", "snappy"):
        folder_of = tmp_path / kind
        folder_of.mkdir()
        table = pyarrow.Table.from_pylist(rows)
        path = folder_of / "x.parquet"
        pyarrow.parquet.write_table(table, path, compression=kind)
        assert read(str(folder_of))[1] == [image(n % 2) for n in range(4)]


def test_a_share_is_held_out_where_there_is_no_test_split(write):
    dir = write("train.parquet", [0, 1] * 20)
    parts = [read(dir, split, holdout=0.3)[1] for split in ("train", "test")]
    assert sorted(parts[0] + parts[1]) == sorted(image(n) for n in range(40))
    with pytest.raises(ValueError, match=r"has no 'test' split: all of it is 'train'"):
        read(dir, "test")


def test_what_may_be_two_sets_or_columns_is_asked_for(write, tmp_path):
    two = features(other={"names": ["x"], "_type": "ClassLabel"})
    dir = write("train.parquet", [0], metadata=two)
    assert read(dir)[0].classes == NAMES  # label is the usual name
    table = pyarrow.table({"image": [b"x"], "fine": [0], "coarse": [0]})
    names = {"names": ["x"], "_type": "ClassLabel"}
    record = {"info": {"features": {"fine": names, "coarse": names}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(record)})
    pyarrow.parquet.write_table(table, tmp_path / "set" / "train.parquet")
    with pytest.raises(ValueError, match=r"columns of classes, .*data\.name="):
        read(dir)
    assert read(dir, name="fine")[0].classes == ["x"]
    write("a/train.parquet", [0])
    with pytest.raises(ValueError, match=r"one split in several folders .*path=FOLDER"):
        read(dir)


def test_files_without_images_or_with_wrong_labels_are_refused(write, tmp_path):
    path = tmp_path / "set" / "train.parquet"
    dir = write("train.parquet", [0, 7])
    with pytest.raises(ValueError, match=r"row 2: got class 7; expected 0 to 2"):
        read(dir)
    pyarrow.parquet.write_table(pyarrow.table({"a": [1], "b": ["x"]}), path)
    with pytest.raises(ValueError, match=r"got the columns a, b; expected one of im"):
        read(dir)
    rows = pyarrow.table({"image": [{"bytes": None, "path": "a.jpg"}]})
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    rows = rows.cast(pyarrow.schema([("image", kind)]))
    pyarrow.parquet.write_table(rows, path)
    with pytest.raises(ValueError, match=r"holds no image, .*row 1 a\.jpg.*data=fol"):
        read(dir)
    path.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"train\.parquet is damaged"):
        read(dir)
    with pytest.raises(ValueError, match=r"rows of Parquet files, which have their la"):
        (tmp_path / "l.csv").write_text("path,label\na,b\n")
        read(dir, labels=str(tmp_path / "l.csv"))
