"""BYOL: its loss against one written out, and what it has of its own."""

import functools

import jax
import numpy as np
import pytest

from litevit_jax.objectives import byol
from tests import jobs
from tests import params as parameters

KEY = jax.random.key(0)
ENCODER = {"width": 24, "depth": 1, "num_heads": 2, "patch_size": 4}
SIZES = {"encoder": ENCODER, "mlp_dim": 32, "embed_dim": 16, "momentum_steps": 9}
VIEWS = np.random.default_rng(1).normal(size=(2, 16, 8, 8, 3)).astype(np.float32)


@functools.cache
def run():
    """The objective, its variables, and loss and gradients of both branches."""
    objective = byol.make(**SIZES)
    variables = parameters.start(objective, {"views": VIEWS})
    grad = jax.value_and_grad(objective.loss, argnums=(0, 2), has_aux=True)
    graded = jax.jit(grad)(*variables, {"views": VIEWS}, KEY)
    return objective, variables, jax.device_get(graded)


def test_the_loss_is_the_squared_distance_of_unit_rows_both_ways():
    objective, variables, ((loss, (metrics, _)), _) = run()
    q, k, _ = jax.jit(objective.embed)(*variables, VIEWS)
    rows = [[x / np.linalg.norm(x, axis=1, keepdims=True) for x in xs] for xs in (q, k)]
    gaps = [rows[0][i] - rows[1][1 - i] for i in (0, 1)]
    want = sum(np.square(gap).sum(axis=1).mean() for gap in gaps)
    np.testing.assert_allclose([loss, metrics["loss"]], want, rtol=1e-5)
    np.testing.assert_allclose(metrics["cosine"], 1 - want / 4, atol=1e-5)


def test_the_student_learns_and_the_teacher_gets_no_gradient():
    _, _, (_, (student, teacher)) = run()
    assert not any(leaf.any() for leaf in jax.tree.leaves(teacher))
    for part in ("encoder", "projector", "predictor"):
        assert max(abs(leaf).max() for leaf in jax.tree.leaves(student[part])) > 1e-3


def test_a_row_of_zeros_has_cosine_zero_and_a_finite_gradient():
    x = np.eye(4, 8, dtype=np.float32)
    x[0] = 0
    value, grad = jax.jit(jax.value_and_grad(byol.mean_cosine))(x, x)
    assert value == 0.75 and np.isfinite(grad).all()


def test_its_reason_against_slices_is_not_that_of_negatives():
    assert run()[0].needs_whole_batch == "its BatchNorm is that of all images"


def test_the_recipe_has_byols_momentum_and_a_run_of_its_own_name():
    config = jobs.config("byol_tiny", "digits")
    assert config.name == "byol_tiny-digits"
    assert config.objective.momentum == byol.make(**SIZES).momentum == 0.996


@pytest.mark.parametrize("name, value", [("momentum", 1.5), ("momentum_steps", 0)])
def test_errors_name_the_objective_and_the_value(name, value):
    with pytest.raises(ValueError, match=f"byol: .*{name}={value}.*expected"):
        byol.make(**SIZES | {name: value})
