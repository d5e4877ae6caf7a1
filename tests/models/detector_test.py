"""The whole detector, against detectron2's, and its selection of detections."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax import trees
from litevit_jax.models import detections, detector
from litevit_jax.weights import detectron2
from tests import detect_golden as golden
from tests.models import vitdet_test

SIZES = np.int32([[84, 96], [96, 72]])  # of the recorded pictures, without padding


HEADS = {
    "num_classes": 3,
    "channels": 8,
    "box_convs": 2,
    "box_hidden": 12,
    "mask_convs": 2,
    "anchor_sizes": (0.5, 1, 2, 4, 6),
    "pooled": (4, 6),
}
RULES = {
    "train_per_level": 40,
    "test_per_level": 40,
    "proposals": 30,
    "anchor_samples": 32,
    "anchor_positive": 16,
    "box_samples": 24,
    "box_positive": 6,
    "min_score": 0.2,
    "detections": 6,
}


def recorded(**kwargs):
    """The recorded detector."""
    encoder = {**vitdet_test.TINY, "global_blocks": (2, 4)}
    return detector.make(**{"encoder": encoder, **HEADS, **RULES, **kwargs})


@functools.cache
def params():
    return trees.nest(detectron2.from_detectron2(golden.weights()))


@functools.cache
def predicted():
    """Results of every step of the recorded detector at test."""
    model = recorded()

    @jax.jit
    def run(params, image, size):
        maps = model.maps(params, image)
        logits, offsets = model.score(params, maps)
        anchors = model.anchors(image.shape[1:3])
        proposed = model.propose(anchors, logits, offsets, size, train=False)
        return {
            "maps": maps,
            "logits": logits,
            "offsets": offsets,
            "proposed": proposed,
            "pooled": model.pool(maps, proposed.boxes, 4),
            "classified": model.classify(params, maps, proposed.boxes),
            "detected": model.detect(params, image, size),
        }

    return run(params(), vitdet_test.images(), SIZES)


def test_anchors_are_scored_and_moved_as_recorded():
    values, got = golden.group("tiny"), predicted()
    for i in range(5):
        want = golden.maps(values[f"rpn_logits{i}"]).reshape(2, -1)
        golden.close(got["logits"][i], want)
        want = golden.maps(values[f"rpn_deltas{i}"]).reshape(2, -1, 4)
        golden.close(got["offsets"][i], want)


def test_proposals_are_the_recorded_ones():
    values, got = golden.group("tiny"), predicted()["proposed"]
    assert got.valid.all()
    for i in range(2):
        golden.close(got.boxes[i], values[f"proposals{i}"], atol=1e-3)
        golden.close(got.logits[i], values[f"proposal_logits{i}"])


def test_proposals_are_pooled_and_classified_as_recorded():
    values, got = golden.group("tiny"), predicted()
    first = np.asarray(got["pooled"])[:5].transpose(0, 3, 1, 2)
    golden.close(first, values["box_pooled_first5"])
    logits, offsets = got["classified"]
    golden.close(logits.reshape(60, 4), values["roi_scores"])
    golden.close(offsets.reshape(60, 12), values["roi_deltas"])


def test_detections_and_masks_are_the_recorded_ones():
    values, got = golden.group("tiny"), predicted()["detected"]
    assert got["valid"].all() and not got["left_out"].any()
    for i in range(2):
        golden.close(got["boxes"][i], values[f"det_boxes{i}"], atol=1e-3)
        golden.close(got["scores"][i], values[f"det_scores{i}"])
        np.testing.assert_array_equal(got["classes"][i], values[f"det_classes{i}"])
        golden.close(got["masks"][i], values[f"det_masks{i}"])


def select(boxes, scores, valid=None, size=(64, 96), **kwargs):
    given = {"min_score": 0.05, "threshold": 0.5, "count": 20, "candidates": 2000}
    valid = np.ones(len(boxes), bool) if valid is None else valid
    chosen = functools.partial(detections.select, **given | kwargs)
    return jax.jit(chosen)(boxes, scores, valid, np.int32(size))


def test_selected_detections_are_the_recorded_ones():
    values = golden.group("detections")
    boxes, scores = values["boxes"], values["scores"][:, :-1]
    got = select(boxes, scores)
    assert got.valid.all()
    golden.close(got.boxes, values["out_boxes"])
    golden.close(got.scores, values["out_scores"])
    np.testing.assert_array_equal(got.classes, values["out_classes"])
    np.testing.assert_array_equal(got.rows, values["out_rows"])


def test_padding_is_no_detection_and_what_is_not_looked_at_is_counted():
    values = golden.group("detections")
    boxes, scores = values["boxes"], values["scores"][:, :-1]
    passing = int((scores > 0.05).sum())
    few = select(boxes, scores, candidates=10)
    assert few.left_out == passing - 10
    none = select(boxes, scores, valid=np.zeros(30, bool), count=120)
    assert none.boxes.shape == (120, 4) and not none.valid.any()
    assert not none.scores.any() and none.left_out == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_box_that_is_not_finite_takes_no_detection_s_room(bad):
    values = golden.group("detections")
    boxes, scores = np.array(values["boxes"]), np.array(values["scores"][:, :-1])
    want = select(boxes[1:], scores[1:], count=3)
    boxes[0, :, 2], scores[0] = bad, 0.99
    got = select(boxes, scores, count=3)
    np.testing.assert_array_equal(got.boxes, want.boxes)
    np.testing.assert_array_equal(got.rows, want.rows + 1)
    assert got.valid.all()


def test_the_published_detector_has_its_number_of_parameters():
    model = detector.make(encoder={"variant": "tiny", "grid": (40, 40)}, num_classes=80)
    image = jax.ShapeDtypeStruct((1, 640, 640, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    parts = {
        name: sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))
        for name, tree in shapes.items()
    }
    assert parts["rpn"] == 1_184_015 and parts["mask_head"] == 2_644_304
    assert parts["box_head"] == 15_207_424 + 411_025
    assert sum(parts.values()) == 27_652_512
    assert sum(map(len, model.anchors((640, 640)))) == 102_300
    counts = golden.group("anchors")["counts_640"]
    assert [len(x) for x in model.anchors((640, 640))] == counts.tolist()
    assert model.strides == (4, 8, 16, 32, 64)


def test_a_detector_names_its_parameters_as_detectron2_does():
    shapes = jax.eval_shape(
        recorded().init, jax.random.key(0), jnp.zeros((1, 96, 96, 3))
    )
    got = {name: x.shape for name, x in trees.flatten(shapes).items()}
    want = {name: x.shape for name, x in trees.flatten(params()).items()}
    assert got == want


def test_initial_values_are_detectron2s():
    model = recorded(channels=64, box_hidden=64, num_classes=40)
    init = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 96, 96, 3)))
    flat = {name: np.asarray(x) for name, x in trees.flatten(init).items()}
    fan = 64 * 9
    for name, std in {
        "rpn/conv_0/kernel": 0.01,
        "rpn/offsets/kernel": 0.01,
        "box_head/conv_1/kernel": (2 / fan) ** 0.5,
        "box_head/fc/kernel": (1 / (64 * 16)) ** 0.5,
        "box_head/logits/kernel": 0.01,
        "box_head/offsets/kernel": 0.001,
        "mask_head/conv_2/kernel": (2 / fan) ** 0.5,
        "mask_head/up/kernel": (2 / (64 * 4)) ** 0.5,
        "mask_head/logits/kernel": 0.001,
        "neck/p2/project/kernel": (1 / 3 / 4) ** 0.5,
        "neck/p5/convolve/kernel": (1 / 3 / fan) ** 0.5,
    }.items():
        np.testing.assert_allclose(flat[name].std(), std, rtol=0.12, err_msg=name)
    for name, x in flat.items():
        if name.endswith("bias") and not name.startswith(("neck", "encoder")):
            assert not x.any(), name


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_classes": 0}, "num_classes=0.*at least 1 class"),
        ({"anchor_sizes": (2, 4)}, r"anchor_sizes=\(2, 4\).*each of 5 levels"),
    ],
)
def test_bad_settings_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        recorded(**changed)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"box_positive": 0}, "rules.box_positive=0: expected 1 or more"),
        ({"proposals": -1}, "rules.proposals=-1: expected 1 or more"),
        ({"overlap": 1.5}, "rules.overlap=1.5: expected a number from 0 to 1"),
        (
            {"box_positive": 25},
            "rules.box_positive=25: expected box_samples=24 or less",
        ),
        ({"anchor_low": 0.8}, "rules.anchor_low=0.8: expected anchor_high=0.7 or less"),
    ],
)
def test_rules_out_of_range_are_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        recorded(**rules)
