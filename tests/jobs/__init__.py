"""Small runs that the tests share."""

import atexit
import copy
import dataclasses
import functools
import importlib
import json
import os
import shutil
import tempfile

import numpy as np

from litevit_jax.jobs import train
from litevit_jax.train import build


def config(name="mae_tiny", arg="smoke", **overrides):
    """Recipe `name:arg`; a__b=value overrides field a.b."""
    made = importlib.import_module(f"litevit_jax.configs.{name}").get_config(arg)
    with made.unlocked():
        if "log" in made:
            made.log.tensorboard = False
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
    """The directory of a finished run, wider and with more heads than `tiny`'s."""
    workdir = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, workdir, ignore_errors=True)
    sizes = {"objective__encoder__width": 32, "objective__encoder__num_heads": 4}
    train.run(tiny(steps=1, **sizes), workdir)
    return workdir


# Blocks of a config that change nothing of what is compiled for training.
_ELSEWHERE = ("checkpoint", "evals", "name", "watchdog")


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

    def compile(self):
        options = {"xla_cpu_use_fusion_emitters": True} if as_users() else None
        self._next = self._next or self._stage.compile(options)
        return self._next

    def __call__(self, *arguments):
        return self._stage(*arguments)

    def __getattr__(self, name):
        return getattr(self._stage, name)


def sharing_designs():
    """`build.build_step`, which builds the step of an equal config only once."""
    made, design = {}, build.build_step

    def shared(config, mesh, source, *, keep=False):
        fields = config.to_dict()
        key = json.dumps({k: fields[k] for k in fields if k not in _ELSEWHERE})
        key += f"{mesh}{np.ravel(mesh.devices)}{source('train').fingerprint()}{FUSED}"
        if key not in made:
            one = design(config, mesh, source, keep=keep)
            one = dataclasses.replace(one, step=_Once(one.step))
            made[key] = one, copy.deepcopy(config.to_dict())
        one, settled = made[key]
        for block in settled:
            if block not in _ELSEWHERE:
                config[block] = copy.deepcopy(settled[block])
        return one

    return shared


def prepare(workdir, made=None):
    """The Job of a config (the tiny one by default)."""
    return train.prepare(made or tiny(), workdir)


# Objective -> the recipe whose tiny form stands for it in the laws of training
# (tests/objectives/laws_test.py). A new objective needs a line here.
RECIPES = {
    "byol": "byol_tiny",
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
