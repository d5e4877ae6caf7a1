"""Self-supervised pre-training of small vision transformers in JAX.

    import litevit_jax

    encoder = litevit_jax.load("runs/mae_tiny-digits")
    features = litevit_jax.features(encoder, ["a.png", "b.png"])

The names of `__all__` are for your programs (docs/python.md). Each is imported when you
use it first, so importing the package takes no time and starts no JAX.
"""

import importlib
import os
import sys
import types
from typing import Any

__version__ = "0.2.0"

__all__ = [
    *("Encoder", "Evaluator", "Objective", "RunOutcome", "Source", "evaluate"),
    *("features", "load", "predict", "recipes", "save", "train"),
]

# epath would read gs:// through TensorFlow wherever that is installed. It asks once,
# at its first path, which may be that of JAX's compilation cache.
os.environ["EPATH_USE_TF"] = "false"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        hint = importlib.import_module(f"{__name__}.choices").suggest(name, __all__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; {hint}")
    if name == "recipes":
        return importlib.import_module(f"{__name__}.recipes")
    if "jax" not in sys.modules:  # it reads its platform when it is imported
        importlib.import_module(f"{__name__}.cpu").choose()
    return getattr(importlib.import_module(f"{__name__}.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(types.ModuleType):
    """A package whose `train` is the function, though it has a folder of that name.

    Importing `litevit_jax.train.loop` would set the attribute to the folder.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "train" or not isinstance(value, types.ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
