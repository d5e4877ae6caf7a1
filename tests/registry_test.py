"""Plug-ins are found by listing folders; a typo lists the choices."""

import pytest

from litevit_jax import registry


def test_every_folder_lists_its_plug_ins():
    assert {"mae", "supervised"} <= set(registry.choices("objectives"))
    sources = ["arrays", "digits", "fgvc_aircraft", "folder", "packed", "tar", "tfds"]
    assert list(registry.choices("data.sources")) == sources
    assert "base" not in registry.choices("evaluators")


def test_a_typo_lists_near_matches_and_choices():
    with pytest.raises(ValueError, match=r"objective 'mea' unknown; did you mean mae"):
        registry.make("objectives", "mea")
    with pytest.raises(
        ValueError, match=r"source 'foldr' .* digits, .*folder, packed, tar, tfds"
    ):
        registry.make("data.sources", "foldr")


def test_an_unknown_setting_is_named():
    with pytest.raises(ValueError, match=r"evaluator 'knn': .*neighbours"):
        registry.make("evaluators", "knn", context=None, neighbours=3)
