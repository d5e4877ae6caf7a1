"""Feature regression: its two distances, and a teacher that stays as it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax.objectives import feature
from tests import params as parameters

KEY = jax.random.key(0)
ENCODER = {"width": 24, "depth": 1, "num_heads": 3, "patch_size": 4}
TEACHER = {"width": 32, "depth": 2, "num_heads": 4, "patch_size": 4}
IMAGES = np.random.default_rng(7).normal(size=(3, 8, 8, 3)).astype(np.float32)
BATCH = {"image": IMAGES}


def make(**kwargs):
    blocks = {"encoder": ENCODER, "teacher": TEACHER, "dtype": "float32"}
    return feature.make(**blocks | kwargs)


@functools.cache
def started():
    """Parameters and teacher."""
    params, _, teacher = parameters.start(make(), BATCH)
    return params, teacher


@functools.cache
def run(distance):
    """Loss, metrics and gradients (parameters' and teacher's)."""
    objective = make(distance=distance)

    def loss(params, teacher):
        value, (metrics, _) = objective.loss(params, {}, teacher, BATCH, KEY)
        return value, metrics

    graded = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    return jax.device_get(graded(*started()))


@functools.cache
def tokens_of(encoder):
    params = started()[encoder == make().teacher]["encoder"]
    return np.asarray(jax.jit(encoder.apply)({"params": params}, BATCH["image"])[0])


def sides():
    """The student's mapped tokens and the teacher's, one by one."""
    objective, (params, _) = make(), started()
    tokens, taught = map(tokens_of, (objective.encoder, objective.teacher))
    return np.asarray(tokens @ params["adapter"]["kernel"]), np.asarray(taught)


def cosine(x, y):
    return (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)


def test_cosine_distance():
    (loss, metrics), _ = run("cosine")
    expected = cosine(*sides()).mean()
    np.testing.assert_allclose(metrics["cosine"], expected, atol=1e-5)
    np.testing.assert_allclose(loss, 1 - expected, rtol=1e-5)


def test_smooth_l1_distance_to_whitened_tokens():
    (loss, metrics), _ = run("smooth_l1")
    x, y = sides()
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    gap = np.abs(x - y)
    assert (gap > 2).any() and (gap < 2).any()
    expected = np.where(gap < 2, gap**2 / 4, gap - 1).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], loss)


@pytest.mark.parametrize("distance", feature.DISTANCES)
def test_the_teacher_gets_no_gradient_and_all_parameters_do(distance):
    _, (of_params, of_teacher) = run(distance)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(of_teacher))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(of_params))
    assert make().frozen_teacher
    assert set(of_params) == {"encoder", "adapter"}
    assert of_params["adapter"]["kernel"].shape == (24, 32)


def test_features_are_the_students():
    found = jax.jit(make().predict)(started()[0], {}, BATCH)
    tokens = tokens_of(make().encoder)
    np.testing.assert_allclose(found["features"], tokens[:, 0], atol=1e-5)
    mean = tokens[:, 1:].mean(axis=1)
    np.testing.assert_allclose(found["features_avg"], mean, atol=1e-5)


def test_health_has_the_agreement_of_class_tokens():
    params, teacher = started()
    found = jax.jit(make().health)(params, {}, teacher, BATCH, KEY)
    x, y = sides()
    expected = cosine(x[:, 0], y[:, 0]).mean()
    np.testing.assert_allclose(found["teacher_agreement"], expected, atol=1e-5)
    assert {"feature_std", "effective_rank"} < set(found)
    assert all(jnp.ndim(value) == 0 for value in found.values())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"distance": "l1"}, r"distance 'l1' unknown; .*choose from smooth_l1, cosine"),
        (
            {"teacher": TEACHER | {"patch_size": 8}},
            r"feature: the teacher's patch_size=8, the encoder's is 4",
        ),
    ],
)
def test_errors_say_what_to_do(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)
