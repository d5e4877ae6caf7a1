"""Exports compute what their source computes, and say so only if they do."""

import dataclasses
import functools
import itertools
import json

import jax
import numpy as np
import onnx
import pytest

from litevit_jax import trees, weights
from litevit_jax.models import layers, vit
from litevit_jax.weights import (
    export,
    layouts,
    numpy_vit,
    onnx_graph,
    onnx_images,
    positions,
    safetensors,
)
from litevit_jax.weights import exportable as models
from tests import dense_golden, golden

SIZES = {"width": 24, "depth": 2, "num_heads": 4, "patch_size": 4}
TOLERANCE = 2e-5


def noisy(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: (0.2 * rng.standard_normal(x.shape) + name.endswith("scale")).astype("f4")
        for name, x in trees.flatten(shapes).items()
    }


@functools.cache
def model_of(kind, size=(16, 16)):
    """A small model with random parameters: 'tokens', 'avg' or 'cls'."""
    block = {**SIZES, "pos_embed": "sincos" if kind == "tokens" else "learned"}
    encoder = vit.make_encoder(**block, final_norm=kind != "avg")
    image = jax.ShapeDtypeStruct((1, *size, 3), np.float32)
    shapes = {"encoder": jax.eval_shape(encoder.init, jax.random.key(0), image)}
    shapes = {"encoder": shapes["encoder"]["params"]}
    if kind != "tokens":
        shapes["head"] = {"fc": {"kernel": np.zeros((24, 10)), "bias": np.zeros(10)}}
    if kind == "avg":
        norm = {"scale": np.zeros(24), "bias": np.zeros(24)}
        shapes["head"]["fc_norm"] = norm
    return models.make(noisy(shapes), block, image_size=size)


def decoder_of(width=24):
    arrays = {"decoder/mask_token": (1, 1, 8), "decoder/embed/kernel": (width, 8)}
    return {k: np.full(s, 0.5, np.float32) for k, s in arrays.items()}


@pytest.mark.parametrize("what", ["tokens", "avg", "cls"])
@pytest.mark.parametrize("kind", ["timm", "vitdet", "mmseg", "onnx", "stablehlo"])
def test_a_written_file_computes_what_its_source_does(kind, what):
    model = model_of(what)
    written = export.write(model, kind, decoder={})
    difference = export.compare(model, written.data, kind)
    shapes = {"tokens": (2, 17, 24), "avg": (2, 10), "cls": (2, 10)}
    backbone = kind in ("vitdet", "mmseg")
    assert difference.shape == (shapes["tokens"] if backbone else shapes[what])
    assert difference.scale > 0.5
    assert difference.largest < TOLERANCE


@pytest.mark.parametrize("kind", ["timm", "vitdet", "mmseg"])
def test_a_file_with_one_wrong_array_is_noticed(kind):
    model = model_of("tokens")
    data = export.write(model, kind, decoder={}).data
    arrays, about = safetensors.load(data)
    assert len(arrays) > 25
    rng = np.random.default_rng(0)
    image = models.fixed_images(model, count=1)
    right = np.asarray(jax.jit(model.apply)(image))
    # Noise: a constant added to a bias or to queries can leave the outputs alone.
    for name in [name for name in arrays if ".1." not in name]:
        noise = 1e-2 * rng.standard_normal(arrays[name].shape, "f4")
        wrong = safetensors.write({**arrays, name: arrays[name] + noise}, about)
        got = export.call(model, wrong, kind)(image)
        assert abs(got - right).max() > 10 * TOLERANCE, name


def test_values_for_queries_or_another_number_of_heads_are_noticed():
    model = model_of("tokens")
    data = export.write(model, "timm", decoder={}).data
    arrays, about = safetensors.load(data)
    name = "blocks.1.attn.qkv.weight"
    q, k, v = np.split(arrays[name], 3)
    wrong = {**arrays, name: np.concatenate([v, k, q])}
    for data in (
        safetensors.write(wrong, about),
        safetensors.write(arrays, {**about, "num_heads": "2"}),
    ):
        assert export.compare(model, data, "timm").relative > TOLERANCE


def reference(kind):
    """ViT-Tiny as a classifier with the golden parameters."""
    head = {"fc/kernel": (192, 1000), "fc/bias": (1000,)}
    if kind == "avg":
        head |= {"fc_norm/scale": (192,), "fc_norm/bias": (192,)}
    encoder = vit.make_encoder(variant="tiny", final_norm=kind == "cls")
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), image)["params"]
    tree = {
        "encoder": shapes,
        "head": trees.nest({k: np.zeros(s) for k, s in head.items()}),
    }
    flat = trees.flatten(golden.params_like(tree))
    return models.make(flat, {"variant": "tiny"}, image_size=(224, 224))


def test_timm_arrays_are_those_of_the_reference_and_numpy_gives_its_logits():
    model = reference("avg")
    arrays = layouts.timm(model, {}).arrays
    assert len(arrays) == 152  # recipes 11.2
    for name, value in arrays.items():
        if name == "pos_embed":
            want = layers.sincos_table((14, 14), 192, "sincos")[None]
        else:
            want = golden.fill(name, value.shape)
        np.testing.assert_array_equal(value, want, err_msg=name)
    assert arrays["blocks.0.attn.qkv.weight"].shape == (576, 192)
    assert arrays["patch_embed.proj.weight"].shape == (192, 3, 16, 16)
    logits = numpy_vit.forward(arrays, golden.images(2), num_heads=12, pool="avg")
    golden.assert_close(logits[0, :4], [0.52863, 0.426949, 0.143044, 0.756373])
    golden.assert_close(logits[1, 996:], [-0.1026, 0.577825, 0.345486, 0.140178])
    assert logits.argmax(axis=1).tolist() == [372, 372]


def test_sizes_are_those_of_the_paper():
    model = reference("cls")
    assert model.num_parameters == 5_717_416  # recipes 1.6
    assert round(models.count_macs(model) / 1e9, 3) == 1.254  # recipes 1.7
    macs = {}
    for variant in ("small", "base", "large"):
        encoder = vit.make_encoder(variant=variant)
        macs[variant] = models.count_macs(
            models.Model({}, encoder, (224, 224), 3, None)
        )
    assert {k: round(v / 1e9, 2) for k, v in macs.items()} == {
        "small": 4.60, "base": 17.56, "large": 61.55,
    }  # fmt: skip


BLOCK = """attn.attn.in_proj_bias attn.attn.in_proj_weight attn.attn.out_proj.bias
attn.attn.out_proj.weight ffn.layers.0.0.bias ffn.layers.0.0.weight ffn.layers.1.bias
ffn.layers.1.weight ln1.bias ln1.weight ln2.bias ln2.weight"""


def test_names_of_an_mmsegmentation_backbone():
    layout = layouts.mmseg(model_of("cls"), decoder_of())
    names = {f"layers.{i}.{name}" for i in range(2) for name in BLOCK.split()}
    names |= {"patch_embed.projection.weight", "patch_embed.projection.bias"}
    names |= {"cls_token", "pos_embed", "ln1.weight", "ln1.bias"}
    assert set(layout.arrays) == names
    assert set(layout.left_out) == {
        "head.weight", "head.bias", "mask_token", "decoder_embed.weight",
    }  # fmt: skip


def test_names_of_a_vitdet_backbone():
    model = model_of("avg")
    layout = layouts.vitdet(model, {})
    kept = set(layouts.timm(model, {}).arrays) - {"cls_token"}
    kept = {name for name in kept if not name.startswith(("head", "fc_norm"))}
    assert set(layout.arrays) == {f"backbone.net.{name}" for name in kept}
    assert "backbone.net.blocks.1.mlp.fc2.bias" in layout.arrays
    assert layout.arrays["backbone.net.pos_embed"].shape == (1, 17, 24)  # with cls's
    assert set(layout.left_out) == {
        "cls_token", "head.weight", "head.bias", "fc_norm.weight", "fc_norm.bias",
    }  # fmt: skip


def test_a_mae_file_has_the_decoder_and_its_position_table():
    arrays = layouts.mae(model_of("tokens"), decoder_of()).arrays
    assert arrays["decoder_embed.weight"].shape == (8, 24)
    want = layers.sincos_table((4, 4), 8, "sincos")[None]
    np.testing.assert_array_equal(arrays["decoder_pos_embed"], want)


def test_arrays_lie_aligned_in_the_file_and_the_header_tells_what_shapes_do_not():
    model = model_of("cls", size=(16, 24))
    data = export.write(model, "timm", decoder={}).data
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    about = header.pop("__metadata__")
    assert about["num_heads"] == "4" and about["grid"] == "4x6"
    assert about["writer"] == "litevit_jax" and about["format"] == "pt"
    ends = [entry["data_offsets"] for entry in header.values()]
    assert ends[0][0] == 0 and ends[-1][1] == len(data) - 8 - length
    assert all(one[1] == two[0] for one, two in itertools.pairwise(ends))


def test_onnx_and_stablehlo_take_any_batch():
    model = model_of("avg", size=(16, 24))
    image = models.fixed_images(model, count=3)
    for kind in ("onnx", "stablehlo"):
        call = export.call(model, export.write(model, kind, decoder={}).data, kind)
        three = call(image)
        assert three.shape == (3, 10)
        for i in range(3):
            np.testing.assert_allclose(call(image[i : i + 1])[0], three[i], atol=1e-5)


def test_an_onnx_file_names_its_opset_inputs_and_metadata():
    onnx = pytest.importorskip("onnx")
    data = export.write(model_of("cls"), "onnx", decoder={}).data
    proto = onnx.load_model_from_string(data)
    assert [entry.version for entry in proto.opset_import] == [17]
    shape = proto.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in shape] == ["B", 3, 16, 16]
    assert proto.graph.output[0].name == "logits"
    assert {p.key: p.value for p in proto.metadata_props}["num_heads"] == "4"
    names = {constant.name for constant in proto.graph.initializer}
    assert {"encoder.blocks_1.attn.qkv.kernel", "head.fc.bias", "pos_embed"} < names
    assert not any("/" in name for name in names)


def test_resizing_to_the_same_grid_changes_nothing_and_to_another_keeps_cls():
    model = model_of("cls")
    assert model.resized((16, 16)).pos_table is model.pos_table
    other = model.resized((32, 16))
    assert other.pos_table.shape == (1, 33, 24) and other.grid == (8, 4)
    np.testing.assert_array_equal(other.pos_table[:, 0], model.pos_table[:, 0])
    fixed = model_of("tokens").resized((32, 16))
    want = layers.sincos_table((8, 4), 24, "sincos")[None]
    np.testing.assert_array_equal(fixed.pos_table, want)


def test_without_its_classifier_a_model_gives_what_the_classifier_reads():
    model = model_of("avg")
    part = model.without_classifier()
    assert part.output == "features" and part.num_classes == 0
    image = models.fixed_images(model)
    head = trees.nest(model.params)["head"]["fc"]
    features, want = jax.jit(lambda x: (part.apply(x), model.apply(x)))(image)
    logits = features @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(logits, want, atol=1e-5)
    data = export.write(part, "timm", decoder={}).data
    assert export.compare(part, data, "timm").largest < TOLERANCE
    assert model_of("cls").without_classifier().output == "tokens"


def test_mistakes_are_named():
    model = model_of("tokens")
    wide = model_of("tokens", size=(16, 24))
    with pytest.raises(ValueError, match="format 'tim' unknown; did you mean timm"):
        export.write(model, "tim", decoder={})
    with pytest.raises(ValueError, match="'mae' holds a decoder, and the source has"):
        export.write(model, "mae", decoder={})
    for kind in ("vitdet", "mmseg"):
        with pytest.raises(ValueError, match=r"needs a square grid.*has 4x6; give"):
            export.write(wide, kind, decoder={})


def test_parameters_that_do_not_fit_are_listed():
    params = dict(model_of("tokens").params)
    params["encoder/rel_pos"] = np.zeros(3, np.float32)
    params["head/fc_dist/bias"] = np.zeros(3, np.float32)
    del params["encoder/cls_token"]
    params["encoder/norm/bias"] = np.zeros(5, np.float32)
    with pytest.raises(ValueError) as caught:
        models.make(params, SIZES, image_size=(16, 16))
    text = str(caught.value)
    assert "(4 differences)" in text
    assert "encoder/cls_token [1, 1, 24]: missing" in text
    assert "encoder/rel_pos [3]: has no counterpart elsewhere" in text
    assert "head/fc_dist/bias [3]: has no counterpart elsewhere" in text
    assert "encoder/norm/bias: got [5], expected [24]" in text


def test_a_model_too_large_for_onnx_is_refused_before_it_is_written():
    zeros = np.broadcast_to(np.float32(0), (2**30,))
    huge = models.Model({"x": zeros}, model_of("tokens").encoder, (16, 16), 3, None)
    with pytest.raises(ValueError, match=r"are 4.0 GiB, an ONNX file holds 2 GiB"):
        onnx_graph.write(huge, {})


@pytest.mark.parametrize("kind", ["onnx", "stablehlo"])
def test_a_missing_package_is_named_with_its_extra(kind, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(models.importlib, "import_module", missing)
    with pytest.raises(
        ModuleNotFoundError, match=r"package '(onnx|flatbuffers)'.*\[export\]"
    ):
        export.write(model_of("tokens"), kind, decoder={})


@functools.cache
def dense_model(style="dense"):
    """A small encoder with tables of relative positions and no final norm."""
    block = {**SIZES, "pos_embed": "learned", "rpe_style": style}
    encoder = vit.make_encoder(**block, final_norm=False)
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), image)["params"]
    return models.make(noisy({"encoder": shapes}), block, image_size=(16, 16))


@pytest.mark.parametrize("kind", ["timm", "mmseg", "stablehlo"])
@pytest.mark.parametrize("style", ["dense", "fused", "v2023"])
def test_tables_and_layer_scale_are_written_and_computed(kind, style):
    if kind == "mmseg" and style != "dense":
        with pytest.raises(ValueError, match=f"rpe_style='{style}' are not those of"):
            export.write(dense_model(style), kind, decoder={})
        return
    model = dense_model(style)
    written = export.write(model, kind, decoder={})
    assert export.compare(model, written.data, kind).largest < TOLERANCE
    without = {k: 0 * v if "table" in k else v for k, v in model.params.items()}
    other = dataclasses.replace(model, params=without)
    assert export.compare(other, written.data, kind).largest > 0.01


@pytest.mark.parametrize("kind", ["timm", "mmseg"])
def test_tables_and_layer_scale_come_back_bit_for_bit(kind, tmp_path):
    model, path = dense_model(), tmp_path / "a.safetensors"
    path.write_bytes(export.write(model, kind, decoder={}).data)
    got = weights.read(path)
    assert got.encoder["rpe_style"] == "dense" and got.encoder["num_heads"] == 4
    assert got.params.keys() == model.params.keys()
    for name, value in model.params.items():
        np.testing.assert_array_equal(got.params[name], value, err_msg=name)


def test_the_recorded_backbone_of_mmsegmentation_is_read_and_written_as_it_was(
    tmp_path,
):
    recorded = {
        key.removeprefix("w/"): value
        for key, value in dense_golden.group("semfpn").items()
        if key.startswith("w/")
    }
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors.write(recorded, {}))
    read = weights.read(path)
    assert (read.source, read.encoder["num_heads"], read.grid) == ("mmseg", 2, (4, 4))
    assert "decode_head.conv_seg.weight" in read.unused
    params = trees.flatten(dense_golden.variables()[0]["encoder"])
    assert {f"encoder/{name}" for name in params} == read.params.keys()
    for name, value in params.items():
        np.testing.assert_array_equal(read.params[f"encoder/{name}"], value)
    model = models.make(read.params, read.encoder, image_size=(64, 64))
    arrays = layouts.mmseg(model, {}).arrays
    backbone = {k: v for k, v in recorded.items() if k.startswith("backbone.")}
    assert {f"backbone.{key}" for key in arrays} == backbone.keys()
    for key, value in arrays.items():
        np.testing.assert_array_equal(value, backbone[f"backbone.{key}"], err_msg=key)


@pytest.mark.parametrize("kind", ["vitdet", "onnx"])
def test_formats_without_tables_refuse_them(kind):
    with pytest.raises(ValueError, match=f"'{kind}' has no place for tables"):
        export.write(dense_model(), kind, decoder={})


def test_tables_are_stretched_for_larger_images():
    model = dense_model()
    large = model.resized((24, 32))
    name = "encoder/blocks_1/attn/relative_position_bias_table"
    want = positions.stretch_bias(model.params[name], (4, 4), (6, 8))
    np.testing.assert_array_equal(large.params[name], want)
    assert large.apply(models.fixed_images(large)).shape == (2, 49, 24)
    with pytest.raises(ValueError, match="stretched, not shrunk"):
        model.resized((8, 8))


def test_a_plain_backbone_of_mmsegmentation_comes_back_bit_for_bit(tmp_path):
    model, path = model_of("tokens"), tmp_path / "a.safetensors"
    path.write_bytes(export.write(model, "mmseg", decoder={}).data)
    got = weights.read(path)
    for name, value in model.params.items():
        np.testing.assert_array_equal(got.params[name], value, err_msg=name)


@functools.cache
def prepared_model(crop="0.9"):
    notes = {"mean": "[0.5, 0.4, 0.3]", "std": "[0.2, 0.3, 0.25]", "crop": crop}
    return dataclasses.replace(model_of("avg", (16, 12)), notes=notes)


def test_an_onnx_file_may_take_bytes_of_any_size_as_evaluations_do():
    model = prepared_model()
    data = export.write(model, "onnx", decoder={}, preprocess=True).data
    difference = export.compare(model, data, "onnx", preprocess=True)
    assert difference.shape == (6, 10) and difference.relative < 1e-2
    proto = onnx.load_from_string(data)
    assert proto.opset_import[0].version == 18
    about = {p.key: p.value for p in proto.metadata_props}
    assert about["input"] == "uint8 [B, H, W, C] of any size"
    # Another crop is another function, and is noticed.
    other = export.compare(prepared_model("0.5"), data, "onnx", preprocess=True)
    assert other.relative > 0.05


@pytest.mark.parametrize("what", ["tokens", "avg", "cls"])
def test_an_onnx_file_of_half_precision_is_half_as_large_and_nearly_the_same(what):
    model = model_of(what)
    whole, data = (
        export.write(model, "onnx", decoder={}, half=half).data for half in (0, 1)
    )
    kinds = [x.data_type for x in onnx.load_from_string(data).graph.initializer]
    assert onnx.TensorProto.FLOAT16 in kinds
    weights = 4 * sum(x.size for x in model.params.values() if x.ndim > 1)
    assert len(whole) - len(data) > 0.4 * weights
    difference = export.compare(model, data, "onnx")
    assert TOLERANCE < difference.relative < export.ROUNDED
    with pytest.raises(ValueError, match=r"half=True is of .onnx files, this one has"):
        export.write(model, "timm", decoder={}, half=True)


def test_levels_of_an_onnx_file_are_those_of_an_evaluation():
    model = prepared_model()
    graph = onnx_graph._Graph(onnx, {}, onnx_images.OPSET)
    graph.add("Identity", onnx_images.add(graph, model), output=model.output)
    proto = graph.finish(model, preprocess=True)
    proto.graph.output[0].CopyFrom(
        onnx.helper.make_tensor_value_info(
            model.output, onnx.TensorProto.FLOAT, ["B", 3, 16, 12]
        )
    )
    call = onnx_graph.read(proto.SerializeToString(), preprocess=True)
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.3, 0.25])
    large = np.random.default_rng(1).integers(0, 256, (1, 75, 100, 3), dtype=np.uint8)
    for images in [*onnx_images.examples(model), large]:
        levels = 255 * (call(images).transpose(0, 2, 3, 1) * std + mean)
        away = abs(levels - onnx_images.prepared(model, images))
        assert away.max() < 1.01 and (away > 0.01).mean() < 2e-3


def test_what_has_no_preparation_of_bytes_is_refused():
    model = prepared_model()
    for change, kind, message in (
        ({}, "timm", "preprocess=True is of .onnx files"),
        ({"notes": {"crop": "1"}}, "onnx", "does not say mean, std of its images"),
        ({"notes": model.notes | {"range": "0,9"}}, "onnx", "images have range=0,9"),
    ):
        changed = dataclasses.replace(model, **change)
        with pytest.raises(ValueError, match=message):
            export.write(changed, kind, decoder={}, preprocess=True)
