"""A number that is highest at one step: for tests of what runs do about the best."""

import dataclasses

from litevit_jax.evaluators import base


@dataclasses.dataclass(frozen=True)
class Peak(base.Evaluator):
    """Reads no image."""

    at: int
    split: str
    best = "height"
    reads = ()

    def run(self, state, *, step):
        return {"height": -abs(step - self.at) / 7}


def make(*, context, at: int = 8, split: str = "eval"):
    """`at`: the best step."""
    return Peak(context, at, split)
