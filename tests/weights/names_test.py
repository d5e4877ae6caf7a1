"""Names and layouts translate both ways."""

import numpy as np
import pytest

from litevit_jax.models import layers
from litevit_jax.weights import names

PAIRS = {
    "cls_token": "encoder/cls_token",
    "patch_embed.proj.weight": "encoder/patch_embed/kernel",
    "blocks.11.attn.qkv.weight": "encoder/blocks_11/attn/qkv/kernel",
    "decoder_blocks.0.norm2.weight": "decoder/blocks_0/norm2/scale",
    "decoder_pred.bias": "decoder/pred/bias",
    "norm.weight": "encoder/norm/scale",
    "fc_norm.bias": "head/fc_norm/bias",
    "head.weight": "head/fc/kernel",
    "head_dist.weight": "head_dist/fc/kernel",
}


@pytest.mark.parametrize("key", PAIRS)
def test_names_go_there_and_back(key):
    assert names.from_timm(key) == PAIRS[key]
    assert names.to_timm(PAIRS[key]) == key


def test_each_leaf_of_a_block_has_a_name_of_its_own():
    ours = [names.from_timm(f"blocks.3.{leaf}") for leaf in names.BLOCK_KEYS]
    assert len(set(ours)) == 12
    back = [names.to_timm(name) for name in ours]
    assert back == [f"blocks.3.{leaf}" for leaf in names.BLOCK_KEYS]


@pytest.mark.parametrize(
    "key",
    ["blocks.01.norm1.weight", "xblocks.0.norm1.weight", "blocks.0.norm1", "head"],
)
def test_a_name_is_matched_whole(key):
    assert names.from_timm(key) is None


def test_patch_kernel_reads_pixels_as_the_convolution_does():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(5, 3, 4, 4))  # [D, C, P, P]
    image = rng.normal(size=(1, 4, 4, 3))
    kernel = names.array_from_timm("encoder/patch_embed/kernel", weight)
    patch = np.asarray(layers.patchify(image, 4))[0, 0]
    wanted = np.einsum("dcij,ijc->d", weight, image[0])
    np.testing.assert_allclose(patch @ kernel, wanted, rtol=1e-5)
    assert names.shape_from_timm("encoder/patch_embed/kernel", weight.shape) == (48, 5)


@pytest.mark.parametrize("shape", [(5, 3, 4, 4), (5, 1, 2, 2)])
def test_layouts_go_there_and_back(shape):
    tensor = np.random.default_rng(1).normal(size=shape)
    name = "encoder/patch_embed/kernel"
    ours = names.array_from_timm(name, tensor)
    back = names.array_to_timm(name, ours, patch_size=shape[2])
    np.testing.assert_array_equal(back, tensor)


def test_grids_are_parsed_or_refused():
    assert names.parse_grid("14x10") == (14, 10)
    assert names.parse_grid("0x10") is names.parse_grid("14") is None
    assert names.square_grid(196) == (14, 14)
    assert names.square_grid(195) is names.square_grid(0) is None
