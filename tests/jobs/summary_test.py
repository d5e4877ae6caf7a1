"""What a job prints of its results."""

from litevit_jax.jobs import summary


def test_an_evaluator_that_counts_nothing_has_a_row():
    results = {"s": {"metric": "spread", "last": {"step": 2, "spread": 0.25}}}
    assert summary.results_table(results).splitlines() == [
        "evaluation  metric  last  step  best  step  n  also (last)",
        "s           spread  0.25  2     -     -     -",
    ]


def test_many_numbers_of_an_evaluation_are_below_the_table():
    last = {"step": 2, "n": 9, "ap": 50.0} | {f"ap_of_size_{i}": i for i in range(20)}
    text = summary.results_table({"test": {"metric": "ap", "last": last}})
    assert text.splitlines()[1].split()[:3] == ["test", "ap", "50"]
    assert all(f"ap_of_size_{i} {i}" in text for i in range(20))
    assert max(map(len, text.splitlines())) <= 88
