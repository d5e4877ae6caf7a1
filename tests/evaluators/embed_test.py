"""Embeddings: rows in order, every format, what goes on and what is refused."""

import csv
import dataclasses
import functools

import numpy as np
import pyarrow.parquet
import pytest

from litevit_jax.data import decode, pipeline
from litevit_jax.evaluators import embed, parts
from tests.evaluators import common

COUNT, WIDTH = 21, 5
LABELS = np.arange(COUNT) % 3


class Images(common.Images):
    """Images of which the fourth and the last cannot be read; one has no label."""

    broken = (3, COUNT - 1)

    def __getitem__(self, index):
        if index in self.broken:
            raise decode.DecodeError(f"image {index} is cut off")
        return super().__getitem__(index)

    def label_of(self, index):
        return -1 if index == 5 else int(self.labels[index])

    def name_of(self, index):
        return f"folder, of {index}/ä.png"


class Several(Images):
    """The same, of which each has the class of its number and the last one."""

    multi_label = True

    def __getitem__(self, index):
        return super().__getitem__(index) | {"labels": self.labels_of(index)}

    def label_of(self, index):
        return -1

    def labels_of(self, index):
        return np.eye(3, dtype=np.uint8)[index % 3] | np.uint8([0, 0, 1])


def test_several_labels_stand_side_by_side(tmp_path):
    run(tmp_path / "a.npz", made=context(Several(LABELS, 3)))
    assert list(np.load(tmp_path / "a.npz")["label"][:4]) == ["0|2", "1|2", "2", "0|2"]


class Named(Images):
    """Images whose names are no UTF-8, in classes of such a name."""

    @property
    def classes(self):
        return ["a\udcff", "b", "half \ud800"]

    def name_of(self, index):
        return f"{index}\udcff.png"


@pytest.mark.parametrize("ending", embed._WRITERS)
def test_names_that_are_no_utf8_are_spelled_out(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    run(path, made=context(Named(LABELS, 3)))
    if ending == ".npy":
        path, ending = path.with_name("a.npy.csv"), ".csv"
    if ending == ".csv":
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        assert (rows[0]["path"], rows[0]["label"]) == (r"0\xff.png", r"a\xff")
        return
    found = embed.read(path)
    assert (found.path[2], found.label[2]) == (r"2\xff.png", r"half \ud800")


def table(*shape):
    shape = (COUNT, *(shape or (WIDTH,)))
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def context(source=None, predict=None):
    """A context whose prediction is looked up by the pixels of an image."""
    source = source or Images(LABELS, 3)
    made = common.context(
        predict or functools.partial(lookup, source), num_classes=3, eval=source
    )
    batches = functools.partial(
        pipeline.eval_batches,
        transform=common.Keep(),
        batch_size=8,
        threads=2,
        max_bad_fraction=1.0,
    )
    return dataclasses.replace(made, batches=batches)


def lookup(source, params, model_state, batch):
    """Row r of every table for the image r, wherever its split begins."""
    del model_state
    equal = (batch["image"][:, None] == source.images[None]).all(axis=(2, 3, 4))
    row = equal.argmax(axis=1)
    return {name: x[row] for name, x in params.items()}


def run(path, features=None, *, made=None, **kwargs):
    evaluator = embed.make(context=made or context(), target=str(path), **kwargs)
    (name, *_) = evaluator.reads
    tables = features if isinstance(features, dict) else {name: features}
    if features is None:
        tables = {name: table()}
    return evaluator.run(common.state(tables), step=0)


def read(path):
    """(features [n, ...], path, label, error) of a file."""
    if path.suffix == ".npz":
        file = np.load(path)
        return file["features"], *(list(file[x]) for x in ("path", "label", "error"))
    if path.suffix == ".parquet":
        rows = pyarrow.parquet.read_table(path)
        text = (rows[name].to_pylist() for name in ("path", "label", "error"))
        flat = np.array(rows["features"].to_pylist(), np.float32)
        return flat, *([x or "" for x in column] for column in text)
    beside = path if path.suffix == ".csv" else path.with_name(f"{path.name}.csv")
    with beside.open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head[:3] == ["path", "label", "error"]
    if path.suffix == ".npy":
        flat = np.load(path)
    else:
        flat = np.array([row[3:] for row in rows], np.float32)
    return flat, *([row[i] for row in rows] for i in range(3))


@pytest.fixture
def small_parts(monkeypatch):
    """A part holds no more than one batch."""
    monkeypatch.setattr(parts, "PART_BYTES", 1)


@pytest.mark.parametrize("ending", [".parquet", ".npz", ".npy", ".csv"])
def test_rows_are_in_order_and_what_cannot_be_read_keeps_its_own(
    ending, tmp_path, small_parts
):
    path = tmp_path / f"new/a{ending}"
    numbers = run(path)
    assert numbers == {"n": COUNT, "unreadable": 2, "width": WIDTH, "file": str(path)}
    features, names, labels, errors = read(path)
    want = table()
    want[[3, COUNT - 1]] = np.nan
    np.testing.assert_array_equal(features, want)
    assert names == [f"folder, of {row}/ä.png" for row in range(COUNT)]
    assert labels == ["" if row == 5 else str(row % 3) for row in range(COUNT)]
    broken = {row: text for row, text in enumerate(errors) if text}
    assert broken == {row: f"image {row} is cut off" for row in (3, COUNT - 1)}
    left = sorted(x.name for x in path.parent.iterdir())
    assert left == ["a" + ending] + ["a.npy.csv"] * (ending == ".npy")


@pytest.mark.parametrize("ending", [".parquet", ".npz"])
def test_tokens_keep_their_shape(ending, tmp_path):
    path = tmp_path / f"a{ending}"
    run(path, table(4, WIDTH), pool="tokens")
    features = read(path)[0]
    want = table(4, WIDTH)
    want[[3, COUNT - 1]] = np.nan
    np.testing.assert_array_equal(features.reshape(want.shape), want)


def test_pools_and_blocks_are_those_that_are_asked_for(tmp_path):
    two = {"features_cls": table(), "features_avg": -table()}
    run(tmp_path / "a.npz", two, pool="cls_avg")
    both = np.concatenate([table(), -table()], axis=1)
    np.testing.assert_array_equal(read(tmp_path / "a.npz")[0][:3], both[:3])
    run(tmp_path / "b.npz", table(3, WIDTH), block=2)
    np.testing.assert_array_equal(read(tmp_path / "b.npz")[0][0], table(3, WIDTH)[0, 1])
    with pytest.raises(ValueError, match="block=4, but the encoder has 3"):
        run(tmp_path / "c.npz", table(3, WIDTH), block=4, pool="avg")
    made = embed.make(context=context(), target="x.npz", block=1, pool="avg")
    assert made.reads == ("features_blocks_avg",)
    assert embed.make(context=context(), target="x.npz").reads == ("features",)


def test_a_stopped_embedding_goes_on_and_ends_with_the_same_bytes(
    tmp_path, small_parts, monkeypatch
):
    run(whole := tmp_path / "whole.csv")
    path, save, saved = tmp_path / "a.csv", parts._save, []

    def stops(folder, first, rows):
        if len(saved) == 1:
            raise KeyboardInterrupt
        saved.append(first)
        save(folder, first, rows)

    monkeypatch.setattr(parts, "_save", stops)
    with pytest.raises(KeyboardInterrupt):
        run(path)
    assert not path.exists() and (tmp_path / "a.csv.parts").is_dir()
    monkeypatch.setattr(
        parts, "_save", lambda *args: (saved.append(args[1]), save(*args))
    )
    run(path)
    assert saved == [0, 8, 16]  # none twice
    assert path.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "a.csv.parts").exists()


def test_parts_of_another_embedding_are_refused(tmp_path, small_parts, monkeypatch):
    monkeypatch.setattr(embed, "_WRITERS", {**embed._WRITERS, ".csv": _fails})
    with pytest.raises(OSError, match="no space"):
        run(tmp_path / "a.csv")
    with pytest.raises(ValueError, match=r"a\.csv\.parts holds .* with other params"):
        run(tmp_path / "a.csv", 2 * table())
    other = dataclasses.replace(context(), size=(8, 8))
    with pytest.raises(ValueError, match=r"other size: \[0, 0\], now \[8, 8\]; remove"):
        run(tmp_path / "a.csv", made=other)


def _fails(path, rows):
    raise OSError("no space")


def test_an_interrupted_writing_is_made_again_from_the_parts(
    tmp_path, small_parts, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(embed, "_WRITERS", {**embed._WRITERS, ".csv": _fails})
        with pytest.raises(OSError, match="no space"):
            run(tmp_path / "a.csv")
    run(tmp_path / "b.csv")

    def never(*_):
        raise AssertionError("nothing is left to predict")

    monkeypatch.setattr(parts, "_save", never)
    run(tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"target": "a.txt"}, ValueError, r"ends in '\.txt', expected one of \.parq"),
        ({"target": "a"}, ValueError, r"target=a ends in '', expected one of"),
        (
            {"pool": "mean"},
            ValueError,
            r"embed: pool 'mean' unknown; choose from cls, avg",
        ),
        ({"pool": "tokens", "block": 1}, ValueError, r"block=1 with pool='tokens'"),
        ({"block": 0}, ValueError, r"block=0 .*expected a block from 1"),
        ({"target": "there.npy"}, FileExistsError, r"there\.npy\.csv is there already"),
    ],
)
def test_what_cannot_be_written_is_refused_first(
    kwargs, error, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.npy.csv").write_text("")
    with pytest.raises(error, match=message):
        embed.make(context=context(), **({"target": "a.npz"} | kwargs))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install pyarrow, or .*\.npz"):
        embed.make(context=context(), target="a.parquet")
