"""The smallest objective that learns: for tests of what all runs have in common."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from litevit_jax.objectives import base


@dataclasses.dataclass(frozen=True)
class Linear(base.Objective):
    """Recovers images from noisy ones by two matrices."""

    width: int

    def init(self, key, batch):
        pixels = math.prod(batch["image"].shape[1:])
        down, up = jax.random.split(key)
        params = {
            "down": {"kernel": 0.1 * jax.random.normal(down, (pixels, self.width))},
            "up": {"kernel": 0.1 * jax.random.normal(up, (self.width, pixels))},
        }
        return base.Variables(params, {}, {})

    def loss(self, params, model_state, teacher, batch, key):
        images = batch["image"].reshape(len(batch["image"]), -1)
        draw = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))
        noisy = images + draw(base.example_keys(key, batch))
        recovered = noisy @ params["down"]["kernel"] @ params["up"]["kernel"]
        loss = jnp.square(recovered - images).mean()
        return loss, ({"loss": loss}, model_state)

    def predict(self, params, model_state, batch):
        images = batch["image"].reshape(len(batch["image"]), -1)
        return {"features": images @ params["down"]["kernel"]}


def make(*, encoder):
    """`encoder`: of its fields `width` counts, which is that of the matrices."""
    return Linear(encoder["width"])
