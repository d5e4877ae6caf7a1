"""Files in a bucket are written, read and found as local ones are."""

import json
import os
import pathlib
import pickle

import numpy as np
import pytest

from litevit_jax import paths
from litevit_jax.data.sources import arrays, folder
from litevit_jax.jobs import train
from litevit_jax.train import eval_runner, writers
from litevit_jax.train import workdir as workdirs
from litevit_jax.warm_start import read
from tests import bucket, jobs

pytestmark = pytest.mark.usefixtures("shared_designs")


@pytest.fixture(scope="module")
def gs():
    with bucket.served() as store:
        yield store


@pytest.fixture(params=["local", "gs"])
def place(request, tmp_path, gs):
    """A folder that is not there yet, here or in a bucket."""
    name = request.node.name.partition("[")[0]
    return (
        paths.path(f"gs://bucket/{name}") if request.param == "gs" else tmp_path / "x"
    )


def test_a_run_begins_and_is_told_again(place):
    assert workdirs.open_run(place, {"seed": 0}) is False
    assert workdirs.open_run(place, {"seed": 0}) is True
    with pytest.raises(ValueError, match="seed: 0 -> 1"):
        workdirs.open_run(place, {"seed": 1})
    workdirs.close_run(place)
    assert [path.name for path in place.iterdir()] == ["config.json"]
    (place / "stranger.txt").write_text("?")
    (place / "config.json").unlink()
    with pytest.raises(ValueError, match=r"holds stranger.txt"):
        workdirs.open_run(place, {"seed": 0})


def test_lines_and_results_are_added(place):
    workdirs.open_run(place, {})
    for number in range(3):
        paths.append_line(place / "lines.jsonl", {"n": number})
    rows = (place / "lines.jsonl").read_text().splitlines()
    assert [json.loads(row)["n"] for row in rows] == [0, 1, 2]
    for step, top1 in ((1, 50.0), (2, 40.0)):
        eval_runner.record_result(place, "knn", {"step": step, "top1": top1}, "top1")
    found = eval_runner.read_result(place, "knn")
    assert (found["last"]["step"], found["best"]["step"]) == (2, 1)
    assert eval_runner.read_result(place, "other") is None


def test_metrics_and_events_arrive(place):
    workdirs.open_run(place, {})
    for first in (0, 2):  # a second start adds to what is there
        writer = writers.open_writer(place, {"log": {"writers": ["tensorboard"]}})
        writer.write(first + 1, {"loss": 1.0})
        writer.write(first + 2, {"loss": float("nan")})
        writer.close()
    rows = [json.loads(r) for r in (place / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[1]["loss"] == "nan"
    events = list((place / "tensorboard").iterdir())
    assert events and all(len(path.read_bytes()) > 80 for path in events)


def test_a_read_only_bucket_is_refused(gs, monkeypatch):
    monkeypatch.setattr(gs, "read_only", True)
    match = r"--workdir=gs://bucket/run cannot be written: .*Forbidden.*a bucket that"
    with pytest.raises(OSError, match=match):
        workdirs.open_run(paths.path("gs://bucket/run"), {})


def test_stores_that_cannot_be_reached_are_named(monkeypatch):
    with pytest.raises(
        ValueError, match=r"ftp://x: stores of kind 'ftp' are not known"
    ):
        paths.path("ftp://x")
    monkeypatch.setattr(paths.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"s3://b/x: .*pip install s3fs"):
        paths.path("s3://b/x")


def test_a_folder_of_images_in_a_bucket_is_the_one_on_disk(image_folder, gs):
    root = image_folder(train=6, test=3)
    (root / "train" / ".hidden").mkdir()
    (root / "train" / ".hidden" / "x.png").write_bytes(b"")
    gs().put(f"{root}/", "gs://data/images/", recursive=True)
    for split, count in (("train", 6), ("test", 3)):
        here = folder.make(split=split, dir=str(root))
        there = folder.make(split=split, dir="gs://data/images")
        there = pickle.loads(pickle.dumps(there))
        assert len(there) == len(here) == count
        assert there.classes == here.classes == ["a", "b"]
        for index in range(count):
            assert there[index] == here[index]
            assert there.name_of(index) == here.name_of(index)
        fresh = folder.make(split=split, dir="gs://data/images")
        assert fresh.fingerprint() == here.fingerprint()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        folder.make(split="train", dir="gs://data/nothing")


def test_arrays_in_a_bucket_are_those_on_disk(tmp_path, gs):
    file = tmp_path / "a.npz"
    np.savez(file, image=np.arange(5 * 16, dtype=np.uint8).reshape(5, 4, 4))
    gs().put(str(file), "gs://data/a.npz")
    here = arrays.make(split="train", dir=str(file), holdout=0.0)
    there = arrays.make(split="train", dir="gs://data/a.npz", holdout=0.0)
    assert there.fingerprint() == here.fingerprint()
    with pytest.raises(ValueError, match=r"give the .npz or .npy file itself"):
        arrays.make(split="train", dir="gs://data", holdout=0.0)


def test_sources_of_local_files_refuse_a_bucket(tmp_path, gs):
    made = jobs.tiny("mae_tiny", "smoke,data=tar,path=gs://data/a.tar")
    with pytest.raises(ValueError, match=r"source 'tar' reads local files; copy them"):
        train.run(made, tmp_path)


def test_a_run_in_a_bucket_resumes_and_teaches(gs, tmp_path):
    here, there = tmp_path / "run", "gs://bucket/whole"
    made = {"log__writers": ("jsonl", "tensorboard"), "checkpoint__keep": 1}
    train.run(jobs.tiny(steps=4, **made), here)
    train.run(jobs.tiny(steps=4, **made), there)
    found, wanted = (read.read_params(str(p)) for p in (there, here))
    assert found.step == wanted.step == 4
    for name, value in wanted.params.items():
        np.testing.assert_array_equal(found.params[name], value)
    outcome = train.run(jobs.tiny(steps=4, **made), there)  # nothing is left to do
    assert outcome.results["reconstruction"]["last"]["step"] == 4
    names = {path.name for path in paths.path(there).iterdir()}
    assert names >= {"checkpoints", "config.json", "environment.jsonl", "evals",
        "metrics.jsonl", "parameters.txt", "pictures", "tensorboard"}  # fmt: skip
    assert read.run_config(there)["seed"] == 0
    assert read.read(there).params.keys() == wanted.params.keys()


def test_what_is_renamed_into_place_is_on_the_disk_first(tmp_path, monkeypatch):
    done = []

    def sync(number):
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{number}")))

    replace = pathlib.Path.replace

    def spy(self, target):
        done.append(f"-> {target.name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(pathlib.Path, "replace", spy)
    paths.replace_text(tmp_path / "result.json", "{}")
    assert done == [".result.json.tmp", "-> result.json", tmp_path.name]
    done.clear()
    (tmp_path / "part" / "deep").mkdir(parents=True)
    (tmp_path / "part" / "deep" / "x").touch()
    paths.rename(tmp_path / "part", tmp_path / "whole")
    assert done == ["deep", "x", "part", "-> whole", tmp_path.name]
    assert (tmp_path / "whole" / "deep" / "x").exists()
