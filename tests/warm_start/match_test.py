"""What another run takes of a checkpoint, and what is said of the rest."""

import pathlib

import numpy as np
import pytest

from litevit_jax.warm_start import read, start
from tests import jobs

ONES = np.ones(24, np.float32)


def classifier():
    """Entries of a file whose last norm follows the average."""
    params = {"encoder/cls_token": 2 * ONES, "head/fc_norm/scale": 3 * ONES}
    sizes = {"width": 24, "depth": 1, "num_heads": 2, "patch_size": 2, "grid": (4, 4)}
    config = {"objective": {"encoder": sizes, "pool": "avg"}}
    return read.Checkpoint(params, config, 0, pathlib.Path("FILE"))


def probe():
    made = jobs.tiny("linear_probe", init="FILE")
    with made.unlocked():
        made.objective.encoder.patch_size = 2
    return made


def filled(params):
    """`params` with those that a probe takes from the classifier."""
    config = probe()
    return start.WarmStart(0, "", [], config, classifier(), None).fill(params)


def test_a_probe_of_averaged_tokens_takes_the_norm_behind_the_average():
    head = {"fc": {"kernel": ONES}, "fc_norm": {"scale": ONES}}
    params = {"encoder": {"cls_token": ONES}, "head": head}
    got = filled(params)
    np.testing.assert_array_equal(got["head"]["fc_norm"]["scale"], 3 * ONES)
    np.testing.assert_array_equal(got["head"]["fc"]["kernel"], ONES)
    np.testing.assert_array_equal(got["encoder"]["cls_token"], 2 * ONES)


def test_a_probe_of_the_class_token_is_told_where_the_norm_is():
    norm = {"scale": ONES}
    params = {"encoder": {"cls_token": ONES, "norm": norm}, "head": {}}
    with pytest.raises(
        ValueError, match=r"norm/scale .*(?s:.)*follows the average.*avg$"
    ):
        filled(params)
