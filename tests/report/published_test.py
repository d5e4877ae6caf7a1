"""What is published for a recipe, and when a run may be compared with it."""

import json

import pytest

from litevit_jax import recipes
from litevit_jax.report import published, run_record
from litevit_jax.train import eval_runner
from litevit_jax.train import workdir as workdirs
from tests.report import examples

WRITERS = ["jsonl", "tensorboard"], ["jsonl"]  # the recipe's, and those of tests


def test_the_recipe_and_what_departs_from_it_are_found(run):
    config = run_record.read("one", run).config
    assert published.recipe_of(config) == "mae_tiny"
    for name, want in (
        ("mae_tiny_distill_d2-digits", "mae_tiny_distill_d2"),
        ("transfer-pets", "transfer"),
        ("finetune_rpe", "finetune_rpe"),
        ("finetune_rpe-digits", "finetune_rpe"),
        ("transferred", None),
        ("mine", None),
    ):
        assert published.recipe_of({"name": name}) == want
    assert published.differences(config) == [("log.writers", *WRITERS)]
    older = {key: value for key, value in config.items() if key != "watchdog"}
    gone = {"scan": False, "accum_steps": 4}  # fields of earlier versions
    gone |= {"log": config["log"] | {"tensorboard": False}}
    assert published.differences(older | gone | {"remat": None}) == [
        ("log.writers", *WRITERS),
        ("remat", False, None),
    ]


def test_a_published_number_is_compared_only_where_the_recipe_is_the_same(tmp_path):
    place = examples.write_run(tmp_path / "pre")
    row = published.of(run_record.read("pre", place))
    assert row["expected"] == 78.0 and row["reached"] is None
    assert not row["comparable"] and "configs/finetune.py" in row["why"]
    tuned = examples.write_run(
        tmp_path / "tuned", name="finetune", arg="imagenet2012", init=str(place)
    )
    stamp = {"step": 40, "n": 50_000}
    eval_runner.record_result(tuned, "test", {"top1": 77.9} | stamp, "top1", {})
    row = published.of(run_record.read("tuned", tuned))
    assert (row["expected"], row["reached"]) == (78.0, 77.9) and row["comparable"]
    config = json.loads((tuned / "config.json").read_text())
    step = config | {"init": f"{place}/checkpoints/40"}  # a step inside the run
    workdirs.write_json(tuned / "config.json", step)
    assert published.of(run_record.read("tuned", tuned))["expected"] == 78.0
    for field, value, why in (
        ("epochs", 5, "epochs"),
        ("data", config["data"] | {"name": "", "source": "folder"}, "folder"),
    ):
        workdirs.write_json(tuned / "config.json", config | {field: value})
        row = published.of(run_record.read("tuned", tuned))
        assert not row["comparable"] and why in row["why"]


@pytest.mark.parametrize(
    ("first", "want"), [("mae_tiny", 79.0), ("mae_tiny_distill_d2", 79.4), (None, None)]
)
def test_what_a_relative_bias_should_reach_depends_on_the_start(first, want, tmp_path):
    init = None
    if first:
        init = str(examples.write_run(tmp_path / "first", logged=1, name=first))
    tuned = examples.write_run(
        tmp_path / "tuned", logged=1, name="finetune_rpe", init=init
    )
    row = published.of(run_record.read("tuned", tuned))
    assert (row and row["expected"]) == want


@pytest.mark.parametrize(
    ("name", "variant", "data"),
    [("detect", "coco", "COCO"), ("segment", "ade20k", "ADE20K")],
)
def test_dense_recipes_are_compared_with_those_of_their_own_data(name, variant, data):
    config = workdirs.plain(recipes.get(name, variant).to_dict())
    config["data"]["channels"] = 3  # as a run fills it
    assert published.data_of(name) == (variant, data)
    assert not [x for x, *_ in published.differences(config) if x.startswith("data.")]
