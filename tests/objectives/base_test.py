"""The contract of objectives is what the guide says, and is hard to get wrong."""

import inspect
import pathlib
import re
import types

import jax
import numpy as np
import pytest

from litevit_jax import checkpoint, plugins, sharding
from litevit_jax.models import vit
from litevit_jax.objectives import base
from litevit_jax.plan import examples
from litevit_jax.train import build, microbatch
from tests import jobs

GUIDE = (pathlib.Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
SECTION = re.search(r"## To add an objective\n(.*?)\n## ", GUIDE, re.DOTALL)[1]
IMPORTS = """
import dataclasses
import jax
import jax.numpy as jnp
from litevit_jax.models import vit
from litevit_jax.objectives import base
"""


def members(kind):
    """Public members of the contract of one kind, by name."""
    every = vars(base.Objective).items()
    return {k: x for k, x in every if isinstance(x, kind) and not k.startswith("_")}


def table(pattern):
    return re.findall(rf"^\| {pattern} \|", SECTION, re.MULTILINE)


def test_the_guide_lists_every_method_with_its_arguments():
    listed = dict(table(r"`(\w+)\(([\w, ]+)\)`"))
    methods = members(types.FunctionType)
    assert listed.keys() == methods.keys()
    for name, method in methods.items():
        _, *arguments = inspect.signature(method).parameters
        assert listed[name] == ", ".join(arguments), name


def test_the_guide_lists_every_property_with_its_default():
    listed = dict(table(r"`(\w+)` \| `([^`]+)`"))
    properties = members(property)
    assert listed.keys() == properties.keys()
    for name, member in properties.items():
        assert listed[name] == repr(member.fget(None)).replace("'", '"'), name


@pytest.fixture
def contrast(monkeypatch, tmp_path):
    """The objective of the guide, as a plug-in that configs can name 'contrast'."""
    code = re.search(r"```python\n(.*?)```", SECTION, re.DOTALL)[1]
    path = tmp_path / "objectives" / "contrast.py"
    path.parent.mkdir()
    path.write_text(IMPORTS + code)
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path))


def design(devices=8, images=None, classes=None, **fields):
    """The run of 'contrast' on small images; a device could compute two at once."""
    config = jobs.tiny("mocov3_tiny", evals={}, batch_size=32, **fields)
    images = images or examples.Counted(64, 10)
    with config.unlocked():
        encoder = config.objective.encoder
        config.objective = {"name": "contrast", "encoder": encoder, "dtype": "float32"}
        if classes is not None:
            config.objective.classes = classes
        mesh = sharding.make_mesh(devices=jax.devices()[:devices])
        return build.build_step(config, mesh, lambda split: images)


@pytest.fixture
def two_at_once(monkeypatch):
    """A device computes two images of 8x8 at once, unless the objective forbids it."""
    monkeypatch.setattr(microbatch, "VALUES_AT_ONCE", 2 * 8 * 8)


def test_an_objective_as_the_guide_writes_it_is_never_cut(contrast, two_at_once):
    assert design().slices == 1


def test_slices_of_an_objective_as_the_guide_writes_it_are_refused(contrast):
    reason = "the other images of the batch are its negatives"
    with pytest.raises(
        ValueError, match=f"microbatch=2: objective 'contrast'.*{reason}"
    ):
        design(microbatch="2")


def test_an_objective_as_the_guide_writes_it_learns_alike_on_all_meshes(
    contrast, two_at_once
):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (32, 2, 8, 8, 1), dtype=np.uint8)
    batch = {"views": images, "label": np.zeros(32, np.int32)}
    batch["index"] = np.arange(32, dtype=np.int32)
    losses = []
    for devices in (1, 8):
        with jobs.given_starts():
            made = design(devices)
            state, mesh = made.create(jax.random.key(0)), made.state.step.sharding.mesh
        _, metrics = made.step(state, sharding.global_batch(batch, mesh))
        losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] == pytest.approx(np.log(32), abs=1.0)  # of 32, not of 2


def learns(monkeypatch):
    """Lets 'contrast' take values from the run; those that it was made with."""
    module = plugins.load("objectives", "contrast")
    made = {}

    def make(*, encoder, dtype, length=base.TOTAL_STEPS, classes=base.NUM_CLASSES):
        made.update(length=length, classes=classes)
        return module.Contrast(vit.make_encoder(**encoder, dtype=dtype))

    monkeypatch.setattr(module, "make", make)
    return made


def test_what_the_run_knows_reaches_an_objective(contrast, monkeypatch):
    made = learns(monkeypatch)
    design(steps=12)
    assert made == {"length": 12, "classes": 10}


def test_a_value_in_the_config_comes_before_that_of_the_run(contrast, monkeypatch):
    learns(monkeypatch)
    block = {"name": "contrast", "length": 3}
    run = {"total_steps": 12, "num_classes": 10}
    assert base.complete(block, run) == {**block, "classes": 10}


def test_images_of_an_objective_that_tells_classes_apart_need_labels(
    contrast, monkeypatch
):
    learns(monkeypatch)
    with pytest.raises(ValueError, match="objective 'contrast', split 'train' needs l"):
        design(images=examples.Counted(64, 0))
    with pytest.raises(ValueError, match=r"objective.classes=9, but the .* 10 classes"):
        design(classes=9)


def test_the_layers_that_hold_several_products_are_those_of_the_encoders():
    encoder = vit.make_encoder(width=8, depth=1, num_heads=2, patch_size=4)
    image = jax.ShapeDtypeStruct((1, 8, 8, 1), "float32")
    params = jax.eval_shape(encoder.init, jax.random.key(0), image)["params"]
    shapes = {name: x.shape for name, x in checkpoint.flatten(params).items()}
    for layer, count in base.Objective.packed_layers.fget(None).items():
        sizes = [shape[-1] for name, shape in shapes.items() if f"/{layer}/" in name]
        assert sizes == [count * 8] * 2  # kernel and bias


OLD = {
    "accumulates": False,
    "whole_batch": "it has negatives",
    "accumulates of a property": property(lambda self: False),
}


@pytest.mark.parametrize("name", OLD)
def test_an_objective_with_an_old_name_is_refused(name):
    member = {name.split()[0]: OLD[name]}
    with pytest.raises(TypeError, match=rf"Wrong defines {name.split()[0]}, .*_whole_"):
        type("Wrong", (base.Objective,), member)
    mixin = type("Mixin", (), member)
    with pytest.raises(TypeError, match="needs_whole_batch instead"):
        type("Wrong", (mixin, base.Objective), {})


def test_the_old_name_of_taking_pixels_is_refused_by_its_new_one():
    with pytest.raises(
        TypeError, match=r"define takes_pixels instead, whether `image`"
    ):
        type("Wrong", (base.Objective,), {"reads_bytes": True})


def test_an_old_name_as_a_field_is_refused():
    with pytest.raises(TypeError, match="needs_whole_batch instead"):

        class Wrong(base.Objective):
            accumulates: bool


def test_a_property_that_is_written_as_a_method_is_refused():
    with pytest.raises(TypeError, match="num_views is a method, expected a property"):
        type("Wrong", (base.Objective,), {"num_views": lambda self: 2})
    type("Right", (base.Objective,), {"num_views": 2, "needs_whole_batch": True})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("need_whole_batch", "needs_whole_batch"),
        ("needs_whole_batches", "needs_whole_batch"),
        ("num_view", "num_views"),
        ("update_teachers", "update_teacher"),
    ],
)
def test_a_misspelt_name_of_a_member_with_a_default_is_refused(name, meant):
    with pytest.raises(TypeError, match=rf"Wrong defines {name}, .*mean {meant}\?"):
        type("Wrong", (base.Objective,), {name: "negatives"})
    type("Right", (base.Objective,), {f"_{name}": "negatives", "teachers": 2})
