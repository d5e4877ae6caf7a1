"""A patch embedding of other channels is adapted by a stated rule, or refused."""

import jax
import numpy as np
import pytest

from litevit_jax import trees
from litevit_jax.models import vit
from litevit_jax.warm_start import channels
from tests import params as parameters

NAME, SIDE, WIDTH = "encoder/patch_embed/kernel", 2, 8


def kernel(count):
    return np.random.default_rng(3).normal(size=(SIDE**2 * count, WIDTH))


def each(array):
    """[P*P*C, D] -> [C, P*P, D]."""
    return np.moveaxis(array.reshape(SIDE**2, -1, WIDTH), 1, 0)


def adapted(old, new, rule):
    return each(channels.adapt(kernel(old), SIDE, new, rule))


def test_the_rules_are_those_of_the_documentation():
    one, two, three = each(kernel(3))
    np.testing.assert_allclose(adapted(3, 5, "mean"), [(one + two + three) / 5] * 5)
    np.testing.assert_allclose(adapted(3, 1, "mean"), [one + two + three])
    np.testing.assert_allclose(
        adapted(3, 5, "repeat"), [one / 2, two / 2, three, one / 2, two / 2]
    )
    np.testing.assert_allclose(
        adapted(3, 6, "repeat"), [one / 2, two / 2, three / 2] * 2
    )
    nothing = np.zeros_like(one)
    np.testing.assert_allclose(
        adapted(3, 5, "rgb"), [one, two, three, nothing, nothing]
    )
    (grey,) = each(kernel(1))
    for rule in ("mean", "repeat"):
        np.testing.assert_allclose(adapted(1, 4, rule), [grey / 4] * 4)


@pytest.mark.parametrize("old", [1, 3])
def test_an_image_of_equal_channels_keeps_its_features(old):
    sizes = {"width": WIDTH, "depth": 1, "num_heads": 2, "patch_size": SIDE}
    encoder = vit.make_encoder(**sizes)
    grey = np.random.default_rng(0).normal(size=(3, 4, 4, 1)).astype(np.float32)
    image = np.repeat(grey, old, -1)
    params = parameters.start(encoder, image)["params"]

    @jax.jit
    def embedded(embedding, pixels):
        changed = {**params, "patch_embed": embedding}
        return encoder.apply({"params": changed}, pixels)[0]

    want = embedded(params["patch_embed"], image)
    assert np.abs(want).max() > 0.5
    for new in (1, 4, 12):
        for rule in channels.RULES:
            if (rule == "rgb" and (old == 1 or new == 1)) or (old, new, rule) == (
                3,
                1,
                "repeat",
            ):
                continue
            own = channels.adapt(
                np.asarray(params["patch_embed"]["kernel"]), SIDE, new, rule
            )
            got = embedded(
                {**params["patch_embed"], "kernel": own}, np.repeat(grey, new, -1)
            )
            np.testing.assert_allclose(got, want, atol=2e-6, err_msg=f"{new} {rule}")


@pytest.mark.parametrize(
    ("old", "new", "rule", "message"),
    [
        (1, 4, "rgb", "three channels, here are 1 for 4; take mean"),
        (3, 2, "rgb", "three channels, here are 3 for 2"),
        (3, 1, "repeat", "would drop 2 of the kernel's 3 channels"),
    ],
)
def test_a_rule_that_would_drop_channels_is_refused(old, new, rule, message):
    with pytest.raises(ValueError, match=message):
        adapted(old, new, rule)


def matched(old, new, rule, **options):
    params = {"encoder": {"patch_embed": {"kernel": kernel(new)}}}
    arrays = {NAME: kernel(old)}
    return channels.match(params, arrays, patch_size=SIDE, rule=rule, **options)[NAME]


def test_other_channels_without_a_rule_are_an_error_that_names_it():
    message = (
        r"reads 3 channels, the images have 12 .*--config\.init_channels=mean, repeat "
        r"or rgb, .*--config\.data\.channels=3"
    )
    with pytest.raises(ValueError, match=message):
        matched(3, 12, None)
    with pytest.raises(ValueError, match=r"init_channels 'men' unknown; did you mean"):
        matched(3, 3, "men")
    assert np.array_equal(matched(3, 3, "mean"), kernel(3))
    assert np.array_equal(matched(3, 12, None, load=("head/.*",)), kernel(3))
    assert matched(3, 12, "mean").shape == kernel(12).shape
    assert [*trees.flatten({"encoder": {"patch_embed": {"kernel": 1}}})] == [NAME]
