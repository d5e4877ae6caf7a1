"""The losses of the recorded detector, and batches with few objects or none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax import trees
from litevit_jax.objectives import detection_losses
from litevit_jax.train import lr_scales, optimizer
from litevit_jax.weights import detectron2
from tests import detect_golden as golden
from tests.models import detector_test, vitdet_test

LOSSES = {
    "objectness": "loss_rpn_cls",
    "anchors": "loss_rpn_loc",
    "classes": "loss_cls",
    "boxes": "loss_box_reg",
    "masks": "loss_mask",
}


@pytest.mark.parametrize("beta", [0, 1 / 9, 1])
def test_smooth_l1_is_the_recorded_one(beta):
    values = golden.group("loss")
    got = detection_losses.smooth_l1(values["x"] - values["y"], beta)
    golden.close(got, values[f"smooth_l1_beta{beta:.3f}"], atol=1e-6)


def test_the_cross_entropy_of_a_mask_is_the_recorded_one():
    values = golden.group("mask")
    target = np.unpackbits(values["target_from_polygons"], axis=-1)[..., :28]
    entropy = detection_losses.binary_cross_entropy(
        values["bce_logits"], target.astype(np.float32)
    )
    golden.close(entropy.mean(), values["bce_mean_vs_polygon_target"], atol=1e-6)


def batch(objects=4):
    """The recorded batch; the first objects are padding that looks like objects."""
    values = golden.group("tiny")
    out = {
        "image": vitdet_test.images(),
        "size": detector_test.SIZES,
        "boxes": np.zeros((2, objects, 4), np.float32),
        "classes": np.zeros((2, objects), np.int32),
        "valid": np.zeros((2, objects), bool),
        "masks": np.ones((2, objects, 12, 12), np.uint8),
    }
    out["boxes"][:, 0] = [0, 0, 96, 96]
    for i in range(2):
        boxes = values[f"gt_boxes{i}"]
        last = slice(objects - len(boxes), None)
        out["boxes"][i, last], out["valid"][i, last] = boxes, True
        out["classes"][i, last] = values[f"gt_classes{i}"]
        # Sampled in this order, and each object's own box: their masks in their boxes.
        masks = np.unpackbits(values[f"mask_targets{i}"], axis=-1)[..., :12]
        out["masks"][i, last] = masks
    return out


@functools.cache
def step():
    """Losses, samples and gradients; the first candidates in order are sampled."""
    model = detector_test.recorded()

    @jax.jit
    def run(params, batch):
        anchors = jnp.concatenate([jnp.asarray(x) for x in model.anchors((96, 96))])
        candidates = model.rules.proposals + batch["boxes"].shape[1]
        first = tuple(
            -jnp.broadcast_to(jnp.arange(n, dtype=jnp.float32), (2, n))
            for n in (len(anchors), candidates)
        )

        def total(params):
            each = detection_losses.losses(model, params, batch, first)
            return sum(each.values()), each

        (_, each), grads = jax.value_and_grad(total, has_aux=True)(params)
        rules = model.rules
        labels = detection_losses.label_anchors(rules, anchors, batch, first[0])
        maps = model.maps(params, batch["image"])
        proposed = model.propose(
            model.anchors((96, 96)),
            *model.score(params, maps),
            batch["size"],
            train=True,
        )
        sampled = detection_losses.sample_boxes(model, proposed, batch, first[1])
        return each, grads, labels, sampled

    return run


@functools.cache
def trained():
    return step()(detector_test.params(), batch())


def test_the_recorded_anchors_are_sampled():
    values, (_, positive, sampled) = golden.group("tiny"), trained()[2]
    label = np.where(positive, 1, np.where(sampled, 0, -1))
    left_out = np.unpackbits(values["rpn_labels_ambiguous"], axis=1)
    clear = left_out[:, : label.shape[1]] == 0
    np.testing.assert_array_equal(label[clear], values["rpn_labels"][clear])


def test_the_recorded_boxes_are_sampled():
    values, sampled = golden.group("tiny"), trained()[3]
    assert sampled["valid"].all()
    for i in range(2):
        golden.close(sampled["boxes"][i], values[f"roi_boxes{i}"], atol=1e-3)
        np.testing.assert_array_equal(sampled["classes"][i], values[f"roi_classes{i}"])


def test_the_losses_are_the_recorded_ones():
    values, each = golden.group("tiny"), trained()[0]
    assert each.keys() == LOSSES.keys()
    for name, recorded in LOSSES.items():
        golden.close(each[name], values[recorded], atol=1e-5, err_msg=name)


def test_the_gradients_of_all_parameters_are_the_recorded_ones():
    norms = golden.group("tiny")["grad_norms"]
    flat = {name: np.asarray(x) for name, x in trees.flatten(trained()[1]).items()}
    grads = detectron2.to_detectron2(flat, patch_size=16)
    assert grads.keys() == norms.keys()
    for key, norm in norms.items():
        got = np.linalg.norm(grads[key])
        np.testing.assert_allclose(got, norm, rtol=2e-4, atol=1e-5, err_msg=key)


def test_without_objects_losses_and_gradients_are_finite():
    empty = batch() | {"valid": np.zeros((2, 4), bool)}
    each, grads, (_, positive, sampled), boxes = step()(detector_test.params(), empty)
    assert all(np.isfinite(x) for x in each.values())
    assert each["anchors"] == each["boxes"] == each["masks"] == 0
    assert each["objectness"] > 0 and each["classes"] > 0
    assert not positive.any() and sampled.sum(axis=1).tolist() == [32, 32]
    assert not boxes["positive"].any() and (boxes["classes"] == 3).all()
    for name, x in trees.flatten(grads).items():
        x = np.asarray(x)
        assert np.isfinite(x).all(), name
        if name.startswith(("mask_head", "box_head/offsets", "rpn/offsets")):
            assert not x.any(), name
    assert np.asarray(grads["rpn"]["logits"]["kernel"]).any()
    assert np.asarray(grads["encoder"]["pos_embed"]).any()


def test_nothing_else_of_padded_objects_matters():
    other = batch()
    hidden = ~other["valid"]
    other["boxes"][hidden] = np.float32([3, np.nan, 1e9, -7])
    other["classes"][hidden], other["masks"][hidden] = 2, 0
    for got, want in zip(
        jax.tree.leaves(step()(detector_test.params(), other)[:2]),
        jax.tree.leaves(trained()[:2]),
        strict=True,
    ):
        np.testing.assert_array_equal(got, want)


def test_learning_rates_and_decay_are_the_recorded_ones():
    """All decays but the norms of the encoder's blocks and the positions."""
    params = detector_test.params()
    scales = trees.flatten(lr_scales.layer_scales(params, 0.7))
    skip = (r"encoder/blocks_\d+/norm\d/.*", "encoder/pos_embed")
    decays = trees.flatten(optimizer.decay_mask(params, decay_1d=True, skip=skip))
    names = {key: detectron2.our_name(key) for key in golden.weights()}
    groups = golden.group("tiny")["groups"]
    assert groups.keys() == names.keys()
    for key, (scale, decay) in groups.items():
        np.testing.assert_allclose(scales[names[key]], scale, rtol=1e-6, err_msg=key)
        assert bool(decays[names[key]]) == (decay > 0), key


def test_priorities_follow_from_each_examples_key():
    model = detector_test.recorded()
    keys = jax.random.split(jax.random.key(0), 2)
    anchors, boxes = detection_losses.draw(model, keys, batch())
    assert anchors.shape == (2, 2307) and boxes.shape == (2, 34)
    turned = detection_losses.draw(model, keys[::-1], batch())
    np.testing.assert_array_equal(turned[0][1], anchors[0])
    assert not (anchors[0, :34] == boxes[0]).any()
    assert not (anchors[0] == anchors[1]).any()
