"""Files of encoders with relative position bias, under the authors' names."""

import jax
import numpy as np
import pytest

from litevit_jax import trees, weights
from litevit_jax.jobs import train
from litevit_jax.models import relative, vit
from litevit_jax.objectives import supervised
from litevit_jax.weights import exportable as models
from litevit_jax.weights import names, safetensors
from tests import golden, jobs

pytestmark = pytest.mark.usefixtures("shared_designs")

SIZES = {"width": 16, "depth": 2, "num_heads": 4, "patch_size": 2}


def classifier(style):
    """Parameters by our names, none of them 0."""
    encoder = SIZES | {"rpe_style": style, "init_style": "rpe"}
    objective = supervised.make(encoder=encoder, num_classes=10, dtype="float32")
    image = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
    start = jax.eval_shape(objective.init, jax.random.key(0), {"image": image}).params
    shape = start["encoder"].pop("pos_embed").shape
    rng = np.random.default_rng(0)
    noise = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), start)
    noise["encoder"]["pos_embed"] = rng.normal(size=shape).astype(np.float32)
    return trees.flatten(noise)


def arrays_of(params):
    """As PyTorch saves them: under the authors' names, with an index in each block."""
    found = {
        names.to_timm(name): names.array_to_timm(name, value, patch_size=2)
        for name, value in params.items()
    }
    for number in range(2):
        key = f"blocks.{number}.attn.relative_position_index"
        found[key] = relative.index((4, 4))
    return {f"model.{key}": value for key, value in found.items()}


def to_file(path, arrays):
    path.write_bytes(safetensors.write(arrays, {}))
    return str(path)


@pytest.mark.parametrize("style", relative.STYLES)
def test_a_file_tells_its_style_and_heads_and_gives_every_parameter(style, tmp_path):
    params = classifier(style)
    found = weights.read(to_file(tmp_path / "a.safetensors", arrays_of(params)))
    assert (found.encoder["rpe_style"], found.encoder["num_heads"]) == (style, 4)
    assert found.source == "mae_lite_classifier" and not found.unused
    assert found.params.keys() == params.keys()
    for name, value in params.items():
        np.testing.assert_array_equal(found.params[name], value, err_msg=name)
    vit.make_encoder(**found.encoder)  # takes all of it


def test_names_are_the_authors():
    keys = {key.removeprefix("model.") for key in arrays_of(classifier("v2023"))}
    block = {key[9:] for key in keys if key.startswith("blocks.1.")}
    assert block == {
        *(f"norm{n}.{leaf}" for n in "12" for leaf in ("weight", "bias")),
        *("attn.qkv.weight", "attn.proj.weight", "attn.proj.bias"),
        *("attn.q_bias", "attn.v_bias", "gamma_1", "gamma_2"),
        *(f"mlp.fc{n}.{leaf}" for n in "12" for leaf in ("weight", "bias")),
        *("attn.relative_position_bias_table", "attn.relative_position_index"),
    }
    assert golden.torch_key("encoder/blocks_1/attn/q_bias") == "blocks.1.attn.q_bias"


def test_tables_read_in_another_order_or_of_another_grid_are_refused(tmp_path):
    arrays = arrays_of(classifier("fused"))
    key = "model.blocks.1.attn.relative_position_index"
    wrong = arrays | {key: np.ascontiguousarray(arrays[key].T)}
    message = r"blocks.1.attn.relative_position_index is not the order of rows"
    with pytest.raises(weights.WeightsError, match=message):
        weights.read(to_file(tmp_path / "a.safetensors", wrong))
    key = "model.blocks.0.attn.relative_position_bias_table"
    wrong = arrays | {key: arrays[key][1:]}
    with pytest.raises(
        weights.WeightsError, match=r"got shape \[51, 4\], expected \[52"
    ):
        weights.read(to_file(tmp_path / "b.safetensors", wrong))
    with pytest.raises(
        weights.WeightsError, match=r"num_heads=2 given, .* 4 heads \(re"
    ):
        weights.read(to_file(tmp_path / "c.safetensors", arrays), num_heads=2)


def test_other_programs_have_no_place_for_tables():
    """An export is refused: without its tables it were another function."""
    message = r"(?s)not those of a plain .*bias_table \[52, 4\]: has no counterpart"
    with pytest.raises(ValueError, match=message):
        models.make(classifier("fused"), SIZES, image_size=(8, 8))


def test_a_classifier_of_such_a_file_is_fine_tuned_as_it_is(tmp_path):
    params = classifier("v2023")
    path = to_file(tmp_path / "a.safetensors", arrays_of(params))
    job = train.prepare(jobs.config("finetune", "digits", init=path), tmp_path / "run")
    encoder = job.config["objective"]["encoder"]
    assert (encoder["rpe_style"], encoder["num_heads"]) == ("v2023", 4)
    got = trees.flatten(jax.device_get(job.create()).params)
    for name in (n for n in params if n.startswith("encoder/")):
        np.testing.assert_array_equal(got[name], params[name], err_msg=name)
    made = jobs.config("finetune", "digits", init=path, data__image_size=4)
    with pytest.raises(ValueError, match=r"is for 4x4 patches, this run has 2x2"):
        train.prepare(made, tmp_path / "other")
