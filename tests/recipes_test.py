"""Recipes by name, and what their source says of each field."""

import pytest

from litevit_jax import recipes


def test_a_recipe_is_had_by_name_and_variant():
    assert recipes.get("mae_tiny").data.source == "tfds"
    assert recipes.get("mae_tiny", "digits,smoke").data.source == "digits"
    assert recipes.get("configs/mae_tiny.py") == recipes.get("mae_tiny")
    with pytest.raises(ValueError, match=r"'mae_tny' unknown; did you mean mae_tiny"):
        recipes.get("mae_tny")
    with pytest.raises(ValueError, match="'digts' unknown; did you mean digits"):
        recipes.get("mae_tiny", "digts")


@pytest.mark.parametrize("package", ["litevit_jax.configs", "configs"])
def test_a_recipe_that_derives_from_another_has_its_comments(package, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        f"from {package} import simmim_tiny\n\n\ndef get_config(arg=None):\n"
        "    config = simmim_tiny.get_config(arg)\n    with config.unlocked():\n"
        "        config.epochs = 3  # quick\n    return config.lock()\n"
    )
    shown = recipes.describe(path, recipes.get("simmim_tiny", "digits"))
    lines = {line.split()[0]: line for line in shown.splitlines()}
    assert lines["epochs"].endswith("# quick")
    assert lines["objective.mask_unit"].endswith("# patches of 16 pixels")
    assert lines["seed"].endswith("# of everything that is random")


def test_a_comment_describes_the_field_not_the_value_of_another_variant():
    shown = recipes.describe(
        recipes.FOLDER / "detect.py", recipes.get("detect", "folder,path=x")
    )
    lines = {line.split()[0]: line.partition("# ")[2] for line in shown.splitlines()}
    assert lines["data.flip"] == "probability of left and right being swapped"
    assert lines["init_load_if_there"] == "taken from `init` where it has them"
    assert lines["data.randaugment.std"] == "of the magnitude"
    # Written as `shared | {...}`.
    assert "windows" in lines["objective.encoder.window"]
