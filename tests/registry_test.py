"""Plug-ins are found by listing folders; a typo lists the choices."""

import importlib
import inspect
import math
import pathlib
from typing import Any

import pytest
from ml_collections import ConfigDict

from litevit_jax import augment, choices, registry
from litevit_jax.models import vit
from litevit_jax.train import optimizer

ROOT = pathlib.Path(__file__).parents[1]
# Variants that add fields, besides those of the recipes alone.
VARIANTS = (None, "digits", "smoke", "data=folder,path=DIR", "grid", "knn=digits",
    "protocol=moco", "plain,distill", "style=v2023", "pets",
    "classification,knn,reconstruction,v2=DIR")  # fmt: skip


def test_every_folder_lists_its_plug_ins():
    assert {"mae", "supervised"} <= set(registry.choices("objectives"))
    sources = {"arrays", "digit_scenes", "digits", "fgvc_aircraft", "folder", "packed"}
    assert sources <= set(registry.choices("data.sources"))
    assert "base" not in registry.choices("data.sources")
    assert "base" not in registry.choices("evaluators")


def test_a_typo_lists_near_matches_and_choices():
    with pytest.raises(ValueError, match=r"objective 'mea' unknown; did you mean mae"):
        registry.make("objectives", "mea")
    with pytest.raises(
        ValueError, match=r"source 'foldr' .* digits, .*folder, packed, .*tar, tfds"
    ):
        registry.make("data.sources", "foldr")


def test_an_unknown_setting_is_named():
    with pytest.raises(ValueError, match=r"evaluator 'knn': .*neighbours"):
        registry.make("evaluators", "knn", context=None, neighbours=3)


def fields(block, prefix=""):
    """('a.b', value, type) of every field."""
    for key in block:
        if isinstance(block[key], ConfigDict):
            yield from fields(block[key], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", block[key], block.get_type(key)


def configs():
    """The config of every recipe and variant."""
    for path in sorted((ROOT / "configs").glob("[!_]*.py")):
        if path.stem == "common":
            continue
        recipe = importlib.import_module(f"litevit_jax.configs.{path.stem}")
        for variant in VARIANTS:
            try:
                yield recipe.get_config(variant)
            except ValueError:  # a recipe without this variant
                assert variant is not None


def test_every_number_of_every_recipe_has_a_bound_and_lies_within_it():
    seen = set()
    for config in configs():
        registry.check_fields(config)
        for name, _, kind in fields(config):
            if kind in (int, float) or (kind is tuple and not registry.is_text(name)):
                assert registry.bound_of(name) is not None, name
                seen.add(name)
    assert {"lr.base", "optimizer.b1", "data.crop_scale", "sweep.epochs"} <= seen


def test_every_field_can_be_overridden_for_it_has_a_type():
    for config in configs():
        assert [name for name, _, kind in fields(config) if kind is type(None)] == []


def test_every_number_that_a_plug_in_takes_has_a_bound():
    makers: dict[str, Any] = {
        f"augment.{name}": augment._maker(path) for name, path in augment.OPS.items()
    }
    makers["objective.encoder"] = vit.make_encoder
    for name in registry.choices("objectives"):
        makers[f"objective({name})"] = importlib.import_module(
            f"litevit_jax.objectives.{name}"
        ).make
    for name in registry.choices("evaluators"):
        makers[f"evals.{name}"] = importlib.import_module(
            f"litevit_jax.evaluators.{name}"
        ).make
    makers |= {f"optimizer({n})": optimizer.maker(n) for n in optimizer.NAMES}
    for place, make in makers.items():
        for name, parameter in inspect.signature(make).parameters.items():
            kind = str(parameter.annotation)
            if kind.startswith(("int", "float", "tuple[int", "tuple[float")):
                field = f"{place.partition('(')[0]}.{name}"
                assert registry.bound_of(field) is not None, f"{place}.{name}"


def outside(bound, kind):
    """Numbers that a field with this bound may not hold."""
    wrong = [math.nan, math.inf, -math.inf] if kind is float else []
    if bound.low > -math.inf:
        wrong.append(kind(bound.low) if bound.above else kind(bound.low - 1))
    if bound.high < math.inf:
        wrong.append(kind(bound.high) if bound.below else kind(bound.high + 1))
    return wrong


def test_every_number_outside_its_bound_is_refused_by_name():
    checked = set()
    for config in configs():
        for name, _, kind in fields(config):
            if name in checked or kind not in (int, float):
                continue
            checked.add(name)
            for wrong in outside(registry.bound_of(name), kind):
                block = {}
                inner = block
                *blocks, key = name.split(".")
                for part in blocks:
                    inner = inner.setdefault(part, {})
                inner[key] = wrong
                with pytest.raises(
                    ValueError, match=rf"^--config\.{name}=.*; expected "
                ):
                    registry.check_fields(block)
    assert len(checked) > 100


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("batch_size", 0, "1 or more"),
        ("batch_size", 2**31, "1 to 2147483647"),
        ("batch_size", 1.5, "an integer, 1 or more"),
        ("lr.base", math.inf, "a finite number, 0 or more"),
        ("data.flip", 1.5, "0 to 1"),
        ("optimizer.b1", 1.0, "0 or more, below 1"),
        ("optimizer.layer_decay", 2.0, "more than 0, at most 1"),
        ("sweep.lr_base", (0.1, math.nan), "a finite number, more than 0"),
        ("augment.normalize.mean", (math.nan,), "a finite number"),
        ("a_field_of_yours", math.nan, "a finite number"),
    ],
)
def test_a_refused_number_says_what_is_expected(name, value, expected):
    *blocks, key = name.split(".")
    config = {key: value}
    for part in reversed(blocks):
        config = {part: config}
    with pytest.raises(ValueError, match="expected") as caught:
        registry.check_fields(config)
    assert str(caught.value) == f"--config.{name}={value}; expected {expected}"


def test_a_formula_in_place_of_numbers_says_how_to_write_them():
    message = (
        r"std=.*expected a finite number, .*write every number out.*std=\"\(0.5, 0."
    )
    with pytest.raises(ValueError, match=message):
        registry.check_fields({"augment": {"normalize": {"std": ("(0.5,)*12",)}}})


def test_a_field_without_a_bound_may_hold_anything_but_nan_and_infinity():
    fields = {"mine": -1e30, "words": ("a",), "flag": True, "none": None}
    registry.check_fields(fields)
    for value in (float("nan"), float("-inf")):
        with pytest.raises(ValueError, match=r"mine=.*expected a finite number"):
            registry.check_fields({**fields, "mine": value})


def test_configs_of_today_have_no_old_name():
    for config in configs():
        plain = config.to_dict()
        assert choices.upgrade(plain) == plain, config.name


def test_an_old_name_in_a_recipe_of_yours_is_refused():
    config = ConfigDict({"view_default": {"channels": 3}})
    with pytest.raises(ValueError, match=r"view_default is called config\.fallback"):
        registry.check_fields(config)
    config = ConfigDict({"data": {"holdout": 0.1}})
    with pytest.raises(ValueError, match=r"data.holdout is called .*data.holdout.test"):
        registry.check_fields(config)
    registry.check_fields(ConfigDict({"accum_steps": 1}))  # it was off
    with pytest.raises(ValueError, match=r"accum_steps is gone: give --config.microba"):
        registry.check_fields(ConfigDict({"accum_steps": 2}))
