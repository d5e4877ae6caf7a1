"""Small runs that the tests share."""

import importlib

from litevit_jax.train import setup


def config(name="mae_tiny", arg="smoke", **overrides):
    """Recipe `name:arg`; a__b=value overrides field a.b."""
    made = importlib.import_module(f"configs.{name}").get_config(arg)
    with made.unlocked():
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
    return config(name, arg, **(sizes | overrides))


def prepare(workdir, made=None):
    """The Job of a config (the tiny one by default)."""
    return setup.prepare(made or tiny(), workdir)
