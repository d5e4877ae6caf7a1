"""What another run takes of a checkpoint, and what is said of the rest."""

import pathlib

import numpy as np
import pytest

from litevit_jax.warm_start import match, read, start
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


@pytest.mark.parametrize("masks", [True, False])
def test_a_detector_of_other_objects_lends_all_but_its_last_layers(masks):
    shapes = {
        "box_head/logits/kernel": ((64, 4), (64, 4)),
        "rpn/conv/kernel": ((3,),) * 2,
    }
    if masks:
        shapes["mask_head/logits/kernel"] = ((64, 3), (64, 3))
    match.check_classes(shapes, [], ["x", "y", "z"])
    match.check_classes(shapes, ["x", "y", "z"], ["x", "y", "z"])
    message = (
        r"tells 3 classes apart \(a, b, c\), this run 3 \(x, y, z\): .*offsets"
        rf"{', mask_head/logits' * masks} do not fit; .*init_load_if_there='\(.*'"
    )
    with pytest.raises(ValueError, match=message) as caught:
        match.check_classes(shapes, ["a", "b", "c"], ["x", "y", "z"])
    assert ('"mask_head/' in str(caught.value)) == masks
    shapes["box_head/logits/kernel"] = ((64, 6), (64, 4))
    with pytest.raises(ValueError, match=r"tells 5 classes apart, this run 3 \(x, y"):
        match.check_classes(shapes, [], ["x", "y", "z"])
