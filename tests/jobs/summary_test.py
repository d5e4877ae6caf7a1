"""What a job prints of its results."""

from litevit_jax.jobs import summary


def test_an_evaluator_that_counts_nothing_has_a_row():
    results = {"s": {"metric": "spread", "last": {"step": 2, "spread": 0.25}}}
    assert summary.results_table(results).splitlines() == [
        "evaluation  metric  last  step  best  step  n  also (last)",
        "s           spread  0.25  2     -     -     -",
    ]
