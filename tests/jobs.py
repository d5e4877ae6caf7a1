"""Small runs that the tests share."""

import atexit
import functools
import importlib
import shutil
import tempfile

from litevit_jax.train import loop, setup


def config(name="mae_tiny", arg="smoke", **overrides):
    """Recipe `name:arg`; a__b=value overrides field a.b."""
    made = importlib.import_module(f"configs.{name}").get_config(arg)
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
    """As `config`, with the smallest model that has every part."""
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
    if name.endswith("d2"):
        sizes |= {
            "objective__encoder__depth": 2,
            "objective__decoupled": 1,
            "objective__pairs": ((3, 1),),
        }
    return config(name, arg, **(sizes | overrides))


@functools.cache
def teacher():
    """The directory of a finished run, wider and with more heads than `tiny`'s."""
    workdir = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, workdir, ignore_errors=True)
    sizes = {"objective__encoder__width": 32, "objective__encoder__num_heads": 4}
    loop.run(tiny(steps=1, **sizes), workdir)
    return workdir


def prepare(workdir, made=None):
    """The Job of a config (the tiny one by default)."""
    return setup.prepare(made or tiny(), workdir)


# Objective -> the recipe whose tiny form stands for it in the laws of training
# (tests/objectives/laws_test.py). A new objective needs a line here.
RECIPES = {
    "distill": "mae_tiny_distill",
    "feature": "feature_tiny",
    "mae": "mae_tiny",
    "moco_v3": "mocov3_tiny",
    "probe_grid": "linear_probe",
    "simmim": "simmim_tiny",
    "supervised": "deit_tiny",
}
VARIANTS = {"probe_grid": "smoke,grid"}  # of the recipe, where it is not 'smoke'
# Those whose loss draws nothing: a new key leaves it as it is.
WITHOUT_CHANCE = ("feature", "probe_grid")
