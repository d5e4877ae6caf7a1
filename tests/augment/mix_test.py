"""Mixup and CutMix in closed form, and the target that the objective makes of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax import augment, sharding
from litevit_jax.augment import mix
from litevit_jax.objectives import supervised

BATCH = {
    "image": np.random.default_rng(0).normal(size=(8, 12, 10, 3)).astype(np.float32),
    "label": np.arange(8, dtype=np.int32),
}
BOTH = {"mixup": 0.8, "cutmix": 1.0}


@functools.cache
def compiled(**kwargs):
    return jax.jit(mix.make(**kwargs))


def run(seed=0, batch=BATCH, **kwargs):
    return jax.device_get(compiled(**kwargs)(jax.random.key(seed), batch))


def weights(count, side, **kwargs):
    """Weights of the pixels and the label's share in `count` batches."""
    op = mix.make(**kwargs)
    keys = jax.random.split(jax.random.key(7), count)
    draw = jax.jit(jax.vmap(lambda key: op.weights(key, side, side)))
    return jax.device_get(draw(keys))


def test_mixup_blends_each_image_with_its_mirror_in_the_batch():
    out = run(mixup=0.8)
    share = out["label_share"]
    assert (share == share[0]).all() and 0 < share[0] < 1
    want = share[0] * BATCH["image"] + (1 - share[0]) * BATCH["image"][::-1]
    np.testing.assert_allclose(out["image"], want, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(out["label"], BATCH["label"])
    np.testing.assert_array_equal(out["partner_label"], BATCH["label"][::-1])
    assert run(seed=1, mixup=0.8)["label_share"][0] != share[0]


@pytest.mark.parametrize("seed", range(4))
def test_cutmix_takes_a_box_of_the_partner_and_counts_its_pixels(seed):
    out = run(seed=seed, cutmix=1.0)
    own = (out["image"] == BATCH["image"]).all(axis=(0, 3))
    taken = (out["image"] == BATCH["image"][::-1]).all(axis=(0, 3))
    assert (own ^ taken).all()
    rows, columns = taken.any(axis=1), taken.any(axis=0)
    np.testing.assert_array_equal(taken, rows[:, None] & columns[None])
    for line in (rows, columns):  # one stretch, without gaps
        assert np.count_nonzero(np.diff(np.pad(line.astype(int), 1))) in (0, 2)
    np.testing.assert_allclose(out["label_share"], own.mean(), rtol=1e-6)


def test_the_box_has_the_sides_of_its_definition():
    """Middle and side given, in whole pixels: half = int(side n) // 2 each way."""

    @jax.jit
    @jax.vmap
    def run(key):
        cut = mix._in_cut(key, jnp.float32(0.55), 10)
        return jax.random.randint(key, (), 0, 10), cut

    for middle, cut in zip(*run(jax.random.split(jax.random.key(0), 20)), strict=True):
        want = np.zeros(10, bool)
        want[max(middle - 2, 0) : min(middle + 2, 10)] = True
        np.testing.assert_array_equal(cut, want)


def test_the_share_of_mixup_is_beta_distributed():
    found = weights(4000, 16, mixup=0.2)[1]
    assert abs(found.mean() - 0.5) < 0.02
    np.testing.assert_allclose(found.var(), 1 / (4 * (2 * 0.2 + 1)), atol=0.01)


def test_cutmix_is_chosen_by_the_switch():
    for switch in (0.0, 1.0):
        weight, share = weights(30, 6, **BOTH, switch=switch)
        cut = ((weight == 0) | (weight == 1)).all(axis=(1, 2))
        assert cut.mean() == switch
        np.testing.assert_allclose(weight.mean(axis=(1, 2)), share, rtol=1e-5)


def test_several_labels_of_an_image_are_mixed_as_its_pixels():
    rng = np.random.default_rng(1)
    batch = BATCH | {"labels": (rng.random((8, 3)) < 0.5).astype(np.uint8)}
    out = run(batch=batch, mixup=0.8)
    np.testing.assert_array_equal(out["labels"], batch["labels"])
    np.testing.assert_array_equal(out["partner_labels"], batch["labels"][::-1])
    share = out["label_share"][0]
    want = share * batch["labels"] + (1 - share) * batch["labels"][::-1]
    np.testing.assert_allclose(supervised._labels(out), want, rtol=1e-6)
    assert "partner_labels" not in run(mixup=0.8)


def test_both_alphas_zero_change_nothing():
    out = run(mixup=0.0, cutmix=0.0)
    assert out.keys() == BATCH.keys()
    np.testing.assert_array_equal(out["image"], BATCH["image"])


def test_the_mesh_does_not_change_a_pixel():
    mesh = sharding.make_mesh(8, 1)
    batch = sharding.global_batch(BATCH, mesh)
    for seed in range(3):
        one, eight = run(seed, **BOTH), run(seed, batch, **BOTH)
        for name, value in one.items():
            np.testing.assert_allclose(eight[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_target_is_the_mix_of_smoothed_labels(smoothing):
    encoder = {"width": 8, "depth": 1, "num_heads": 1, "patch_size": 2}
    objective = supervised.make(
        encoder=encoder, num_classes=9, label_smoothing=smoothing
    )
    out = run(mixup=0.8)
    share, smoothed = out["label_share"][0], np.full((8, 9), smoothing / 9)
    smoothed[np.arange(8), BATCH["label"]] += 1 - smoothing
    want = share * smoothed + (1 - share) * smoothed[::-1]
    target = jax.jit(objective._target)(out)
    np.testing.assert_allclose(target, want, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(target.sum(axis=-1), 1, rtol=1e-6)


def test_an_odd_batch_is_refused():
    odd = {name: x[:7] for name, x in BATCH.items()}
    with pytest.raises(ValueError, match=r"batch_size=7 is odd.*--config.batch_size=8"):
        run(batch=odd, mixup=0.2)


def test_an_odd_batch_that_is_not_mixed_passes():
    odd = {name: x[:7] for name, x in BATCH.items()}
    np.testing.assert_array_equal(run(batch=odd)["image"], odd["image"])


def test_two_views_are_refused():
    with pytest.raises(ValueError, match=r"augment.mix needs one image .*views=1"):
        augment.make({"mix": {}})[0](jax.random.key(0), {"views": 0})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mixup": -0.1}, r"augment.mix: mixup=-0.1, expected 0 or more"),
        ({"cutmix": float("nan")}, r"augment.mix: cutmix=nan"),
        ({"switch": 1.5}, r"switch=1.5, expected a probability"),
    ],
)
def test_wrong_settings_are_explained(wrong, message):
    with pytest.raises(ValueError, match=message):
        mix.make(**wrong)
