"""Relative position bias: which row of a table a pair of tokens reads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax import trees
from litevit_jax.models import layers, relative, vit
from tests import golden
from tests import params as parameters

KEY = jax.random.key(0)
SMALL = {"width": 24, "depth": 2, "num_heads": 3, "patch_size": 4}


def rows_read(grid):
    """The row of the table that each query and key read `[T, T]`."""
    count = relative.table_rows(grid)
    table = np.arange(count, dtype=np.float32)[:, None]
    found = np.asarray(jax.jit(relative.expand, static_argnums=1)(table, grid))[0]
    np.testing.assert_array_equal(found, relative.index(grid))
    return found.astype(int)


def test_the_published_index_of_14_by_14_patches():
    assert relative.table_rows((14, 14)) == 732
    index = rows_read((14, 14))
    assert index.shape == (197, 197)
    patches = index[1:, 1:]
    checks = {(5, 5): 364, (0, 1): 363, (1, 0): 365, (0, 14): 337, (14, 0): 391}
    checks |= {(195, 0): 728, (0, 195): 0}
    assert {pair: patches[pair] for pair in checks} == checks
    assert (index[0, 1:] == 729).all()
    assert (index[1:, 0] == 730).all()
    assert index[0, 0] == 731
    assert set(patches.ravel()) == set(range(729))


@pytest.mark.parametrize("grid", [(1, 1), (2, 5), (3, 2)])
def test_a_rectangle_reads_by_rows_and_columns_apart(grid):
    index, (rows, cols) = rows_read(grid), grid
    for i in range(rows * cols):
        for j in range(rows * cols):
            down, right = i // cols - j // cols, i % cols - j % cols
            want = (down + rows - 1) * (2 * cols - 1) + right + cols - 1
            assert index[1 + i, 1 + j] == want
    last = relative.table_rows(grid)
    assert index[0, 0] == last - 1
    assert (index[0, 1:] == last - 3).all() and (index[1:, 0] == last - 2).all()


def test_heads_have_columns_and_the_gradient_of_a_lookup():
    grid, index = (2, 3), rows_read((2, 3))
    rng = np.random.default_rng(0)
    table = rng.normal(size=(relative.table_rows(grid), 4)).astype(np.float32)
    weight = rng.normal(size=(4, 7, 7)).astype(np.float32)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(table):
        bias = relative.expand(table, grid)
        return (bias * weight).sum(), bias

    (got, bias), grad = run(table)
    want, wanted = table[index].transpose(2, 0, 1), np.zeros_like(table)
    np.add.at(wanted, index, weight.transpose(1, 2, 0))
    np.testing.assert_allclose(got, (want * weight).sum(), rtol=1e-5)
    np.testing.assert_allclose(grad, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(bias, want)


def encoder_of(style, **kwargs):
    return vit.make_encoder(**SMALL, rpe_style=style, init_style="rpe", **kwargs)


def test_an_unused_table_leaves_the_plain_encoder():
    image = golden.images(2, side=12)[:, :8]
    encoder = encoder_of("fused")
    plain = encoder.clone(rpe_style="none")
    params = parameters.start(plain, image)
    flat = trees.flatten(parameters.shapes_of(encoder, image))
    tables = flat.keys() - trees.flatten(params).keys()
    assert {name.rsplit("/", 1)[1] for name in tables} == {
        "relative_position_bias_table"
    }
    unused = {name: np.zeros(flat[name].shape, np.float32) for name in tables}
    variables = trees.nest(trees.flatten(params) | unused)
    got, _ = jax.jit(encoder.apply)(variables, image)
    want, _ = jax.jit(plain.apply)(params, image)
    np.testing.assert_allclose(got, want, atol=1e-6)


PARAMS = {
    "fused": {"qkv/bias", "relative_position_bias_table"},
    "qv_bias": {"q_bias", "v_bias", "relative_position_bias_table"},
    "v2023": {"q_bias", "v_bias", "relative_position_bias_table"},
}


@pytest.fixture(scope="module", params=PARAMS)
def filled(request):
    """A style, its encoder, and parameters that are nowhere 0."""
    encoder, image = encoder_of(request.param), jnp.zeros((1, 8, 12, 3))
    shapes = jax.eval_shape(encoder.init, KEY, image)["params"]
    params = golden.params_like({"encoder": shapes})["encoder"]
    return request.param, encoder, params


def test_each_style_has_its_parameters(filled):
    style, _, params = filled
    block = params["blocks_1"]
    flat = jax.tree_util.tree_leaves_with_path(block["attn"])
    paths = {"/".join(entry.key for entry in path) for path, _ in flat}
    assert paths == {"qkv/kernel", "proj/kernel", "proj/bias"} | PARAMS[style]
    assert ("gamma_1" in block) == ("gamma_2" in block) == (style == "v2023")


def test_each_style_obeys_its_equations(filled):
    """Written out: bias after scaling, k without a bias, factors of branches."""
    _, encoder, params = filled
    image = golden.images(2, side=12)[:, :8]
    _, found = jax.jit(encoder.apply)({"params": params}, image)
    block = {k[9:]: np.asarray(v) for k, v in found.items() if k[:8] == "block_01"}
    own = params["blocks_1"]
    attn, x = own["attn"], block["norm1"]
    bias = attn["qkv"].get("bias")
    if bias is None:
        bias = np.concatenate([attn["q_bias"], np.zeros(24), attn["v_bias"]])
    qkv = (x @ attn["qkv"]["kernel"] + bias).reshape(2, 7, 3, 3, 8)
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)
    table = attn["relative_position_bias_table"][rows_read((2, 3))]
    logits = (q / 8**0.5) @ k.swapaxes(2, 3) + table.transpose(2, 0, 1)
    np.testing.assert_allclose(block["attn_logits"], logits, atol=1e-5)
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(block["attn_probs"], probs, atol=1e-6)
    out = (probs @ v).transpose(0, 2, 1, 3).reshape(2, 7, 24)
    out = out @ attn["proj"]["kernel"] + attn["proj"]["bias"]
    out = out * own.get("gamma_1", 1)
    np.testing.assert_allclose(block["attn"], out, atol=1e-5)
    hidden = np.asarray(block["norm2"] @ own["mlp"]["fc1"]["kernel"], np.float32)
    hidden = jax.nn.gelu(hidden + own["mlp"]["fc1"]["bias"], approximate=False)
    mlp = hidden @ own["mlp"]["fc2"]["kernel"] + own["mlp"]["fc2"]["bias"]
    np.testing.assert_allclose(block["mlp"], mlp * own.get("gamma_2", 1), atol=1e-5)
    stream = block["in"] + block["attn"] + block["mlp"]
    np.testing.assert_allclose(block["out"], stream, atol=1e-5)


def test_initial_values():
    """Recipes 1.4: branches end smaller the deeper the block; the rest is 0.02."""
    sizes = {"width": 192, "depth": 3, "num_heads": 12, "patch_size": 16}
    encoder = vit.make_encoder(
        **sizes, rpe_style="v2023", init_style="rpe", pos_embed="learned"
    )
    params = jax.jit(encoder.init)(KEY, jnp.zeros((1, 64, 64, 3)))["params"]
    np.testing.assert_array_equal(params["patch_embed"]["bias"], 0)
    for name in ("cls_token", "pos_embed"):
        np.testing.assert_allclose(params[name].std(), 0.02, rtol=0.15)
    np.testing.assert_allclose(params["patch_embed"]["kernel"].std(), 0.02, rtol=0.02)
    for number in range(3):
        block = params[f"blocks_{number}"]
        attn, mlp = block["attn"], block["mlp"]
        ends, others = 0.02 / (2 * (number + 1)) ** 0.5, 0.02
        for layer, std in (
            (attn["proj"], ends),
            (mlp["fc2"], ends),
            (attn["qkv"], others),
            (mlp["fc1"], others),
        ):
            np.testing.assert_allclose(layer["kernel"].std(), std, rtol=0.02)
            assert abs(layer["kernel"].mean()) < 0.02 * std
        zeros = [attn["relative_position_bias_table"], attn["q_bias"], attn["v_bias"]]
        zeros += [layer["bias"] for layer in (attn["proj"], mlp["fc1"], mlp["fc2"])]
        assert not any(np.any(x) for x in zeros)
        for gamma in (block["gamma_1"], block["gamma_2"]):
            np.testing.assert_array_equal(gamma, np.float32(0.1))
        for norm in (block["norm1"], block["norm2"]):
            np.testing.assert_array_equal(norm["scale"], 1)
            np.testing.assert_array_equal(norm["bias"], 0)


def test_queries_that_are_left_out_take_their_bias_with_them():
    block = layers.Block(
        3, 48, "rpe", "float32", fused_bias=False, grid=(2, 2), layer_scale=0.1
    )
    x = np.random.default_rng(1).normal(size=(2, 5, 12)).astype(np.float32)
    shapes = jax.eval_shape(block.init, KEY, x)["params"]
    params = golden.params_like({"encoder": {"blocks_0": shapes}})

    @functools.partial(jax.jit, static_argnums=1)
    def answers(params, first):
        def energy(params):
            out, _ = block.apply({"params": params}, x, first_query=first)
            return (out[:, -2:] ** 2).sum(), out[:, -2:]

        return jax.grad(energy, has_aux=True)(params)

    whole, part = (answers(params["encoder"]["blocks_0"], first) for first in (0, 3))
    np.testing.assert_allclose(part[1], whole[1], atol=1e-5)
    for got, want in zip(*map(jax.tree.leaves, (part[0], whole[0])), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert np.abs(part[0]["attn"]["relative_position_bias_table"]).max() > 0


def test_what_needs_a_whole_plain_block_is_refused():
    encoder, image = encoder_of("fused"), jnp.zeros((1, 8, 8, 3))
    with pytest.raises(ValueError, match=r"rpe_style='fused' needs all patches"):
        jax.eval_shape(encoder.init, KEY, image, jnp.zeros((1, 2), int))
    with pytest.raises(ValueError, match=r"cut to the logits of a block with rpe_st"):
        encoder.cut(1, "logits")
    assert encoder.cut(1, "norm1").depth == 1
    with pytest.raises(ValueError, match=r"rpe_style 'v2022' unknown; did you mean v2"):
        vit.make_encoder(**SMALL, rpe_style="v2022")
