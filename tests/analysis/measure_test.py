"""An analysis of real runs: what its numbers may depend on, and what it refuses."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from litevit_jax.analysis import attention, capture, images, measure, models
from litevit_jax.jobs import analyse
from tests import jobs
from tests.analysis.conftest import MAKE_MESH

FIXTURES = pathlib.Path(__file__).parents[1] / "weights" / "fixtures"


def config(named, arg="digits", **overrides):
    few = {"images": 40, "batch_size": 16, "maps__images": 0}
    few |= {"reconstruction__images": 0, "mesh__data": 1}
    return jobs.config("analysis", arg, models=named, **(few | overrides))


@pytest.fixture(scope="module")
def runs(checkpoints, tmp_path_factory):
    """Names of a MAE of two blocks and of a supervised run of one, wider."""
    run = tmp_path_factory.mktemp("runs")
    sizes = {"objective__encoder__width": 32, "objective__encoder__num_heads": 4}
    jobs.saved_run(run / "deit", jobs.tiny("deit_tiny", **sizes))
    return f"mae={checkpoints}/0,deit={run}/deit"


@pytest.fixture(scope="module")
def prepared(runs, tmp_path_factory):
    """The analysis of both, ready."""
    return measure.prepare(config(runs), tmp_path_factory.mktemp("analysis"))


@pytest.fixture(scope="module")
def results(prepared):
    return measure.measure(prepared)


def with_config(prepared, **fields):
    """The same models, images drawn and batched in another way."""
    changed = prepared.config.copy_and_resolve_references()
    changed.update(fields)
    drawn = {name: changed[name] for name in ("images", "order", "seed")}
    source = images.select(changed.data, changed.split, **drawn)
    return dataclasses.replace(prepared, config=changed, source=source)


def pairs(results):
    return {
        (p["rows"], p["columns"]): np.array(p["values"], float)
        for p in results["cka"]["pairs"]
    }


def same(one, other, *, cka=True, tolerance=2e-4):
    for name in one["models"]:
        for kind in ("entropy", "distance"):
            np.testing.assert_allclose(
                one["attention"][name][kind],
                other["attention"][name][kind],
                rtol=tolerance,
            )
        for kind in ("effective_rank", "token_similarity", "spectrum"):
            np.testing.assert_allclose(
                one["features"][name][kind],
                other["features"][name][kind],
                rtol=tolerance,
                atol=1e-5,
            )
    if cka:
        for key, values in pairs(one).items():
            np.testing.assert_allclose(values, pairs(other)[key], atol=1e-3)


def test_all_layers_of_all_models_are_compared(results):
    similar = pairs(results)
    assert {k: v.shape for k, v in similar.items()} == {
        ("mae", "mae"): (3, 3),
        ("mae", "deit"): (3, 2),
        ("deit", "deit"): (2, 2),
    }
    for name in ("mae", "deit"):
        np.testing.assert_allclose(np.diag(similar[name, name]), 1, atol=1e-6)
    assert (similar["mae", "deit"] < 0.999).all()
    assert np.array(results["attention"]["mae"]["entropy"]).shape == (2, 2)
    assert np.array(results["attention"]["deit"]["distance"]).shape == (1, 4)
    assert len(results["features"]["mae"]["effective_rank"]) == 3
    assert np.array(results["features"]["deit"]["spectrum"]).shape == (2, 32)


def test_what_is_left_out_and_what_cannot_be_compared_is_said(results):
    notes = " ".join(results["notes"])
    assert "8 of 40 images did not fill a minibatch of 16" in notes
    assert "different depths (mae 2, deit 1)" in notes
    assert "different head counts" in notes
    assert "different widths (mae 24, deit 32): effective ranks" in notes
    assert "different patches" not in notes and "different crops" not in notes
    assert (results["cka"]["minibatches"], results["cka"]["size"]) == (2, 16)
    assert results["images"] == 40


def test_attention_is_that_of_the_encoder(prepared, results):
    model = prepared.models[0]
    seen = images.first(prepared.config.data, prepared.models, prepared.source, 16)
    pixels = seen["mae"]["image"]
    image = (pixels.astype(np.float32) / 255 - model.view.mean[0]) / model.view.std[0]
    encoded = model.encoder.apply({"params": model.params}, jnp.asarray(image))
    logits = np.asarray(encoded[1]["block_01/attn_logits"], float)[:, :, 1:, 1:]
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    wanted = capture.Wanted(cka=False, features=False)
    looks = capture.passes(model, wanted, prepared.mesh)(pixels)
    want = -(probs * np.log(probs)).sum(-1).mean(-1)
    np.testing.assert_allclose(looks["entropy"][:, 1], want, rtol=1e-4)
    apart = attention.distances((4, 4), 2)
    want = (probs * apart).sum(-1).mean(-1)
    np.testing.assert_allclose(looks["distance"][:, 1], want, rtol=1e-4)
    assert np.array(results["attention"]["mae"]["entropy"]).max() <= np.log(16)


def test_batches_change_nothing_but_the_estimate_of_cka(prepared, results):
    same(results, measure.measure(with_config(prepared, batch_size=20)), cka=False)


def test_order_changes_nothing_where_one_minibatch_has_all(prepared):
    whole = {"images": 400, "batch_size": 359}
    one = measure.measure(with_config(prepared, order="first", **whole))
    other = measure.measure(with_config(prepared, order="random", **whole))
    assert one["fingerprint"] != other["fingerprint"] and one["images"] == 359
    same(one, other)


def test_the_seed_decides_which_images(prepared):
    one, other = (with_config(prepared, seed=seed).source for seed in (0, 1))
    assert one.fingerprint() != other.fingerprint()
    assert one.fingerprint() == with_config(prepared, seed=0).source.fingerprint()


def test_eight_devices_find_the_same(prepared, results):
    mesh = MAKE_MESH(8, 1)
    same(results, measure.measure(dataclasses.replace(prepared, mesh=mesh)))


def test_the_protocol_of_the_paper_has_its_factor(prepared, results):
    wanted = dataclasses.replace(prepared.wanted, compat="paper", cka=False)
    paper = measure.measure(dataclasses.replace(prepared, wanted=wanted))
    np.testing.assert_allclose(
        np.array(paper["attention"]["mae"]["distance"]) / 14,
        np.array(results["attention"]["mae"]["distance"]) / 2,  # patches of 2 pixels
        rtol=1e-4,
    )
    assert paper["attention_compat"] == "paper" and "cka" not in paper


def test_the_command_writes_numbers_pictures_and_a_page(runs, tmp_path):
    settings = config(
        runs,
        images=16,
        maps__images=2,
        maps__queries=("cls", "1/2"),
        maps__layers=(1, -1),
        reconstruction__images=3,
        cka__on=False,
        features__on=False,
    )
    page = analyse.analyse(measure.prepare(settings, tmp_path / "out"))
    results = json.loads((tmp_path / "out" / "analysis.json").read_text())
    layers = [(m["model"], m["layer"], m["query"]) for m in results["maps"]]
    assert layers.count(("deit", 1, "1/2")) == 2  # 1 is its last as well
    assert ("mae", 2, "cls") in layers and ("mae", 1, "cls") in layers
    assert [r["model"] for r in results["patches"]] == ["mae", "deit"]
    assert all(0 < sum(r["share"]) <= 1 for r in results["patches"])
    sheets = ("maps", "patches", "reconstructions")
    for drawn in [one for kind in sheets for one in results[kind]]:
        with Image.open(tmp_path / "out" / drawn["file"]) as picture:
            assert min(picture.size) > 100
    assert [r["model"] for r in results["reconstructions"]] == ["mae"]
    assert len(results["reconstructions"][0]["mae_loss"]) == 3
    text = page.read_text()
    assert "deit: no reconstructions, as its checkpoint has no decoder." in text
    assert text.count("<svg") >= 4 and "Attention maps" in text
    assert "Patch tokens" in text and "deit, after the last block" in text


def test_a_model_at_random_is_the_run_before_training(runs):
    run = runs.split(",")[0].removeprefix("mae=")
    normalize = {"mean": (0.5,), "std": (0.5,)}
    trained = models.read("a", run, normalize=normalize)
    start = models.read("b", f"random:{run}", normalize=normalize)
    shapes = jax.tree.map(np.shape, trained.params)
    assert jax.tree.map(np.shape, start.params) == shapes
    kernel = trained.params["blocks_0"]["attn"]["qkv"]["kernel"]
    assert (start.params["blocks_0"]["attn"]["qkv"]["kernel"] != kernel).any()


@pytest.mark.parametrize("name", ["mae_full.pth", "hf_vitmae/model.safetensors"])
def test_files_of_weights_are_looked_into_and_reconstruct(name, tmp_path):
    fields = {"num_heads": 4, "decoder_num_heads": 2, "cka__on": False}
    fields |= {"features__on": False, "images": 4, "reconstruction__images": 2}
    settings = config(f"file={FIXTURES / name}", rows=(7, 3), **fields)
    prepared = measure.prepare(settings, tmp_path)
    model = prepared.models[0]
    assert (model.encoder.width, model.view.channels) == (16, 3)
    assert (model.last_norm, model.run, model.step) == ("norm", None, 0)
    drawn, made = measure.draw(prepared), prepared.config
    assert len(drawn["reconstructions"][0]["mae_loss"]) == 2
    assert np.isfinite(drawn["reconstructions"][0]["mae_loss"]).all()
    shown = images.first(
        prepared.config.data,
        prepared.models,
        images.picture_source(made.data, made.split, made.rows, prepared.source),
        2,
    )["file"]["image"]
    whole = images.splits.open_split(prepared.config.data, "eval")
    assert shown.shape == (2, *model.view.size, 3) and len(whole) > 7
    assert (shown[0] != shown[1]).any()


REFUSED = {
    "heads": ({"models": f"a={FIXTURES}/timm.pth"}, ValueError, r"config.num_heads=A"),
    "rows": ({"rows": (359,)}, ValueError, r"split 'eval' has images 0 to 358"),
    "nothing": ({"models": None}, ValueError, r"which checkpoints\? Give runs"),
    "twice": ({"models": "a=x,a=y"}, ValueError, r"a stands for x and y"),
    "name": ({"models": "a b=x"}, ValueError, r"'a b=x'; expected NAME=PATH"),
    "no run": ({"models": "a=/no/such"}, FileNotFoundError, r"models=a=/no/such"),
    "few": ({"images": 3}, ValueError, r"cka needs 4 images or more .* gives 3"),
    "batch": ({"batch_size": 2}, ValueError, r"cka needs 4 .* batch_size=2"),
    "none": ({"images": 0}, ValueError, r"images=0; expected 1 or more"),
    "order": ({"order": "frist"}, ValueError, r"did you mean first"),
    "compat": ({"attention__compat": "papr"}, ValueError, r"did you mean paper"),
    "place": ({"features__place": "norm"}, ValueError, r"did you mean norm1"),
    "layer": ({"maps__layers": (3,)}, ValueError, r"mae has layers 1 to 2"),
    "head": ({"maps__heads": (3,)}, ValueError, r"mae has heads 1 to 2"),
    "query": ({"maps__queries": ("9/0",)}, ValueError, r"outside of the 4x4 patches"),
    "word": ({"maps__queries": ("clss",)}, ValueError, r"did you mean cls"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_analysed_is_refused_before_anything_is_written(
    case, runs, tmp_path
):
    fields, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        measure.prepare(config(**({"named": runs} | _named(fields))), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _named(fields):
    return {("named" if k == "models" else k): v for k, v in fields.items()}
