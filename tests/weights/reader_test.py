"""Weights of each source compute here what they compute in PyTorch.

The files and the recorded outputs are written by `make_fixtures.py`.
"""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from litevit_jax import trees, weights
from litevit_jax.models import layers, mae_decoder, vit
from litevit_jax.weights import infer, names, recognise, safetensors
from litevit_jax.weights.base import Entry

HERE = pathlib.Path(__file__).parent / "fixtures"
SIZES = {"width": 16, "depth": 2, "num_heads": 4, "patch_size": 4}
ATOL = 2e-5  # float32 against PyTorch's float32

with np.load(HERE / "expected.npz") as recorded:
    EXPECTED = dict(recorded)

# file -> arguments of `read`, source, position embedding.
FILES = {
    "mae_encoder.pth": ({"num_heads": 4}, "mae", "sincos"),
    "mae_full.pth": ({"num_heads": 4, "decoder_num_heads": 2}, "mae", "sincos"),
    "mae_lite.pth.tar": (
        {"num_heads": 4, "decoder_num_heads": 2}, "mae_lite", "sincos"),
    "mae_lite_distill.pth.tar": ({"num_heads": 4}, "mae_lite_distill", "sincos"),
    "mae_lite_classifier.pth.tar": (
        {"num_heads": 4}, "mae_lite_classifier", "learned"),
    "mae_lite_two_heads.pth.tar": ({"num_heads": 4}, "mae_lite_classifier", "learned"),
    "moco_v3.pth.tar": ({"num_heads": 4}, "moco_v3", "sincos_moco"),
    "timm.pth": ({"num_heads": 4}, "timm", "learned"),
    "timm_before_1.6.pth": ({"num_heads": 4}, "timm", "learned"),
    "timm_strided.pth": ({"num_heads": 4}, "timm", "learned"),
    "timm.safetensors": ({"num_heads": 4}, "timm", "learned"),
    "deit.pth": ({"num_heads": 4}, "deit", "learned"),
    "hf_vitmae/model.safetensors": ({}, "hf_vitmae", "sincos"),
}  # fmt: skip
TOKENS = {
    "mae_encoder.pth": "mae_tokens",
    "mae_lite.pth.tar": "mae_tokens",
    "mae_lite_distill.pth.tar": "mae_tokens",
    "moco_v3.pth.tar": "moco_tokens",
    "hf_vitmae/model.safetensors": "hf_tokens",
}


def load(name):
    return weights.read(HERE / name, **FILES[name][0])


def encode(found, image=EXPECTED["image"], ids_keep=None):
    """Tokens of an encoder of the file's sizes and parameters."""
    tree = trees.nest(found.params)["encoder"]
    encoder = vit.make_encoder(**found.encoder, final_norm="norm" in tree)
    apply = jax.jit(lambda p, x, ids: encoder.apply({"params": p}, x, ids)[0])
    return apply(tree, image, ids_keep)


@pytest.mark.parametrize("name", FILES)
def test_source_and_sizes_are_told_by_the_file(name):
    found = load(name)
    _, source, pos_embed = FILES[name]
    assert found.source == source
    assert found.encoder == SIZES | {"pos_embed": pos_embed}
    assert ("encoder/pos_embed" in found.params) == (pos_embed == "learned")
    assert all(value.dtype == np.float32 for value in found.params.values())
    assert found.grid == (4, 4)


@pytest.mark.parametrize("name", TOKENS)
def test_encoder_computes_what_it_does_in_pytorch(name):
    tokens = encode(load(name))
    np.testing.assert_allclose(tokens, EXPECTED[TOKENS[name]], rtol=0, atol=ATOL)


CLASSIFIERS = (
    "timm.pth",
    "timm_before_1.6.pth",
    "timm_strided.pth",
    "timm.safetensors",
    "deit.pth",
    "mae_lite_classifier.pth.tar",
)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier_computes_what_it_does_in_pytorch(name):
    found = load(name)
    head = trees.nest(found.params)["head"]
    averaged = "fc_norm" in head
    pooled = vit.pool_tokens(encode(found), "avg" if averaged else "cls")
    if averaged:
        pooled = layers.LayerNorm("float32").apply({"params": head["fc_norm"]}, pooled)
    logits = np.asarray(pooled) @ head["fc"]["kernel"] + head["fc"]["bias"]
    wanted = EXPECTED["avg_logits" if averaged else "cls_logits"]
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=ATOL)


@pytest.mark.parametrize("name", ["mae_full.pth", "hf_vitmae/model.safetensors"])
def test_decoder_computes_what_it_does_in_pytorch(name):
    found = load(name)
    assert found.decoder == {"width": 8, "depth": 1, "num_heads": 2}
    masked = name == "mae_full.pth"
    order = np.tile(np.arange(16), (2, 1))
    ids = EXPECTED["ids_shuffle"] if masked else order
    latent = encode(found, ids_keep=ids[:, :6] if masked else ids)
    if masked:
        np.testing.assert_allclose(latent, EXPECTED["mae_latent"], rtol=0, atol=ATOL)
    decoder = mae_decoder.make_decoder(**found.decoder)
    variables = {"params": trees.nest(found.params)["decoder"]}
    pred = decoder.apply(
        variables, latent, ids, grid=(4, 4), patch_dim=48, all_patches=True
    )
    wanted = EXPECTED["mae_pred" if masked else "hf_pred"]
    np.testing.assert_allclose(pred, wanted, rtol=0, atol=ATOL)


def test_a_decoder_of_unknown_head_count_is_left_out_and_said_so():
    found = weights.read(HERE / "mae_full.pth", num_heads=4)
    assert found.decoder is None
    assert not any(name.startswith("decoder") for name in found.params)
    assert "decoder_num_heads" in found.notes[0]
    assert {"mask_token", "decoder_pred.bias"} <= set(found.unused)


def test_the_same_weights_come_out_of_every_container():
    one = load("timm.safetensors").params
    for name in ("timm.pth", "timm_before_1.6.pth", "timm_strided.pth", "deit.pth"):
        other = load(name).params
        assert other.keys() == one.keys()
        for key in one:
            np.testing.assert_array_equal(other[key], one[key], err_msg=key)


def test_momentum_encoder_is_the_other_branch():
    base = load("moco_v3.pth.tar")
    other = weights.read(
        HERE / "moco_v3.pth.tar", num_heads=4, branch="momentum_encoder"
    )
    key = "encoder/blocks_1/mlp/fc1/kernel"
    np.testing.assert_array_equal(other.params[key], 0.5 * base.params[key])
    assert "predictor.0.weight" in base.unused
    assert "base_encoder.head.0.weight" in base.unused
    assert "momentum_encoder.norm.weight" in base.unused


def test_a_branch_is_for_moco_only():
    with pytest.raises(weights.WeightsError, match=r"branch='ema' unknown; choose"):
        weights.read(HERE / "moco_v3.pth.tar", num_heads=4, branch="ema")
    with pytest.raises(weights.WeightsError, match=r"timm\.pth: branch=.* MoCo v3"):
        weights.read(HERE / "timm.pth", num_heads=4, branch="momentum_encoder")


def test_distillation_leaves_teacher_and_adapter_out():
    unused = load("mae_lite_distill.pth.tar").unused
    assert "attn_adapter.adapter11.weight" in unused
    assert "tch_model.blocks.1.norm2.bias" in unused
    assert load("mae_lite.pth.tar").unused == ()


def test_two_heads_of_a_distilled_classifier_are_read():
    params = load("mae_lite_two_heads.pth.tar").params
    assert params["head_dist/fc/kernel"].shape == (16, 5)
    np.testing.assert_array_equal(params["head_dist/fc_norm/scale"], np.ones(16))


# --- the head count


def test_head_count_must_be_known():
    with pytest.raises(
        weights.WeightsError,
        match=r"timm\.safetensors: the number of heads is not recorded.*give num_heads",
    ):
        weights.read(HERE / "timm.safetensors")
    with pytest.raises(weights.WeightsError, match=r"num_heads=3 does not divide.*16"):
        weights.read(HERE / "timm.safetensors", num_heads=3)


def test_given_head_count_may_not_contradict_the_recorded_one():
    with pytest.raises(
        weights.WeightsError, match=r"num_heads=2 given, but it has 4 heads \(config"
    ):
        weights.read(HERE / "hf_vitmae/model.safetensors", num_heads=2)


def fake(source, width, depth, kind="sincos"):
    """A source of that size whose entries have no values but the table of positions."""

    def never():
        raise AssertionError("read")

    table = layers.sincos_table((2, 2), width, kind)[None]
    entries = {
        "patch_embed.proj.weight": Entry((width, 3, 4, 4), "float32", never),
        "pos_embed": Entry(table.shape, "float32", lambda: table),
    }
    for i in range(depth):
        entries[f"blocks.{i}.norm1.weight"] = Entry((width,), "float32", never)
    return recognise.Source(source, entries)


def measure(source, **kwargs):
    given = {"num_heads": None, "decoder_num_heads": None, "grid": None}
    given |= {"metadata": {}, "config": {}}
    return infer.measure(source, **(given | kwargs))


@pytest.mark.parametrize(
    ("source", "width", "depth", "num_heads"),
    [
        ("mae_lite", 192, 12, 12),
        ("mae_lite_distill", 384, 12, 12),
        ("mae_lite_moco", 384, 12, 6),
        ("moco_v3", 384, 12, 12),
        ("mae", 768, 12, 12),
    ],
)
def test_heads_are_those_of_the_program_that_wrote_the_file(
    source, width, depth, num_heads
):
    made = fake(source, width, depth)
    assert measure(made).encoder["num_heads"] == num_heads
    with pytest.raises(weights.WeightsError, match=f"num_heads=3 .* {num_heads} heads"):
        measure(made, num_heads=3)


def test_no_program_is_known_for_the_heads_of_a_timm_tiny():
    with pytest.raises(weights.WeightsError, match="not recorded"):
        measure(fake("timm", 192, 12))
    with pytest.raises(weights.WeightsError, match="not recorded"):
        measure(fake("mae", 192, 12))


# --- every entry is accounted for


def to_file(path, arrays, metadata=None, dtype="f4"):
    """A safetensors file of float32 arrays."""
    arrays = {name: np.asarray(value, dtype) for name, value in arrays.items()}
    path.write_bytes(safetensors.write(arrays, metadata or {}))
    return path


def timm_arrays(found):
    """The parameters under timm keys, in PyTorch's layout."""
    return {
        names.to_timm(name): names.array_to_timm(name, value, patch_size=4)
        for name, value in found.params.items()
    }


OURS = {"writer": "litevit_jax", "num_heads": "4", "grid": "4x4"}


def test_our_layout_goes_to_timm_and_back_bit_exactly(tmp_path):
    found = load("timm.pth")
    path = to_file(tmp_path / "a.safetensors", timm_arrays(found), OURS)
    again = weights.read(path)
    assert again.source == "litevit_jax"
    assert again.encoder == found.encoder
    assert again.params.keys() == found.params.keys()
    for name in found.params:
        np.testing.assert_array_equal(again.params[name], found.params[name])


CHANGES = {
    "missing": (lambda a: a.pop("blocks.1.mlp.fc2.bias"),
        r"\(1 differences\):\n  blocks\.1\.mlp\.fc2\.bias: missing"),
    "a block": (lambda a: [a.pop(k) for k in list(a) if "blocks.0" in k],
        r"blocks\.0 is missing"),
    "unknown": (lambda a: a.update({"blocks.1.ls1.gamma": np.ones(16)}),
        r"blocks\.1\.ls1\.gamma \[16\]: unused, unknown here"),
    "mis-shaped": (lambda a: a.update({"norm.bias": np.ones(17)}),
        r"norm\.bias: got shape \[17\], expected \[16\]"),
    "rank": (lambda a: a.update({"blocks.1.attn.proj.weight": np.ones((16, 16, 1))}),
        r"blocks\.1\.attn\.proj\.weight: got shape \[16, 16, 1\], expected \[16, 16\]"),
    "transposed": (lambda a: a.update({"blocks.0.mlp.fc2.weight": np.ones((64, 16))}),
        r"fc2\.weight: got shape \[64, 16\], expected \[16, 64\]"),
    "not finite": (lambda a: a["norm.bias"].fill(np.nan), r"norm\.bias is not finite"),
    "dist token": (lambda a: a.update({"dist_token": np.ones((1, 1, 16))}),
        r"dist_token: .*two extra tokens"),
    "rpe": (lambda a: a.update({"blocks.0.attn.relative_position_bias_table":
        np.ones(3)}), r"table: got shape \[3\], expected \[52, heads\] for 4x4"),
    "other rpe": (lambda a: a.update({"blocks.0.attn.rel_pos_h": np.ones((3, 4))}),
        r"relative positions of another kind"),
    "positions": (lambda a: a.update({"pos_embed": np.ones((1, 19, 16))}),
        r"pos_embed has 18 patches, no square; give grid"),
    "no patches": (lambda a: a.pop("patch_embed.proj.weight"),
        r"no patch_embed\.proj\.weight"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_an_entry_that_does_not_fit_is_named(tmp_path, change):
    alter, message = CHANGES[change]
    arrays = timm_arrays(load("timm.pth"))
    alter(arrays)
    path = to_file(tmp_path / "a.safetensors", arrays)
    with pytest.raises(weights.WeightsError, match=rf"(?s)a\.safetensors: .*{message}"):
        weights.read(path, num_heads=4)


def test_differences_pass_only_where_they_are_allowed(tmp_path):
    arrays = timm_arrays(load("timm.pth"))
    del arrays["head.bias"]
    arrays["extra.bias"] = np.ones(3)
    path = to_file(tmp_path / "a.safetensors", arrays)
    allowed = {"allow_unused": (r"extra\..*",), "allow_missing": (r"head\.bias",)}
    found = weights.read(path, num_heads=4, **allowed)
    assert found.unused == ("extra.bias",)
    assert "head/fc/bias" not in found.params
    for name in allowed:
        with pytest.raises(weights.WeightsError, match="1 differences"):
            weights.read(path, num_heads=4, **{name: allowed[name]})


@pytest.mark.parametrize("name", ["timm_half.pth", "timm_bfloat16.safetensors"])
def test_half_precision_is_refused_unless_it_is_allowed(name):
    kind = "bfloat16" if "bf" in name else "float16"
    with pytest.raises(weights.WeightsError, match=f"is {kind}, expected float32"):
        weights.read(HERE / name, num_heads=4)
    found = weights.read(HERE / name, num_heads=4, allow_half=True)
    exact = load("timm.pth").params
    for key, value in found.params.items():
        assert value.dtype == np.float32
        bound = 2.0**-8 if kind == "bfloat16" else 2.0**-11
        np.testing.assert_allclose(value, exact[key], rtol=bound, atol=1e-7)


def test_a_rectangular_grid_is_kept_where_it_is_recorded(tmp_path):
    arrays = timm_arrays(load("timm.pth"))
    table = np.random.default_rng(0).normal(size=(1, 1 + 2 * 7, 16))
    arrays["pos_embed"] = table.astype(np.float32)
    path = to_file(tmp_path / "a.safetensors", arrays, OURS | {"grid": "2x7"})
    found = weights.read(path)
    assert found.grid == found.encoder["grid"] == (2, 7)
    with pytest.raises(weights.WeightsError, match=r"grid=\(7, 2\) given.*\(2, 7\)"):
        weights.read(path, grid=(7, 2))


def test_a_fixed_table_of_positions_is_told_from_a_learned_one(tmp_path):
    arrays = timm_arrays(load("moco_v3.pth.tar"))
    for kind in ("sincos", "sincos_moco"):
        arrays["pos_embed"] = layers.sincos_table((4, 4), 16, kind)[None]
        path = to_file(tmp_path / f"{kind}.safetensors", arrays)
        assert weights.read(path, num_heads=4).encoder["pos_embed"] == kind
    arrays["pos_embed"] = arrays["pos_embed"] + 1e-4
    path = to_file(tmp_path / "b.safetensors", arrays)
    assert weights.read(path, num_heads=4).encoder["pos_embed"] == "learned"


def test_config_beside_a_vitmae_is_checked(tmp_path):
    for file in (HERE / "hf_vitmae").iterdir():
        shutil.copy(file, tmp_path)
    file, model = tmp_path / "config.json", tmp_path / "model.safetensors"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"hidden_act": "relu"}))
    with pytest.raises(weights.WeightsError, match="hidden_act='relu', expected 'gelu"):
        weights.read(model)
    file.write_text(json.dumps(config | {"layer_norm_eps": 1e-12}))
    assert "epsilon was 1e-12, here it is 1e-6" in weights.read(model).notes[0]
    file.unlink()
    with pytest.raises(weights.WeightsError, match="give num_heads"):
        weights.read(model)


# --- what shapes do not tell


def encoder_only(pool):
    """timm keys of a classifier without its last layer, and the pooling of its norm."""
    arrays = timm_arrays(load("timm.pth"))
    kept = {k: v for k, v in arrays.items() if not k.startswith("head.")}
    if pool == "avg":
        for leaf in ("weight", "bias"):
            kept[f"fc_norm.{leaf}"] = kept.pop(f"norm.{leaf}")
    return kept


def notes_of(path, **given):
    found = weights.read(path, num_heads=4, **given)
    return found.pool, " ".join(found.notes)


def test_what_is_assumed_of_a_timm_file_is_said(tmp_path):
    classifier = timm_arrays(load("timm.pth"))
    for arrays, pool in (
        (classifier, "cls"),
        (encoder_only("avg"), "avg"),
        (encoder_only(None), None),
    ):
        path = to_file(tmp_path / "a.safetensors", arrays)
        found, notes = notes_of(path)
        assert found == pool and "assumed" in notes and "act=gelu" in notes
        assert (f"pool={pool}" in notes) == (pool is not None)
    found, notes = notes_of(path, pool="avg", act="gelu", norm="LayerNorm")
    assert (found, notes) == ("avg", "")


def test_what_is_said_is_not_assumed(tmp_path):
    path = to_file(tmp_path / "a.safetensors", timm_arrays(load("timm.pth")))
    for said in ("cls", "token"):
        assert notes_of(path, pool=said, act="gelu", norm="layernorm") == ("cls", "")
    assert notes_of(path, pool="avg")[0] == "avg"
    for wrong, message in (
        ({"pool": "max"}, r"pool='max': expected avg .* or cls"),
        ({"act": "quick_gelu"}, r"act='quick_gelu': the encoders .* compute gelu"),
        ({"norm": "rmsnorm"}, r"norm='rmsnorm': .* compute layernorm \(with epsilon"),
    ):
        with pytest.raises(weights.WeightsError, match=message):
            weights.read(path, num_heads=4, **wrong)


def timm_config(**model_args):
    return {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 5,
        "num_features": 16,
        "global_pool": "token",
        "pretrained_cfg": {"input_size": [3, 16, 16], "mean": [0.5, 0.5, 0.5]},
        "model_args": {"num_heads": 4, **model_args},
    }


@pytest.mark.parametrize("place", ["config.json", "metadata"])
def test_what_timm_recorded_is_read(tmp_path, place):
    arrays = timm_arrays(load("timm.pth"))
    table = np.random.default_rng(0).normal(size=(1, 1 + 2 * 8, 16))
    arrays["pos_embed"] = table.astype(np.float32)

    def written(config):
        beside = tmp_path / "config.json"
        beside.write_text(json.dumps(config if place == "config.json" else {}))
        text = {k: json.dumps(v) if isinstance(v, dict) else str(v)
                for k, v in config.items()}  # fmt: skip
        text = text if place == "metadata" else {"format": "pt"}
        return to_file(tmp_path / "a.safetensors", arrays, text)

    config = timm_config(global_pool="avg", img_size=[8, 32], act_layer="gelu")
    found = weights.read(written(config))
    assert (found.pool, found.grid) == ("avg", (2, 8))
    assert found.encoder["num_heads"] == 4
    assert "act=gelu" not in found.notes[0] and "norm=layernorm" in found.notes[0]
    with pytest.raises(weights.WeightsError, match=rf"pool='cls', but its {place} say"):
        weights.read(tmp_path / "a.safetensors", pool="cls")
    path = written(timm_config(img_size=[8, 32], act_layer="quick_gelu"))
    with pytest.raises(weights.WeightsError, match=r"act='quick_gelu': the encoders"):
        weights.read(path)
    # 16 patches of an image of 16x16 are a square, whatever the name's usual size.
    assert weights.read(written(timm_config())).grid == (4, 4)


@pytest.mark.parametrize("place", ["config.json", "metadata"])
def test_means_and_deviations_that_timm_recorded_are_read(tmp_path, place):
    arrays = timm_arrays(load("timm.pth"))

    def read(**pretrained):
        config = timm_config() | {"pretrained_cfg": pretrained}
        beside = config if place == "config.json" else {}
        (tmp_path / "config.json").write_text(json.dumps(beside))
        text = {"pretrained_cfg": json.dumps(pretrained), "architecture": "vit_x_"}
        text = text if place == "metadata" else {"format": "pt"}
        path = to_file(tmp_path / "a.safetensors", arrays, text)
        return weights.read(path, num_heads=4)

    mean, std = (0.5, 0.25, 0.0), (0.5, 0.1, 1.0)
    found = read(mean=mean, std=std)
    assert found.normalize == {"mean": mean, "std": std}
    assert set(found.metadata) == {"mean", "std"}
    images = {"crop_pct": 0.9, "interpolation": "bilinear", "label_names": list("abcd")}
    said = read(**images)  # names of four of its five classes: of another head
    assert said.metadata == {"crop": "0.9", "interpolation": "bilinear"}
    assert any("by 'bilinear' interpolation, here" in note for note in said.notes)
    assert read(label_names=list("abcde")).classes == list("abcde")
    with pytest.raises(weights.WeightsError, match=r"metadata say crop='1\.5'; exp"):
        read(crop_pct=1.5)
    assert read(mean=[0.5], std=[0.5]).normalize == {}  # of one channel
    assert read(mean=mean).normalize == read().normalize == {}
    for wrong in (
        {"std": [0, 0, 0]},
        {"std": 0},
        {"std": [0.5, -0.5, 0.5]},
        {"std": []},
        {"mean": [float("nan")] * 3},
        {"mean": [0.5, "x", 0.5]},
    ):
        [key] = wrong
        with pytest.raises(weights.WeightsError, match=f"timm's config says {key}="):
            read(**({"mean": mean, "std": std} | wrong))


def test_a_config_of_another_model_is_not_used_and_said_so(tmp_path):
    path = to_file(tmp_path / "a.safetensors", timm_arrays(load("timm.pth")))
    config = timm_config(global_pool="avg") | {"num_features": 192}
    (tmp_path / "config.json").write_text(json.dumps(config))
    pool, notes = notes_of(path)
    assert pool == "cls" and "of another model: its width is 192, not 16" in notes
    (tmp_path / "config.json").write_text('{"architecture"')
    with pytest.raises(
        weights.WeightsError, match=r"config\.json beside it is no JSON"
    ):
        weights.read(path, num_heads=4)


OTHERS = {
    "registers": ({"reg_token": (1, 4, 16)}, (), r"register tokens \(reg_token \[1, 4"),
    "layer scale": (
        {"blocks.0.ls1.gamma": (16,), "blocks.0.ls2.gamma": (16,)}, (),
        r"LayerScale \(blocks\.0\.ls1\.gamma \[16\] and 1 more\)"),
    "no class token": ({"pos_embed": (1, 16, 16)}, ("cls_token",),
        r"no class token \(pos_embed \[1, 16, 16\]\)"),
    "registers and no row": (
        {"reg_token": (1, 4, 16), "pos_embed": (1, 16, 16)}, (), "register tokens"),
    "rotary": ({}, ("pos_embed",), "no pos_embed"),
    "norms": ({"blocks.0.attn.q_norm.weight": (4,)}, (), "normalised queries and keys"),
    "before": ({"norm_pre.weight": (16,)}, (), "a norm before the blocks"),
    "without bias": (
        {}, ("blocks.0.attn.qkv.bias", "blocks.1.attn.qkv.bias"), "without a bias"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_another_kind_of_vision_transformer_is_named_by_its_parts(tmp_path, name):
    added, removed, message = OTHERS[name]
    arrays = timm_arrays(load("timm.pth"))
    arrays |= {key: np.ones(shape) for key, shape in added.items()}
    for key in removed:
        del arrays[key]
    path = to_file(tmp_path / "a.safetensors", arrays)
    with pytest.raises(weights.WeightsError, match=f"of another kind.*has .*{message}"):
        weights.read(path, num_heads=4)
