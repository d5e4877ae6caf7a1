"""Laws of the encoder: counts, initial values, gathering, intermediates."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax import trees
from litevit_jax.models import layers, vit
from tests import params as parameters

SMALL = {"width": 24, "depth": 2, "num_heads": 3, "patch_size": 4}
KEY = jax.random.key(0)


def image_of(*shape):
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def small():
    """A small encoder, its parameters and images."""
    encoder, image = vit.make_encoder(**SMALL), image_of(2, 16, 16, 3)
    return encoder, parameters.start(encoder, image), image


def shapes_of(encoder):
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    return parameters.shapes_of(encoder, image)


def count(encoder):
    def at(depth):
        return shapes_of(encoder.clone(depth=depth))

    return parameters.size_at(encoder.depth, at)


@pytest.mark.parametrize(
    ("variant", "fixed", "learned"),
    [
        ("tiny", 5_486_592, 5_524_416),
        ("tiny_std", 5_486_592, 5_524_416),
        ("small", 21_590_016, 21_665_664),
        ("base", 85_647_360, 85_798_656),
        ("large", 303_099_904, 303_301_632),
        ("huge", 630_435_840, 630_764_800),
    ],
)
def test_parameter_counts(variant, fixed, learned):
    encoder = vit.make_encoder(variant=variant)
    assert count(encoder) == fixed
    num_tokens = 1 + (224 // encoder.patch_size) ** 2
    assert count(encoder.clone(pos_embed="learned")) == learned
    assert learned - fixed == num_tokens * encoder.width


def test_every_block_has_as_many_parameters_as_the_second():
    encoder = vit.make_encoder(variant="tiny", pos_embed="learned", rpe_style="v2023")
    assert parameters.size(shapes_of(encoder)) == count(encoder)


def test_parameter_paths_are_those_of_timm(small):
    flat = jax.tree_util.tree_leaves_with_path(small[1]["params"]["blocks_1"])
    paths = {"/".join(entry.key for entry in path) for path, _ in flat}
    assert paths == {
        *("norm1/scale", "norm1/bias", "norm2/scale", "norm2/bias"),
        *("attn/qkv/kernel", "attn/qkv/bias", "attn/proj/kernel", "attn/proj/bias"),
        *("mlp/fc1/kernel", "mlp/fc1/bias", "mlp/fc2/kernel", "mlp/fc2/bias"),
    }
    top = {"cls_token", "patch_embed", "blocks_0", "blocks_1", "norm"}
    assert set(small[1]["params"]) == top


def is_uniform(values, bound):
    values = np.asarray(values)
    assert abs(values).max() <= bound
    assert abs(values).max() > 0.98 * bound
    # Of n draws the deviation varies by 0.45 / sqrt(n), the kurtosis by little more.
    rtol = 2 / math.sqrt(values.size)
    np.testing.assert_allclose(values.std(), bound / math.sqrt(3), rtol=rtol)
    # The fourth moment tells a uniform (1.8) from a normal (3) distribution.
    np.testing.assert_allclose((values**4).mean() / values.var() ** 2, 1.8, rtol=rtol)


def is_normal(values, std):
    values = np.asarray(values)
    np.testing.assert_allclose(values.std(), std, rtol=0.15)
    assert abs(values.mean()) < 0.3 * std
    if values.size > 10_000:
        assert abs((values**4).mean() / values.var() ** 2 - 3) < 0.2


def initial(style, **kwargs):
    encoder = vit.make_encoder(variant="tiny", depth=1, init_style=style, **kwargs)
    params = jax.jit(encoder.init)(KEY, jnp.zeros((1, 32, 32, 3)))["params"]
    block = params["blocks_0"]
    for norm in (block["norm1"], block["norm2"], params["norm"]):
        np.testing.assert_array_equal(norm["scale"], 1)
        np.testing.assert_array_equal(norm["bias"], 0)
    for name in ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2"):
        part, name = name.split("/")
        np.testing.assert_array_equal(block[part][name]["bias"], 0)
    return params, block


def test_mae_initial_values():
    params, block = initial("mae")
    assert "pos_embed" not in params  # its positions are fixed
    is_uniform(params["patch_embed"]["kernel"], 0.0790569)
    is_uniform(params["patch_embed"]["bias"], 0.0360844)
    is_uniform(block["attn"]["qkv"]["kernel"], 0.0883883)
    is_uniform(block["attn"]["proj"]["kernel"], 0.125)
    is_uniform(block["mlp"]["fc1"]["kernel"], 0.0790569)
    is_uniform(block["mlp"]["fc2"]["kernel"], 0.0790569)
    is_normal(params["cls_token"], 0.02)


def test_classifier_initial_values():
    params, block = initial("classifier", pos_embed="learned")
    assert params["pos_embed"].shape == (1, 1 + (32 // 16) ** 2, 192)
    is_uniform(params["patch_embed"]["kernel"], 0.0360844)
    is_uniform(params["patch_embed"]["bias"], 0.0360844)
    for kernel in (block["attn"]["qkv"], block["attn"]["proj"]):
        is_normal(kernel["kernel"], 0.02)
    is_normal(block["mlp"]["fc1"]["kernel"], 0.02)
    is_normal(block["mlp"]["fc2"]["kernel"], 0.02)
    is_normal(params["cls_token"], 0.02)
    is_normal(params["pos_embed"], 0.02)


def test_moco_initial_values():
    params, block = initial("moco", pos_embed="sincos_moco")
    is_uniform(params["patch_embed"]["kernel"], 0.0790569)
    np.testing.assert_array_equal(params["patch_embed"]["bias"], 0)
    is_uniform(block["attn"]["qkv"]["kernel"], 0.125)
    is_uniform(block["attn"]["proj"]["kernel"], 0.125)
    is_normal(params["cls_token"], 1e-6)


def test_learned_embedding_may_start_from_the_table():
    encoder = vit.make_encoder(**SMALL, pos_embed="learned_sincos")
    variables = jax.jit(encoder.init)(KEY, np.zeros((1, 16, 16, 3)))
    table = layers.sincos_table((4, 4), 24, "sincos")
    np.testing.assert_array_equal(variables["params"]["pos_embed"][0], table)


def test_gathering_first_equals_the_full_computation(small):
    encoder, variables, image = small
    ids = jnp.array([[3, 0, 9, 14, 7], [1, 2, 15, 8, 5]])
    _, whole = encoder.apply(variables, image)
    _, part = encoder.apply(variables, image, ids)
    for name, first in (("patch_embed", 0), ("block_00/in", 1)):
        expected = layers.take_tokens(whole[name][:, first:], ids)
        np.testing.assert_allclose(part[name][:, first:], expected, atol=1e-6)


def test_tokens_keep_the_order_of_ids(small):
    encoder, variables, image = small
    ids = jnp.stack([jax.random.permutation(jax.random.key(i), 16) for i in (1, 2)])
    whole, _ = encoder.apply(variables, image)
    shuffled, _ = encoder.apply(variables, image, ids)
    np.testing.assert_allclose(shuffled[:, 0], whole[:, 0], atol=1e-5)
    expected = layers.take_tokens(whole[:, 1:], ids)
    np.testing.assert_allclose(shuffled[:, 1:], expected, atol=1e-5)


def test_intermediates_obey_the_equations_of_a_block(small):
    encoder, variables, image = small
    tokens, intermediates = encoder.apply(variables, image)
    block = {
        k.removeprefix("block_01/"): v for k, v in intermediates.items() if "_01/" in k
    }
    logits = np.einsum("bhnd,bhmd->bhnm", block["q"], block["k"]) / math.sqrt(8)
    np.testing.assert_allclose(block["attn_logits"], logits, atol=1e-5)
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(block["attn_probs"], probs, atol=1e-6)
    out = np.einsum("bhnm,bhmd->bnhd", probs, block["v"]).reshape(2, 17, 24)
    proj = variables["params"]["blocks_1"]["attn"]["proj"]
    out = out @ proj["kernel"] + proj["bias"]
    np.testing.assert_allclose(block["attn"], out, atol=1e-5)
    stream = block["in"] + block["attn"] + block["mlp"]
    np.testing.assert_allclose(block["out"], stream, atol=1e-5)
    np.testing.assert_array_equal(intermediates["block_00/out"], block["in"])
    np.testing.assert_array_equal(intermediates["pre_norm"], block["out"])
    params = variables["params"]
    for value, source, norm in (
        (block["norm1"], block["in"], params["blocks_1"]["norm1"]),
        (tokens, block["out"], params["norm"]),
    ):
        mean, var = source.mean(-1, keepdims=True), source.var(-1, keepdims=True)
        normed = (source - mean) / np.sqrt(var + 1e-6)
        normed = normed * norm["scale"] + norm["bias"]
        np.testing.assert_allclose(value, normed, atol=1e-5)


def test_unread_intermediates_cost_nothing(small):
    encoder, variables, image = small

    def cost(read):
        def run(variables, image):
            tokens, intermediates = encoder.apply(variables, image)
            return tokens, {name: intermediates[name] for name in read}

        compiled = jax.jit(run).lower(variables, image).compile()
        memory = compiled.memory_analysis().output_size_in_bytes
        return compiled.cost_analysis()["flops"], memory

    flops, memory = cost([])
    assert memory - 2 * 17 * 24 * 4 < 64  # the tokens and a tuple's pointers
    more_flops, more_memory = cost(["block_01/attn_logits", "block_00/mlp"])
    assert more_memory > memory
    assert more_flops >= flops


def test_without_the_final_norm_there_is_no_such_parameter(small):
    encoder, variables, image = small
    bare = encoder.clone(final_norm=False)
    assert "norm" not in parameters.shapes_of(bare, image)["params"]
    tokens, intermediates = bare.apply(variables, image)
    np.testing.assert_array_equal(tokens, intermediates["pre_norm"])


@pytest.mark.parametrize("channels", [1, 4])
def test_rectangles_of_any_channels(channels):
    encoder, image = vit.make_encoder(**SMALL), image_of(2, 8, 20, channels)
    variables = parameters.start(encoder, image)
    assert variables["params"]["patch_embed"]["kernel"].shape == (16 * channels, 24)
    encode = jax.jit(encoder.apply)
    tokens, intermediates = encode(variables, image)
    assert tokens.shape == (2, 11, 24)
    # The second row of patches moves only with the second row of pixels.
    lower = image + np.float32(np.arange(8) >= 4)[:, None, None]
    moved = encode(variables, lower)[1]["patch_embed"]
    changed = np.abs(moved - intermediates["patch_embed"]).max((0, 2)) > 0
    assert changed.tolist() == [False] * 5 + [True] * 5


def test_bfloat16_is_close_to_float32(small):
    encoder, variables, image = small
    half = encoder.clone(dtype="bfloat16")
    params = parameters.shapes_of(half, image)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    tokens, intermediates = half.apply(variables, image)
    assert tokens.dtype == jnp.bfloat16
    assert intermediates["block_00/attn_logits"].dtype == jnp.float32
    expected, _ = encoder.apply(variables, image)
    np.testing.assert_allclose(tokens.astype(np.float32), expected, atol=0.1)


def test_drop_path_is_off_in_evaluation_and_deepest_at_the_end(small):
    encoder, variables, image = small
    image = jnp.repeat(image, 32, axis=0)
    dropping = encoder.clone(drop_path=0.5)
    keys = jax.random.split(KEY, 64)
    expected, _ = encoder.apply(variables, image)
    tokens, _ = dropping.apply(variables, image, drop_keys=keys)
    np.testing.assert_array_equal(tokens, expected)
    _, intermediates = dropping.apply(variables, image, drop_keys=keys, train=True)
    first, second = intermediates["block_00/out"], intermediates["block_01/out"]
    np.testing.assert_allclose(
        first, first[:1].repeat(32, 0).tolist() + first[32:33].repeat(32, 0).tolist()
    )
    skipped = np.isclose(second, first, atol=1e-7).all((1, 2))  # both branches
    assert 4 < skipped.sum() < 28  # a quarter of 64 is expected


def test_drop_path_of_an_example_does_not_depend_on_the_slice(small):
    encoder, variables, image = small
    dropping, image = encoder.clone(drop_path=0.5), jnp.tile(image, (4, 1, 1, 1))
    keys = jax.random.split(KEY, 8)
    whole, _ = dropping.apply(variables, image, drop_keys=keys, train=True)
    part, _ = dropping.apply(variables, image[3:5], drop_keys=keys[3:5], train=True)
    np.testing.assert_allclose(part, whole[3:5], atol=1e-5)


def test_pooling():
    tokens = jnp.arange(24.0).reshape(2, 4, 3)
    np.testing.assert_array_equal(vit.pool_tokens(tokens, "cls"), tokens[:, 0])
    np.testing.assert_array_equal(
        vit.pool_tokens(tokens, "avg"), tokens[:, 1:].mean(axis=1)
    )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"variant": "tinny"}, r"encoder variant 'tinny' unknown; did you mean tiny"),
        ({"variant": "tiny", "width": 190}, r"width=190 .* multiple of num_heads=12"),
        ({"variant": "tiny", "width": 18, "num_heads": 3}, r"width=18 .* of 4"),
        ({"width": 12, "depth": 1}, r"encoder: num_heads, patch_size not given"),
        ({"variant": "tiny", "pos_embed": "sincs"}, r"pos_embed 'sincs' .* sincos"),
        ({"variant": "tiny", "init_style": "timm"}, r"init_style 'timm' unknown"),
        ({"variant": "tiny", "drop_path": 1.0}, r"drop_path=1.0, expected 0 <="),
    ],
)
def test_errors_say_what_to_do(kwargs, message):
    with pytest.raises(ValueError, match=message):
        vit.make_encoder(**kwargs)


def test_training_with_drop_path_needs_keys(small):
    encoder, variables, image = small
    with pytest.raises(ValueError, match=r"drop_path=0.5 in training needs drop_keys"):
        encoder.clone(drop_path=0.5).apply(variables, image, train=True)


@pytest.mark.parametrize("last_block", ["full", "norm1", "logits", "qkv"])
def test_a_cut_encoder_computes_what_the_whole_one_does(small, last_block):
    encoder, variables, image = small
    tokens, expected = encoder.apply(variables, image)
    for depth in (1, 2):
        cut = encoder.cut(depth, last_block)
        own = jax.eval_shape(cut.init, KEY, image)["params"]
        given = _part(variables["params"], own)
        assert jax.tree.map(jnp.shape, given) == jax.tree.map(jnp.shape, own)
        tokens, intermediates = cut.apply({"params": given}, image)
        for name, value in intermediates.items():
            if name != "pre_norm":
                np.testing.assert_allclose(value, expected[name], atol=1e-5)
        last = f"block_{depth - 1:02d}"
        name = "out" if last_block == "full" else "in"
        np.testing.assert_allclose(tokens, expected[f"{last}/{name}"], atol=1e-5)


def _part(tree, shape):
    if not isinstance(shape, dict):
        return tree
    return {name: _part(tree[name], part) for name, part in shape.items()}


def test_a_cut_encoder_drops_as_it_did():
    encoder = vit.make_encoder(**SMALL | {"depth": 5}, drop_path=0.4)
    assert encoder.cut(3).drop_path == pytest.approx(0.2)
    assert encoder.cut(1).drop_path == 0
    with pytest.raises(ValueError, match=r"cut to 6 blocks, expected 1 to 5"):
        encoder.cut(6)
    with pytest.raises(ValueError, match=r"last_block 'logit' unknown; .* logits"):
        encoder.cut(2, "logit")


def test_hidden_patches_become_the_token_where_they_are(small):
    encoder, variables, image = small
    mask = jnp.arange(32).reshape(2, 16) % 5 == 0
    token = jnp.full((1, 1, 24), 0.5)
    encode = jax.jit(encoder.apply)
    _, plain = encode(variables, image)
    _, hidden = encode(variables, image, hide=(mask, token))
    table = layers.sincos_table((4, 4), 24, "sincos")[None]
    expected = np.where(mask[..., None], token, plain["patch_embed"]) + table[:, 1:]
    np.testing.assert_allclose(hidden["block_00/in"][:, 1:], expected, atol=1e-5)
    _, shown = encode(variables, image, hide=(jnp.zeros_like(mask), token))
    np.testing.assert_array_equal(shown["pre_norm"], plain["pre_norm"])


def test_dense_blocks_compute_what_plain_ones_do_until_they_learn():
    """Tables at 0 and factors of 1: a pre-trained function is unchanged."""
    sizes = {"width": 24, "depth": 2, "num_heads": 2, "patch_size": 4}
    plain = vit.make_encoder(**sizes, pos_embed="learned")
    dense = vit.make_encoder(**sizes, pos_embed="learned", rpe_style="dense")
    image = image_of(2, 16, 16, 3)
    params = parameters.start(plain, image)["params"]
    own = jax.jit(dense.init)(jax.random.key(2), image)["params"]
    merged = trees.flatten(own) | trees.flatten(params)
    fresh = trees.flatten(own).keys() - trees.flatten(params).keys()
    assert len(fresh) == 2 * 3
    got, _ = dense.apply({"params": trees.nest(merged)}, image)
    want, _ = plain.apply({"params": params}, image)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
