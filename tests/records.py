"""What a run leaves in its directory, for tests that compare runs."""

import json

import numpy as np

from litevit_jax.warm_start import read


def rows(workdir):
    """The records of `metrics.jsonl`."""
    text = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in text]


def losses(workdir):
    """Step -> loss."""
    return {r["step"]: r["loss"] for r in rows(workdir) if "loss" in r}


def params(workdir, step=6):
    """Name -> parameter, as saved at a step."""
    return read.read_params(str(workdir / "checkpoints" / str(step))).params


def same(one, other):
    """Asserts that two results of `params` are equal bit for bit."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)
