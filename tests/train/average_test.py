"""An average of the parameters in whole runs: tested, resumed, inherited, exported."""

import importlib
import pathlib
import shutil

import jax
import numpy as np
import pytest

from litevit_jax import checkpoint
from litevit_jax.jobs import convert, convert_source, train
from litevit_jax.warm_start import read, start
from tests import jobs
from tests.records import same

pytestmark = pytest.mark.usefixtures("shared_designs", "one_device", "given_starts")

DECAY = 0.5
FIELDS = {
    "steps": 3,
    "optimizer__ema_decay": DECAY,
    "checkpoint__every_steps": 1,
    "evals__test__every_steps": 0,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny supervised run of 3 steps, all of them saved, and how it ended."""
    workdir = tmp_path_factory.mktemp("average") / "run"
    return workdir, train.run(jobs.tiny("deit_tiny", **FIELDS), workdir)


def params_of(workdir, step=3, average=True):
    place = str(workdir / "checkpoints" / str(step))
    return read.read_params(place, average=average).params


def test_checkpoints_hold_the_average_beside_the_parameters(run):
    workdir, _ = run
    for step in (2, 3):
        got, raw = params_of(workdir, step), params_of(workdir, step, average=False)
        before = params_of(workdir, step - 1)
        assert got.keys() == raw.keys()
        for name, value in got.items():
            want = DECAY * before[name] + (1 - DECAY) * raw[name]
            np.testing.assert_allclose(value, want, rtol=1e-6, atol=1e-8)
    assert any((got[name] != raw[name]).any() for name in got)


def test_results_are_those_of_the_average_and_say_so(run, tmp_path):
    workdir, outcome = run
    last = outcome.results["test"]["last"]
    assert last["ema_decay"] == DECAY
    job = train.prepare(jobs.tiny("deit_tiny", **FIELDS), tmp_path / "again")
    evaluator, _ = job.evaluators["test"]
    state = job.create()
    losses = {}
    for average in (True, False):
        found = params_of(workdir, 3, average)
        names = checkpoint.flatten(state.params)
        tree = jax.tree.structure(state.params)
        params = jax.tree.unflatten(tree, [found[name] for name in names])
        numbers = evaluator.run(state.replace(params=jax.device_put(params)), step=3)
        losses[average] = numbers["loss"]
    assert last["loss"] == pytest.approx(losses[True], rel=1e-6)
    assert abs(losses[True] - losses[False]) > 1e-5


def test_the_average_resumes_to_the_same_bits(run, tmp_path):
    workdir, outcome = run
    copy = pathlib.Path(shutil.copytree(workdir, tmp_path / "copy"))
    shutil.rmtree(copy / "checkpoints" / "3")
    again = train.run(jobs.tiny("deit_tiny", **FIELDS), copy)
    same(params_of(copy), params_of(workdir))
    same(params_of(copy, average=False), params_of(workdir, average=False))
    first, last = (found.results["test"]["last"] for found in (outcome, again))
    for name in ("top1", "top5", "loss", "n", "step", "params", "ema_decay"):
        assert last[name] == first[name], name


def finetune(init, **fields):
    skip = ("(?!encoder/).*",)
    return jobs.config("finetune", "digits", init=str(init), init_skip=skip, **fields)


def test_a_run_starts_from_the_average_if_it_is_told_to(run, tmp_path):
    workdir, _ = run
    for average in (True, False):
        made = finetune(workdir, init_ema=average)
        with jobs.without_steps():
            job = train.prepare(made, tmp_path / str(average))
        got = checkpoint.flatten(jax.device_get(job.create()).params)
        want = params_of(workdir, 3, average)
        for name in (n for n in want if n.startswith("encoder/")):
            np.testing.assert_array_equal(got[name], want[name])


def test_an_average_starts_from_what_was_loaded(run, tmp_path):
    made = finetune(run[0], optimizer__ema_decay=0.9)
    with jobs.without_steps():
        job = train.prepare(made, tmp_path / "run")
    state = job.create()
    params, ema = (checkpoint.flatten(t) for t in (state.params, state.opt_state.ema))
    name = "encoder/cls_token"
    assert (params[name] == params_of(run[0], 3, False)[name]).all()
    same(jax.device_get(ema), jax.device_get(params))
    for name, value in params.items():  # no buffer is shared: the step donates both
        other = ema[name]
        assert value.unsafe_buffer_pointer() != other.unsafe_buffer_pointer(), name


def test_where_there_is_no_average_none_is_taken(tmp_path, run):
    workdir = tmp_path / "plain"
    jobs.saved_run(workdir, jobs.tiny("deit_tiny", steps=1, evals={}))
    with pytest.raises(ValueError, match=r"kept no average of its parameters.*; leave"):
        train.prepare(finetune(workdir, init_ema=True), tmp_path / "run")
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"init=.*file of weights holds one set of pa"):
        start.init_checkpoint(finetune(file, init_ema=True).unlock())


def convert_config(**fields):
    made = importlib.import_module("litevit_jax.configs.convert").get_config()
    made.update(fields)
    return made


def test_an_export_takes_what_it_is_told_to(run, tmp_path):
    for average in (True, False):
        how = convert_source.Reading(ema=average)
        read_as = {"part": "all", "image_size": None}
        model, source = convert_source.read_model(str(run[0]), how, **read_as)
        want = params_of(run[0], 3, average)
        same(model.params, want)
        assert ("averaged" in source.notes["source"]) == average
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"source=.*holds one set of .*--config.ema"):
        convert.run(convert_config(source=str(file), target="x.onnx", ema=True))
