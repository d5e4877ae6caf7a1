"""Necks and heads for segmentation, against mmsegmentation and PyTorch."""

import functools

import jax
import numpy as np
import pytest

from litevit_jax.models import segmentation
from tests import dense_golden as golden

KEY = jax.random.key(0)


def test_the_neck_makes_the_recorded_maps():
    want = golden.group("semfpn")
    params, state = golden.variables()
    maps = [golden.maps(want[f"block{i}"]) for i in range(4)]
    variables = {"params": params["neck"], "batch_stats": state["neck"]}
    neck = functools.partial(segmentation.Neck(4, "float32").apply, train=False)
    got = jax.jit(neck)(variables, maps)
    assert len(got) == 4
    for level, x in enumerate(got):
        golden.close(x, golden.maps(want[f"neck{level}"]))


def test_semantic_fpn_gives_the_recorded_logits():
    want = golden.group("semfpn")
    params, state = golden.variables()
    maps = [golden.maps(want[f"neck{i}"]) for i in range(4)]
    head = segmentation.SemanticFpn(5, 8, 0.1, "float32")
    variables = {"params": params["decode_head"], "batch_stats": state["decode_head"]}
    got = jax.jit(functools.partial(head.apply, train=False))(variables, maps)
    golden.close(got, golden.maps(want["logits"]))


def linear_head():
    """The recorded linear head: module, variables, and its map."""
    values = golden.group("linear")
    params = {
        "norm": {"scale": values["bn_weight"], "bias": values["bn_bias"]},
        "fc": {"kernel": values["w"][:, :, 0, 0].T, "bias": values["b"]},
    }
    stats = {"norm": {"mean": values["bn_mean"], "var": values["bn_var"]}}
    variables = {"params": params, "batch_stats": stats}
    return segmentation.LinearHead(7, 0.1), variables, golden.maps(values["features"])


def test_the_linear_head_gives_the_recorded_logits():
    want, (head, variables, x) = golden.group("linear"), linear_head()
    logits = head.apply(variables, [x], train=False)
    golden.close(logits, golden.maps(want["logits"]))
    large = segmentation.resize(logits, (20, 16))
    golden.close(large, golden.maps(want["upsampled"]))


def test_several_maps_lie_side_by_side_in_the_linear_head():
    head, variables, x = linear_head()
    whole = head.apply(variables, [x], train=False)
    parts = head.apply(variables, [x[..., :5], x[..., 5:]], train=False)
    np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize("size", [(18, 14), (20, 16), (5, 4), (36, 28)])
def test_maps_are_resized_as_pytorch_does(size):
    values = golden.group("resize")
    want = golden.maps(values["bilinear_{}x{}".format(*size)])
    golden.close(segmentation.resize(golden.maps(values["x"]), size), want)


@pytest.mark.parametrize(
    ("head", "depth", "given", "want"),
    [
        ("sem_fpn", 12, (), (4, 6, 8, 12)),
        ("sem_fpn", 4, (), (1, 2, 3, 4)),
        ("sem_fpn", 4, (-1, -1, -1, -1), (4, 4, 4, 4)),
        ("linear_ms", 12, (6, -2), (6, 11)),
        ("sem_fpn", 1, (), (1, 1, 1, 1)),
        ("sem_fpn", 12, (3, 6, 9, 12), (3, 6, 9, 12)),
        ("linear", 12, (), (12,)),
        ("linear", 12, (9,), (9,)),
        ("linear_ms", 12, (), (9, 10, 11, 12)),
        ("linear_ms", 2, (), (1, 2)),
        ("linear_ms", 12, (6, 12), (6, 12)),
        ("linear_each", 5, (), (1, 2, 3, 4, 5)),
    ],
)
def test_blocks_that_a_head_reads(head, depth, given, want):
    assert segmentation.blocks_read(head, depth, given) == want


@pytest.mark.parametrize(
    ("head", "given"),
    [
        ("sem_fpn", (4, 12)),
        ("sem_fpn", (0, 4, 8, 12)),
        ("linear", (13,)),
        ("linear", (1, 2)),
        ("linear_ms", (0,)),
        ("linear_each", (1, 12)),
    ],
)
def test_blocks_that_a_head_cannot_read_are_refused(head, given):
    with pytest.raises(ValueError, match=r"out_blocks=.*from 1 to 12"):
        segmentation.blocks_read(head, 12, given)


def test_heads_of_each_block_share_nothing():
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(2, 3, 3, 5)).astype(np.float32) for _ in "123"]
    each = segmentation.LinearEach(4, 0.0)
    variables = each.init(KEY, maps, train=False)
    out, new = each.apply(variables, maps, train=True, mutable=["batch_stats"])
    assert out.shape == (2, 3, 3, 3, 4)
    for number, x in enumerate(maps):
        own = {part: tree[f"block_{number:02d}"] for part, tree in variables.items()}
        alone, stats = segmentation.LinearHead(4, 0.0).apply(
            own, [x], train=True, mutable=["batch_stats"]
        )
        np.testing.assert_array_equal(out[..., number, :], alone)
        got = new["batch_stats"][f"block_{number:02d}"]["norm"]["var"]
        np.testing.assert_array_equal(got, stats["batch_stats"]["norm"]["var"])


def test_whole_channels_are_dropped_by_example_and_the_rest_is_rescaled():
    x = np.ones((3, 4, 5, 200), np.float32)
    keys = jax.random.split(KEY, 3)
    out = np.asarray(segmentation.drop_channels(x, keys, 0.1))
    assert (out == out[:, :1, :1]).all()
    np.testing.assert_allclose(np.unique(out), [0, 1 / 0.9], rtol=1e-6)
    assert 0.05 < (out == 0).mean() < 0.15
    assert not (out[0] == out[1]).all()
    alone = segmentation.drop_channels(x[1:2], keys[1:2], 0.1)
    np.testing.assert_array_equal(alone[0], out[1])


def initial(module, maps):
    return jax.jit(functools.partial(module.init, train=False))(KEY, maps)["params"]


def test_initial_values_are_pytorchs():
    maps = [np.zeros((1, 8, 8, 192), np.float32)] * 4
    neck = segmentation.Neck(48, "float32")
    params = initial(neck, maps)
    # A transposed convolution's fan is that of its outputs; the others' of the inputs.
    for name, fan in {"up4_first": 192, "up2": 192, "same": 192, "down2": 192}.items():
        for leaf in ("kernel", "bias"):
            bound = 1 / fan**0.5
            assert 0.8 * bound < abs(np.asarray(params[name][leaf])).max() <= bound
    head = segmentation.SemanticFpn(150, 128, 0.1, "float32")
    sizes = (16, 8, 4, 2)
    levels = [np.zeros((1, n, n, 48), np.float32) for n in sizes]
    params = initial(head, levels)
    std = (2 / (128 * 9)) ** 0.5
    for name in ("conv_0_0", "conv_3_2"):
        np.testing.assert_allclose(np.std(params[name]["kernel"]), std, rtol=0.03)
    np.testing.assert_allclose(np.std(params["fc"]["kernel"]), 0.01, rtol=0.03)
    assert not np.asarray(params["fc"]["bias"]).any()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"head": "upernet"}, "head 'upernet' unknown"),
        ({"num_classes": 0}, "num_classes=0.*at least 1"),
        ({"dropout": 1.0}, "dropout=1.0.*below 1|dropout < 1"),
    ],
)
def test_bad_heads_are_refused(changed, message):
    given = {"head": "sem_fpn", "num_classes": 3, "channels": 8, "dropout": 0.1}
    with pytest.raises(ValueError, match=message):
        segmentation.make_head(**given | changed, dtype="float32")


def test_an_odd_number_of_patches_is_refused():
    maps = [np.zeros((1, 7, 8, 16), np.float32)] * 4
    with pytest.raises(ValueError, match=r"sem_fpn halves maps of 7 x 8 patches"):
        jax.eval_shape(
            lambda: segmentation.Neck(4, "float32").init(KEY, maps, train=False)
        )
