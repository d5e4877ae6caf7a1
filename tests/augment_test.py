"""Operations on the device: values, keys and the messages for a wrong block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax import augment
from litevit_jax.augment import color


def test_normalising_is_mean_and_std_per_channel_of_values_from_0_to_1():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (3, 4, 5, 2), dtype=np.uint8)
    [op] = augment.make({"normalize": {"mean": (0.25, 0.5), "std": (0.5, 2.0)}})
    got = op(jax.random.key(0), {"image": jnp.asarray(image), "label": 7})
    want = (image / 255 - np.array([0.25, 0.5])) / np.array([0.5, 2.0])
    assert got["image"].dtype == jnp.float32
    np.testing.assert_allclose(got["image"], want, rtol=1e-5, atol=1e-6)
    assert got["label"] == 7


def test_operations_run_in_order_each_with_a_key_of_its_own():
    def op(key, batch):
        return {"image": batch["image"] * 2 + 1, "keys": [*batch["keys"], key]}

    batch = augment.apply((op, op, op), jax.random.key(3), {"image": 1, "keys": []})
    assert batch["image"] == ((1 * 2 + 1) * 2 + 1) * 2 + 1
    assert len({tuple(jax.random.key_data(k).tolist()) for k in batch["keys"]}) == 3
    again = augment.apply((op,), jax.random.key(3), {"image": 1, "keys": []})
    assert again["keys"] == batch["keys"][:1]


def test_an_unknown_operation_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'normalise' unknown; .*mean normalize"):
        augment.make({"normalise": {}})


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,), (1.0, 1.0)), ((0.5,), (0.0,)), ((0.5,), (-1.0,))]
)
def test_mean_and_std_that_cannot_normalise_are_refused(mean, std):
    with pytest.raises(ValueError, match=r"one value per channel each, std positive"):
        augment.make({"normalize": {"mean": mean, "std": std}})


@pytest.mark.parametrize("channels", [1, 2, 12])
def test_what_needs_colours_is_left_out_of_images_without(channels):
    blocks = {
        "color_jitter": {"brightness": 0.4, "saturation": 0.2, "hue": 0.1},
        "grayscale": {"probability": 0.2},
        "solarize": {"probability": 0.2},
    }
    kept, left_out = color.for_channels(blocks, channels)
    assert left_out == ["grayscale", "saturation and hue of color_jitter"]
    assert kept["color_jitter"] == {"brightness": 0.4, "saturation": 0.0, "hue": 0.0}
    assert "grayscale" not in kept and kept["solarize"] == blocks["solarize"]
    assert color.for_channels(blocks, 3) == (blocks, [])
    assert color.for_channels(kept, channels) == (kept, [])
    image = np.full((2, 4, 4, channels), 100, np.uint8)
    image[:, :2] = 180
    ops = augment.make({"color_jitter": {"brightness": 0.4, "contrast": 0.4}})
    batch = augment.apply(ops, jax.random.key(0), {"image": jnp.asarray(image)})
    changed = np.asarray(batch["image"])
    assert (changed == changed[..., :1]).all() and (changed != image).any()
