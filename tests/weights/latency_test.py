"""The table of times: what it lists and what it says of the machine."""

import pytest

from litevit_jax.weights import latency
from tests.weights import export_test


@pytest.mark.parametrize(
    ("heads", "others"), [((12, 5, 0, 3), [12, 3]), ((4,), []), ((8, 4), [8])]
)
def test_the_model_is_timed_first_and_then_with_heads_that_divide_its_width(
    heads, others
):
    model = export_test.model_of("tokens")  # 24 wide, 4 heads
    assert list(latency.jitted(model, heads)) == [
        "JAX, 4 heads",
        *(f"JAX, {n} heads instead" for n in others),
    ]


def test_heads_change_the_function_and_not_its_size():
    model = export_test.model_of("tokens")
    rows = latency.time_calls(model, latency.jitted(model, (4, 3)), repeats=3)
    assert [row.num_macs for row in rows] == [rows[0].num_macs] * 2
    assert [row.num_parameters for row in rows] == [model.num_parameters] * 2
    assert all(len(row.times_ms) == 3 and row.median > 0 for row in rows)


def test_the_table_gives_median_and_spread_under_the_machine():
    row = latency.Row("JAX, 3 heads", 5_717_416, 1_253_700_000, (2.0, 9.0, 4.0))
    first, _, line = latency.table([row]).splitlines()
    assert latency.machine() in first and "JAX" in latency.machine()
    assert line.split() == [
        "JAX,", "3", "heads", "5,717,416", "1.254", "4.00", "[2.40", "..", "8.00],",
        "n", "3",
    ]  # fmt: skip
    assert row.median == pytest.approx(4.0)
