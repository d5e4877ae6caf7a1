"""Detection as an objective: what it adds to the detector and its losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax.objectives import detect
from tests import detect_golden as golden
from tests import params as parameters
from tests.models import detector_test, vitdet_test
from tests.objectives import detection_losses_test

KEY = jax.random.key(0)


def recorded(**kwargs):
    """The objective of the recorded detector."""
    encoder = {**vitdet_test.TINY, "global_blocks": (2, 4)}
    del encoder["grid"]
    given = {"encoder": encoder, "image_size": (96, 96), "rules": detector_test.RULES}
    return detect.make(**given | detector_test.HEADS | kwargs)


def batch():
    """The recorded batch, masks as sources give them."""
    whole = detection_losses_test.batch()
    masks = whole["masks"].reshape(2, -1, 12 * 12)
    return whole | {"masks": np.packbits(masks, axis=-1), "slot": np.arange(2)}


def test_it_builds_the_recorded_detector():
    assert recorded().detector == detector_test.recorded()


def test_masks_are_unpacked_as_they_were():
    masks = batch()["masks"]
    assert masks.shape == (2, 4, 18)
    got = detect.unpacked(jnp.asarray(masks))
    np.testing.assert_array_equal(got, detection_losses_test.batch()["masks"])


@functools.cache
def computed():
    """Losses by two keys, of a batch and of its examples in another order."""
    objective, one = recorded(), batch()

    @jax.jit
    def run(params, batch, key):
        return objective.loss(params, {}, {}, batch, key)

    params = detector_test.params()
    other = {k: x[::-1] for k, x in one.items()}
    calls = [(one, KEY), (other, KEY), (one, jax.random.key(1))]
    return [run(params, x, key) for x, key in calls]


def test_the_loss_is_the_sum_of_its_parts():
    loss, (metrics, state) = computed()[0]
    names = {f"loss_{name}" for name in detection_losses_test.LOSSES}
    assert metrics.keys() == {"loss", *names} and state == {}
    parts = [float(metrics[name]) for name in names]
    assert min(parts) > 0
    assert float(loss) == metrics["loss"] == pytest.approx(sum(parts), rel=1e-5)


def test_samples_follow_from_the_key_and_the_slot_of_each_example():
    one, other, key = (float(metrics["loss"]) for _, (metrics, _) in computed())
    assert one == pytest.approx(other, rel=1e-5) and one != pytest.approx(key, rel=1e-5)


def test_predictions_are_the_recorded_detections():
    values, objective = golden.group("tiny"), recorded(dtype="bfloat16")
    images = {"image": vitdet_test.images(), "size": detector_test.SIZES}
    out = jax.jit(objective.predict)(detector_test.params(), {}, images)
    assert out["valid"].all()
    for i in range(2):  # in float32, whatever the type in training
        golden.close(out["boxes"][i], values[f"det_boxes{i}"], atol=1e-3)
        golden.close(out["masks"][i], values[f"det_masks{i}"])


def test_the_published_objective_has_its_number_of_parameters():
    objective = detect.make(
        encoder={"variant": "tiny", "pos_embed": "learned_sincos"},
        num_classes=80,
        image_size=(640, 640),
    )
    shape = {"image": jax.ShapeDtypeStruct((1, 640, 640, 3), jnp.float32)}
    assert parameters.size(parameters.shapes_of(objective, shape).params) == 27_652_512
    assert objective.detector.encoder.grid == (40, 40)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rules": {"proposal": 9}}, "objective.rules 'proposal' unknown.*proposals"),
        ({"image_size": (96, 90)}, "96x90 pixels for patches of 16.*data.image_size"),
        ({"image_size": (16, 16)}, "16x16 pixels for patches of 16: .*32 or more"),
        ({"encoder": {"pos_embed": "sincos"}}, "pos_embed 'sincos' unknown"),
        ({"encoder": {"rpe_style": "beit"}}, "rpe_style.*start anew"),
        ({"num_classes": 0}, "num_classes=0"),
    ],
)
def test_what_cannot_work_is_refused(fields, message):
    encoder = {**vitdet_test.TINY, **fields.get("encoder", {})}
    encoder.pop("grid")
    with pytest.raises(ValueError, match=message):
        recorded(**fields | {"encoder": encoder})
