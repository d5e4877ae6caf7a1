"""Runs whose images are on the devices: the host's batches, in calls of any length."""

import contextlib
import dataclasses
import itertools
import json
import shutil
import signal

import jax
import numpy as np
import pytest

from litevit_jax import checkpoint
from litevit_jax.data import cache, calls, pipeline
from litevit_jax.jobs import train
from litevit_jax.train import log, loop, on_device
from tests import jobs
from tests.records import losses, params, rows, same


def tiny(name="mae_tiny", **overrides):
    """Digits on the devices, logged and saved every 3 of 6 updates."""
    fixed = {"data__cache": "device", "data__decoder": "pillow", "log__every_steps": 3}
    return jobs.tiny(name, **{**fixed, "data__flip": 0.5, "evals": {}, **overrides})


def recorded(workdir):
    return json.loads((workdir / "config.json").read_text())["derived"]["cropped_on"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 6 updates in calls of 3."""
    workdir = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls.Pace, "updates", lambda *_: 64)
        assert train.run(tiny(), workdir).step == 6
    return workdir


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A run that is built, and whose step is not."""
    with jobs.without_steps():
        return train.prepare(tiny(), tmp_path_factory.mktemp("job"))


def images(job, step=0, batches=2):
    """The first batches of a run as its step reads them: index, label, image."""
    held = job.feed.__self__.held
    read = on_device_read(job)
    with contextlib.closing(job.feed(step)) as feed:
        for fed in itertools.islice(feed, batches):
            rows = {name: x[0] for name, x in fed.batch["rows"].items()}
            yield jax.device_get(read({**held, **rows}))


def on_device_read(job):
    """A jitted function from the rows of an update to its batch."""
    bound = job.feed.__self__
    held = on_device.Held(
        **bound.held,
        drawn=bound.draws,
        scales=bound.scales,
        size=bound.draws.crop.size,
        mesh=bound.mesh,
        most=bound.most,
        most_each=2**30,
    )

    def read(batch):
        part, add = held.read(batch)
        return add(part)

    return jax.jit(read)


def test_a_run_logs_and_saves_where_it_always_does(whole):
    assert [r["step"] for r in rows(whole) if "loss" in r] == [3, 6]
    assert sorted(p.name for p in (whole / "checkpoints").iterdir()) == ["3", "6"]
    assert recorded(whole) == "device"


def test_one_program_serves_all_seeds(tmp_path):
    texts = set()
    for seed in (0, 2**32 - 1):
        job = train.prepare(tiny(seed=seed), tmp_path / str(seed))
        with contextlib.closing(job.feed(0)) as feed:
            texts.add(job.step.lower(job.state, next(feed).batch).as_text())
    assert len(texts) == 1


@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**32 - 1])
def test_a_key_of_the_program_is_that_of_the_seed(seed):
    inside = jax.jit(lambda number: jax.random.key_data(jax.random.key(number)))
    outside = jax.random.key_data(jax.random.key(seed))
    np.testing.assert_array_equal(inside(np.uint32(seed)), outside)


def test_batches_are_those_of_the_host(job):
    stream = job.stream(0)
    for batch in images(job):
        want = next(stream)
        for name in ("index", "label"):
            np.testing.assert_array_equal(batch[name], want[name])
        difference = np.abs(batch["image"].astype(int) - want["image"])
        assert difference.max() <= 1 and difference.mean() < 0.002
    stream.close()


def test_views_are_those_of_the_host(tmp_path):
    with jobs.without_steps():
        job = train.prepare(tiny("mocov3_tiny"), tmp_path)
    (batch,), stream = images(job, batches=1), job.stream(0)
    difference = batch["views"].swapaxes(0, 1).astype(int) - next(stream)["views"]
    assert np.abs(difference).max() <= 1 and np.abs(difference).mean() < 0.002
    stream.close()


@pytest.mark.parametrize("name", ["mae_tiny", "finetune"])
def test_a_run_is_that_of_the_host_but_for_rounding(name, whole, tmp_path):
    """Mixing of images (fine-tuning) reads them before the slices of a batch."""
    made = {"log__every_steps": 1, "steps": 2, "checkpoint__every_steps": 2}
    made["log__health"] = name == "mae_tiny"
    if name == "finetune":
        made |= {"init": str(whole), "augment__mix": {"mixup": 0.8, "cutmix": 1.0}}
    for where in ("device", "off"):
        train.run(tiny(name, data__cache=where, **made), tmp_path / where)
    one, other = losses(tmp_path / "device"), losses(tmp_path / "off")
    assert one.keys() == other.keys() == {1, 2}
    np.testing.assert_allclose([*one.values()], [*other.values()], rtol=2e-3)
    if name == "mae_tiny":
        one, other = (rows(tmp_path / where)[-1] for where in ("device", "off"))
        assert one["feature_std"] == pytest.approx(other["feature_std"], rel=1e-2)


def test_no_bit_depends_on_how_many_updates_a_call_has(whole, tmp_path):
    train.run(tiny(steps_per_call="auto", log__every_steps=1), tmp_path)
    same(params(tmp_path), params(whole))


def test_a_stopped_run_resumes_to_the_same_bits(whole, tmp_path, monkeypatch):
    tick = log.Throughput.tick

    def stop(self, *args):
        tick(self, *args)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(calls.Pace, "updates", lambda *_: 2)
        patch.setattr(log.Throughput, "tick", stop)
        outcome = train.run(tiny(), tmp_path)
    assert (outcome.step, outcome.signal) == (2, signal.SIGTERM)
    # The choice of the first start holds, whatever 'auto' would take here.
    assert train.run(tiny(data__cache="auto"), tmp_path).step == 6
    same(params(tmp_path), params(whole))
    assert losses(tmp_path) == losses(whole)


def test_images_do_not_depend_on_devices_nor_on_how_they_hold_the_set(
    job, tmp_path, monkeypatch
):
    want = [*images(job)]
    with jobs.without_steps():
        with jobs.on_one_device():
            one = train.prepare(tiny(), tmp_path / "one")
        monkeypatch.setattr(cache, "most_on_device", lambda *_: 20_000)
        divided = train.prepare(tiny(), tmp_path / "divided")
    assert "divided over the devices" in "".join(divided.notes)
    columns = divided.feed.__self__.held["columns"]
    assert (
        columns.shape[:2] == (8, 180) and len(columns.addressable_shards[0].data) == 1
    )
    for other in (one, divided):
        for batch, like in zip(images(other), want, strict=True):
            same(batch, like)


def test_a_skipped_update_is_logged_with_its_own_examples(tmp_path, monkeypatch, job):
    monkeypatch.setattr(calls.Pace, "updates", lambda *_: 64)
    made = {"lr__base": 1e30, "lr__warmup_epochs": 0.0, "nonfinite__max_in_a_row": 3}
    with pytest.raises(FloatingPointError, match=r"3 updates in a row .* at step 4"):
        train.run(tiny(**made), tmp_path)
    skipped = [r for r in rows(tmp_path) if r.get("event") == "nonfinite"]
    assert [r["step"] for r in skipped] == [2, 3]
    stream = job.stream(1)
    for row in skipped:
        assert row["examples"] == next(stream)["index"].tolist()
    stream.close()


def test_a_set_that_does_not_fit_is_cropped_on_the_host_and_that_is_said(tmp_path):
    with jobs.without_steps():
        job = train.prepare(tiny(data__cache_gib=1e-5), tmp_path)
    (line,) = [note for note in job.notes if "cropped" in note]
    assert "on the host: 1,438 images of 8x8 pixels take" in line
    assert "data.cache_gib=1e-05" in line
    assert job.config["derived"]["cropped_on"] == "host"


def test_a_host_decodes_no_more_than_its_memory_allows(tmp_path, monkeypatch):
    monkeypatch.setattr(cache.cpu, "memory", lambda: 2**16)
    monkeypatch.setattr(cache, "most_on_device", lambda *_: 2**30)  # large devices
    with jobs.without_steps():
        job = train.prepare(tiny(), tmp_path)
    (line,) = [note for note in job.notes if "cropped" in note]
    assert "GiB, more than 3.05e-05 GiB (" in line and "half of its memory" in line
    assert job.config["derived"]["cropped_on"] == "host"


def test_evaluations_keep_what_the_training_images_leave(tmp_path, monkeypatch):
    most = 1438 * 64 + 100
    monkeypatch.setattr(cache, "most_on_device", lambda *_: most)
    evals = {"knn": {"name": "knn", "every_steps": 3}}
    with jobs.without_steps():
        job = train.prepare(tiny(evals=evals), tmp_path)
    assert job.evaluators["knn"][0].context.kept._left == 100
    job.release()


@pytest.mark.parametrize(("layers", "where"), [(0, "device"), (2, "host")])
def test_auto_takes_the_device_unless_something_needs_the_host(layers, where, tmp_path):
    made = tiny(data__cache="auto", data__randaugment__layers=layers)
    with jobs.without_steps():
        job = train.prepare(made, tmp_path)
    assert job.config["derived"]["cropped_on"] == where
    if where == "host":
        assert "RandAugment" in "".join(job.notes)


def test_a_run_stays_with_its_way_of_cropping(whole, tmp_path):
    copied = shutil.copytree(whole, tmp_path / "copy")
    with pytest.raises(ValueError, match=r"began with its images on the devices .* 1,"):
        train.prepare(tiny(data__cache_gib=1e-5), copied)
    with pytest.raises(ValueError, match=r'derived\.cropped_on: "device" -> "host"'):
        train.prepare(tiny(data__cache="off"), copied)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data__cache": "devise"}, "data.cache 'devise' unknown; did you mean device"),
        (
            {"data__cache": "off", "steps_per_call": "4"},
            "set --config.data.cache=device",
        ),
        ({"steps_per_call": "0"}, "steps_per_call=0: expected auto, or the most"),
        ({"data__randaugment__layers": 2}, "RandAugment .* needs Pillow, on the host"),
    ],
)
def test_settings_that_contradict_are_refused(overrides, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train.prepare(tiny(**overrides), tmp_path)


def test_a_set_of_one_image_trains(tmp_path, image_folder):
    root = image_folder(train=1, test=0)
    made = {"data__source": "folder", "data__dir": str(root), "data__channels": 3}
    normalize = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    made |= {"batch_size": 8, "steps": 2, "augment__normalize": normalize}
    assert train.run(tiny(**made), tmp_path / "run").step == 2


def test_a_set_that_grew_is_refused_on_resuming(tmp_path, image_folder):
    root = image_folder(train=4, test=0)
    made = {"data__source": "folder", "data__dir": str(root), "data__channels": 3}
    normalize = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    made |= {"batch_size": 8, "augment__normalize": normalize}
    with jobs.without_steps():
        train.prepare(tiny(**made), tmp_path / "run").release()
        shutil.copy(root / "train/a/000.png", root / "train/a/999.png")
        with pytest.raises(ValueError, match=r"derived\.train_examples: 4 -> 5"):
            train.prepare(tiny(**made), tmp_path / "run")


def test_epochs_that_follow_from_images_do_not_hide_that_these_changed(
    tmp_path, image_folder
):
    root = image_folder(train=4, test=0)
    made = {"data__source": "folder", "data__dir": str(root), "data__channels": 3}
    normalize = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    made |= {"batch_size": 8, "augment__normalize": normalize, "steps": None}
    with jobs.without_steps():
        train.prepare(tiny(**made, epochs=100), tmp_path / "run").release()
        shutil.copy(root / "train/a/000.png", root / "train/a/999.png")
        with pytest.raises(ValueError, match="of other training images") as caught:
            train.prepare(tiny(**made, epochs=120), tmp_path / "run")
    text = str(caught.value)
    assert "  derived.train_examples: 4 -> 5\n" in text
    assert "  epochs: 100 -> 120\nresume it with those images and the saved" in text
    assert "extend_to" not in text  # it would end at the same refusal


def test_the_loop_reads_each_update_of_a_call_in_order(monkeypatch):
    seen = []
    run = object.__new__(loop.Run)
    run.report = lambda step, metrics, index: seen.append(
        (step, metrics, index.tolist())
    )
    metrics = {"loss": jax.numpy.array([5.0, 4.0, 0.0])}
    run.pending = (7, metrics, np.array([[1, 2], [3, 4]]))
    run.flush()
    assert seen == [(6, {"loss": 5.0}, [1, 2]), (7, {"loss": 4.0}, [3, 4])]
    assert run.pending is None


def test_evaluations_read_a_split_once_and_give_the_same_numbers(tmp_path, monkeypatch):
    evals = {"knn": {"name": "knn", "every_steps": 3}}
    opened, batches = [], pipeline.eval_batches

    def counted(source, *args, **kwargs):
        opened.append(source)
        return batches(source, *args, **kwargs)

    monkeypatch.setattr(pipeline, "eval_batches", counted)
    outcome = train.run(tiny(evals=evals), tmp_path)
    assert len(opened) == 2  # the split and the bank, at two steps
    with jobs.without_steps():
        job = train.prepare(tiny(evals=evals), tmp_path)
    (evaluator, _), state = job.evaluators["knn"], restored(job)
    plain = dataclasses.replace(evaluator.context, kept=None)
    numbers = dataclasses.replace(evaluator, context=plain).run(state, step=6)
    last = outcome.results["knn"]["last"]
    assert numbers == {name: last[name] for name in numbers}
    job.release()


def restored(job):
    """The state of the last checkpoint of a job."""
    checkpoints = checkpoint.Checkpoints(job.workdir, keep=1, fixed=job.fixed)
    with contextlib.closing(checkpoints):
        return checkpoints.restore(job.state)[0]
