"""Nearest images: by brute force, from files and anew, and which files are refused."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from litevit_jax.evaluators import embed, neighbours
from tests.evaluators import common, embed_test

COUNT, BANK = embed_test.COUNT, 40
BROKEN = 7  # of the images that are searched


class Bank(common.Images):
    """Images of which one cannot be read."""

    def __getitem__(self, index):
        if index == BROKEN:
            raise OSError("cut off")
        return super().__getitem__(index)

    def name_of(self, index):
        return f"bank {index}"

    def fingerprint(self):
        return "bank"


def sets():
    """(queries, images that are searched) of four classes."""
    return embed_test.Images(embed_test.LABELS, 3), Bank(np.arange(BANK) % 4, 4)


def context(tmp_path, **fields):
    """A context whose features are the pixels, some of them equal."""
    queries, bank = sets()
    bank.images[[5, 30]] = queries.images[2]  # twice in the set

    def predict(params, model_state, batch):
        del model_state
        pixels = batch["image"].reshape(len(batch["image"]), -1)
        return {"features": pixels - params["encoder"]}

    made = embed_test.context(queries, predict)
    splits = {"eval": queries, "train": bank}
    fields = {"source": splits.__getitem__, "outdir": tmp_path / "w/pictures"} | fields
    return dataclasses.replace(made, **fields)


def run(tmp_path, shift=100.0, made=None, **kwargs):
    evaluator = neighbours.make(context=made or context(tmp_path), **kwargs)
    return evaluator.run(
        common.state({"encoder": np.float32(shift)}), step=0
    ), evaluator


def wanted(row, shift=100.0):
    """(number, cosine) of all images that can be read, the nearest first."""
    queries, bank = sets()
    bank.images[[5, 30]] = queries.images[2]
    q, b = (x.images.reshape(len(x), -1).astype(float) - shift for x in (queries, bank))
    length = np.linalg.norm(q[row]) * np.linalg.norm(b, axis=1)
    cosine = b @ q[row] / length
    order = sorted(set(range(BANK)) - {BROKEN}, key=lambda i: (-cosine[i], i))
    return [(i, cosine[i]) for i in order]


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_every_pair_is_compared_and_rows_stay_in_order(ending, tmp_path, monkeypatch):
    monkeypatch.setattr(neighbours, "_CHUNK", 9)  # several, the last one short
    path = tmp_path / f"a{ending}"
    numbers, _ = run(tmp_path, target=str(path), top=4)
    assert numbers == {"n": COUNT, "unreadable": 2, "among_n": BANK, "file": str(path)}
    rows = neighbours.read(path, 999)
    for number, row in enumerate(rows):
        assert row.path == f"folder, of {number}/ä.png"
        if number in embed_test.Images.broken:
            assert not row.nearest and row.error == f"image {number} is cut off"
            continue
        want = wanted(number)[:4]
        got = [(name, label) for name, label, _ in row.nearest]
        assert got == [(f"bank {i}", str(i % 4)) for i, _ in want]
        cosines = [c for *_, c in row.nearest]
        np.testing.assert_allclose(cosines, [c for _, c in want], atol=1e-8)
    assert [name for name, *_ in rows[2].nearest[:2]] == ["bank 5", "bank 30"]
    assert neighbours.read(path, 3) == rows[:3]


def test_there_are_as_many_neighbours_as_can_be_read(tmp_path):
    run(tmp_path, target=str(tmp_path / "a.csv"), top=1000)
    [row, *_] = neighbours.read(tmp_path / "a.csv", 1)
    assert len(row.nearest) == BANK - 1


def test_features_are_kept_for_the_next_command_and_made_again_for_another_model(
    tmp_path, monkeypatch
):
    calls, write = [], embed.Embed.run
    monkeypatch.setattr(
        embed.Embed,
        "run",
        lambda self, *x, **y: calls.append(1) or write(self, *x, **y),
    )
    _, made = run(tmp_path)
    before = neighbours.read(made.path, 99)
    run(tmp_path)  # replaces the file in the run directory
    assert len(calls) == 1 and neighbours.read(made.path, 99) == before
    run(tmp_path, 3.0)
    assert len(calls) == 2 and neighbours.read(made.path, 99) != before
    (tmp_path / "w/among.npz").write_text("cut off")
    run(tmp_path, 3.0)
    assert len(calls) == 3


@pytest.fixture(params=[".npz", ".parquet"])
def embedding(request, tmp_path):
    path = tmp_path / f"set{request.param}"
    made = embed.make(context=context(tmp_path), target=str(path), split="train")
    made.run(common.state({"encoder": np.float32(100.0)}), step=0)
    return path


def test_an_embedding_of_the_same_encoder_gives_the_same_neighbours(
    embedding, tmp_path
):
    run(tmp_path, target=str(tmp_path / "a.csv"))
    shutil.rmtree(tmp_path / "w")
    run(tmp_path, target=str(tmp_path / "b.csv"), among=str(embedding))
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert not (tmp_path / "w/among.npz").exists()


def test_an_embedding_that_cannot_be_compared_is_refused(embedding, tmp_path):
    among = {"among": str(embedding)}
    with pytest.raises(
        ValueError, match=r"with reads \['features'\], now \['features_a"
    ):
        run(tmp_path, pool="avg", **among)
    with pytest.raises(ValueError, match=r"with reads .*features_blocks"):
        run(tmp_path, block=2, **among)
    for field, value in (("size", (8, 8)), ("crop", 0.5), ("mean", (0.1,))):
        with pytest.raises(ValueError, match=f"is an embedding with {field} "):
            run(tmp_path, made=context(tmp_path, **{field: value}), **among)
    with pytest.raises(
        ValueError, match=r"is an embedding with encoder .* embed them ag"
    ):
        run(tmp_path, 3.0, **among)
    assert not (tmp_path / "w").exists()


def test_what_is_no_embedding_and_what_has_no_neighbours_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", features=np.zeros((3, 2)))
    (tmp_path / "text.npz").write_text("nothing")
    for kwargs, error, message in (
        ({"among": "other.npz"}, ValueError, "does not say of which encoder it is"),
        ({"among": "text.npz"}, ValueError, "does not say of which encoder it is"),
        ({"among": "a.csv"}, ValueError, r"ends in \.parquet or \.npz, which names"),
        ({"among": "gone.npz"}, FileNotFoundError, r"gone\.npz does not exist"),
        ({"pool": "tokens"}, ValueError, "one vector for each image"),
        ({"pool": "max"}, ValueError, "pool 'max' unknown"),
        ({"top": 0}, ValueError, "top=0 with"),
        ({"target": "a.txt"}, ValueError, r"neighbours: target=a\.txt ends in"),
    ):
        if "among" in kwargs:
            kwargs = {"among": str(tmp_path / kwargs["among"])}
        with pytest.raises(error, match=message):
            neighbours.make(context=context(tmp_path), **kwargs)
    with np.load(tmp_path / "other.npz") as file:
        content = dict(file)
    about = {"about": json.dumps({"images": "x"})}
    np.savez(tmp_path / "other.npz", **content, **about)
    with pytest.raises(ValueError, match="is an embedding with size None, now"):
        run(tmp_path, among=str(tmp_path / "other.npz"))
