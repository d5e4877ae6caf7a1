"""Laws of training that hold for every objective, on its recipe's tiny form."""

import dataclasses
import itertools
import re
from typing import Any

import jax
import numpy as np
import pytest

from litevit_jax import checkpoint, registry, sharding
from litevit_jax.jobs import train as train_module
from litevit_jax.train import job as job_module
from litevit_jax.warm_start import read
from tests import jobs

pytestmark = pytest.mark.usefixtures("given_starts")

STEPS = 3
# Weight decay moves what is not frozen, from the first update on. Adam's update is
# the sign of a gradient near zero: eps makes it a number again.
FIELDS: dict[str, Any] = {
    "steps": STEPS,
    "optimizer__eps": 1e-3,
    "optimizer__freeze": ("encoder/(cls_token|patch_embed/bias)",),
    "optimizer__no_decay": (),
    "lr__warmup_epochs": 0.0,
    "log__every_steps": STEPS,
}
# A probe trains its heads alone, by its own rule.
PROBE = {k: v for k, v in FIELDS.items() if not k.startswith("optimizer__")}
# A bias before a BatchNorm has no gradient, and no decay.
STILL = {"segmentation": {"params/neck/up4_first/bias"}}
MESHES = {"1x1": (1, 1), "4x2": (4, 2)}

every_objective = pytest.mark.parametrize("name", jobs.RECIPES)


@dataclasses.dataclass
class Trained:
    """A job, its state before and after (on the host), its batches and losses.

    `sliced` says whether it cuts its batches.
    """

    job: job_module.Job
    sliced: bool
    first: Any
    last: Any
    batches: list
    losses: list


def prepare(name, mesh, workdir, **fields):
    data, fsdp = MESHES[mesh]
    make_mesh = sharding.make_mesh
    with pytest.MonkeyPatch.context() as patch:
        devices = jax.devices()[: data * fsdp]
        patch.setattr(sharding, "make_mesh", lambda **_: make_mesh(data, fsdp, devices))
        patch.setattr(sharding, "_MIN_SHARDED_SIZE", 64)
        rules = PROBE if name == "probe_grid" else FIELDS
        recipe, arg = jobs.RECIPES[name], jobs.VARIANTS.get(name, "smoke")
        made = jobs.tiny(recipe, arg, evals={}, **rules, **fields)
        return train_module.prepare(made, workdir)


def prepare_in_slices(name, workdir):
    """The job on 8 devices, on slices of the batch if the objective allows them."""
    try:
        return prepare(name, "4x2", workdir, microbatch="2"), True
    except ValueError as error:
        assert "whole batch" in str(error)
        return prepare(name, "4x2", workdir), False


def placed(state, job):
    """A copy of a host state where `job` has it; the step may donate it."""
    return jax.device_put(
        jax.tree.map(np.copy, state), jax.tree.map(lambda x: x.sharding, job.state)
    )


def go_on(state, job, batches):
    """The state after these host batches, and the loss of each."""
    losses = []
    for batch in batches:
        state, metrics = job.step(state, sharding.global_batch(batch, job.mesh))
        losses.append(float(metrics["loss"]))
    return state, losses


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """name -> Trained on 8 devices; once for all tests. Saved after its first step."""
    done = {}

    def make(name):
        if name not in done:
            workdir = tmp_path_factory.mktemp(name)
            job, sliced = prepare_in_slices(name, workdir)
            with_batches = job.stream(0)
            batches = list(itertools.islice(with_batches, STEPS))
            with_batches.close()
            state = job.create()
            first = jax.device_get(state)
            state, losses = go_on(state, job, batches[:1])
            checkpoints = checkpoint.Checkpoints(workdir, keep=1, fixed=job.fixed)
            checkpoints.save(state, config=job.config)
            checkpoints.close()
            state, more = go_on(state, job, batches[1:])
            last = jax.device_get(state)
            done[name] = Trained(job, sliced, first, last, batches, losses + more)
        return done[name]

    return make


def flat(state):
    return {
        f"{part}/{name}": value
        for part in checkpoint.PARTS
        for name, value in checkpoint.flatten(getattr(state, part)).items()
    }


def same_bits(got, want):
    assert got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


def test_every_objective_is_listed():
    assert sorted(jobs.RECIPES) == registry.choices("objectives")
    for name, recipe in jobs.RECIPES.items():
        arg = jobs.VARIANTS.get(name, "smoke")
        assert jobs.config(recipe, arg).objective.name == name


@every_objective
def test_training_moves_what_is_not_frozen_and_compiles_once(name, train):
    run = train(name)
    assert np.isfinite(run.losses).all()
    assert run.job.step._cache_size() == 1
    before, after = (flat(state) for state in (run.first, run.last))
    same = [k for k in before if np.array_equal(before[k], after[k])]
    moving = {k for k in before if k.startswith(("params/", "step/"))}
    patterns = run.job.config["optimizer"]["freeze"]
    frozen = {k for k in moving if any(re.fullmatch(p, _path(k)) for p in patterns)}
    assert "params/encoder/patch_embed/bias" in frozen
    still = STILL.get(name, set())
    assert set(same) & moving == frozen | still  # weight decay is on


def _path(name):
    return name.removeprefix("params/")


@every_objective
def test_neither_mesh_nor_slices_change_the_parameters(name, train, tmp_path):
    run = train(name)
    whole = run.job.objective.needs_whole_batch
    assert run.sliced != whole
    job = prepare(name, "1x1", tmp_path)
    state, losses = go_on(placed(run.first, job), job, run.batches)
    # BatchNorm divides by deviations of 32 examples, which amplifies rounding.
    rtol, atol = (2e-3, 1e-5) if whole else (1e-4, 1e-6)
    np.testing.assert_allclose(losses, run.losses, rtol=rtol)
    got = checkpoint.flatten(jax.device_get(state.params))
    for key, value in checkpoint.flatten(run.last.params).items():
        np.testing.assert_allclose(got[key], value, rtol=rtol, atol=atol, err_msg=key)


@every_objective
def test_a_restored_run_goes_on_to_the_same_bits(name, train):
    run = train(name)
    checkpoints = checkpoint.Checkpoints(run.job.workdir, keep=1, fixed=run.job.fixed)
    state, meta = checkpoints.restore(run.job.state)
    checkpoints.close()
    saved = {part.partition(".")[0] for part in meta["arrays"]}
    taught = bool(jax.tree.leaves(run.first.teacher))
    assert ("teacher" in saved) == (taught and not run.job.fixed)
    state, losses = go_on(state, run.job, run.batches[1:])
    assert losses == run.losses[1:]
    same_bits(flat(jax.device_get(state)), flat(run.last))


@every_objective
def test_a_frozen_teacher_is_another_runs_bit_by_bit(name, train):
    run = train(name)
    if not run.job.objective.frozen_teacher:
        assert not run.job.fixed
        return
    theirs = read.read_params(run.job.config["teacher"]).params
    for state in (run.first, run.last):
        got = checkpoint.flatten(state.teacher)
        assert got
        same_bits(got, {k: theirs[k] for k in got})


@every_objective
def test_same_key_same_loss_new_key_new_loss(name, train):
    run = train(name)
    other = run.first.replace(step=np.int32(1))  # the key follows from the step
    starts = (run.first, run.first, other)
    states = [placed(state, run.job) for state in starts]
    losses = [go_on(state, run.job, run.batches[:1])[1][0] for state in states]
    assert losses[0] == losses[1] == run.losses[0]
    assert (losses[2] == losses[0]) == (name in jobs.WITHOUT_CHANCE)
