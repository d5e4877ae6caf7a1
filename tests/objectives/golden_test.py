"""Parity with the reference models at recorded values (recipes, section 13)."""

import jax
import numpy as np
import pytest

from litevit_jax.models import vit
from litevit_jax.objectives import mae, supervised
from tests import golden

BATCH = {"image": np.zeros((2, 224, 224, 3), np.float32), "label": np.zeros(2, int)}


def close(actual, expected):
    np.testing.assert_allclose(
        actual, expected, rtol=golden.RTOL, atol=golden.ATOL, strict=False
    )


@pytest.fixture(scope="module")
def image():
    return golden.images(2)


def make_mae(**kwargs):
    return mae.make(
        encoder={"variant": "tiny"}, decoder={"variant": "tiny"}, dtype="float32"
    )


@pytest.fixture(scope="module")
def tiny(image):
    """Everything the tiny MAE computes for the golden input."""
    objective = make_mae()
    shapes = jax.eval_shape(objective.init, jax.random.key(0), BATCH).params
    params = golden.params_like(shapes)

    @jax.jit
    def run(params, image, ids):
        pred, latent, found = objective.forward(params, image, ids, all_patches=True)
        batch = {"image": image, "ids_shuffle": ids}
        loss, _ = objective.loss(params, {}, {}, batch, jax.random.key(0))
        raw = mae.dataclasses.replace(objective, norm_pix_loss=False)
        raw_loss, _ = raw.loss(params, {}, {}, batch, jax.random.key(0))
        masked, *_ = objective.forward(params, image, ids)
        return {
            "pred": pred,
            "masked_pred": masked,
            "latent": latent,
            "S": found["block_11/attn_logits"],
            "loss": loss,
            "raw_loss": raw_loss,
        }

    return params, jax.device_get(run(params, image, golden.ids_shuffle(2)))


def test_fill_follows_the_recorded_rule(tiny, image):
    params = tiny[0]["encoder"]
    close(image[0, 0, :4, 0], [-1.26903, 1.26138, 0.599913, 0.638438])
    close(image[1, -1, -4:, 2], [0.108542, 0.688546, -0.603851, 0.781951])
    cls = params["cls_token"][0, 0, :4]
    close(cls, [-0.0356311, -0.0419838, -0.0213827, -0.0223269])
    qkv = params["blocks_0"]["attn"]["qkv"]["kernel"][:4, 0]
    close(qkv, [-0.0195178, 0.00384053, 0.0157589, 0.0289979])
    close(params["norm"]["scale"][:3], [0.94845, 1.03089, 0.994487])


def test_recorded_mask():
    ids = golden.ids_shuffle(2)
    restore = np.argsort(ids, axis=1)
    assert restore[0, :5].tolist() == [0, 53, 106, 159, 16]
    assert (restore[0, :8] >= 49).astype(int).tolist() == [0, 1, 1, 1, 0, 1, 1, 1]
    assert (restore >= 49).sum() == 294


def test_tiny_mae_losses(tiny):
    close(tiny[1]["loss"], 1.081296)
    close(tiny[1]["raw_loss"], 0.829725)


def test_tiny_mae_latent(tiny):
    latent = tiny[1]["latent"]
    close(latent[0, 0, :4], [0.0595372, 1.9471, 0.00858787, 1.00228])
    close(latent[1, 49, 188:], [0.919704, -1.05716, 1.92792, -0.53438])


def test_tiny_mae_prediction(tiny):
    pred = tiny[1]["pred"]
    close(pred[0, 0, :4], [-0.349676, -0.329105, -0.145461, 0.25017])
    close(pred[1, 195, 764:], [-0.126625, 0.390038, -0.4184, -0.0361474])


def test_masked_rows_are_those_of_the_whole_prediction(tiny):
    ids = golden.ids_shuffle(2)[:, 49:, None]
    expected = np.take_along_axis(tiny[1]["pred"], ids, axis=1)
    np.testing.assert_allclose(tiny[1]["masked_pred"], expected, rtol=0, atol=1e-5)


def test_tiny_mae_last_attention_logits(tiny):
    logits = tiny[1]["S"]
    close(logits[0, 0, 0, :4], [-0.00439778, 0.205918, 0.148538, 0.249904])
    close(logits[1, 11, 49, 46:], [-0.035219, -0.00313486, -0.0391132, 0.151869])
    close(logits.mean(dtype=np.float64), 0.000859154)
    close(logits.std(dtype=np.float64), 0.153045)


def test_base_teacher_last_attention_logits(image):
    encoder = vit.make_encoder(variant="base")
    ids_keep = golden.ids_shuffle(2)[:, :49]
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), image, ids_keep)
    params = golden.params_like({"encoder": shapes["params"]})["encoder"]

    @jax.jit
    def logits(params, image, ids_keep):
        _, found = encoder.apply({"params": params}, image, ids_keep)
        return found["block_11/attn_logits"][0, 0, 0, :4]

    recorded = [-0.803913, -0.628953, -0.222922, -0.0920693]
    close(logits(params, image, ids_keep), recorded)


@pytest.mark.parametrize(
    ("pool", "first", "last", "argmax"),
    [
        (
            "avg",
            [0.52863, 0.426949, 0.143044, 0.756373],
            [-0.1026, 0.577825, 0.345486, 0.140178],
            [372, 372],
        ),
        ("cls", [0.612886, 0.0430752, 0.318717, -0.131084], None, [330, 372]),
    ],
)
def test_tiny_classifier_logits(image, pool, first, last, argmax):
    encoder = {"variant": "tiny", "pos_embed": "sincos"}
    objective = supervised.make(
        encoder=encoder, num_classes=1000, pool=pool, dtype="float32"
    )
    shapes = jax.eval_shape(objective.init, jax.random.key(0), BATCH).params
    params = golden.params_like(shapes)
    logits = jax.jit(objective.predict)(params, {}, {"image": image})["logits"]
    close(logits[0, :4], first)
    if last is not None:
        close(logits[1, 996:], last)
    assert logits.argmax(axis=1).tolist() == argmax
