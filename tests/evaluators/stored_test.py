"""Features that several runs need are computed once, and never out of date."""

import dataclasses

import jax
import numpy as np
import pytest

from litevit_jax.data import subsets
from litevit_jax.evaluators import frozen, stored
from litevit_jax.jobs import evaluate
from tests import jobs

pytestmark = pytest.mark.usefixtures("shared_designs", "one_device")


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """An evaluator k-NN of the digits, and a state that it evaluates."""
    folder = tmp_path_factory.mktemp("stored")
    run = jobs.saved_run(folder / "run", jobs.tiny(steps=1))
    made = jobs.config("evaluate", "knn", init=str(run), batch_size=32)
    job = evaluate.prepare(made, folder / "evaluation")
    return job.evaluators["knn"][0], job.create()


@pytest.fixture
def encoded(monkeypatch):
    """Lists how many images were encoded, pass by pass."""
    passes = []
    encode = frozen._encode

    def counting(context, state, split, name):
        passes.append(len(context.source(split)))
        return encode(context, state, split, name)

    monkeypatch.setattr(frozen, "_encode", counting)
    return passes


@pytest.fixture
def context(ready):
    """The evaluator's context with forty images of each split."""
    whole = ready[0].context
    rows = np.arange(40)
    source = {s: subsets.Subset(whole.source(s), rows) for s in ("train", "eval")}
    return dataclasses.replace(whole, source=source.get)


def gather(context, state, split="eval"):
    return frozen.gather(context, state, split, "features")


def test_the_same_features_are_encoded_once(ready, context, encoded, tmp_path, capsys):
    plain = gather(context, ready[1])
    with stored.under(tmp_path / "kept"):
        first, again = gather(context, ready[1]), gather(context, ready[1])
        gather(context, ready[1], "train")
    assert encoded == [40, 40, 40]  # plain, first, the other split
    for made in (first, again):
        for one, other in zip(plain, made, strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype
    out = capsys.readouterr().out
    file = min((tmp_path / "kept").iterdir(), key=lambda p: p.stat().st_mtime_ns)
    assert f"features of split 'eval', 40 images: read from {file}" in out
    gather(context, ready[1])
    assert len(encoded) == 4  # outside nothing is read or kept


def other_state(state, name):
    """`state` with another value in one array of a part of its parameters."""
    params = dict(state.params)
    params[name] = jax.tree.map(lambda x: x + 1, params[name])
    return type(state)(params=params, model_state=state.model_state)


@pytest.mark.parametrize("what", ["encoder", "images", "listing", "mean"])
def test_what_the_features_follow_from_makes_others(
    what, ready, context, encoded, tmp_path
):
    state, changed = ready[1], context
    if what == "encoder":
        state = other_state(state, "encoder")
    elif what == "images":
        changed = dataclasses.replace(context, images=context.images + " ")
    elif what == "listing":
        part = subsets.Subset(context.source("eval"), np.arange(40)[::-1])
        changed = dataclasses.replace(context, source=lambda _: part)
    else:
        predict = dataclasses.replace(context.predict.__wrapped__.__self__, mean=(0.1,))
        changed = dataclasses.replace(context, predict=jax.jit(predict))
    with stored.under(tmp_path):
        gather(context, ready[1])
        gather(changed, state)
    assert encoded == [40, 40] and len(list(tmp_path.glob("*.npz"))) == 2


def test_parameters_that_the_features_do_not_read_make_no_others(
    ready, context, encoded, tmp_path
):
    with stored.under(tmp_path):
        gather(context, ready[1])
        gather(context, other_state(ready[1], "decoder"))
    assert encoded == [40]


@pytest.mark.parametrize("harm", ["cut", "flipped", "foreign"])
def test_a_damaged_file_is_made_anew_with_a_line(
    harm, ready, context, encoded, tmp_path, capsys
):
    with stored.under(tmp_path):
        made = gather(context, ready[1])
        (file,) = tmp_path.glob("*.npz")
        data = bytearray(file.read_bytes())
        if harm == "cut":
            data = data[: len(data) // 2]
        elif harm == "flipped":
            data[len(data) // 2] ^= 255
        else:
            gather(context, ready[1], "train")
            (other,) = set(tmp_path.glob("*.npz")) - {file}
            data = other.read_bytes()
        file.write_bytes(data)
        encoded.clear()
        again = gather(context, ready[1])
        assert encoded == [40]
        gather(context, ready[1])  # it is whole again
        assert encoded == [40]
    np.testing.assert_array_equal(made[0], again[0])
    assert f"{file} cannot be used" in capsys.readouterr().out


def test_the_folder_is_bounded_and_a_full_disk_ends_nothing(
    ready, context, encoded, tmp_path, monkeypatch, capsys
):
    with stored.under(tmp_path):
        gather(context, ready[1])
        (file,) = tmp_path.glob("*.npz")
        monkeypatch.setattr(stored, "LIMIT", file.stat().st_size + 100)
        gather(context, ready[1], "train")
        assert len(list(tmp_path.glob("*.npz"))) == 1 and not file.exists()
        monkeypatch.setattr(stored, "LIMIT", 100)
        gather(context, ready[1])
        assert "are not kept" in capsys.readouterr().out

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(stored, "LIMIT", 2**30)
        monkeypatch.setattr(stored.paths, "rename", full)
        gather(context, ready[1])
    assert "No space left on device" in capsys.readouterr().out
    assert not list(tmp_path.glob(".*.tmp"))


def test_rows_come_in_their_order_whatever_is_kept(ready, context, tmp_path):
    features, labels, _ = gather(context, ready[1])
    for count in (40, 17):
        rows = np.random.default_rng(0).permutation(40)[:count]
        with stored.under(tmp_path):
            got = frozen.gather_rows(context, ready[1], "eval", rows, "features")
        np.testing.assert_array_equal(got[1], labels[rows])
        np.testing.assert_allclose(got[0], features[rows], rtol=1e-5, atol=1e-6)
