"""Bytes that become floats where they are read: the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax import augment
from litevit_jax.augment import color
from litevit_jax.models import pixels
from litevit_jax.objectives import base, health, mae
from tests import params as parameters

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
IMAGE = np.random.default_rng(0).integers(0, 256, (6, 8, 12, 3), dtype=np.uint8)
IDS = np.stack([np.random.default_rng(i).permutation(24)[:5] for i in range(6)])


@pytest.fixture(scope="module")
def both():
    """(normalised images, bytes that know how they are normalised)."""
    op = color.normalize(mean=MEAN, std=STD)
    normal = augment.apply((op,), jax.random.key(0), {"image": IMAGE})["image"]
    return normal, pixels.Pixels(jnp.asarray(IMAGE), *op.affine())


def test_normalisation_is_that_of_its_formula(both):
    want = (IMAGE / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(both[0], want, atol=2e-6)


@pytest.mark.parametrize("ids", [None, IDS])
def test_patches_of_bytes_are_those_of_normalised_images(ids, both):
    normal, late = (pixels.patches(image, 2, ids) for image in both)
    assert late.shape == (6, 24 if ids is None else 5, 12) == normal.shape
    np.testing.assert_array_equal(late, normal)


def test_losses_gradients_and_health_of_bytes_are_those_of_normalised_images(both):
    encoder = {"width": 16, "depth": 1, "num_heads": 2, "patch_size": 2}
    decoder = {"width": 8, "depth": 1, "num_heads": 2}
    objective = mae.make(encoder=encoder, decoder=decoder)
    key = jax.random.key(0)
    params = parameters.start(objective, {"image": both[0]}).params

    @jax.jit
    def learn(params, image):
        loss = lambda p: objective.loss(p, {}, {}, {"image": image}, key)[0]  # noqa: E731
        few = health.some_examples({"image": image}, most=2)
        assert base.batch_size(few) == 2
        numbers = objective.health(params, {}, {}, few, key)
        return jax.value_and_grad(loss)(params), numbers

    (got, numbers), (want, wanted) = (learn(params, image) for image in both)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), got, want)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), numbers, wanted
    )
