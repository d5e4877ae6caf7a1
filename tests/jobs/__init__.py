"""Small runs that the tests share."""

import atexit
import collections
import contextlib
import copy
import dataclasses
import functools
import importlib
import json
import math
import os
import shutil
import tempfile
from unittest import mock

import jax
import numpy as np

from litevit_jax import checkpoint, sharding
from litevit_jax.jobs import train
from litevit_jax.models import layers
from litevit_jax.train import build
from litevit_jax.train import state as states
from litevit_jax.train import step as steps


def config(name="mae_tiny", arg="smoke", **overrides):
    """Recipe `name:arg`, or that of a module; a__b=value overrides field a.b.

    The host crops the images: steps compile sooner, and see more of the code.
    """
    module = name if "." in name else f"litevit_jax.configs.{name}"
    made = importlib.import_module(module).get_config(arg)
    with made.unlocked():
        if "log" in made:
            made.log.writers = ("jsonl",)
        if "data" in made and "cache" in made.data:
            made.data.cache = "off"
        for key, value in overrides.items():
            block = made
            *blocks, field = key.split("__")
            for part in blocks:
                block = block[part]
            assert field in block, f"no field {key}"
            block[field] = value
    return made


def tiny(name="mae_tiny", arg="smoke", **overrides):
    """As `config`, with the smallest model that has every part.

    Without health metrics, which change no bit (tests/train/loop_test.py) and are a
    third of what is compiled.
    """
    sizes = {
        "objective__encoder__width": 24,
        "objective__encoder__depth": 1,
        "objective__encoder__num_heads": 2,
    }
    if name.startswith("mae"):
        sizes |= {
            "objective__decoder__width": 16,
            "objective__decoder__num_heads": 2,
        }
    if "grid" in arg:
        sizes["objective__features"] = ("cls", "avg", "avg_last1")
    if name.startswith("moco"):
        sizes |= {"objective__mlp_dim": 32, "objective__embed_dim": 16}
    if "distill" in name or name.startswith("feature"):
        sizes["teacher"] = overrides.pop("teacher", None) or teacher()
    if name == "segment" and "linear" not in arg:
        sizes["objective__channels"] = 8
    if name == "detect":
        sizes |= {"objective__channels": 8, "objective__box_hidden": 16}
    if name.endswith("d2"):
        sizes |= {
            "objective__encoder__depth": 2,
            "objective__decoupled": 1,
            "objective__pairs": ((3, 1),),
        }
    made = config(name, arg, **(sizes | overrides))
    if "log" in made and "log__health" not in overrides:
        made.log.health = False
    return made


@functools.cache
def teacher():
    """The directory of a run, wider and with more heads than `tiny`'s."""
    workdir = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, workdir, ignore_errors=True)
    sizes = {"objective__encoder__width": 32, "objective__encoder__num_heads": 4}
    return str(saved_run(workdir, tiny(steps=1, **sizes)))


def saved_run(workdir, made, *, noise=False):
    """Saves the start of a run, of a config; returns `workdir`.

    As good as a trained one for what only reads it, and neither a step nor random
    draws are compiled. With `noise` no parameter has the value that a start gives it.
    """
    with without_steps(), on_one_device(), given_starts():
        job = train.prepare(made, workdir)
        state = job.create()
    if noise:
        rng = np.random.default_rng(0)
        params = jax.tree.map(
            lambda x: jax.device_put(0.1 * rng.normal(size=x.shape), x.sharding),
            state.params,
        )
        state = state.replace(params=params)
    saved = checkpoint.Checkpoints(job.workdir, keep=1, fixed=tuple(job.fixed))
    saved.save(state, config=job.config, skipped_steps=0)
    saved.wait()
    saved.close()
    job.release()
    return job.workdir


# Fields of a config that change nothing of what is compiled for training.
_ELSEWHERE = (
    *("checkpoint", "evals", "name", "watchdog", "log"),
    *("like", "init", "init_donor", "init_ema", "init_grid", "init_load"),
    *("init_channels", "init_load_if_there", "init_rename", "init_skip", "teacher"),
)
_OF_LOADING = ("dir", "threads", "workers", "cache", "max_bad_fraction")


# Whether steps are compiled as users have them, which takes twice as long: that logging
# changes no bit of a run depends on how the compiler fuses.
FUSED = False


def as_users():
    """Whether to leave out what conftest.py tells the compiler."""
    return FUSED and "fusion_emitters" in os.environ.get("XLA_FLAGS", "")


class _Once:
    """A step that is lowered, or a lowered one that is compiled, only once."""

    def __init__(self, stage):
        self._stage, self._next = stage, None

    def lower(self, *arguments):
        self._next = self._next or _Once(self._stage.lower(*arguments))
        return self._next

    def compile(self, options=None):
        if as_users():
            options = {**(options or {}), "xla_cpu_use_fusion_emitters": True}
        self._next = self._next or self._stage.compile(options)
        return self._next

    def __call__(self, *arguments):
        return self._stage(*arguments)

    def __getattr__(self, name):
        return getattr(self._stage, name)


_designs = collections.OrderedDict()  # key -> (BuiltStep, what its making settled)
_MOST_DESIGNS = 40  # a compiled program takes memory as long as it is known


def forget_designs():
    """Drops what runs have shared so far."""
    _designs.clear()


def sharing_designs():
    """`build.build_step`, which builds the step of an equal config only once.

    Equal is what the program depends on: not where images or weights come from, nor
    what is logged, saved and evaluated.
    """
    design = build.build_step

    def shared(config, mesh, source, memory=None, *, keep=None, held=None):
        if held is not None:
            return design(config, mesh, source, memory, keep=keep, held=held)
        before = config.to_dict()
        key = _key(before, mesh, source("train"), memory)
        if key not in _designs:
            one = design(config, mesh, source, memory, keep=keep)
            one = dataclasses.replace(one, step=_Once(one.step))
            after = config.to_dict()
            settled = {k: v for k, v in after.items() if before.get(k) != v}
            _designs[key] = one, copy.deepcopy(settled)
            while len(_designs) > _MOST_DESIGNS:
                _designs.popitem(last=False)
        _designs.move_to_end(key)
        one, settled = _designs[key]
        for block, value in settled.items():
            config[block] = copy.deepcopy(value)
        return one

    return shared


def _key(fields, mesh, images, memory):
    """What the step of a run depends on, as text."""
    kept = {k: v for k, v in fields.items() if k not in _ELSEWHERE}
    kept["data"] = {k: v for k, v in fields["data"].items() if k not in _OF_LOADING}
    kept["health"] = fields["log"]["health"] and fields["log"]["every_steps"]
    data = (len(images), images.fingerprint(), tuple(images.classes))
    on_gpu = mesh.devices.flat[0].platform not in ("cpu", "tpu")
    how = FUSED, steps.make_train_step, layers.uniform, memory if on_gpu else None
    return f"{json.dumps(kept)}{data}{mesh}{np.ravel(mesh.devices)}{how}"


_make_mesh = sharding.make_mesh  # also where somebody has replaced it


@contextlib.contextmanager
def on_one_device():
    """Runs take one device, for which programs compile sooner."""
    one = jax.devices()[:1]
    with mock.patch.object(sharding, "make_mesh", lambda **_: _make_mesh(1, 1, one)):
        yield


@contextlib.contextmanager
def given_starts():
    """Models start from values that follow from the shape of a parameter alone.

    A program that draws initial values takes as long to compile as a step.
    """
    states._shared.cache_clear()
    with mock.patch.multiple(layers, uniform=_given, normal=_given):
        yield
    states._shared.cache_clear()  # others start as they do


def _given(scale):
    """The initializer of uniform values up to `scale`, the same for any key."""

    def init(key, shape, dtype=np.float32):
        del key
        draws = np.random.default_rng(math.prod(shape)).uniform(-1, 1, shape)
        return jax.numpy.asarray(scale * draws, dtype)

    return init


@contextlib.contextmanager
def without_steps():
    """Runs are prepared without the trace of their step, and cannot train.

    That trace is most of a preparation.
    """
    make = steps.make_train_step
    steps.make_train_step = _no_step
    try:
        yield
    finally:
        steps.make_train_step = make


def _no_step(*_, **__):
    return jax.jit(lambda state, batch: (state, {}))


def prepare(workdir, made=None):
    """The Job of a config (the tiny one by default)."""
    return train.prepare(made or tiny(), workdir)


# Objective -> the recipe whose tiny form stands for it in the laws of training
# (tests/objectives/laws_test.py). A new objective needs a line here.
RECIPES = {
    "byol": "byol_tiny",
    "detect": "detect",
    "distill": "mae_tiny_distill",
    "feature": "feature_tiny",
    "mae": "mae_tiny",
    "moco_v3": "mocov3_tiny",
    "probe_grid": "linear_probe",
    "segmentation": "segment",
    "simmim": "simmim_tiny",
    "supervised": "deit_tiny",
}
VARIANTS = {"probe_grid": "smoke,grid"}  # of the recipe, where it is not 'smoke'
# Those whose loss draws nothing: a new key leaves it as it is.
WITHOUT_CHANCE = ("feature", "probe_grid")
