"""Calls end where a run does something, and grow as long as they are short."""

import pytest

from litevit_jax import sharding
from litevit_jax.data import calls


@pytest.fixture
def mesh():
    return sharding.make_mesh()


def test_calls_end_where_a_run_logs_saves_or_evaluates():
    after = calls.stops_at([0, 50, 40], 95)
    steps = [0]
    while steps[-1] < 95:
        steps.append(after(steps[-1]))
    assert steps == [0, 40, 50, 80, 95]
    assert after(95) > 95  # what is read ahead


@pytest.mark.parametrize(("step_s", "updates"), [(1e-4, 64), (0.002, 12), (1.0, 1)])
def test_a_call_has_as_many_updates_as_its_time_allows(
    step_s, updates, mesh, monkeypatch
):
    now = [0.0]
    monkeypatch.setattr(calls.time, "perf_counter", lambda: now[0])
    pace = calls.Pace(mesh, calls.MOST)
    planned = []
    for call in range(30):
        # The feed plans calls ahead: what is chosen later does not change them.
        planned += [pace.updates(n) for n in range(len(planned), call + 4)]
        pace.tick(planned[call])
        now[0] += step_s * planned[call]
    assert planned[0] == 1 and planned[-1] == updates
    assert [pace.updates(n) for n in range(len(planned))] == planned


def test_one_update_a_call_stays_one(mesh):
    pace = calls.Pace(mesh, 1)
    for _ in range(130):
        pace.tick(1)
    assert pace.updates(1000) == 1
