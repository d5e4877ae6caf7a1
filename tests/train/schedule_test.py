"""Schedules against closed forms and recorded values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax.train import schedule as schedules
from tests import dense_golden

MAE = {"peak": 2.4e-3, "total_steps": 124_800, "warmup_steps": 12_480}


@pytest.mark.parametrize(
    ("step", "lr"),
    [
        (0, 0.0),
        (1, 1.92308e-7),
        (12_479, 2.399808e-3),
        (12_480, 2.4e-3),
        (62_400, 1.408378e-3),
        (124_799, 4.69e-13),
    ],
)
def test_warmcos_gives_the_published_values_of_mae(step, lr):
    schedule = schedules.warmcos(**MAE, start=0.0, end=0.0)
    assert float(schedule(jnp.int32(step))) == pytest.approx(lr, rel=1e-3, abs=0)


@pytest.mark.parametrize(
    ("step", "lr"),
    [(0, 1e-6), (1, 1.01197e-6), (50_040, 6e-4), (250_200, 3.520944e-4)],
)
def test_warmcos_gives_the_published_values_of_moco(step, lr):
    schedule = schedules.warmcos(
        peak=6e-4, total_steps=500_400, warmup_steps=50_040, start=1e-6, end=0.0
    )
    assert float(schedule(jnp.int32(step))) == pytest.approx(lr, rel=1e-5)


@pytest.mark.parametrize(
    ("step", "lr"),
    [
        (0, 0.0),
        (1, 6.394885e-7),
        (6255, 4e-3),
        (187_650, 2.053728e-3),
        (375_299, 1.0e-6),
    ],
)
def test_warmcos_gives_the_published_values_of_finetuning(step, lr):
    schedule = schedules.warmcos(
        peak=4e-3, total_steps=375_300, warmup_steps=6255, start=0.0, end=1e-6
    )
    assert float(schedule(jnp.int32(step))) == pytest.approx(lr, rel=1e-5)


def test_warmcos_equals_the_formula_in_float64_at_every_step():
    total, warm, peak, start, end = 997, 101, 2.4e-3, 1e-6, 1e-5
    schedule = jax.vmap(
        schedules.warmcos(
            peak=peak, total_steps=total, warmup_steps=warm, start=start, end=end
        )
    )
    k = np.arange(total, dtype=np.float64)
    c = 0.5 * (1 + np.cos(np.pi * (k - warm) / (total - warm)))
    want = np.where(
        k < warm, start + (peak - start) * k / warm, peak * c + end - end * c
    )
    np.testing.assert_allclose(schedule(jnp.arange(total)), want, rtol=2e-6)


def test_no_warmup_is_pure_cosine():
    schedule = schedules.warmcos(
        peak=1.0, total_steps=10, warmup_steps=0, start=0.0, end=0.0
    )
    assert float(schedule(0)) == 1.0
    assert float(schedule(5)) == pytest.approx(0.5)


def test_warmup_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match=r"warm-up of 10 steps does not fit .* of 10"):
        schedules.warmcos(peak=1, total_steps=10, warmup_steps=10, start=0, end=0)


def test_a_linear_decay_gives_the_recorded_values_of_mmsegmentation():
    recorded = dense_golden.group("schedule")["ade20k_lr"]
    schedule = schedules.warmcos(
        peak=1e-4,
        total_steps=160_000,
        warmup_steps=1500,
        start=1e-10,
        end=0.0,
        decay="linear",
    )
    assert len(recorded) > 10
    for step, lr in recorded.items():
        got = float(schedule(jnp.int32(step)))
        assert got == pytest.approx(lr, rel=1e-5, abs=0), step


def test_a_linear_decay_needs_no_warmup_and_ends_at_its_end():
    schedule = schedules.warmcos(
        peak=1.0, total_steps=5, warmup_steps=0, start=0.0, end=0.2, decay="linear"
    )
    got = [float(schedule(k)) for k in range(5)]
    np.testing.assert_allclose(got, np.linspace(1, 0.2, 5), rtol=1e-6)
    with pytest.raises(
        ValueError, match=r"lr.decay 'poly' unknown.*cosine, linear, steps"
    ):
        schedules.warmcos(
            peak=1, total_steps=5, warmup_steps=0, start=0, end=0, decay="poly"
        )


def test_steps_are_those_of_the_papers_detector():
    """100 epochs of 118,000 images in batches of 64 (arXiv 2205.14443's authors)."""
    schedule = schedules.warmcos(
        peak=1e-4,
        total_steps=184_375,
        warmup_steps=250,
        start=1e-7,
        end=0.0,
        decay="steps",
    )
    want = {0: 1e-7, 125: 5.005e-5, 250: 1e-4, 163_887: 1e-4}
    want |= {163_888: 1e-5, 177_545: 1e-5, 177_546: 1e-6, 184_374: 1e-6}
    for step, lr in want.items():
        assert float(schedule(jnp.int32(step))) == pytest.approx(lr, rel=1e-5), step
