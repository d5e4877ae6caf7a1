"""ViTDet's encoder and pyramid, against detectron2."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from litevit_jax import trees
from litevit_jax.augment import color
from litevit_jax.models import pyramid, vit, vitdet
from litevit_jax.weights import detectron2
from tests import detect_golden as golden

KEY = jax.random.key(0)
SIZES = {"width": 16, "depth": 4, "num_heads": 2, "patch_size": 16}
TINY = {**SIZES, "grid": (6, 6), "pos_grid": (4, 4), "window": 4}
MEAN = np.float32([123.675, 116.28, 103.53])
STD = np.float32([58.395, 57.12, 57.375])


def images():
    """The recorded pictures, normalised and then padded `[B, H, W, C]`."""
    out = np.zeros((2, 96, 96, 3), np.float32)
    for i in range(2):
        picture = golden.group("tiny")[f"image{i}"].transpose(1, 2, 0)
        out[i, : picture.shape[0], : picture.shape[1]] = (picture - MEAN) / STD
    return out


def test_pictures_are_normalised_and_padded_as_recorded():
    batch, sizes = np.zeros((2, 96, 96, 3), np.uint8), []
    for i, out in enumerate(batch):
        picture = golden.group("tiny")[f"image{i}"].transpose(1, 2, 0)
        sizes.append(picture.shape[:2])
        out[: sizes[i][0], : sizes[i][1]] = picture
    mean, std = (tuple(float(c) / 255 for c in x) for x in (MEAN, STD))
    normalize = color.Normalize(mean=mean, std=std)
    got = normalize(None, {"image": batch, "size": np.array(sizes, np.int32)})["image"]
    want = golden.group("tiny")["padded_every_7"].transpose(0, 2, 3, 1)
    golden.close(np.asarray(got)[:, ::7, ::7], want)
    golden.close(images()[:, ::7, ::7], want)


@functools.cache
def params():
    return trees.nest(detectron2.from_detectron2(backbone()))


def backbone():
    weights = golden.weights().items()
    return {key: x for key, x in weights if key.startswith("backbone.")}


@functools.cache
def encoded():
    """Map, intermediates and pyramid of the recorded detector."""
    encoder = vitdet.make_encoder(**TINY, global_blocks=(2, 4))
    neck = pyramid.Pyramid(8, "float32")

    @jax.jit
    def run(params, image):
        x, inside = encoder.apply({"params": params["encoder"]}, image)
        return x, inside, neck.apply({"params": params["neck"]}, x)

    return run(params(), images())


def test_every_block_gives_the_recorded_map():
    values, (x, inside, _) = golden.group("tiny"), encoded()
    golden.close(inside["pos_embed"].reshape(1, 6, 6, 16), values["pos"])
    tokens = inside["patch_embed"].reshape(2, 6, 6, 16)
    golden.close(tokens, values["tokens0"])
    for i in range(4):
        out = inside[f"block_{i:02d}/out"].reshape(2, 6, 6, 16)
        golden.close(out, values[f"block{i}"])
    np.testing.assert_array_equal(x, out)


def test_the_pyramid_gives_the_recorded_maps():
    values, maps = golden.group("tiny"), encoded()[2]
    assert len(maps) == len(pyramid.LEVELS)
    for level, x in zip(pyramid.LEVELS, maps, strict=True):
        golden.close(x, golden.maps(values[f"p{level}"]))


def test_names_of_detectron2_go_in_and_out_bit_for_bit():
    weights = golden.weights()
    flat = detectron2.from_detectron2(weights)
    assert not flat.keys() & weights.keys()
    back = detectron2.to_detectron2(flat, patch_size=16)
    assert back.keys() == weights.keys()
    for key, array in weights.items():
        assert back[key].tobytes() == array.tobytes() and back[key].dtype == "f4"
        assert back[key].shape == array.shape


def test_names_that_no_detector_has_are_listed():
    with pytest.raises(ValueError, match=r"1 names .* backbone\.simfp_7\.0\.weight"):
        detectron2.from_detectron2({"backbone.simfp_7.0.weight": np.zeros(2)})
    with pytest.raises(ValueError, match=r"2 names .*encoder/dist_token, neck/p2/up"):
        wrong = {"encoder/dist_token": np.zeros(1), "neck/p2/up/foo": np.zeros(1)}
        detectron2.to_detectron2(wrong, patch_size=16)


def with_tables(encoder, side=8):
    """Parameters with random tables of relative positions, and images."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 4 * side, 4 * side, 3)).astype(np.float32)
    params = trees.flatten(jax.jit(encoder.init)(KEY, image)["params"])
    for name, x in params.items():
        if "rel_pos" in name:
            assert not np.asarray(x).any()
            params[name] = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    return {"params": trees.nest(params)}, image


SMALL = {"width": 16, "depth": 1, "num_heads": 2, "patch_size": 4}


def test_one_window_of_the_whole_grid_is_global_attention():
    fields = {**SMALL, "grid": (6, 6), "pos_grid": (3, 3), "window": 6}
    encoder = vitdet.make_encoder(**fields)
    variables, image = with_tables(encoder, side=6)
    windows = encoder.clone(global_blocks=())
    a, b = (jax.jit(x.apply)(variables, image)[0] for x in (encoder, windows))
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_windows_are_cut_and_joined():
    x = np.arange(2 * 5 * 7 * 3).reshape(2, 5, 7, 3)
    windows = vitdet.to_windows(jnp.asarray(x), 3)
    assert windows.shape == (2 * 2 * 3, 3, 3, 3)
    np.testing.assert_array_equal(windows[1], x[0, :3, 3:6])
    np.testing.assert_array_equal(windows[-1][:2, :1], x[1, 3:, 6:])
    assert not windows[-1][2:].any() and not windows[-1][:, 1:].any()
    np.testing.assert_array_equal(vitdet.from_windows(windows, (5, 7)), x)


def test_a_pre_trained_encoder_fits_and_without_tables_computes_the_same():
    """On the grid of pre-training, without windows: all but the class token's part."""
    plain = vit.make_encoder(**SMALL, pos_embed="learned_sincos", final_norm=False)
    fields = {"grid": (4, 4), "pos_grid": (4, 4)}
    encoder = vitdet.make_encoder(**SMALL, **fields)
    image = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    shapes = trees.flatten(jax.eval_shape(encoder.init, KEY, image)["params"])
    params = trees.flatten(jax.jit(plain.init)(KEY, image)["params"])
    assert params.keys() - shapes.keys() == {"cls_token"}
    tables = {f"blocks_0/attn/rel_pos_{axis}" for axis in "hw"}
    assert shapes.keys() - params.keys() == tables
    own = {k: params.get(k, np.zeros(x.shape, "f4")) for k, x in shapes.items()}
    assert all(own[name].shape == x.shape for name, x in shapes.items())
    _, inside = jax.jit(plain.apply)({"params": trees.nest(params)}, image)
    x, other = jax.jit(encoder.apply)({"params": trees.nest(own)}, image)
    for name in ("norm1", "in"):
        want = inside[f"block_00/{name}"][:, 1:]
        np.testing.assert_allclose(other[f"block_00/{name}"], want, atol=1e-6)
    assert x.shape == (2, 4, 4, 16)


def test_images_of_another_size_stretch_the_tables_linearly():
    encoder = vitdet.make_encoder(**SMALL, grid=(4, 4), pos_grid=(4, 4))
    variables, image = with_tables(encoder, side=7)
    got, _ = jax.jit(encoder.apply)(variables, image)
    table = trees.flatten(variables)
    for axis in "hw":
        name = f"params/blocks_0/attn/rel_pos_{axis}"
        x = (np.arange(13) + 0.5) * 7 / 13 - 0.5
        known = np.asarray(table[name]).T
        table[name] = np.stack([np.interp(x, np.arange(7), y) for y in known], 1)
    larger = vitdet.make_encoder(**SMALL, grid=(7, 7), pos_grid=(4, 4))
    want, _ = jax.jit(larger.apply)(trees.nest(table), image)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_the_published_encoder_and_pyramid_have_their_numbers_of_parameters():
    encoder = vitdet.make_encoder(variant="tiny", grid=(40, 40))
    assert encoder.global_blocks == (3, 6, 9, 12)
    image = jax.ShapeDtypeStruct((1, 640, 640, 3), jnp.float32)
    shapes = jax.eval_shape(encoder.init, KEY, image)["params"]
    sizes = {name: np.prod(x.shape) for name, x in trees.flatten(shapes).items()}

    def total(text):
        return sum(size for name, size in sizes.items() if text in name)

    assert total("patch_embed") == 147_648 and total("pos_embed") == 37_824
    assert total("blocks_") == 5_355_392 and total("rel_pos") == 17_024
    x = jax.ShapeDtypeStruct((1, 40, 40, 192), jnp.float32)
    neck = pyramid.Pyramid(256, "float32")
    out, shapes = jax.eval_shape(neck.init_with_output, KEY, x)
    assert [x.shape[1] for x in out] == [160, 80, 40, 20, 10]
    sizes = {
        level: sum(np.prod(x.shape) for x in jax.tree.leaves(tree))
        for level, tree in shapes["params"].items()
    }
    assert sizes == {"p2": 695_632, "p3": 689_248, "p4": 640_000, "p5": 640_000}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"global_blocks": (0, 3)}, r"global_blocks=\(0, 3\).*1 to 4"),
        ({"window": 0}, "window=0.*at least 1"),
        ({"drop_path": 1.0}, "drop_path=1.0"),
        ({"width": 18}, "width=18 is not a multiple of 4"),
        ({"num_heads": 5}, "width=16 is not a multiple of num_heads=5"),
        ({"attention": "flash"}, "attention 'flash' unknown"),
    ],
)
def test_bad_settings_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        vitdet.make_encoder(**TINY | changed)
